"""From the slot of a schedule to the end of its run, over three replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest_asyncio

from appliance.engine.schedules import Ticker
from appliance.plugin import Context
from appliance.replica import Replica
from appliance.store.pool import Connection
from tests.integration.test_heart import Heart, db, heart, rows
from tests.servers import wait_until

__all__ = ["db", "heart"]
QUARTERS = {"schedule": "*/15 * * * *", "timezone": "Europe/Berlin"}


class Clock:
    """A clock that tickers go by and the test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 12, 1, tzinfo=UTC)

    def __call__(self) -> float:
        return self.now.timestamp()


@pytest_asyncio.fixture
async def clock(heart: Heart) -> AsyncIterator[Clock]:
    """Three replicas tick by it."""
    clock = Clock()
    made = [await heart.replica() for _ in range(3)]
    tickers = [_ticker(replica, clock) for replica in made]
    loops = [asyncio.create_task(ticker.run_forever()) for ticker in tickers]
    yield clock
    for ticker in tickers:
        ticker.stop()
    await asyncio.wait_for(asyncio.gather(*loops), 20)


def _ticker(replica: Replica, clock: Clock) -> Ticker:
    return Ticker(replica.pool, replica.producer, replica.catalog, 0.02, clock)


async def test_a_slot_is_one_run(heart: Heart, clock: Clock, db: Connection) -> None:
    seen: list[Any] = []

    async def note(ctx: Context) -> None:
        seen.append(ctx.event.data)

    heart.behave["note"] = note
    await heart.workflow("digest", {"id": "note"}, {"id": "rest", "delay": "50ms"}, trigger=QUARTERS)
    for replica in heart.replicas:
        await replica.catalog.refresh()
    await wait_until(lambda: rows(db, "SELECT 1 FROM schedules"), "the schedule's row")
    for quarter in (1, 2, 3):
        clock.now = datetime(2026, 11, 21, 12, tzinfo=UTC) + quarter * timedelta(minutes=15)
        await wait_until(lambda n=quarter: _over(db, n), f"the end of run {quarter}")  # type: ignore[misc]
    await heart.at_rest()
    assert [data["slot"] for data in seen] == [f"2026-11-21T13:{minute}:00+01:00" for minute in (15, 30, 45)]
    assert await rows(db, "SELECT origin, count(*) FROM runs GROUP BY 1") == [("schedule", 3)]
    assert await heart.ledger() == {"handled": 3, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_a_slot_that_is_put_in_twice_is_one_run(heart: Heart, clock: Clock, db: Connection) -> None:
    """The process died between the entry and its commit, and Redis forgot the key."""

    async def nothing(_: Context) -> None: ...

    heart.behave["note"] = nothing
    await heart.workflow("digest", {"id": "note"}, trigger=QUARTERS)
    for replica in heart.replicas:
        await replica.catalog.refresh()
    await wait_until(lambda: rows(db, "SELECT 1 FROM schedules"), "the schedule's row")
    clock.now += timedelta(minutes=14)
    await wait_until(lambda: _over(db, 1), "the run's end")
    await heart.at_rest()
    keys = [key async for key in heart.replicas[0].commander.scan_iter(match="*:key:*")]
    assert await heart.replicas[0].commander.delete(*keys) == 1
    await db.execute(b"UPDATE schedules SET next_at = last_slot, last_slot = NULL")
    await wait_until(lambda: rows(db, "SELECT 1 FROM duplicates"), "the second entry")
    await heart.at_rest()
    assert heart.calls["note"] == [1]
    assert await rows(db, "SELECT count(*) FROM runs") == [(1,)]


async def _over(db: Connection, count: int) -> bool:
    return await rows(db, "SELECT count(*) FROM runs WHERE status = 'succeeded'") == [(count,)]
