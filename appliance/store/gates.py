"""What flow control reads and writes: places, the queue, meters, batches.

A sitting is one transaction that begins with a lock on the workflows in question. It looks up what is needed in one
round trip, and writes and commits in another one.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import insort
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import psycopg
from psycopg import errors as pe

from appliance import faultpoints
from appliance.engine.gates import Floor, Meter, Place, Standing, Waiting
from appliance.errors import StoreUnavailable
from appliance.events import Event
from appliance.identifiers import range_start
from appliance.store.columns import TextColumn, column, register
from appliance.store.pool import Connection, Pool, checked_out, unavailable
from appliance.store.queries import named
from appliance.store.recorder import Refused, hang_up
from appliance.store.rows import EventRow, OutcomeRow, RunRow, TimerRow
from appliance.store.runs import events_of

_RECORD = named("record")
SQL = {**_RECORD, "lock_events": _RECORD["lock"], **named("gates")}
_NOWHERE = range_start(0)
_UNDONE = pe.DeadlockDetected | pe.SerializationFailure | pe.UniqueViolation
"""Somebody else came first. With a second look the transaction goes through: what they wrote is seen then."""
_BOUNDS_TRANSACTIONS = 170_000
"""The release of PostgreSQL (``server_version_num``) that knows ``transaction_timeout``."""
_SWEPT = 2000
"""Rows of each table that a sweep looks at."""
_Rows = list[tuple[Any, ...]]


class Undone(StoreUnavailable):
    """PostgreSQL has undone the transaction because of another one: it is to be tried again at once."""


class Head(NamedTuple):
    """Who waits at the head of a lane. ``start``: the lane behind which the round of its workflow begins.

    ``number``: of its lane in a scan, from 1; 0 where the lane was named.
    """

    workflow: str
    start: str
    number: int
    paused: bool
    waiting: Waiting


class Scan(NamedTuple):
    """So many lanes of a workflow, going round from behind ``after`` (None: from behind the last one's turn)."""

    workflow_id: int
    after: str | None
    wanted: int


@dataclass(slots=True)
class Asked:
    """What is to be known about some arrivals."""

    runs: list[str] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)
    """Runs that are there: they may have places already, or wait."""
    meters: set[str] = field(default_factory=set)
    places: dict[str, int] = field(default_factory=dict)
    """By digest: up to how many."""
    lanes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By lane: its workflow, and how many of those who wait there."""
    joined: list[tuple[str, int]] = field(default_factory=list)
    """(event, workflow)."""


@dataclass(slots=True)
class Found:
    """What stands recorded: the floor, and by run what flow control noted (JSON) and who moves it on."""

    floor: Floor = field(default_factory=Floor)
    flows: dict[str, str | None] = field(default_factory=dict)
    holders: dict[str, str | None] = field(default_factory=dict)


@dataclass(slots=True)
class Writing:
    """What is written in one go."""

    events: list[EventRow] = field(default_factory=list)
    outcomes: list[OutcomeRow] = field(default_factory=list)
    runs: list[RunRow] = field(default_factory=list)
    note_flow: list[tuple[str, str, bool]] = field(default_factory=list)
    """(run, what flow control notes as JSON, whether the run waits)."""
    park: list[str] = field(default_factory=list)
    leave: list[tuple[str, str, str, float]] = field(default_factory=list)
    """(run, outcome, error, at): held runs that end."""
    cancel: list[tuple[str, bool]] = field(default_factory=list)
    """(run, whether only if a step called it)."""
    put_places: list[Place] = field(default_factory=list)
    no_queue: list[str] = field(default_factory=list)
    put_queue: list[Waiting] = field(default_factory=list)
    timers: list[TimerRow] = field(default_factory=list)
    wake: list[tuple[str, float]] = field(default_factory=list)
    """(run, due at): timers of runs that are there."""
    put_turns: list[tuple[int, str]] = field(default_factory=list)
    put_meters: list[Meter] = field(default_factory=list)
    no_meters: list[str] = field(default_factory=list)
    put_batched: list[tuple[str, str, int]] = field(default_factory=list)
    put_skipped: list[tuple[int, str, int]] = field(default_factory=list)
    """(workflow, reason, how many more)."""


_ORDER = (
    "events", "outcomes", "runs", "note_flow", "park", "no_queue", "leave", "cancel", "put_places", "put_queue",
    "timers", "wake", "put_turns", "put_meters", "no_meters", "put_batched", "put_skipped",
)  # fmt: skip
_LISTS = ("park", "no_queue", "no_meters")


class Sitting:
    """An open transaction that holds the lock, for ``hold_s`` at most. Each method is one round trip."""

    def __init__(self, connection: Connection, hold_s: float) -> None:
        self._connection = connection
        self._hold_s = hold_s
        self.left: dict[str, int] = {}
        """How many held runs were ended, by outcome."""

    async def begin(
        self, workflow_ids: Iterable[int], scans: Sequence[Scan], lanes: Iterable[tuple[int, str]], asked: Asked
    ) -> tuple[list[Head], Found]:
        """Lock, and look: who waits at the heads of lanes, and what stands recorded."""
        async with self._together():
            await self._connection.execute("BEGIN")
            await self._send("lock", [sorted(workflow_ids)])
            if self._is_bounded:
                await self._send("limit", ["transaction_timeout", f"{self._hold_s * 1000:.0f}ms", True])
            heads = await self._send("lanes", [*_columns(scans, 3), *_columns(list(lanes), 2)])
            cursors = await self._ask(asked)
        return _heads(await heads.fetchall()), await _found(cursors)

    async def look(self, asked: Asked) -> Found:
        """What stands recorded by now."""
        async with self._together():
            cursors = await self._ask(asked)
        return await _found(cursors)

    async def scan(self, scans: Sequence[Scan], lanes: Sequence[tuple[int, str]]) -> list[Head]:
        """Who waits at the heads of more lanes, and of these."""
        cursor = await self._send("lanes", [*_columns(scans, 3), *_columns(lanes, 2)])
        return _heads(await cursor.fetchall())

    async def heads(self, lanes: Sequence[tuple[int, str, int]]) -> list[Head]:
        """The first who wait in lanes: (workflow, lane, how many)."""
        cursor = await self._send("heads", _columns(lanes, 3))
        return _heads(await cursor.fetchall())

    async def counts(self, most: Mapping[str, int]) -> dict[str, int]:
        """How many places are taken, by digest, each up to so many."""
        cursor = await self._send("counts", _columns(list(most.items()), 2))
        return dict(await cursor.fetchall())

    async def write(self, writing: Writing, *, commit: bool = False) -> None:
        """Write; with ``commit`` the transaction ends, and what was written is durable."""
        left = None
        if commit:
            faultpoints.hit("before_decision")
        async with self._connection.pipeline() if commit else self._together():
            for name in _ORDER:
                rows = getattr(writing, name)
                if not rows:
                    continue
                if name == "outcomes":
                    await self._send("lock_events", [TextColumn(row.uid for row in rows)])
                cursor = await self._send(name, _values(name, rows))
                left = cursor if name == "leave" else left
            if commit:
                await self._connection.execute("COMMIT")
        if left is not None:
            self.left = dict(await left.fetchall())
        if commit:
            faultpoints.hit("after_decision")

    @property
    def _is_bounded(self) -> bool:
        """Whether PostgreSQL can limit how long a transaction takes, and not only how long it hears nothing in one."""
        return self._connection.info.server_version >= _BOUNDS_TRANSACTIONS

    def _together(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """One round trip for what is sent in the block, where more is to follow.

        A pipeline ends with a message for which PostgreSQL stops the clock of an idle transaction.
        """
        return self._connection.pipeline() if self._is_bounded else contextlib.nullcontext()

    async def _ask(self, asked: Asked) -> dict[str, psycopg.AsyncCursor[Any]]:
        lanes = [(workflow_id, lane, most) for lane, (workflow_id, most) in asked.lanes.items()]
        wanted: dict[str, list[Any]] = {
            "standings": [TextColumn(asked.runs)] if asked.runs else [],
            "meters": [TextColumn(asked.meters)] if asked.meters else [],
            "places": _columns(list(asked.places.items()), 2) if asked.places else [],
            "own_places": [TextColumn(asked.woken)] if asked.woken else [],
            "waiting": _columns(lanes, 3) if lanes else [],
            "own_waiting": [TextColumn(asked.woken)] if asked.woken else [],
            "joined": _columns(asked.joined, 2) if asked.joined else [],
        }
        return {name: await self._send(name, values) for name, values in wanted.items() if values}

    async def _send(self, name: str, values: list[Any]) -> psycopg.AsyncCursor[Any]:
        return await self._connection.execute(SQL[name], values)


class Gates:
    """Sittings, one at a time, on a connection of their own, which ``connect`` opens in autocommit mode.

    One that brings no reply within ``timeout_s`` counts as a lost connection; it is to be longer than
    ``store.statement_timeout``. PostgreSQL ends one that holds the lock for ``hold_s``: its process may be frozen, or
    cut off. That is to be shorter than ``store.statement_timeout``, or those who wait for the lock fail. Everything
    else goes through the pool, and raises StoreUnavailable.
    """

    def __init__(
        self,
        pool: Pool,
        connect: Callable[[], Awaitable[Connection]],
        *,
        timeout_s: float = 35.0,
        hold_s: float = 15.0,
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._timeout_s = timeout_s
        self._hold_s = hold_s
        self._connection: Connection | None = None
        self._swept_places = (_NOWHERE, _NOWHERE)
        self._swept_queue = _NOWHERE

    @contextlib.asynccontextmanager
    async def sitting(self) -> AsyncIterator[Sitting]:
        """A transaction; one that isn't committed at the end of the block is undone.

        Raises Undone, StoreUnavailable (it may have been committed), and Refused: PostgreSQL can't store a value.
        """
        try:
            connection = await self._connected()
            alarm = asyncio.get_running_loop().call_later(self._timeout_s, hang_up, connection)
            try:
                yield Sitting(connection, self._hold_s)
                if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    await connection.execute("ROLLBACK")
            except BaseException:
                await connection.close()
                raise
            finally:
                alarm.cancel()
        except Exception as error:
            meaning = _meaning(error)
            if meaning is error:
                raise
            raise meaning from error

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def batch(self, run_id: str) -> list[Event]:
        """The events of a batch run in the order in which they came, as far as they are kept."""
        async with checked_out(self._pool) as connection:
            rows: _Rows = await (await connection.execute(SQL["batched"], [run_id])).fetchall()
            events = await events_of(connection, [row[0] for row in rows])
        return [events[uid] for (uid,) in rows if uid in events]

    async def tidy(self) -> list[int] | None:
        """Forget what says nothing any more, a page of each table; returns the workflows of which runs wait.

        None: another replica is at it.
        """
        async with checked_out(self._pool) as connection:
            if not (await _rows(connection, "sweep_lock"))[0][0]:
                return None
            places = await _rows(connection, "sweep_places", *self._swept_places, _SWEPT)
            self._swept_places = places[0] if places else (_NOWHERE, _NOWHERE)
            queue = await _rows(connection, "sweep_queue", self._swept_queue, _SWEPT)
            self._swept_queue = queue[0][0] if queue else _NOWHERE
            await connection.execute(SQL["sweep_meters"], [_SWEPT])
            return [row[0] for row in await _rows(connection, "waited_for")]

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = await self._connect()
            register(connection)
            # Every statement finds its rows by an index, whatever it is asked for: planning would take longer.
            await connection.execute("SET plan_cache_mode = force_generic_plan")
            if connection.info.server_version < _BOUNDS_TRANSACTIONS:
                hold = ["idle_in_transaction_session_timeout", f"{self._hold_s * 1000:.0f}ms", False]
                await connection.execute(SQL["limit"], hold)
        return connection


def _meaning(error: Exception) -> Exception:
    """What the caller is to make of an error."""
    away = unavailable(error)
    if isinstance(error, _UNDONE):
        return Undone(f"PostgreSQL: {error}")
    if away is not None:
        return away
    if isinstance(error, psycopg.Error | UnicodeEncodeError):
        return Refused(f"PostgreSQL: {error}")
    return error


async def _rows(connection: Connection, name: str, *values: Any) -> _Rows:
    return await (await connection.execute(SQL[name], values)).fetchall()


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[Any]:
    return [column(values) for values in zip(*rows, strict=True)] if rows else [[]] * width


def _values(name: str, rows: list[Any]) -> list[Any]:
    if name in _LISTS:
        return [TextColumn(rows)]
    if name == "put_queue":
        rows = [(*row[:5], *(orjson.dumps(listed).decode() for listed in row[5:])) for row in rows]
    return _columns(rows, 0)


def _heads(rows: _Rows) -> list[Head]:
    found = []
    for row in rows:
        waiting = Waiting(*row[4:9], *map(tuple, row[9:]))
        found.append(Head(row[0], row[1], row[2], row[3], waiting))
    return found


async def _found(cursors: Mapping[str, psycopg.AsyncCursor[Any]]) -> Found:
    rows = {name: await cursor.fetchall() for name, cursor in cursors.items()}
    found = Found()
    floor = found.floor
    for run_id, *standing in rows.get("standings", ()):
        _put_standing(found, run_id, *standing)
    for *meter, status, holder, flow in rows.get("meters", ()):
        row = Meter(*meter)
        floor.meters[row.digest] = row
        if row.run_id is not None and status is not None:
            _put_standing(found, row.run_id, status, holder, flow)
    for digest, run_id in (*rows.get("places", ()), *rows.get("own_places", ())):
        floor.places.setdefault(digest, set()).add(run_id)
    for lane, position, run_id in {*rows.get("waiting", ()), *rows.get("own_waiting", ())}:
        insort(floor.waiting.setdefault(lane, []), (position, run_id))
    for event, workflow_id, run_id in rows.get("joined", ()):
        floor.joined[event, workflow_id] = run_id
    return found


def _put_standing(found: Found, run_id: str, status: str, holder: str | None, flow: str | None) -> None:
    noted = orjson.loads(flow) if flow else {}
    found.floor.runs[run_id] = Standing(status, noted.get("stage"), noted.get("until"), holder is not None)
    found.flows[run_id] = flow
    found.holders[run_id] = holder
