"""Why each workflow did or did not take an event, by the matcher that decides about real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from starlette.requests import Request

from appliance.errors import NotFound
from appliance.events import Event
from appliance.http.body import decode_json, header, media_type, read_body
from appliance.http.cloudevents import PLAIN, STRUCTURED, event_of
from appliance.http.operations import Operation, Parameter
from appliance.http.problems import HttpProblem
from appliance.http.query import parameters_of
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Matched, Services
from appliance.store.history import stored_event

_PARAMETERS = (Parameter("workflow", "Only the verdict of the workflow of this name."),)


class Explanations:
    """The endpoints; they start nothing and store nothing."""

    def __init__(self, services: Services) -> None:
        self._catalog = services.catalog
        self._history = services.history
        self._http = services.settings.http

    def operations(self) -> tuple[Operation, ...]:
        """Of a stored event, and of a pasted one."""
        return (
            Operation(
                method="GET",
                path="/api/v1/events/{id}/explain",
                handler=self.explain_stored,
                summary="Why each workflow did or did not take a stored event",
                parameters=_PARAMETERS,
                answer="Explanation",
            ),
            Operation(
                method="POST",
                path="/api/v1/explain",
                handler=self.explain_pasted,
                summary="Why each workflow would or would not take an event",
                parameters=_PARAMETERS,
                body="CloudEvent",
                media_types=(PLAIN, STRUCTURED),
                answer="Explanation",
            ),
        )

    async def explain_stored(self, request: Request) -> Reply:
        """The verdicts, by the workflows as they are now."""
        workflow = parameters_of(request, _PARAMETERS).get("workflow")
        event = stored_event(await self._history.get_event(request.path_params["id"]))
        return self._explain(event, workflow)

    async def explain_pasted(self, request: Request) -> Reply:
        """The verdicts on an event in the body, as ``POST /api/v1/events`` takes it."""
        workflow = parameters_of(request, _PARAMETERS).get("workflow")
        if media_type(header(request.scope, b"content-type")) not in ("", PLAIN, STRUCTURED):
            raise HttpProblem("unsupported-media-type", f"Send {PLAIN} or {STRUCTURED}.")
        body = await read_body(request.scope, request.receive, self._http.max_body_bytes)
        return self._explain(event_of(decode_json(body, self._http.max_depth)), workflow)

    def _explain(self, event: Event, workflow: str | None) -> Reply:
        verdicts = self._catalog.matcher.explain(event.view(), workflow)
        if workflow is not None and not verdicts:
            raise NotFound(f"no workflow {workflow!r} is in force")
        return json_reply({"event": event.view(), "verdicts": [_verdict(verdict) for verdict in verdicts]})


def _verdict(verdict: Matched) -> dict[str, Any]:
    return {
        "workflow": verdict.workflow,
        "matched": verdict.matched,
        "reason": verdict.reason,
        "failure": _failure(verdict.failure),
    }


def _failure(failure: Any) -> Any:
    if failure is None or isinstance(failure, Mapping):
        return failure
    return asdict(failure) if is_dataclass(failure) and not isinstance(failure, type) else str(failure)
