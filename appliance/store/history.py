"""The history as the API tells it: keyset pages of events, runs, dead letters and workflows, and one of each in full.

Rows come back as JSON data: UUIDs and times are texts. Lists are newest first (workflows by name); a page goes on below
its ``cursor``, which is the key of the last item looked at. Nothing here counts or skips rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg_pool import AsyncConnectionPool

from appliance.errors import Malformed, NotFound
from appliance.events import Event
from appliance.identifiers import is_uuid, milliseconds_of, range_start
from appliance.store.reading import Connection, Item, query, rows, snapshot
from appliance.store.standing import events_of, held_of, history_of, machine_of, placed, waits_of

_WINDOW = 20_000
"""Events that one filtered page looks at: some tens of milliseconds, however rare what is sought."""
_SAME_ID = 100
"""Events of one sender's id that are looked up: more than that is one sender numbering badly."""
_REVISIONS = 50
"""Revisions named with a workflow."""
_SIGNALS = 200
"""Of what came in for a run, so much is shown with it."""
_BATCH = 1000
"""Events of one run: a batch has no more."""
_AHEAD, _AHEAD_IN_LISTS = 1000, 100
"""As far as is counted how many runs come before one in its queue."""

_EVENT_FILTERS: Mapping[str, LiteralString] = {
    "type": "type = %(type)s",
    "source": "source = %(source)s",
    "subject": "subject = %(subject)s",
    "outcome": "outcome::text = %(outcome)s",
}
RUN_FILTERS: Mapping[str, LiteralString] = {
    # Cast from text here, so that the planner sees a constant and can use the partial indexes.
    "status": "runs.status = %(status)s::run_status",
    "workflow": "runs.workflow_id = (SELECT w.id FROM workflows AS w WHERE w.name = %(workflow)s)",
    "origin": "runs.origin = %(origin)s",
}
_OF_AN_EVENT: LiteralString = "runs.origin IS NULL"
_MACHINE_FILTERS: Mapping[str, LiteralString] = {
    "workflow": "workflow_id = (SELECT w.id FROM workflows AS w WHERE w.name = %(workflow)s)",
    "key": "business_key = %(key)s AND workflow_id IN (SELECT w.id FROM workflows AS w)",
}
_LETTER_FILTERS: Mapping[str, LiteralString] = {
    "status": "status = %(status)s::letter_status",
    "event_uid": "event_uid = %(event_uid)s",
    "run_id": "run_id = %(run_id)s",
}


@dataclass(frozen=True, slots=True)
class Page:
    """Some items, and where the next page starts; ``next_cursor`` is None at the end."""

    items: Sequence[Item]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """A time span, from (inclusive) and to (exclusive), in Unix milliseconds; None is open."""

    since_ms: int | None = None
    until_ms: int | None = None


class History:
    """Reads; each method uses one connection of the pool and raises StoreUnavailable when there is none to be had."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def list_events(
        self,
        filters: Mapping[str, str] | None = None,
        *,
        span: Span = Span(),
        cursor: str | None = None,
        limit: int = 50,
        window: int = _WINDOW,
    ) -> Page:
        """Events by ``type``, ``source``, ``subject`` or ``outcome``.

        A filtered page may be short, even empty, while ``next_cursor`` is set: it looks at ``window`` events at most.
        """
        chosen = filters or {}
        below, values = _span("uid", span, cursor)
        values |= {**chosen, "limit": limit, "window": max(window, limit) if chosen else limit}
        statement = query("list_events", range=_all_of(below), filters=_chosen(_EVENT_FILTERS, chosen))
        async with snapshot(self._pool) as conn:
            found = await rows(conn, statement, values)
        items = [_event_item(row) for row in found if row["uid"] is not None]
        if len(items) == limit:
            return Page(items, items[-1]["uid"])
        more = found[0]["looked_at"] == values["window"]
        return Page(items, found[0]["oldest"] if more else None)

    async def find_events(self, event_id: str, limit: int = _SAME_ID) -> list[Item]:
        """The events that an id means, newest first: a uid names one, a sender's id perhaps several."""
        if "\0" in event_id:
            return []
        async with snapshot(self._pool) as conn:
            if is_uuid(event_id):
                found = await rows(conn, query("find_events", match="uid = %(id)s"), {"id": event_id, "limit": 1})
                if found:
                    return [_event_item(found[0])]
            found = await rows(conn, query("find_events", match="id = %(id)s"), {"id": event_id, "limit": limit})
        return [_event_item(row) for row in found]

    async def get_event(self, event_id: str) -> Item:
        """One event (the newest, if several senders used that id), with its ``batches``; raises NotFound."""
        found = await self.find_events(event_id, limit=1)
        if not found:
            raise NotFound(f"no event {event_id!r}")
        async with snapshot(self._pool) as conn:
            batches = await rows(conn, query("get_batches"), {"uid": found[0]["uid"], "limit": _SAME_ID})
        return {**found[0], "batches": batches}

    async def list_runs(
        self,
        filters: Mapping[str, str] | None = None,
        *,
        event_id: str | None = None,
        span: Span = Span(),
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Runs by ``status``, ``workflow`` (its name) and ``origin``, and of one event (its uid, or the sender's id).

        The origin ``event`` is that of runs that an event started by a trigger, which have none. The batches that an
        event belongs to are runs of it. ``held`` says what flow control has a run wait for, or is None.
        """
        below, values = _span("runs.id", span, cursor)
        chosen = dict(filters or {})
        if chosen.get("origin") == "event":
            below.append(_OF_AN_EVENT)
            del chosen["origin"]
        values |= {**chosen, "limit": limit + 1, "ahead": _AHEAD_IN_LISTS}
        where = _all_of([*below, _chosen(RUN_FILTERS, chosen)])
        if event_id is None:
            statement = query("list_runs", filters=where, held=query("held"))
        else:
            values |= _event_ranges([item["uid"] for item in await self.find_events(event_id)] or _own(event_id))
            statement = query("list_runs_of_events", filters=where, held=query("held"))
        async with snapshot(self._pool) as conn:
            found = await rows(conn, statement, values)
        return _page([{**row, "held": held_of(row)} for row in found], limit, "id")

    async def get_run(self, run_id: str) -> Item:
        """One run in full; raises NotFound.

        Beside what a list has: ``input``, ``output``, ``parent`` and ``rerun_of``; its ``steps`` (each with its failed
        ``attempts``), ``deliveries``, ``children``, ``tasks``, what it ``waits`` for, and the latest ``signals``; for a
        state machine ``machine``, else None; for a batch the uids of its ``events``.
        """
        async with snapshot(self._pool) as conn:
            run, definition, place = await _whole_run(conn, run_id)
        parent = (run.pop("details") or {}).get("parent")
        return {
            **run,
            "parent": {"run_id": parent["run"], "step": parent["key"]} if parent else None,
            "waits": waits_of(definition, run["waits"], place),
        }

    async def list_machines(
        self, filters: Mapping[str, str] | None = None, *, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """Live state machines by ``workflow`` (its name) and business ``key``, in the order of these."""
        chosen = filters or {}
        clauses: list[LiteralString] = [_chosen(_MACHINE_FILTERS, chosen)]
        values: dict[str, Any] = {**chosen, "limit": limit + 1}
        if cursor is not None:
            number, colon, key = cursor.partition(":")
            if not (colon and number.isascii() and number.isdecimal() and len(number) < 10):
                raise Malformed("cursor: not one that a page gave", code="cursor")
            clauses.append("(workflow_id, business_key) > (%(after)s, %(after_key)s)")
            values |= {"after": int(number), "after_key": _without_nul(key)}
        async with snapshot(self._pool) as conn:
            found = await rows(conn, query("list_machines", filters=_all_of(clauses)), values)
        last = found[limit - 1] if len(found) > limit else None
        return Page(
            [_machine_item(row) for row in found[:limit]], f"{last['workflow_id']}:{last['key']}" if last else None
        )

    async def get_machine(self, workflow: str, key: str) -> Item:
        """A live state machine: its state, the ``events`` that it would take now, its ``history``; raises NotFound."""
        values = {"workflow": _without_nul(workflow), "key": _without_nul(key)}
        async with snapshot(self._pool) as conn:
            found = await rows(conn, query("get_machine"), values)
            if not found:
                raise NotFound(
                    f"no state machine {key!r} of {workflow!r} is live; runs that are over are in the list of runs"
                )
            run, definition, place = await _whole_run(conn, found[0]["run_id"])
        return {
            "workflow": run["workflow"],
            "revision": run["revision"],
            "run_id": run["id"],
            "status": run["status"],
            "started_at": run["started_at"],
            **(run["machine"] or {}),
            "events": events_of(definition, place),
            "history": history_of(definition, run["steps"], run["signals"]),
        }

    async def list_dead_letters(
        self, filters: Mapping[str, str] | None = None, *, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """Dead letters by ``status``, ``event_uid`` or ``run_id``."""
        chosen = filters or {}
        if not all(is_uuid(chosen[name]) for name in ("event_uid", "run_id") if name in chosen):
            return Page([], None)
        below, values = _span("id", Span(), cursor)
        values |= {**chosen, "limit": limit + 1}
        statement = query("list_dead_letters", filters=_all_of([*below, _chosen(_LETTER_FILTERS, chosen)]))
        async with snapshot(self._pool) as conn:
            return _page(await rows(conn, statement, values), limit, "id")

    async def get_dead_letter(self, letter_id: str) -> Item:
        """One dead letter with the raw ``fields`` of its entry ([[name, value], …], base64) and its ``event``."""
        if not is_uuid(letter_id):
            raise NotFound(f"no dead letter {letter_id!r}")
        values = {"id": letter_id, "limit": 1}
        async with snapshot(self._pool) as conn:
            found = await rows(conn, query("list_dead_letters", filters="id = %(id)s"), values)
            if not found:
                raise NotFound(f"no dead letter {letter_id!r}")
            (raw,) = await rows(conn, query("get_fields"), values)
            of_event = {"id": found[0]["event_uid"], "limit": 1}
            events = await rows(conn, query("find_events", match="uid = %(id)s"), of_event)
        return {**found[0], "fields": raw["fields"], "event": _event_item(events[0]) if events else None}

    async def list_workflows(self, *, cursor: str | None = None, limit: int = 50, every: bool = False) -> Page:
        """The workflows in force by name, or with ``every`` those that are disabled as well."""
        clauses: list[LiteralString] = [] if every else ["workflows.enabled"]
        if cursor is not None:
            clauses.append("workflows.name > %(cursor)s")
        values = {"cursor": _without_nul(cursor or ""), "limit": limit + 1}
        async with snapshot(self._pool) as conn:
            return _page(await rows(conn, query("list_workflows", filters=_all_of(clauses)), values), limit, "name")

    async def get_workflow(self, name: str) -> Item:
        """One workflow, by name or else by number, with its ``definition`` and latest ``revisions``."""
        values = {"name": _without_nul(name), "limit": _REVISIONS}
        async with snapshot(self._pool) as conn:
            found = await rows(conn, query("get_workflow", match="workflows.name = %(name)s"), values)
            if not found and name.isdecimal() and name.isascii():
                found = await rows(conn, query("get_workflow", match="workflows.id::text = %(name)s"), values)
            if not found:
                raise NotFound(f"no workflow {name!r}")
            revisions = await rows(conn, query("list_revisions"), {**values, "id": found[0]["id"]})
        return {**found[0], "revisions": revisions}


def stored_event(item: Mapping[str, Any]) -> Event:
    """The event in an item of this module, as it was."""
    names = ("uid", "id", "source", "type", "time", "subject", "data", "attributes")
    return Event(**{name: item[name] for name in names})


async def _whole_run(conn: Connection, run_id: str) -> tuple[Item, Mapping[str, Any], Mapping[str, Any] | None]:
    """A run with all that belongs to it, its definition, and a state machine's place; raises NotFound."""
    wanted = {"id": run_id, "ahead": _AHEAD}
    found = await rows(conn, query("get_run", held=query("held")), wanted) if is_uuid(run_id) else []
    if not found:
        raise NotFound(f"no run {run_id!r}")
    run = found[0]
    run["held"] = held_of(run)
    ms = milliseconds_of(run_id)
    bounds = {"from": range_start(ms), "to": range_start(ms + 1), "limit": _SIGNALS, "events": _BATCH}
    values = {"run_id": run_id, **bounds}
    parts = ("steps", "attempts", "deliveries", "children", "tasks", "waits", "signals")
    run |= {part: await rows(conn, query(f"get_{part}"), values) for part in parts}
    run["events"] = [row["event_uid"] for row in await rows(conn, query("get_batch"), values)]
    attempts = run.pop("attempts")
    for step in run["steps"]:
        step["attempts"] = [
            {k: v for k, v in attempt.items() if k != "step"} for attempt in attempts if attempt["step"] == step["id"]
        ]
    definition, place, of_event = run.pop("definition"), run.pop("place"), run.pop("event_data")
    details = run["details"] or {}
    run["input"] = details.get("input", of_event)
    again, start = details.get("rerun_of"), (details.get("rerun") or {}).get("from")
    run["rerun_of"] = {"run_id": again, "from": start} if again else None
    run["machine"] = machine_of(definition, place, run.pop("business_key"))
    return run, definition, place


def _machine_item(row: Item) -> Item:
    kept = {name: value for name, value in row.items() if name not in ("workflow_id", "place")}
    return {**kept, **placed(row["place"], row["key"])}


def _event_item(row: Item) -> Item:
    item = {name: value for name, value in row.items() if name not in ("looked_at", "oldest")}
    return {**item, "id": row["id"] if row["id"] is not None else row["uid"], "attributes": row["attributes"] or {}}


def _page(found: list[Item], limit: int, key: str) -> Page:
    """A page of ``limit`` items, out of one more than that if there are more."""
    return Page(found[:limit], found[limit - 1][key] if len(found) > limit else None)


def _span(column: LiteralString, span: Span, cursor: str | None) -> tuple[list[LiteralString], dict[str, Any]]:
    clauses: list[LiteralString] = []
    values: dict[str, Any] = {}
    if cursor is not None:
        if not is_uuid(cursor):
            raise Malformed("cursor: not one that a page gave", code="cursor")
        clauses.append(column + " < %(cursor)s")
        values["cursor"] = cursor
    if span.since_ms is not None:
        clauses.append(column + " >= %(since)s")
        values["since"] = range_start(span.since_ms)
    if span.until_ms is not None:
        clauses.append(column + " < %(until)s")
        values["until"] = range_start(span.until_ms)
    return clauses, values


def _chosen(filters: Mapping[str, LiteralString], values: Mapping[str, str]) -> LiteralString:
    for value in values.values():
        _without_nul(value)
    return _all_of([filters[name] for name in values])


def _all_of(clauses: Sequence[LiteralString]) -> LiteralString:
    return " AND ".join(clauses) or "true"


def _own(event_id: str) -> list[str]:
    """A uid whose event is not recorded (yet): its runs may be, in the moment between their commits."""
    return [event_id] if is_uuid(event_id) else []


def _event_ranges(uids: Sequence[str]) -> dict[str, list[str]]:
    moments = [milliseconds_of(uid) for uid in uids]
    return {
        "uids": list(uids),
        "starts": [range_start(ms) for ms in moments],
        "ends": [range_start(ms + 1) for ms in moments],
    }


def _without_nul(text: str) -> str:
    """PostgreSQL has no NUL in texts: what contains one names nothing."""
    if "\0" in text:
        raise Malformed("the text contains NUL", code="nul-character")
    return text
