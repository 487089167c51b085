"""The outbox: events that stand in PostgreSQL until they are in a stream, or, durable ones, until they are settled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from appliance.errors import StoreUnavailable
from appliance.events import Event, dumps, loads
from appliance.identifiers import range_start
from appliance.store.columns import TextColumn, register
from appliance.store.pool import Connection, Pool, checked_out, translated
from appliance.store.queries import named

_TIMEOUT_S = 10.0
"""How long a group commit may take; then PostgreSQL counts as away."""
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

SQL = named("outbox")

Fields = dict[bytes, bytes]


class Waiting(NamedTuple):
    """A row that is to be put into a stream."""

    uid: str
    priority: str
    fields: Fields
    durable: bool


class First(NamedTuple):
    """The event that came first with some key."""

    uid: str
    id: str


@dataclass(slots=True)
class Place:
    """How far a walk through the rows, in the order in which they were sent, has come."""

    sent_at: Any = _EPOCH
    uid: str = range_start(0)


def packed(event: Event) -> str:
    """An event's entry as the table keeps it."""
    return dumps({name.decode(): value.decode() for name, value in event.to_entry().items()}).decode()


def unpacked(entry: str) -> Fields:
    """The entry's fields again."""
    return {name.encode(): value.encode() for name, value in loads(entry.encode()).items()}


class Outbox:
    """Statements over the pool; the group commits of :meth:`accept` have a connection of their own.

    Everything raises StoreUnavailable when PostgreSQL is away.
    """

    def __init__(self, pool: Pool, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._pool = pool
        self._connect = connect
        self._connection: Connection | None = None

    async def accept(self, events: Sequence[tuple[Event, str]]) -> list[First | None]:
        """Store (event, priority) pairs durably, in one transaction. Not to be called twice at once.

        Answers None for what is stored, and for a duplicate the event that came first.
        """
        columns = [
            TextColumn(event.uid for event, _ in events),
            TextColumn(priority for _, priority in events),
            TextColumn(packed(event) for event, _ in events),
            TextColumn(event.key for event, _ in events),
        ]
        async with self._own() as connection:
            stored = {row[0] for row in await (await connection.execute(SQL["accept"], columns)).fetchall()}
            keys = TextColumn(event.key for event, _ in events if event.uid not in stored)
            found: list[Any] = await (await connection.execute(SQL["first"], [keys])).fetchall() if keys else []
        first = {key: First(uid, event_id) for key, uid, event_id in found}
        if len(first) < len(set(keys)):
            raise StoreUnavailable("what a key stands for was dropped from the history just now")
        return [None if event.uid in stored else first[event.key] for event, _ in events]

    @contextlib.asynccontextmanager
    async def taking(self, young_s: float, limit: int) -> AsyncIterator[tuple[Connection, list[Waiting]]]:
        """Rows to put into their streams, locked; :meth:`mark` them before the end."""
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(SQL["take"], [young_s, limit])
            rows: list[Any] = await cursor.fetchall()
            yield connection, [Waiting(uid, priority, unpacked(entry), kept) for uid, priority, entry, kept in rows]

    async def mark(self, connection: Connection, done: Sequence[tuple[Waiting, str]]) -> None:
        """These are in their streams, as these entries: durable rows stay, the others go."""
        once = [row.uid for row, _ in done if not row.durable]
        kept = [(row.uid, entry_id) for row, entry_id in done if row.durable]
        if once:
            await connection.execute(SQL["drop"], [once])
        if kept:
            await connection.execute(SQL["sent"], [[uid for uid, _ in kept], [entry_id for _, entry_id in kept]])

    async def settle(self, sent: Sequence[tuple[str, str]]) -> None:
        """These (uid, entry id) were put in a while ago: what is settled goes, the rest is known to be sent."""
        async with checked_out(self._pool) as connection:
            await connection.execute(SQL["settle"], [[uid for uid, _ in sent], [entry_id for _, entry_id in sent]])

    async def purge(self, place: Place, limit: int) -> tuple[int, int]:
        """Drop the settled ones among the next ``limit`` rows; moves ``place`` on. Answers (looked at, dropped)."""
        async with checked_out(self._pool) as connection:
            row: Any = await (await connection.execute(SQL["purge"], [place.sent_at, place.uid, limit])).fetchone()
        looked, dropped, sent_at, uid = row
        if uid is not None:
            place.sent_at, place.uid = sent_at, uid
        return looked, dropped

    async def unsent(self, limit: int) -> int:
        """How many rows wait to be put in; no more than ``limit`` are counted."""
        async with checked_out(self._pool) as connection:
            row: Any = await (await connection.execute(SQL["unsent"], [limit])).fetchone()
        return int(row[0])

    async def close(self) -> None:
        """Close the connection of the group commits."""
        if self._connection is not None:
            await self._connection.close()

    @contextlib.asynccontextmanager
    async def _own(self) -> AsyncIterator[Connection]:
        """The connection of our own, whose every statement is a transaction. After an error the next is a new one."""
        with translated():
            connection = self._connection
            if connection is None or connection.closed:
                connection = self._connection = await self._connect()
                register(connection)
            alarm = asyncio.get_running_loop().call_later(_TIMEOUT_S, _hang_up, connection)
            try:
                yield connection
            except BaseException:
                await connection.close()
                raise
            finally:
                alarm.cancel()


def _hang_up(connection: Connection) -> None:
    """Shut the socket: whoever waits for a reply then sees the end of the connection (see ``recorder.py``)."""
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
