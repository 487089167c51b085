"""Why each workflow did or did not take an event, by the matcher that decides about real ones, and what would help."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
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
from appliance.rules.changes import Remedy, remedy
from appliance.rules.matcher import Trigger
from appliance.store.history import stored_event

_SEARCH_S = 1.0
"""So long one answer looks for changes; a search takes a millisecond, but there may be ten thousand workflows."""
_NOT_SOUGHT = Remedy(note="not looked for: ask for this workflow alone")

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
        return await self._explain(event, workflow)

    async def explain_pasted(self, request: Request) -> Reply:
        """The verdicts on an event in the body, as ``POST /api/v1/events`` takes it."""
        workflow = parameters_of(request, _PARAMETERS).get("workflow")
        if media_type(header(request.scope, b"content-type")) not in ("", PLAIN, STRUCTURED):
            raise HttpProblem("unsupported-media-type", f"Send {PLAIN} or {STRUCTURED}.")
        body = await read_body(request.scope, request.receive, self._http.max_body_bytes)
        return await self._explain(event_of(decode_json(body, self._http.max_depth)), workflow)

    async def _explain(self, event: Event, workflow: str | None) -> Reply:
        view, matcher = event.view(), self._catalog.matcher
        verdicts = matcher.explain(view, workflow)
        if workflow is not None and not verdicts:
            raise NotFound(f"no workflow {workflow!r} is in force")
        triggers = {rule.workflow: rule.triggers for rule in matcher.rules}
        remedies = await asyncio.to_thread(_remedies, verdicts, triggers, view)
        told = [_verdict(verdict, remedies.get(verdict.workflow, Remedy())) for verdict in verdicts]
        return json_reply({"event": view, "verdicts": told})


def _remedies(
    verdicts: Sequence[Matched], triggers: Mapping[str, Sequence[Trigger]], view: Mapping[str, Any]
) -> dict[str, Remedy]:
    """What would have made each workflow take the event, by its name; near misses are looked at first."""
    until = time.monotonic() + _SEARCH_S
    missed = [verdict for verdict in verdicts if not verdict.matched]
    missed.sort(key=lambda verdict: getattr(verdict.failure, "path", None) == "type")
    return {
        verdict.workflow: remedy(triggers[verdict.workflow], view) if time.monotonic() < until else _NOT_SOUGHT
        for verdict in missed
        if verdict.workflow in triggers
    }


def _verdict(verdict: Matched, remedy: Remedy) -> dict[str, Any]:
    return {
        "workflow": verdict.workflow,
        "matched": verdict.matched,
        "reason": verdict.reason,
        "failure": _failure(verdict.failure),
        "changes": [
            {"path": change.path, "from": change.before, "to": change.after, "text": change.text}
            for change in remedy.changes
        ],
        "checked": bool(remedy.changes),
        "note": remedy.note,
    }


def _failure(failure: Any) -> Any:
    if failure is None or isinstance(failure, Mapping):
        return failure
    return asdict(failure) if is_dataclass(failure) and not isinstance(failure, type) else str(failure)
