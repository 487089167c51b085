"""What ought to be in a stream or among the timers, page by page, and the statements that put it back.

Everything raises StoreUnavailable when PostgreSQL is away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg

from appliance.events import FIELD_COUNTED, Event, format_time, loads
from appliance.identifiers import milliseconds_of, range_start
from appliance.store.columns import FloatColumn, TextColumn, register
from appliance.store.outbox import Fields, unpacked
from appliance.store.pool import Connection, Pool, checked_out
from appliance.store.queries import named

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
STATUSES = ("running", "retrying", "waiting")
SQL = named("recovery")
_SUSPECTS = {status: SQL["suspects"].replace(b"{status}", status.encode()) for status in STATUSES}


@dataclass(slots=True)
class Cursor:
    """How far a walk has come: ordered by a time and a UUID, or by the UUID alone."""

    at: Any = _EPOCH
    uid: str = range_start(0)


class Placed(NamedTuple):
    """Something that has an entry: an event, or a row of the outbox."""

    uid: str
    priority: str
    entry_id: str


class Suspect(NamedTuple):
    """A run that an entry holds, or a parked one without a timer: then ``due_at`` says when it has something to do.

    ``holder`` is None for a run that waits for the entry of its event, although that event is over.
    """

    id: str
    version: int
    holder: str | None
    due_at: float | None


class WaitCursor(NamedTuple):
    """How far a walk over what runs listen for has come."""

    run_id: str = range_start(0)
    key: str = ""
    digest: str = range_start(0)


class Lost(NamedTuple):
    """What is to be put into a stream again. FIELD_COUNTED stands in it if an entry before this one was accepted."""

    uid: str
    priority: str
    entry_id: str
    fields: Fields


class Life(NamedTuple):
    """One life of a stream."""

    stream: str
    first_id: str
    last_id: str | None
    closed: bool
    epoch: str = ""


class Settling(NamedTuple):
    """The entry with which an event's outcome is counted. ``name``: the event's uid, or the run's or letter's id that
    was put back to work. ``counted``: the event was accepted by another entry."""

    name: str
    priority: str
    entry_id: str
    counted: bool = True


class RecoveryStore:
    """Statements over the pool."""

    def __init__(self, pool: Pool, *, hold_s: float = 60.0) -> None:
        self._pool = pool
        self._hold_s = hold_s

    @contextlib.asynccontextmanager
    async def alone(self, *, wait: bool) -> AsyncIterator[bool]:
        """Whether this is the only replica that sweeps, until the block ends.

        A process that is frozen for ``hold_s`` seconds loses that: nobody else could sweep.
        """
        async with checked_out(self._pool) as connection:
            row: Any = await (await connection.execute(SQL["wait_for_lock" if wait else "lock"])).fetchone()
            await connection.execute(SQL["hold"], [f"{self._hold_s * 1000:.0f}ms"])
            over = asyncio.Event()
            staying = asyncio.create_task(self._stay(connection, over), name="recovery's lock")
            try:
                yield wait or bool(row[0])
            finally:
                over.set()
                await staying

    async def _stay(self, connection: Connection, over: asyncio.Event) -> None:
        """Show PostgreSQL that the holder of the lock is alive."""
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._hold_s / 6):
                    await over.wait()
                return
            try:
                await connection.execute(b"SELECT 1")
            except psycopg.Error:  # the sweep goes on; at its end this connection says what is wrong
                return

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction that is committed at the end of the block."""
        async with checked_out(self._pool) as connection:
            register(connection)
            yield connection

    async def open_events(self, cursor: Cursor, grace_s: float, limit: int) -> list[Placed]:
        """The next events on which work is under way."""
        rows = await self._rows("open_events", [cursor.uid, grace_s, limit])
        if rows:
            cursor.uid = rows[-1][0]
        return [Placed(*row) for row in rows]

    async def lost_events(
        self, connection: Connection, gone: Sequence[Placed], grace_s: float, runs: list[str], letters: list[str]
    ) -> list[Lost]:
        """Those of ``gone`` that are lost, locked; not those that work for these ``runs`` and ``letters`` counts."""
        moments = [milliseconds_of(event.uid) for event in gone]
        values = [
            TextColumn(event.uid for event in gone),
            TextColumn(event.entry_id for event in gone),
            TextColumn(range_start(moment) for moment in moments),
            TextColumn(range_start(moment + 1) for moment in moments),
            grace_s,
            TextColumn(runs),
            TextColumn(letters),
        ]
        rows: list[Any] = await (await connection.execute(SQL["lost_events"], values)).fetchall()
        return [Lost(row[0], row[9], row[10], _entry(_event(row), counted=row[11])) for row in rows]

    async def move_events(self, connection: Connection, moved: Sequence[Settling]) -> None:
        """These events have these entries now."""
        columns: list[Any] = [TextColumn(column) for column in zip(*(row[:3] for row in moved), strict=True)]
        await connection.execute(SQL["move_events"], [*columns, [row.counted for row in moved]])

    async def settle_events(self, settled: Sequence[Settling]) -> list[None]:
        """The outcomes of these events are about to be counted with these entries."""
        async with self.transaction() as connection:
            await self.move_events(connection, settled)
        return [None] * len(settled)

    async def settle_reopened(self, settled: Sequence[Settling]) -> list[None]:
        """The same of the events of runs, or of dead letters, that were put back to work."""
        columns = [TextColumn(column) for column in zip(*(row[:3] for row in settled), strict=True)]
        async with self.transaction() as connection:
            await connection.execute(SQL["move_reopened"], columns)
        return [None] * len(settled)

    async def suspects(self, status: str, cursor: Cursor, grace_s: float, limit: int) -> tuple[int, list[Suspect]]:
        """How many runs the next page has, and those among them that may have been lost."""
        async with checked_out(self._pool) as connection:
            values = [cursor.at, cursor.uid, grace_s, limit]
            # Not prepared: a generic plan could not use the partial index.
            rows: list[Any] = await (await connection.execute(_SUSPECTS[status], values, prepare=False)).fetchall()
        number, at, uid = rows[0][:3]
        if number:
            cursor.at, cursor.uid = at, uid
        return number, [Suspect(*row[3:]) for row in rows if row[3] is not None]

    async def unheard(self, cursor: WaitCursor, grace_s: float, limit: int) -> tuple[int, WaitCursor, list[str]]:
        """Of the next page of what runs listen for: how much there is, its end, and the runs that are to look back."""
        rows = await self._rows("unheard", [*cursor, limit, grace_s])
        number, *end = rows[0][:4]
        return number, WaitCursor(*end) if number else cursor, [row[4] for row in rows if row[4] is not None]

    async def wake_parked(self, runs: Sequence[Suspect]) -> int:
        """Store the timers that these runs lack; returns how many still lacked one."""
        columns = [*_versions(runs), FloatColumn(run.due_at for run in runs)]
        return await self._changed("wake_parked", columns)

    async def free_held(self, runs: Sequence[Suspect], letters: list[str]) -> int:
        """Wake these runs, whose entries are gone; returns how many still were held by them."""
        columns = [*_versions(runs), TextColumn(run.holder for run in runs), TextColumn(letters)]
        return await self._changed("free_held", columns)

    async def sent_rows(self, cursor: Cursor, grace_s: float, limit: int) -> list[Placed]:
        """The next rows of the outbox that were put into a stream so long ago."""
        rows = await self._rows("sent_rows", [grace_s, cursor.at, cursor.uid, limit])
        if rows:
            cursor.uid, cursor.at = rows[-1][0], rows[-1][3]
        return [Placed(*row[:3]) for row in rows]

    async def lost_rows(self, connection: Connection, gone: Sequence[Placed]) -> list[Lost]:
        """Those of ``gone`` whose events never got anywhere, locked."""
        values = [TextColumn(row.uid for row in gone), TextColumn(row.entry_id for row in gone)]
        rows: list[Any] = await (await connection.execute(SQL["lost_rows"], values)).fetchall()
        return [Lost(uid, priority, entry_id, unpacked(entry)) for uid, priority, entry_id, entry in rows]

    async def move_rows(self, connection: Connection, moved: Sequence[tuple[Lost, str, str]]) -> None:
        """These rows have these entries, with these fields, now."""
        columns = [
            TextColumn(lost.uid for lost, _, _ in moved),
            TextColumn(entry_id for _, entry_id, _ in moved),
            TextColumn(entry for _, _, entry in moved),
        ]
        await connection.execute(SQL["move_rows"], columns)

    async def lives(self) -> list[Life]:
        """The lives of the streams that are known."""
        return [Life(*row) for row in await self._rows("lives", [])]

    async def _rows(self, name: str, values: Sequence[Any]) -> list[Any]:
        async with checked_out(self._pool) as connection:
            return list(await (await connection.execute(SQL[name], values)).fetchall())

    async def _changed(self, name: str, columns: list[Any]) -> int:
        async with self.transaction() as connection:
            return (await connection.execute(SQL[name], columns)).rowcount


def _versions(runs: Sequence[Suspect]) -> list[Any]:
    return [TextColumn(run.id for run in runs), [run.version for run in runs]]


def _entry(event: Event, *, counted: bool) -> Fields:
    fields = event.to_entry()
    return {**fields, FIELD_COUNTED: b"1"} if counted else fields


def _event(row: Sequence[Any]) -> Event:
    uid, event_id, source, kind, subject, time, attributes, data, key = row[:9]
    return Event(
        uid=uid,
        id=event_id or uid,
        source=source,
        type=kind,
        time=format_time(time),
        subject=subject,
        data=loads(data.encode()) if data is not None else None,
        attributes=loads(attributes.encode()) if attributes is not None else {},
        key=key,
    )
