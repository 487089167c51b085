"""What people may do to runs, events and dead letters: the endpoints over the engine's interventions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request

from appliance.events import PRIORITIES
from appliance.http.admission import Admission
from appliance.http.auth import ACTOR
from appliance.http.body import decode_json, header, media_type, read_body
from appliance.http.cloudevents import PLAIN, STRUCTURED, event_of
from appliance.http.idempotency import key_of
from appliance.http.members import Members
from appliance.http.operations import Handler, Operation
from appliance.http.problems import HttpProblem, attribute_problem
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services

_PREFIX = "/api/v1"
_MAX_REPLAYED = 200
"""Events of one request to replay: what one page of events holds."""
_REVISIONS = ("same", "current")
_VERDICTS = ("succeeded", "failed", "retry")


class Interventions:
    """The endpoints. All are POST and answer 202: what was asked for is recorded, and happens a moment later."""

    def __init__(self, services: Services) -> None:
        self._control = services.control
        self._history = services.history
        self._http = services.settings.http
        self._admission = Admission(services.producer, services.settings.ingest)

    def operations(self) -> tuple[Operation, ...]:
        """All of them."""
        control = self._control
        return (
            _post("/runs/{id}/cancel", self.cancel, "Cancel a run that is not over", body="Cancellation"),
            _post("/runs/{id}/pause", _simple(control.pause_run), "Stop a run where it stands"),
            _post("/runs/{id}/resume", _simple(control.resume_run), "Let a paused run go on"),
            _post("/runs/{id}/retry", _simple(control.retry_run), "Try a failed run again from the step that failed"),
            _post("/runs/{id}/rerun", self.rerun, "Run again, from a step or the start, what is over", body="Rerun"),
            _post(
                "/runs/{id}/events",
                self.send_event,
                "Send an event to one run",
                body="CloudEvent",
                answer="EventAnswer",
                media_types=(PLAIN, STRUCTURED),
            ),
            _post(
                "/runs/{id}/steps/{key}/settle",
                self.settle,
                "Say what became of a step whose outcome is unknown",
                body="Settlement",
            ),
            _post("/events/{id}/replay", self.replay, "Begin new runs for a stored event", body="Replay"),
            _post("/events/replay", self.replay_many, "Begin new runs for stored events", body="Replays"),
            _post("/dead-letters/{id}/redrive", _simple(control.redrive), "Put a dead letter back to work"),
            _post("/dead-letters/{id}/discard", _simple(control.discard), "Drop a dead letter for good"),
        )

    async def cancel(self, request: Request) -> Reply:
        """``force``: without undoing what the run did."""
        body = await Members.of(request, self._http, ("force",))
        answer = await self._control.cancel_run(_id(request), ACTOR, force=body.flag("force"))
        return _accepted(request, answer)

    async def rerun(self, request: Request) -> Reply:
        """``from``: the step to begin with; ``revision``: whether to take the run's own or the current one."""
        body = await Members.of(request, self._http, ("from", "revision"))
        current = body.choice("revision", _REVISIONS) == "current"
        answer = await self._control.rerun(_id(request), ACTOR, start=body.text("from"), current=current)
        return _accepted(request, answer)

    async def send_event(self, request: Request) -> Reply:
        """The event, as ``POST /api/v1/events`` takes one."""
        if media_type(header(request.scope, b"content-type")) not in ("", PLAIN, STRUCTURED):
            raise HttpProblem("unsupported-media-type", f"Send {PLAIN} or {STRUCTURED}.")
        raw = await read_body(request.scope, request.receive, self._http.max_body_bytes)
        event = event_of(decode_json(raw, self._http.max_depth), idempotency_key=key_of(request.scope))
        self._admission.check_size(event)
        return json_reply(await self._control.send_event(_id(request), event, ACTOR), 202)

    async def settle(self, request: Request) -> Reply:
        """``as`` succeeded (with an ``output``), failed (with an ``error``), or retry."""
        body = await Members.of(request, self._http, ("as", "output", "error"))
        verdict = body.choice("as", _VERDICTS)
        if verdict is None:
            raise attribute_problem("as", f"missing; expected one of {', '.join(_VERDICTS)}.")
        for name, only in (("output", "succeeded"), ("error", "failed")):
            if name in body and verdict != only:
                raise attribute_problem(name, f"goes with {only} only.")
        key = request.path_params["key"]
        output, error = body.any("output"), body.text("error")
        answer = await self._control.settle_step(_id(request), key, verdict, ACTOR, output=output, error=error)
        return _accepted(request, answer)

    async def replay(self, request: Request) -> Reply:
        """One event, by its uid or its sender's id (the newest, if several senders used it)."""
        body = await Members.of(request, self._http, ("workflow", "priority"))
        event = await self._history.get_event(_id(request))
        (item,) = await self._replay([event["uid"]], body)
        return json_reply({"id": event["id"], **item}, 202)

    async def replay_many(self, request: Request) -> Reply:
        """Events by their uids: all of them, or none."""
        body = await Members.of(request, self._http, ("uids", "workflow", "priority"))
        return json_reply({"items": await self._replay(body.texts("uids", _MAX_REPLAYED), body)}, 202)

    async def _replay(self, uids: list[str], body: Members) -> list[Mapping[str, Any]]:
        workflow, priority = body.text("workflow"), body.choice("priority", PRIORITIES)
        return list(await self._control.replay(uids, ACTOR, workflow=workflow, priority=priority))


def _post(path: str, handler: Handler, summary: str, **more: Any) -> Operation:
    optional = more.get("body") not in (None, "CloudEvent", "Settlement", "Replays")
    return Operation(
        method="POST",
        path=_PREFIX + path,
        handler=handler,
        summary=summary,
        statuses=(202,),
        body_optional=optional,
        **more,
    )


def _simple(act: Callable[[str, str], Awaitable[Any]]) -> Handler:
    """An intervention that needs no body."""

    async def handle(request: Request) -> Reply:
        return _accepted(request, await act(_id(request), ACTOR))

    return handle


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _accepted(request: Request, answer: Any) -> Reply:
    return json_reply({"id": _id(request), **(answer if isinstance(answer, Mapping) else {})}, 202)
