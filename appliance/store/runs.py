"""Reading what stands recorded: of entries that were delivered before, of runs to be woken, of senders' keys."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from appliance.engine.snapshot import unpack
from appliance.engine.state import RunState, Signal, StepState, step_of
from appliance.errors import StoreUnavailable
from appliance.events import Event, format_time
from appliance.identifiers import milliseconds_of, range_start
from appliance.store.pool import Connection, Pool, checked_out, one_moment
from appliance.store.queries import named

MOST_SIGNALS = 500
"""What came in for one run and is loaded with it at once."""

_TOLD_AT_ONCE = 5000
"""Runs that are told of an event in one transaction."""
_DEADLOCK = "40P01"
_TRIES = 5

Delivered = Mapping[tuple[str, str], str | None]


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as it stands in the database, its steps in ``state``. ``delivered`` is by step key.

    ``holder`` is who moves it on: None for its event's entry, ``timer`` while it is parked, else who woke it.
    """

    id: str
    event_uid: str | None
    workflow_id: int
    revision_id: int
    version: int
    started_at: float
    priority: str
    state: RunState
    holder: str | None = None
    delivered: Mapping[str, Delivered] = field(default_factory=dict)
    origin: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """How it was started: input, parent ({run, key}), depth, rerun ({run, from}) …"""
    asked: str | None = None
    """``pause`` or ``cancel``: what a person asked for and the run has not taken notice of."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What was recorded for an event before: as what it is counted (None while work is under way), and its runs."""

    outcome: str | None
    runs: tuple[StoredRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Waking:
    """A run that is to go on: with its event, and what came in and waits to be looked at (oldest first)."""

    run: StoredRun
    event: Event
    signals: tuple[Signal, ...]
    places: frozenset[str] = frozenset()
    """What flow control has given to it, by digest, if it waited for that."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. ``fields`` are an entry's fields, byte for byte, as base64 in JSON."""

    id: str
    kind: str
    status: str
    event_uid: str | None
    run_id: str | None
    step: str | None
    stream: str | None
    entry_id: str | None
    fields: str | None


SQL = named("runs")


class Runs:
    """Queries over a pool. Everything raises StoreUnavailable when PostgreSQL is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def prior(self, uids: list[str]) -> list[Prior | None]:
        """What stands recorded of each event; None for those that were never recorded."""
        lows = [range_start(milliseconds_of(uid)) for uid in uids]
        highs = [range_start(milliseconds_of(uid) + 1) for uid in uids]
        async with self._reading() as connection:
            outcomes = dict(await _rows(connection, "prior_events", uids))
            runs = await _stored(connection, await _rows(connection, "prior_runs", uids, lows, highs))
        by_event: dict[str | None, list[StoredRun]] = {}
        for run in runs:
            by_event.setdefault(run.event_uid, []).append(run)
        return [Prior(outcomes[uid], tuple(by_event.get(uid, ()))) if uid in outcomes else None for uid in uids]

    async def load(self, run_id: str) -> StoredRun | None:
        """A run with its steps."""
        async with self._reading() as connection:
            runs = await _stored(connection, await _rows(connection, "runs", [run_id]))
        return runs[0] if runs else None

    async def incoming(self, run_id: str) -> tuple[Signal, ...]:
        """What came in for a run and waits to be looked at, oldest first, MOST_SIGNALS at most."""
        async with checked_out(self._pool) as connection:
            rows = await _rows(connection, "open_signals", [run_id], MOST_SIGNALS)
        return tuple(_signal(row) for _, *row in rows)

    async def to_wake(self, run_ids: list[str]) -> list[Waking | None]:
        """What is needed to go on with runs; None for those that aren't there, or whose event isn't any more."""
        async with self._reading() as connection:
            runs = {run.id: run for run in await _stored(connection, await _rows(connection, "runs", run_ids))}
            uids = [run.event_uid for run in runs.values() if run.event_uid is not None]
            events = {row[0]: _event(row)[0] for row in await _rows(connection, "events", uids)} if uids else {}
            signals: dict[str, list[Signal]] = {}
            for run_id, *row in await _rows(connection, "open_signals", run_ids, MOST_SIGNALS):
                signals.setdefault(run_id, []).append(_signal(row))
            places: dict[str, list[str]] = {}
            held = [run.id for run in runs.values() if "flow" in run.details]
            for run_id, digest in await _rows(connection, "places_of", held) if held else ():
                places.setdefault(run_id, []).append(digest)
        found = (runs.get(run_id) for run_id in run_ids)
        return [
            Waking(run, events[run.event_uid], tuple(signals.get(run.id, ())), frozenset(places.get(run.id, ())))
            if run is not None and run.event_uid in events
            else None
            for run in found
        ]

    async def correlate(self, uid: str, digests: Sequence[str]) -> bool:
        """Tell those who listen for an event; whether anybody was told now. Durable; nobody is told twice."""
        told = 0
        while (more := await self._tell("correlate", [uid] * len(digests), list(digests), _TOLD_AT_ONCE)) > 0:
            told += more
            if more < _TOLD_AT_ONCE:
                break
        return told > 0

    async def is_listened_for(self, uid: str, digests: Sequence[str]) -> bool:
        """Whether a run that listens now was told of the event."""
        async with checked_out(self._pool) as connection:
            return bool(await _rows(connection, "listening", list(digests), uid))

    async def look_back(self, run_id: str) -> int:
        """Tell a run of the events that it listens for and that came before it did; returns how many are new to it.

        The oldest ones first: there may be very many. Whoever has looked at :data:`MOST_SIGNALS` is to look back again.
        """
        return await self._tell("look_back", run_id, MOST_SIGNALS)

    async def _tell(self, name: str, *values: Any) -> int:
        """Again if PostgreSQL undid it, because a commit for some of the same runs was in the way."""
        tries = 0
        while True:
            try:
                async with checked_out(self._pool) as connection:
                    return int((await _rows(connection, name, *values))[0][0])
            except StoreUnavailable as error:
                tries += 1
                if getattr(error.__cause__, "sqlstate", None) != _DEADLOCK or tries == _TRIES:
                    raise

    async def machine(self, workflow_id: int, business_key: str) -> str | None:
        """The live state machine of a business key."""
        async with checked_out(self._pool) as connection:
            rows = await _rows(connection, "machine_of", workflow_id, business_key)
        return rows[0][0] if rows else None

    async def event(self, uid: str) -> tuple[Event, str | None] | None:
        """An event and its outcome."""
        async with checked_out(self._pool) as connection:
            rows = await _rows(connection, "events", [uid])
        return _event(rows[0]) if rows else None

    async def outcomes(self, uids: list[str]) -> list[str | None]:
        """As what each event is counted when its entry is acknowledged; None while work is under way."""
        async with checked_out(self._pool) as connection:
            found = dict(await _rows(connection, "prior_events", uids))
        return [found.get(uid) for uid in uids]

    async def recorded(self, run_ids: list[str]) -> set[str]:
        """Those of these runs that have a row."""
        async with checked_out(self._pool) as connection:
            return {row[0] for row in await _rows(connection, "recorded", run_ids)}

    async def moved(self, run_id: str, stream: str, entry_id: str) -> bool:
        """Whether the run's dead letter of this entry took the event from ``handled`` to ``dead``."""
        async with checked_out(self._pool) as connection:
            return bool((await _rows(connection, "moved", run_id, stream, entry_id))[0][0])

    async def letter_moved(self, letter_id: str) -> bool:
        """The same of one dead letter."""
        async with checked_out(self._pool) as connection:
            rows = await _rows(connection, "letter_moved", letter_id)
        return bool(rows and rows[0][0])

    async def letter(self, letter_id: str) -> Letter | None:
        """A dead letter."""
        async with checked_out(self._pool) as connection:
            rows = await _rows(connection, "letter", letter_id)
        return Letter(*rows[0]) if rows else None

    async def claim_keys(self, claims: list[tuple[str, str]]) -> list[tuple[str, bool]]:
        """For each (key, uid) the uid that the key stands for, this one or the one that came first; and whether the
        key is new. Durable.
        """
        keys = [key for key, _ in claims]
        async with checked_out(self._pool) as connection:
            # Ordered by key inside the statement: two replicas that claim the same keys can't deadlock.
            fresh = {row[0] for row in await _rows(connection, "claim_keys", keys, [uid for _, uid in claims])}
        async with checked_out(self._pool) as connection:
            first = dict(await _rows(connection, "keys", keys))
        return [(first[key], key in fresh) for key in keys]

    @contextlib.asynccontextmanager
    async def _reading(self) -> AsyncIterator[Connection]:
        """A run and its steps are several statements, and somebody else may commit in between."""
        async with checked_out(self._pool) as connection, one_moment(connection):
            yield connection


async def events_of(connection: Connection, uids: Iterable[str]) -> dict[str, Event]:
    """Events by uid, in somebody's transaction; those that are not kept any more are left out."""
    found = [_event(row) for row in await _rows(connection, "events", list(uids))]
    return {event.uid: event for event, _ in found}


async def _rows(connection: Connection, name: str, *values: Any) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(SQL[name], values)
    return await cursor.fetchall()


async def _stored(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> list[StoredRun]:
    ids = [row[0] for row in rows]
    if not ids:
        return []
    steps: dict[str, list[StepState]] = {}
    for run_id, *values in await _rows(connection, "steps", ids):
        steps.setdefault(run_id, []).append(_step(values))
    delivered: dict[str, dict[str, dict[tuple[str, str], str | None]]] = {}
    for run_id, key, channel, recipient, message_id in await _rows(connection, "delivered", ids):
        delivered.setdefault(run_id, {}).setdefault(key, {})[channel, recipient] = message_id
    return [_run(row, steps.get(row[0], ()), delivered.get(row[0], {})) for row in rows]


def _run(row: Sequence[Any], steps: Iterable[StepState], delivered: Mapping[str, Delivered]) -> StoredRun:
    run_id, event_uid, workflow_id, revision_id, status, version, started_at, finished_at, priority, *rest = row
    state, error, origin, details, result, asked = rest
    kept = orjson.loads(state) if state else {}
    ended = orjson.loads(result) if result else None
    return StoredRun(
        id=run_id,
        event_uid=event_uid,
        workflow_id=workflow_id,
        revision_id=revision_id,
        version=version,
        started_at=started_at,
        priority=priority,
        state=unpack(kept, status, {s.key: s for s in steps}, error, finished_at, ended),
        holder=kept.get("by"),
        delivered=delivered,
        origin=origin,
        details=orjson.loads(details) if details else {},
        asked=asked,
    )


def _signal(row: Sequence[Any]) -> Signal:
    signal_id, key, kind, payload, event_uid, *event = row
    if kind == "event" and event[0] is not None:
        return Signal(signal_id, key, kind, _event(event)[0].view(), event_uid)
    return Signal(signal_id, key, kind, orjson.loads(payload) if payload else {}, event_uid)


def _step(values: Sequence[Any]) -> StepState:
    key, seq, status, attempt, started_at, finished_at, due_at, output, error = values
    return StepState(
        key=key,
        step=step_of(key),
        seq=seq,
        status=status,
        attempt=attempt,
        started_at=started_at,
        finished_at=finished_at,
        due_at=due_at,
        output=orjson.loads(output) if output is not None else None,
        error=error,
    )


def _event(row: Sequence[Any]) -> tuple[Event, str | None]:
    uid, event_id, source, kind, subject, time, attributes, data, key, outcome = row
    assert isinstance(time, datetime)  # noqa: S101 - the column is timestamptz
    event = Event(
        uid=uid,
        id=event_id or uid,
        source=source,
        type=kind,
        time=format_time(time),
        subject=subject,
        data=orjson.loads(data) if data is not None else None,
        attributes=orjson.loads(attributes) if attributes is not None else {},
        key=key,
    )
    return event, outcome
