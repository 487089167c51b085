"""What flow control costs an event."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import psycopg

from appliance.replica import Replica
from appliance.supervisor import tune_collector
from tests.bench.stand import Servers, entries, fill, replica, until
from tests.bench.throughput import workflow

KEY = "{{ event.data.number % 1000 }}"
PARTS: dict[str, dict[str, Any]] = {
    "concurrency, never reached": {"concurrency": 10_000},
    "concurrency of 10": {"concurrency": 10},
    "concurrency of 100, 2 for each of 1,000 keys": {"concurrency": [100, {"key": KEY, "limit": 2}]},
    "ordering_key with 1,000 values": {"ordering_key": KEY},
    "throttle, never reached": {"throttle": {"limit": 100_000, "period": "1s", "burst": 100_000}},
    "rate_limit of 100, the rest is left out": {"rate_limit": {"limit": 100, "period": "1h"}},
    "debounce with 1,000 keys": {"debounce": {"period": "500ms", "key": KEY}},
    "batch of 100": {"batch": {"size": 100, "timeout": "1s"}},
    "singleton with 1,000 keys: skip": {"singleton": {"mode": "skip", "key": KEY}},
}
"""What is measured, each by itself."""


class Shaped(NamedTuple):
    """Events a second until the last run was over, and how many runs there were, those that began none left out."""

    per_second: float
    runs: int


async def shaped(stand: Servers, number: int, control: dict[str, Any]) -> Shaped:
    """An instant workflow with this flow control: from the first read until nothing is held or at work any more."""
    return await _measured(stand, number, [{**workflow("shaped"), **control}])


async def beside(stand: Servers, number: int) -> Shaped:
    """An instant workflow without any, while others that no event is for have all there is."""
    others = [{**workflow(f"other-{place}", type="other"), **control} for place, control in enumerate(PARTS.values())]
    return await _measured(stand, number, [workflow("plain"), *others])


async def served(stand: Servers, flood: int) -> float:
    """Seconds until ten runs of a tenant are over, added right behind so many events of another, unread ones.

    At most four of a tenant are at work, ten together; each takes 200 ms.
    """
    control = {"concurrency": [10, {"key": "{{ event.data.email }}", "limit": 4}]}
    definition = {**workflow("shaped"), **control, "steps": [{"id": "rest", "action": "rest"}]}
    async with replica(stand, [definition]) as (made, url):
        rows = [*entries(flood), *entries(10, email="other@example.org")]
        await fill(stand.redis_url, made.keys.stream("normal"), rows)
        tune_collector()
        async with _at_work(made), await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            began = time.perf_counter()

            async def over() -> bool:
                cursor = await connection.execute(
                    "SELECT count(*) = 10 FROM events e JOIN runs r ON r.event_uid = e.uid "
                    "WHERE e.data ->> 'email' = 'other@example.org' AND r.status = 'succeeded'"
                )
                row = await cursor.fetchone()
                return row is not None and bool(row[0])

            await until(over)
            seconds = time.perf_counter() - began
    return seconds


@contextlib.asynccontextmanager
async def _at_work(made: Replica) -> AsyncIterator[None]:
    """A replica that reads, fires timers and sweeps."""
    loops = (made.timers.run_forever, made.gatekeeper.run_forever, made.consumer.read_forever)
    tasks = [asyncio.create_task(loop()) for loop in loops]
    yield
    made.timers.stop()
    made.gatekeeper.stop()
    await made.consumer.stop(5)
    await asyncio.gather(*tasks)


async def _measured(stand: Servers, number: int, definitions: list[dict[str, Any]]) -> Shaped:
    async with replica(stand, definitions) as (made, url):
        await fill(stand.redis_url, made.keys.stream("normal"), entries(number))
        tune_collector()
        async with _at_work(made), await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            began = time.perf_counter()

            async def settled() -> bool:
                return bool((await made.bookkeeper.ledger())["handled"] >= number)

            async def over() -> bool:
                cursor = await connection.execute(
                    "SELECT EXISTS (SELECT FROM runs WHERE status IN ('running', 'waiting', 'retrying'))"
                )
                row = await cursor.fetchone()
                return row is not None and not row[0]

            await until(settled)
            await until(over)
            seconds = time.perf_counter() - began
            cursor = await connection.execute("SELECT count(*) FROM runs WHERE status = 'succeeded'")
            row = await cursor.fetchone()
    if row is None or not row[0]:
        raise AssertionError("no run went through")
    return Shaped(number / seconds, int(row[0]))
