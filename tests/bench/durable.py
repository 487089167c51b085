"""Runs of many steps, runs that are parked: per second, and in bytes."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple

import psycopg

from appliance.supervisor import tune_collector
from tests.bench.stand import Servers, entries, fill, replica, until

_RUNS = b"""
WITH fresh AS (
    SELECT uuidv7() AS id, to_timestamp(%(first)s + n * %(step)s) AS due FROM generate_series(0, %(number)s - 1) AS n
), events AS (
    INSERT INTO events (uid, source, type, time, received_at, data, stream, entry_id, outcome)
    SELECT id, '/bench', 'bench.event', now(), now(), '{"email": "somebody@example.org"}', 'normal', '0-1', 'handled'
    FROM fresh
), runs AS (
    INSERT INTO runs (id, event_uid, workflow_id, revision_id, status, version, started_at, updated_at, priority, state)
    SELECT id, id, %(workflow)s, %(revision)s, 'waiting', 1, now(), now(), 'normal', '{"by": "timer"}' FROM fresh
), steps AS (
    INSERT INTO steps (run_id, key, seq, status, attempt, started_at, due_at)
    SELECT id, 'pause', 0, 'waiting', 1, now(), due FROM fresh
)
INSERT INTO timers (run_id, key, due_at, priority) SELECT id, '', due, 'normal' FROM fresh
"""
FAR_S = 10 * 86_400.0
"""Seconds after which the parked runs that only lie there are due."""


class Fired(NamedTuple):
    """Timers fired and worked off a second, and how late (seconds) each run went on: median and worst."""

    per_second: float
    median_s: float
    worst_s: float


def sequence(steps: int) -> dict[str, Any]:
    """Instant steps, one after the other."""
    return _workflow([{"id": f"s{n}", "action": "instant"} for n in range(steps)])


def parallel(branches: int) -> dict[str, Any]:
    """Instant steps, all at once."""
    inner = {f"b{n}": [{"id": f"s{n}", "action": "instant"}] for n in range(branches)}
    return _workflow([{"id": "all", "parallel": {"branches": inner, "join": "all"}}])


def delayed() -> dict[str, Any]:
    """A pause, then an instant step."""
    return _workflow([{"id": "pause", "delay": "1h"}, {"id": "then", "action": "instant"}])


async def runs_per_second(stand: Servers, definition: dict[str, Any], number: int) -> float:
    """From the first read until every run has ended well and its entry is settled."""
    async with replica(stand, [definition]) as (made, _):
        await fill(stand.redis_url, made.keys.stream("normal"), entries(number))
        tune_collector()
        began = time.perf_counter()
        reading = asyncio.create_task(made.consumer.read_forever())

        async def settled() -> bool:
            return bool((await made.bookkeeper.ledger())["handled"] >= number)

        await until(settled)
        seconds = time.perf_counter() - began
        await made.consumer.stop(5)
        await reading
    return number / seconds


async def beside_parked(stand: Servers, number: int, parked: int) -> tuple[float, float]:
    """(runs/s of an instant workflow while so many runs are parked, bytes of the database for each of those)."""
    instant = {**_workflow([{"id": "s", "action": "instant"}]), "name": "instant"}
    async with replica(stand, [instant, {**delayed(), "trigger": {"event": "other"}}]) as (made, url):
        before = await _bytes(url)
        await _park(made, url, parked, FAR_S, 0.0)
        each = (await _bytes(url) - before) / parked if parked else 0.0
        await fill(stand.redis_url, made.keys.stream("normal"), entries(number))
        tune_collector()
        loops = [asyncio.create_task(made.timers.run_forever())]
        began = time.perf_counter()
        loops.append(asyncio.create_task(made.consumer.read_forever()))

        async def settled() -> bool:
            return bool((await made.bookkeeper.ledger())["handled"] >= number)

        await until(settled)
        seconds = time.perf_counter() - began
        made.timers.stop()
        await made.consumer.stop(5)
        await asyncio.gather(*loops)
    return number / seconds, each


async def firing(stand: Servers, parked: int, due: int, rate: float) -> Fired:
    """Of ``parked`` runs ``due`` fall due at ``rate`` a second; each then takes its next step and ends."""
    async with replica(stand, [{**delayed(), "trigger": {"event": "other"}}]) as (made, url):
        await _park(made, url, parked, FAR_S, 0.0)
        await _park(made, url, due, 2.0, 1 / rate)
        tune_collector()
        loops = [asyncio.create_task(loop()) for loop in (made.timers.run_forever, made.consumer.read_forever)]
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:

            async def over() -> bool:
                await asyncio.sleep(0.2)
                cursor = await connection.execute("SELECT count(*) FROM runs WHERE status = 'succeeded'")
                row = await cursor.fetchone()
                return row is not None and row[0] >= due

            await until(over, timeout_s=due / rate * 5 + 60)
            cursor = await connection.execute(
                "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY late), max(late), "
                "extract(epoch FROM max(finished) - min(due)) "
                "FROM (SELECT extract(epoch FROM then_.started_at - pause.due_at) AS late, pause.due_at AS due, "
                "then_.finished_at AS finished FROM steps AS pause JOIN steps AS then_ USING (run_id) "
                "WHERE pause.key = 'pause' AND then_.key = 'then') AS f"
            )
            row = await cursor.fetchone()
        made.timers.stop()
        await made.consumer.stop(5)
        await asyncio.gather(*loops)
    if row is None:
        raise AssertionError("no run went on")
    return Fired(due / float(row[2]), float(row[0]), float(row[1]))


async def _park(made: Any, url: str, number: int, first_s: float, step_s: float) -> None:
    revision = await made.catalog.get("durable")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for start in range(0, number, 100_000):
            values = {
                "number": min(100_000, number - start),
                "first": time.time() + first_s,
                "step": step_s,
                "workflow": revision.workflow_id,
                "revision": revision.id,
            }
            await connection.execute(_RUNS, values)
        await connection.execute(b"ANALYZE")


async def _bytes(url: str) -> int:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute(b"SELECT pg_database_size(current_database())")
        row = await cursor.fetchone()
        return int(row[0]) if row else 0


def _workflow(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": "durable", "trigger": {"event": "bench.event"}, "steps": steps}
