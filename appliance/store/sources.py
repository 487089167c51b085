"""The rows of polling sources: claims, how far each has come, and one transaction for a page and its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from appliance.errors import Fenced
from appliance.events import Event
from appliance.store.columns import TextColumn, register
from appliance.store.outbox import packed
from appliance.store.pool import Connection, Pool, checked_out
from appliance.store.queries import named

_SQL = named("sources")
_ACCEPT = named("outbox")["accept"]


class Claim(NamedTuple):
    """A source that is ours until its hold runs out, and where it stands. ``now_s`` is PostgreSQL's Unix time."""

    name: str
    digest: str
    basis: str | None
    turn: int
    floor: int | None
    newest: int | None
    bound: int | None
    place: int | None
    place_key: str | None
    scanning: bool
    marks: list[tuple[float, int]]
    audit: dict[str, Any]
    failures: int
    now_s: float


class Refusal(NamedTuple):
    """A row that can't be an event."""

    key: str
    row_key: str | None
    cursor: int
    error: str


@dataclass(slots=True)
class Step:
    """What a page changes: the source as it stands behind it, its events and what became of its other rows."""

    after: Claim
    priority: str
    events: list[Event] = field(default_factory=list)
    remembered: dict[str, int] = field(default_factory=dict)
    """Cursor values, by mark, of rows above the bound: they will be seen again."""
    refused: list[Refusal] = field(default_factory=list)
    late: frozenset[str] = frozenset()
    """uids of the events whose rows were behind newer ones."""
    missed: int = 0


class SourceState(NamedTuple):
    """A source as people see it. Cursor values are numbers: ``basis`` says of what."""

    name: str
    digest: str
    basis: str | None
    floor: int | None
    newest: int | None
    scanning: bool
    due_at: datetime
    polled_at: datetime | None
    failures: int
    error: str | None
    error_at: datetime | None
    held_by: str | None
    held: bool | None
    events: int
    repeats: int
    refused: int
    late: int
    missed: int
    refusals: int


class SourceStore:
    """Statements over the pool. Everything raises StoreUnavailable; what needs the claim raises Fenced without it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def keep(self, names: Sequence[str]) -> None:
        """Make a row for each source that has none."""
        async with checked_out(self._pool) as connection:
            await connection.execute(_SQL["keep"], [sorted(names)])

    async def claim(self, names: Sequence[str], holder: str, hold_s: float, limit: int) -> list[Claim]:
        """Up to ``limit`` of these that are due and free, held for ``hold_s``."""
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["claim"], [holder, hold_s, list(names), limit])
            return [_claim(row) for row in await cursor.fetchall()]

    async def one(self, name: str) -> Claim | None:
        """Where a source stands, without claiming it."""
        async with checked_out(self._pool) as connection:
            row = await (await connection.execute(_SQL["one"], [name])).fetchone()
        return _claim(row) if row is not None else None

    async def seen(self, name: str, marks: Sequence[str]) -> set[str]:
        """Which of the rows with these marks were dealt with above the floor."""
        if not marks:
            return set()
        async with checked_out(self._pool) as connection:
            found: list[Any] = await (await connection.execute(_SQL["seen"], [name, list(marks)])).fetchall()
        return {row[0] for row in found}

    async def known(self, keys: Sequence[str]) -> set[str]:
        """Which of these keys have an event already."""
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["known"], [list(keys)])
            found: list[Any] = await cursor.fetchall()
        return {row[0] for row in found}

    async def begin_anew(self, claim: Claim, hold_s: float) -> None:
        """Forget what was seen: another cursor counts differently."""
        async with checked_out(self._pool) as connection:
            await self._move(connection, claim, hold_s)
            await connection.execute(_SQL["forget_all"], [claim.name])

    async def retry_refused(self, claim: Claim, within_s: float) -> int | None:
        """The cursor value of the first refused row, if there is one, and make sure that all is looked at again."""
        async with checked_out(self._pool) as connection:
            row: Any = await (await connection.execute(_SQL["earliest_refusal"], [claim.name, within_s])).fetchone()
            await connection.execute(_SQL["forget_all"], [claim.name])
        return None if row[0] is None else int(row[0])

    async def commit(self, step: Step, hold_s: float) -> tuple[Claim, set[str]]:
        """One transaction: the events into the outbox, the rows that were dealt with, and the new place.

        Answers the source as it stands then, and the uids that were accepted (the rest are repeats).
        """
        after, name = step.after, step.after.name
        async with checked_out(self._pool) as connection:
            register(connection)
            if await (await connection.execute(_SQL["lock"], [name, after.turn])).fetchone() is None:
                raise Fenced(f"the source {name!r} is another replica's now")
            accepted = await _accept(connection, step.events, step.priority)
            await _note(connection, step)
            counts = [len(accepted), len(step.events) - len(accepted), len(step.refused), len(step.late & accepted)]
            if any(counts) or step.missed:
                await connection.execute(_SQL["count"], [*counts, step.missed, name])
            if not after.scanning and after.floor is not None:
                gone = (await connection.execute(_SQL["forget"], [name, after.floor])).rowcount
                after = after._replace(audit={**after.audit, "rows": after.audit.get("rows", 0) + gone})
            await self._move(connection, after, hold_s)
        return after, accepted

    async def release(self, claim: Claim, due_in_s: float, retention_s: float) -> None:
        """Let it go; it is due again so many seconds from now."""
        async with checked_out(self._pool) as connection:
            await connection.execute(_SQL["release"], [due_in_s, claim.name, claim.turn])
            await connection.execute(_SQL["forget_refusals"], [claim.name, retention_s])

    async def fail(self, claim: Claim, error: str, due_in_s: float) -> None:
        """Let it go with its error."""
        async with checked_out(self._pool) as connection:
            await connection.execute(_SQL["fail"], [due_in_s, error, claim.name, claim.turn])

    async def due_in_s(self, names: Sequence[str]) -> float | None:
        """Seconds until the next of these is due and free."""
        async with checked_out(self._pool) as connection:
            row: Any = await (await connection.execute(_SQL["due"], [list(names)])).fetchone()
        return float(row[0]) if row[0] is not None else None

    async def states(self, names: Sequence[str]) -> list[SourceState]:
        """How these are, by name; one that no replica has taken notice of isn't there."""
        async with checked_out(self._pool) as connection:
            found: list[Any] = await (await connection.execute(_SQL["states"], [list(names)])).fetchall()
        return [SourceState(*row) for row in found]

    async def refusals(self, name: str, before: tuple[datetime, str], limit: int) -> list[tuple[Any, ...]]:
        """Refused rows, the latest first: (row's key, cursor, error, at, key)."""
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["refusals"], [name, *before, limit])
            return list(await cursor.fetchall())

    async def _move(self, connection: Connection, to: Claim, hold_s: float) -> None:
        marks, audit = orjson.dumps(to.marks).decode(), orjson.dumps(to.audit).decode()
        places = [to.floor, to.newest, to.bound, to.place, to.place_key, to.scanning]
        values = [to.digest, to.basis, *places, marks, audit, hold_s, to.name, to.turn]
        if (await connection.execute(_SQL["move"], values)).rowcount == 0:
            raise Fenced(f"the source {to.name!r} is another replica's now")


async def _accept(connection: Connection, events: Sequence[Event], priority: str) -> set[str]:
    """Durable rows of the outbox for the events whose key is new."""
    if not events:
        return set()
    columns = [
        TextColumn(event.uid for event in events),
        TextColumn(priority for _ in events),
        TextColumn(packed(event) for event in events),
        TextColumn(event.key for event in events),
    ]
    found: list[Any] = await (await connection.execute(_ACCEPT, columns)).fetchall()
    return {row[0] for row in found}


async def _note(connection: Connection, step: Step) -> None:
    """What became of the rows of a page."""
    name = step.after.name
    if step.remembered:
        keys, cursors = TextColumn(step.remembered), list(step.remembered.values())
        await connection.execute(_SQL["remember"], [name, keys, cursors])
    if step.events:
        await connection.execute(_SQL["heal"], [name, TextColumn(event.key for event in step.events)])
    if step.refused:
        refused = list({refusal.key: refusal for refusal in step.refused}.values())
        columns = [
            TextColumn(refusal.key for refusal in refused),
            TextColumn(refusal.row_key for refusal in refused),
            [refusal.cursor for refusal in refused],
            TextColumn(refusal.error for refusal in refused),
        ]
        await connection.execute(_SQL["refuse"], [name, *columns])


def _claim(row: Any) -> Claim:
    marks = [(float(at), int(value)) for at, value in orjson.loads(row[10] or "[]")]
    return Claim._make((*row[:10], marks, orjson.loads(row[11] or "{}"), *row[12:]))
