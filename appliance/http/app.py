"""The ASGI application: operations become routes, errors become problems, and the hot paths skip the router."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.http.admission import Admission
from appliance.http.answers import Answers
from appliance.http.api import Api
from appliance.http.auth import Authenticator
from appliance.http.body import Disconnected
from appliance.http.definitions import DefinitionApi
from appliance.http.explanations import Explanations
from appliance.http.exports import Exports
from appliance.http.ingest import Ingest
from appliance.http.interventions import Interventions
from appliance.http.machines import MachineApi
from appliance.http.meters import NO_ROUTE, RouteMeter
from appliance.http.moves import MoveApi
from appliance.http.openapi import document_of
from appliance.http.operations import Handler, Operation
from appliance.http.pages import index_page
from appliance.http.probes import Probes
from appliance.http.problems import HttpProblem, problem_of, problem_of_status
from appliance.http.queues import QueueApi
from appliance.http.recoveries import Recoveries
from appliance.http.reply import Reply, json_reply, problem_reply
from appliance.http.schedules import ScheduleApi
from appliance.http.services import Services
from appliance.http.sources import SourceApi
from appliance.http.starts import Starts
from appliance.http.submit import Submit
from appliance.http.tasks import TaskApi
from appliance.http.traces import Traces
from appliance.observe.metrics import METRICS

log = logging.getLogger(__name__)

DIRECT = ("/submit", "/api/v1/events")
"""Paths whose POST is dispatched before the router: nearly all requests are these."""


class Application:
    """The whole HTTP interface, an ASGI application; ``operations`` is what it consists of."""

    def __init__(self, services: Services) -> None:
        authenticator = Authenticator(services.api_key)
        self.operations = (*_operations(services), *self._own())
        handlers = {op: _answering(op, _authorized(op, authenticator)) for op in self.operations}
        self._direct = {op.path: handlers[op] for op in self.operations if op.method == "POST" and op.path in DIRECT}
        self._document = document_of(self.operations)
        errors: dict[Any, Any] = {HTTPException: _framework_error}
        routed = Starlette(routes=_routes(handlers), exception_handlers=errors)
        routed.router.redirect_slashes = False  # the redirect would name whatever host the request claims
        self._routed: ASGIApp = routed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = self._direct.get(scope["path"])
            if handler is not None:
                await (await handler(Request(scope, receive)))(scope, receive, send)
                return
        await self._routed(scope, receive, send)

    def _own(self) -> tuple[Operation, ...]:
        return (
            Operation(
                method="GET",
                path="/",
                handler=self.index,
                summary="A page with a sample form",
                open=True,
                answer="Text",
                answer_type="text/html",
            ),
            Operation(
                method="GET",
                path="/api/v1/openapi.json",
                handler=self.openapi,
                summary="This document",
                open=True,
            ),
        )

    async def index(self, request: Request) -> Reply:
        """The page for people who open the address in a browser."""
        return index_page()

    async def openapi(self, request: Request) -> Reply:
        """The OpenAPI document, made from the operations."""
        return json_reply(self._document)


def create_app(services: Services) -> Application:
    """The application over ``services``."""
    return Application(services)


def _operations(services: Services) -> tuple[Operation, ...]:
    http = services.settings.http
    admission = Admission(services.producer, services.settings.ingest)
    return (
        *Submit(admission, http).operations(),
        *Ingest(admission, http).operations(),
        *Explanations(services).operations(),
        *Traces(services).operations(),
        *Exports(services).operations(),
        *QueueApi(services).operations(),
        *DefinitionApi(services).operations(),
        *Api(services).operations(),
        *Recoveries(services).operations(),
        *ScheduleApi(services).operations(),
        *SourceApi(services).operations(),
        *Interventions(services).operations(),
        *MoveApi(services).operations(),
        *Starts(services, admission).operations(),
        *MachineApi(services).operations(),
        *TaskApi(services).operations(),
        *Answers(services).operations(),
        *Probes(services.health, services.metrics).operations(),
    )


def _authorized(operation: Operation, authenticator: Authenticator) -> Handler:
    if operation.open:
        return operation.handler
    handler = operation.handler

    async def handle(request: Request) -> Reply:
        authenticator.require(request.scope["headers"])
        return await handler(request)

    return handle


def _answering(operation: Operation, handler: Handler) -> Handler:
    """The handler, timed, with its errors made answers."""
    meter = RouteMeter(operation.method, operation.path)

    async def handle(request: Request) -> Reply:
        started = time.perf_counter()
        try:
            reply = await handler(request)
        except Disconnected:
            return _NOBODY
        except Exception as error:
            reply = _refusal(request, error)
        meter.answered(reply.status, time.perf_counter() - started)
        return reply

    return handle


def _refusal(request: Request, error: Exception) -> Reply:
    """The problem that an error is. An unexpected one is logged, and tells the client nothing."""
    if isinstance(error, ApplianceError) and (problem := problem_of(error)).code != "internal":
        return problem_reply(problem)
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem_reply(HttpProblem("internal", "The request failed; the log says why."))


_NOBODY = Reply(400, b"", ())
"""What is sent to a client that has gone away."""


def _routes(handlers: Mapping[Operation, Handler]) -> Sequence[Route]:
    """One route per path, so that a wrong method is told apart from a wrong path."""
    by_path: dict[str, dict[str, Handler]] = {}
    for operation, handler in handlers.items():
        by_path.setdefault(operation.path, {})[operation.method] = handler
    return [Route(_pattern(path), _by_method(methods), methods=list(methods)) for path, methods in by_path.items()]


def _pattern(path: str) -> str:
    """Names that others choose (a sender's ids, workflows, business keys) may contain slashes."""
    return re.sub(r"/(events|workflows|machines/{workflow})/{(\w+)}", r"/\1/{\2:path}", path)


def _by_method(methods: Mapping[str, Handler]) -> Handler:
    async def handle(request: Request) -> Reply:
        return await methods["GET" if request.method == "HEAD" else request.method](request)

    return handle


async def _framework_error(request: Request, error: Exception) -> Reply:
    """404 and 405 of the router, as problems."""
    assert isinstance(error, HTTPException)  # noqa: S101  # what it is registered for
    detail = {404: "There is nothing at this path.", 405: f"{request.method} does not work here."}
    text = detail.get(error.status_code, error.detail)
    METRICS.http_requests.labels(NO_ROUTE, _known_method(request.method), str(error.status_code)).inc()
    return problem_reply(problem_of_status(error.status_code, text, error.headers or {}))


def _known_method(method: str) -> str:
    """A label takes few values, and the method is whatever a stranger sends."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
