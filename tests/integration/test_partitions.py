"""Partitions of the history against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from appliance.identifiers import run_id_for, uuid7
from appliance.store.partitions import KEYS, Span, drop_expired, ensure, plan, spans

WEEK = timedelta(days=7)
NOW = datetime(2031, 5, 14, 12, 30, tzinfo=UTC)  # a Wednesday
MONDAY = datetime(2031, 5, 12, tzinfo=UTC)
THIS_WEEK, NEXT_WEEK = "20310512t00_20310519t00", "20310519t00_20310526t00"

Connection = psycopg.AsyncConnection[Any]


@pytest_asyncio.fixture
async def conn(database_url: str) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        yield connection


async def add_history(conn: Connection, at: datetime, status: str = "succeeded") -> str:
    """An event with a run, and a row of every table that belongs to it; returns the run's id."""
    uid = uuid7(int(at.timestamp() * 1000))
    run = run_id_for(uid, "w")
    await conn.execute(
        "INSERT INTO events (uid, source, type, time, received_at) VALUES (%s, 's', 't', %s, %s)", (uid, at, at)
    )
    await conn.execute(
        "INSERT INTO runs (id, event_uid, workflow_id, revision_id, status, version, started_at, updated_at, priority) "
        "VALUES (%s, %s, 1, 1, %s, 1, %s, %s, 'normal')",
        (run, uid, status, at, at),
    )
    await conn.execute(
        "INSERT INTO steps (run_id, key, seq, status, attempt) VALUES (%s, 'a', 0, 'succeeded', 1)", (run,)
    )
    await conn.execute("INSERT INTO attempts VALUES (%s, 'a', 1, %s, %s, 'no')", (run, at, at))
    await conn.execute("INSERT INTO correlations VALUES (%s, %s)", (uid, uid))
    await conn.execute("INSERT INTO signals (run_id, id, key, kind) VALUES (%s, %s, 'a', 'event')", (run, uid))
    await conn.execute(
        "INSERT INTO tasks (id, run_id, key, workflow_id, title, form, created_at) "
        "VALUES (%s, %s, 'a', 1, 't', '{}', %s)",
        (run, run, at),
    )
    await conn.execute("INSERT INTO batched VALUES (%s, %s, 1)", (run, uid))
    await conn.execute("INSERT INTO children VALUES (%s, 'a', %s)", (run, run))
    await conn.execute("INSERT INTO deliveries VALUES (%s, 'a', 'email', 'x', 'sent', 1, NULL, NULL, %s)", (run, at))
    return run


async def counts(conn: Connection, *tables: str) -> list[int]:
    found = []
    for table in tables:
        row = await (await conn.execute(f"SELECT count(*) FROM {table}")).fetchone()  # noqa: S608
        assert row is not None
        found.append(row[0])
    return found


async def test_covers_now_and_what_is_ahead_once(conn: Connection) -> None:
    before = {table: await spans(conn, table) for table in KEYS}
    made = await ensure(conn, WEEK, NOW, ahead=1)
    assert sorted(made) == sorted(f"{t}_{s}" for t in KEYS for s in (THIS_WEEK, NEXT_WEEK))
    assert await ensure(conn, WEEK, NOW, ahead=1) == []
    for table in KEYS:
        expected = [*before[table], Span(MONDAY, MONDAY + WEEK), Span(MONDAY + WEEK, MONDAY + 2 * WEEK)]
        assert await spans(conn, table) == expected


async def test_rows_find_their_partition(conn: Connection) -> None:
    await ensure(conn, WEEK, NOW)
    await add_history(conn, MONDAY)
    await add_history(conn, MONDAY + WEEK - timedelta(milliseconds=1))
    await add_history(conn, MONDAY + WEEK)
    await add_history(conn, MONDAY - WEEK)
    for table in KEYS:
        suffixes = (THIS_WEEK, NEXT_WEEK, "default")
        assert await counts(conn, *(f"{table}_{suffix}" for suffix in suffixes)) == [2, 1, 1]


async def test_replicas_make_each_partition_once(database_url: str) -> None:
    async def one() -> list[str]:
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            return await ensure(connection, WEEK, NOW, ahead=0)

    made = await asyncio.gather(*(one() for _ in range(4)))
    assert sorted(map(len, made)) == [0, 0, 0, len(KEYS)]


async def test_rows_that_were_there_first_stay_in_the_default(conn: Connection) -> None:
    await add_history(conn, NOW)
    made = await ensure(conn, WEEK, NOW, ahead=1)
    assert sorted(made) == sorted(f"{table}_{NEXT_WEEK}" for table in KEYS)
    assert await counts(conn, "runs_default") == [1]


async def test_drops_what_is_wholly_older_than_the_retention(conn: Connection) -> None:
    await ensure(conn, WEEK, NOW, ahead=1)
    for at in (MONDAY, MONDAY + WEEK):
        await add_history(conn, at)
    retention = timedelta(days=3)
    end = MONDAY + WEEK + retention
    await drop_expired(conn, retention, end - timedelta(seconds=1))
    assert await counts(conn, *KEYS, "deliveries") == [2] * (len(KEYS) + 1)
    dropped = await drop_expired(conn, retention, end)
    assert sorted(dropped) == sorted(f"{t}_{THIS_WEEK}" for t in KEYS)
    assert await counts(conn, *KEYS, "deliveries") == [1] * (len(KEYS) + 1)


@pytest.mark.parametrize("status", ["running", "waiting", "retrying", "paused"])
async def test_keeps_what_an_unfinished_run_needs(conn: Connection, status: str) -> None:
    await ensure(conn, WEEK, NOW, ahead=0)
    run = await add_history(conn, NOW, status)
    later = NOW + timedelta(days=60)
    await drop_expired(conn, timedelta(days=30), later)
    assert await counts(conn, *KEYS, "deliveries") == [1] * (len(KEYS) + 1)
    await conn.execute("UPDATE runs SET status = 'cancelled' WHERE id = %s", (run,))
    await drop_expired(conn, timedelta(days=30), later)
    assert await counts(conn, *KEYS, "deliveries") == [0] * (len(KEYS) + 1)


async def test_keeps_the_event_of_a_run_that_was_begun_later(conn: Connection) -> None:
    """A rerun or a replay has an id of its own time; without its event it could never be woken."""
    await ensure(conn, WEEK, NOW, ahead=0)
    await add_history(conn, NOW)
    later = NOW + timedelta(days=60)
    rerun = uuid7(int(later.timestamp() * 1000))
    await conn.execute(
        "INSERT INTO runs (id, event_uid, workflow_id, revision_id, status, version, started_at, updated_at, priority, "
        "origin) SELECT %s, event_uid, 1, 1, 'waiting', 1, %s, %s, 'normal', 'rerun' FROM runs",
        (rerun, later, later),
    )
    await drop_expired(conn, timedelta(days=30), later)
    assert await counts(conn, "events") == [1]
    await conn.execute("UPDATE runs SET status = 'succeeded' WHERE id = %s", (rerun,))
    await drop_expired(conn, timedelta(days=30), later)
    assert await counts(conn, "events") == [0]


async def test_keeps_the_events_of_a_batch_that_is_not_over(conn: Connection) -> None:
    for weeks in (0, 1):
        await ensure(conn, WEEK, MONDAY - timedelta(weeks=weeks), ahead=0)
    batch = await add_history(conn, MONDAY - WEEK, "waiting")
    member = uuid7(int(MONDAY.timestamp() * 1000))
    await add_history(conn, MONDAY)
    await conn.execute("INSERT INTO batched VALUES (%s, %s, 2)", (batch, member))
    await drop_expired(conn, timedelta(0), NOW + 2 * WEEK)
    assert await counts(conn, "events", "batched") == [2, 3]
    await conn.execute("UPDATE runs SET status = 'succeeded'")
    await drop_expired(conn, timedelta(0), NOW + 2 * WEEK)
    assert await counts(conn, "events", "batched") == [0, 0]


async def test_flow_control_keeps_no_row_of_a_run_that_is_gone(conn: Connection) -> None:
    await ensure(conn, WEEK, MONDAY, ahead=0)
    gone, kept = await add_history(conn, MONDAY), await add_history(conn, NOW + 2 * WEEK)
    for run, at in ((gone, MONDAY), (kept, NOW + 2 * WEEK)):
        key = uuid7()
        await conn.execute("INSERT INTO places VALUES (%s, %s, true)", (key, run))
        await conn.execute("INSERT INTO queue VALUES (%s, 1, %s, 1, 'normal', '{}', '{}', '{}', '{}')", (run, key))
        await conn.execute("INSERT INTO meters VALUES (%s, 1, 'batch', 'k', %s, 1, %s, NULL, %s)", (key, at, run, at))
    await drop_expired(conn, timedelta(days=3), NOW + 2 * WEEK)
    for table in ("places", "queue", "meters"):
        found = await (await conn.execute(f"SELECT run_id::text FROM {table}")).fetchall()  # noqa: S608
        assert found == [(kept,)], table


async def test_deletes_what_is_old_outside_the_partitions(conn: Connection) -> None:
    old, young = NOW - timedelta(days=40), NOW - timedelta(days=20)
    await add_history(conn, old)  # no partition: the default one
    await add_history(conn, young)
    for at in (old, young):
        uid = uuid7(int(at.timestamp() * 1000))
        await conn.execute("INSERT INTO event_keys VALUES (%s, %s, %s)", (uid, uid, at))
        await conn.execute("INSERT INTO duplicates VALUES (%s, %s, 'normal', '1-1', %s)", (uid, uid, at))
        for status in ("open", "discarded"):
            letter = uuid7(int(at.timestamp() * 1000))
            await conn.execute(
                "INSERT INTO dead_letters (id, kind, status, error, attempts, created_at) "
                "VALUES (%s, 'entry', %s, 'e', 1, %s)",
                (letter, status, at),
            )
    await drop_expired(conn, timedelta(days=30), NOW)
    assert await counts(conn, *KEYS, "deliveries", "children", "event_keys", "duplicates") == [1] * 12
    assert await counts(conn, "dead_letters") == [3]


async def test_gives_up_instead_of_waiting_for_a_long_lock(conn: Connection, database_url: str) -> None:
    await ensure(conn, WEEK, NOW, ahead=0)
    async with await psycopg.AsyncConnection.connect(database_url) as reader:
        await reader.execute("SELECT * FROM runs")  # a long transaction
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await drop_expired(conn, WEEK, NOW + timedelta(days=90))
    assert await drop_expired(conn, WEEK, NOW + timedelta(days=90))


def test_a_changed_span_fits_in_behind_what_exists() -> None:
    existing = plan([], WEEK, NOW, 0)
    day = timedelta(days=1)
    assert plan(existing, day, MONDAY + timedelta(days=6), 1) == [Span(MONDAY + WEEK, MONDAY + WEEK + day)]
    wider = plan(existing, 2 * WEEK, NOW, 0)
    assert all(span.end <= MONDAY or span.start >= MONDAY + WEEK for span in wider)
    assert sum((span.end - span.start for span in wider), timedelta()) == WEEK


def test_spans_are_whole_hours() -> None:
    (span,) = plan([], timedelta(minutes=90), NOW, 0)
    assert span.end - span.start == timedelta(hours=2)
    assert span.start <= NOW < span.end
