"""Time partitions of the history: made ahead of time, dropped when they are older than the retention.

Events, runs and what belongs to them are partitioned by ranges of UUIDv7, whose first 48 bits are Unix
milliseconds. A partition's name carries its range: ``runs_20261119t00_20261126t00``. Rows outside every range (clocks
that jump, long gaps) land in ``<table>_default``, so that an insert never fails for want of a partition.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from appliance.identifiers import range_start

_log = logging.getLogger(__name__)

KEYS = {
    "events": "uid",
    "correlations": "event_uid",
    "runs": "id",
    "steps": "run_id",
    "attempts": "run_id",
    "signals": "run_id",
    "tasks": "id",
    "batched": "run_id",
}
"""The partitioned tables and what each is partitioned by, children last (they are dropped in reverse order)."""

_DEPENDANTS: Mapping[str, LiteralString] = {
    "event_keys": "seen_at < %(limit)s",
    "duplicates": "uid < %(bound)s",
    "deliveries": "run_id < %(bound)s AND NOT EXISTS (SELECT FROM runs WHERE runs.id = run_id)",
    "children": "parent_id < %(bound)s AND NOT EXISTS (SELECT FROM runs WHERE runs.id = parent_id)",
    "dead_letters": "id < %(bound)s AND status <> 'open'",
    "places": "run_id < %(bound)s AND NOT EXISTS (SELECT FROM runs WHERE runs.id = run_id)",
    "queue": "run_id < %(bound)s AND NOT EXISTS (SELECT FROM runs WHERE runs.id = run_id)",
    "meters": "expires_at < %(limit)s",
}
"""What goes with the history although it is not partitioned, and when. Open dead letters wait for a decision."""

_UNFINISHED = ("running", "waiting", "retrying", "paused")
_EPOCH = datetime(2000, 1, 3, tzinfo=UTC)
"""A Monday: partitions of seven days begin on Mondays."""
_NAME = re.compile(r"[a-z]+_(\d{8}t\d{2})_(\d{8}t\d{2})")
_STAMP = "%Y%m%dt%H"
_LOCK = 0x706172746974696F
"""Key of the advisory lock ("partitio"): replicas don't make or drop the same partition at once."""
_BATCH = 10_000
"""Rows deleted in one transaction."""
_LOCK_TIMEOUT = "2s"
"""DDL that waits for a lock makes everything behind it wait: rather give up and try again at the next turn."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The time range of one partition: from ``start`` up to, not including, ``end``."""

    start: datetime
    end: datetime

    @property
    def suffix(self) -> str:
        return f"{self.start:{_STAMP}}_{self.end:{_STAMP}}"

    @property
    def bounds(self) -> tuple[str, str]:
        """The smallest UUIDs of both ends."""
        return _bound(self.start), _bound(self.end)


async def ensure(conn: psycopg.AsyncConnection[Any], span: timedelta, now: datetime, ahead: int = 2) -> list[str]:
    """Make the partitions for ``now`` and ``ahead`` spans after it; returns the names of the new ones.

    Idempotent, and safe beside other replicas. ``span`` is rounded up to whole hours. A change of ``span`` takes effect
    behind the partitions that exist already. Runs in a transaction of its own (or a savepoint in the caller's).
    """
    made: list[str] = []
    async with conn.transaction():
        await _lock(conn)
        for table in KEYS:
            existing = await spans(conn, table)
            wanted = plan(existing, span, now, ahead)
            made += [f"{table}_{new.suffix}" for new in wanted if await _attach(conn, table, new)]
    if made:
        _log.info("made partitions: %s", ", ".join(made))
    return made


async def drop_expired(conn: psycopg.AsyncConnection[Any], retention: timedelta, now: datetime) -> list[str]:
    """Drop every partition whose whole span is older than ``retention``; returns the names of the dropped ones.

    One that still holds an unfinished run is kept, with its events, steps and attempts, until that run is finished.
    What else is older (keys, duplicates, deliveries, closed dead letters, rows in the default partitions) is deleted
    in batches of their own, so give a connection without an open transaction.
    """
    limit = now - retention
    dropped: list[str] = []
    async with conn.transaction():
        await _lock(conn)
        by_table = {table: set(await spans(conn, table)) for table in KEYS}
        for span in sorted({span for found in by_table.values() for span in found if span.end <= limit}):
            if await _has_unfinished(conn, *span.bounds):
                _log.warning("the partition %s is kept: it holds unfinished runs", span.suffix)
                continue
            for table in reversed(KEYS):
                if span in by_table[table]:
                    await conn.execute(sql.SQL("DROP TABLE {}").format(_identifier(table, span)))
                    dropped.append(f"{table}_{span.suffix}")
    if dropped:
        _log.info("dropped partitions older than %s: %s", limit.isoformat(), ", ".join(dropped))
    await _delete_expired(conn, limit)
    return dropped


async def spans(conn: psycopg.AsyncConnection[Any], table: str) -> list[Span]:
    """The spans of a table's partitions, oldest first, without the default one."""
    rows = await conn.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass",
        (table,),
    )
    matches = [match for (name,) in await rows.fetchall() if (match := _NAME.fullmatch(name))]
    return sorted(Span(_parse(match[1]), _parse(match[2])) for match in matches)


def plan(existing: Sequence[Span], span: timedelta, now: datetime, ahead: int) -> list[Span]:
    """The spans to make so that ``now`` and ``ahead`` spans after it are covered. Pure; never overlaps ``existing``."""
    span = max(timedelta(hours=-(-span // timedelta(hours=1))), timedelta(hours=1))
    first = _EPOCH + (now - _EPOCH) // span * span
    wanted = []
    for index in range(ahead + 1):
        start, end = first + index * span, first + (index + 1) * span
        taken = [other for other in existing if other.start < end and other.end > start]
        wanted += _gaps(Span(start, end), taken)
    return wanted


def _gaps(span: Span, taken: Sequence[Span]) -> list[Span]:
    gaps, start = [], span.start
    for other in sorted(taken):
        if other.start > start:
            gaps.append(Span(start, other.start))
        start = max(start, other.end)
    if start < span.end:
        gaps.append(Span(start, span.end))
    return gaps


async def _attach(conn: psycopg.AsyncConnection[Any], table: str, span: Span) -> bool:
    """Make one partition; False if the default partition has rows in its range already.

    (They would have to be moved under a lock on the whole table. The default partition serves them as well, and the
    next span is made in time.)
    """
    low, high = span.bounds
    names = {"default": sql.Identifier(f"{table}_default"), "key": sql.Identifier(KEYS[table])}
    occupied = sql.SQL("SELECT EXISTS (SELECT FROM {default} WHERE {key} >= %s AND {key} < %s)").format(**names)
    if await _is_true(conn, occupied, (low, high)):
        _log.warning("%s: no partition %s, the default one holds rows of that time", table, span.suffix)
        return False
    # Attached rather than created in place: that would lock out readers and writers of the whole table.
    name, parent = _identifier(table, span), sql.Identifier(table)
    await conn.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(name, parent))
    await conn.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            parent, name, sql.Literal(low), sql.Literal(high)
        )
    )
    return True


async def _delete_expired(conn: psycopg.AsyncConnection[Any], limit: datetime) -> None:
    bound = _bound(limit)
    if not await _has_unfinished(conn, range_start(0), bound):
        for table, key in KEYS.items():
            await _delete(conn, f"{table}_default", f"{key} < %(bound)s", {"bound": bound})
    for table, condition in _DEPENDANTS.items():
        await _delete(conn, table, condition, {"limit": limit, "bound": bound})


async def _delete(
    conn: psycopg.AsyncConnection[Any], table: str, condition: LiteralString, values: dict[str, Any]
) -> None:
    statement = sql.SQL(
        "DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE {condition} LIMIT {batch}))"
    ).format(table=sql.Identifier(table), condition=sql.SQL(condition), batch=sql.Literal(_BATCH))
    deleted = _BATCH
    while deleted == _BATCH:
        async with conn.transaction():
            deleted = (await conn.execute(statement, values)).rowcount


async def _has_unfinished(conn: psycopg.AsyncConnection[Any], low: str, high: str) -> bool:
    """Whether a run of this time is unfinished, or one of another time that is for an event of this time."""
    question = sql.SQL(
        "SELECT EXISTS (SELECT FROM runs WHERE id >= %(low)s AND id < %(high)s"
        " AND status = ANY(%(open)s::run_status[]))"
        " OR EXISTS (SELECT FROM runs WHERE origin IS NOT NULL AND event_uid >= %(low)s AND event_uid < %(high)s"
        " AND status = ANY(%(open)s::run_status[]))"
        " OR EXISTS (SELECT FROM runs JOIN batched ON batched.run_id = runs.id WHERE runs.id < %(high)s"
        " AND batched.event_uid >= %(low)s AND batched.event_uid < %(high)s"
        " AND status = ANY(%(open)s::run_status[]))"
    )
    return await _is_true(conn, question, {"low": low, "high": high, "open": list(_UNFINISHED)})


async def _is_true(
    conn: psycopg.AsyncConnection[Any], question: sql.SQL | sql.Composed, values: Sequence[Any] | Mapping[str, Any]
) -> bool:
    row = await (await conn.execute(question, values)).fetchone()
    return row is not None and bool(row[0])


async def _lock(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    await conn.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT)))


def _identifier(table: str, span: Span) -> sql.Identifier:
    return sql.Identifier(f"{table}_{span.suffix}")


def _bound(at: datetime) -> str:
    return range_start(int(at.timestamp() * 1000))


def _parse(stamp: str) -> datetime:
    return datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
