"""The API's reads: events, runs, dead letters, actions, the ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request

from appliance.http.operations import Operation, Parameter
from appliance.http.query import (
    CURSOR,
    LIMIT,
    SINCE,
    UNTIL,
    filters_of,
    page_of,
    parameters_of,
    span_of,
    uuid_cursor,
)
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services
from appliance.store.history import Page

PREFIX = "/api/v1"
RUN_STATUSES = ("running", "waiting", "retrying", "paused", "succeeded", "failed", "cancelled")
ORIGINS = ("event", "manual", "schedule", "subflow", "replay", "rerun")
OUTCOMES = ("handled", "unmatched", "dead")
LETTER_STATUSES = ("open", "redriven", "discarded")

_EVENT_FILTERS = (
    Parameter("type", "Only events of this type."),
    Parameter("source", "Only events of this source."),
    Parameter("subject", "Only events of this subject."),
    Parameter("outcome", "Only events that ended so.", OUTCOMES),
)
_RUN_FILTERS = (
    Parameter("workflow", "Only runs of the workflow of this name."),
    Parameter("status", "Only runs in this state.", RUN_STATUSES),
    Parameter("origin", "Only runs that were started so.", ORIGINS),
)
_EVENT_ID = Parameter("event_id", "Only runs of this event: its uid, or its sender's id.")
_LETTER_FILTERS = (
    Parameter("status", "Only dead letters in this state.", LETTER_STATUSES),
    Parameter("run_id", "Only those of this run."),
)

EVENTS = (*_EVENT_FILTERS, SINCE, UNTIL, CURSOR, LIMIT)
RUNS = (_EVENT_ID, *_RUN_FILTERS, SINCE, UNTIL, CURSOR, LIMIT)
LETTERS = (*_LETTER_FILTERS, Parameter("event_id", "Only those of this event."), CURSOR, LIMIT)


class Api:
    """The endpoints. Reads come from the history."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._history = services.history

    def operations(self) -> tuple[Operation, ...]:
        """All of them."""

        def get(path: str, handler: Callable[[Request], Awaitable[Reply]], summary: str, **more: Any) -> Operation:
            return Operation(method="GET", path=PREFIX + path, handler=handler, summary=summary, **more)

        return (
            get("/events", self.list_events, "List events, newest first", parameters=EVENTS, answer="Page"),
            get("/events/{id}", self.get_event, "Show an event", answer="Event"),
            get("/runs", self.list_runs, "List runs, newest first", parameters=RUNS, answer="Page"),
            get("/runs/{id}", self.get_run, "Show a run in full", answer="Run"),
            get("/dead-letters", self.list_letters, "List dead letters", parameters=LETTERS, answer="Page"),
            get("/dead-letters/{id}", self.get_letter, "Show a dead letter", answer="DeadLetter"),
            get("/actions", self.list_actions, "List the actions that are installed"),
            get("/schema", self.get_schema, "The JSON Schema of the workflow language"),
            get("/ledger", self.get_ledger, "What became of all accepted events", answer="Ledger"),
        )

    async def list_events(self, request: Request) -> Reply:
        """A page of events; a filtered page may be short while there is a next one."""
        values = parameters_of(request, EVENTS)
        uuid_cursor(values)
        cursor, limit = page_of(values)
        chosen = filters_of(values, [parameter.name for parameter in _EVENT_FILTERS])
        return _page(await self._history.list_events(chosen, span=span_of(values), cursor=cursor, limit=limit))

    async def get_event(self, request: Request) -> Reply:
        """One event, by uid or by its sender's id."""
        return json_reply(await self._history.get_event(request.path_params["id"]))

    async def list_runs(self, request: Request) -> Reply:
        """A page of runs."""
        values = parameters_of(request, RUNS)
        uuid_cursor(values)
        cursor, limit = page_of(values)
        chosen = filters_of(values, [parameter.name for parameter in _RUN_FILTERS])
        page = await self._history.list_runs(
            chosen, event_id=values.get("event_id"), span=span_of(values), cursor=cursor, limit=limit
        )
        return _page(page)

    async def get_run(self, request: Request) -> Reply:
        """One run with its steps and attempts, what it waits for and whom it asked or called."""
        return json_reply(await self._history.get_run(request.path_params["id"]))

    async def list_letters(self, request: Request) -> Reply:
        """A page of dead letters."""
        values = parameters_of(request, LETTERS)
        uuid_cursor(values)
        cursor, limit = page_of(values)
        chosen = filters_of(values, [parameter.name for parameter in _LETTER_FILTERS])
        if "event_id" in values:
            found = await self._history.find_events(values["event_id"], limit=1)
            chosen["event_uid"] = found[0]["uid"] if found else values["event_id"]
        return _page(await self._history.list_dead_letters(chosen, cursor=cursor, limit=limit))

    async def get_letter(self, request: Request) -> Reply:
        """One dead letter with what it carried."""
        return json_reply(await self._history.get_dead_letter(request.path_params["id"]))

    async def list_actions(self, request: Request) -> Reply:
        """The actions with their parameters' schemas, and the plugins that failed to load."""
        registry = self._services.registry
        return json_reply({"items": list(registry.describe()), "broken": dict(registry.broken)})

    async def get_schema(self, request: Request) -> Reply:
        """The JSON Schema of the workflow language, with the actions that are installed."""
        return json_reply(dict(self._services.schema()))

    async def get_ledger(self, request: Request) -> Reply:
        """accepted = handled + unmatched + duplicate + dead + in_flight + difference."""
        return json_reply(dict(await self._services.ledger()))


def _page(page: Page) -> Reply:
    return json_reply({"items": page.items, "next_cursor": page.next_cursor})
