"""``POST /api/v1/events``: CloudEvents, one or a batch, into the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from appliance.errors import Unavailable
from appliance.events import PRIORITIES, Event
from appliance.http.admission import Admission
from appliance.http.body import read_body
from appliance.http.cloudevents import BATCH, PLAIN, STRUCTURED, decode_events
from appliance.http.meters import counting_refusals
from appliance.http.operations import Operation, Parameter
from appliance.http.problems import HttpProblem, problem_of
from appliance.http.query import parameters_of
from appliance.http.reply import Reply, json_reply
from appliance.http.services import AcceptedEvent
from appliance.settings import HttpSettings

_PARAMETERS = (Parameter("priority", "The stream to put it into.", PRIORITIES),)


class Ingest:
    """The endpoint."""

    def __init__(self, admission: Admission, settings: HttpSettings) -> None:
        self._admission = admission
        self._settings = settings

    def operations(self) -> tuple[Operation, ...]:
        """Its one operation."""
        return (
            Operation(
                method="POST",
                path="/api/v1/events",
                handler=self.post_events,
                summary="Take in one CloudEvent, or a batch",
                parameters=_PARAMETERS,
                body="CloudEvents",
                media_types=(STRUCTURED, BATCH, PLAIN),
                answer="EventAnswer",
                statuses=(202, 200),
            ),
        )

    async def post_events(self, request: Request) -> Reply:
        """202 with the ids once all events are in the stream; 200 when all of them were duplicates."""
        priority = parameters_of(request, _PARAMETERS).get("priority", "normal")
        with counting_refusals():
            return await self._take_in(request, priority)

    async def _take_in(self, request: Request, priority: str) -> Reply:
        body = await read_body(request.scope, request.receive, self._settings.max_body_bytes)
        decoded = decode_events(request.scope, body, self._settings)
        if decoded.batch:
            for event in decoded.events:
                self._admission.check_size(event)
        self._admission.reserve(len(decoded.events))
        if decoded.batch:
            return await self._submit_batch(decoded.events, priority)
        accepted = await self._admission.submit(decoded.events[0], priority)
        return json_reply(_item(accepted), 200 if accepted.duplicate else 202)

    async def _submit_batch(self, events: Sequence[Event], priority: str) -> Reply:
        submitted = [self._admission.submit(event, priority) for event in events]
        outcomes = await asyncio.gather(*submitted, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Unavailable):
                raise outcome
        failures = [outcome for outcome in outcomes if isinstance(outcome, Unavailable)]
        items = [_outcome_item(event, outcome) for event, outcome in zip(events, outcomes, strict=True)]
        if failures:
            raise _batch_problem(failures, items)
        return json_reply({"items": items}, 200 if all(item["status"] == "duplicate" for item in items) else 202)


def _item(accepted: AcceptedEvent) -> dict[str, Any]:
    status = "duplicate" if accepted.duplicate else "accepted"
    return {"id": accepted.event_id, "uid": accepted.uid, "status": status}


def _outcome_item(event: Event, outcome: AcceptedEvent | BaseException) -> dict[str, Any]:
    if isinstance(outcome, BaseException):
        return {"id": event.id, "uid": None, "status": "unavailable"}
    return _item(outcome)


def _batch_problem(failures: Sequence[Unavailable], items: list[dict[str, Any]]) -> HttpProblem:
    """503 with what became of each event: sending the whole batch again repeats nothing, ids tell duplicates."""
    problem = problem_of(max(failures, key=lambda failure: failure.retry_after_s))
    detail = f"{len(failures)} of {len(items)} events were not accepted: {problem.detail}"
    return HttpProblem(problem.code, detail, {"items": items}, headers=problem.headers)
