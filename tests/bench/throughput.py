"""Events a second: the raw limit, and ours."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import redis.asyncio

from appliance.settings import StoreSettings
from appliance.store.pool import open_connection
from appliance.supervisor import tune_collector
from tests.bench.stand import Servers, count, entries, fill, flush, replica, until

RAW_BATCH = 100
_RAW_SQL = b"""
INSERT INTO raw_history (id, source, type, time, data)
SELECT id::uuid, source, type, time::timestamptz, data::json
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[]) AS u (id, source, type, time, data)
"""


async def raw(stand: Servers, number: int) -> float:
    """R: read a hundred, decode, write one history row each in one commit, acknowledge; events/s."""
    await flush(stand.redis_url)
    await fill(stand.redis_url, "raw", entries(number))
    client = redis.asyncio.Redis.from_url(stand.redis_url, protocol=2)
    await client.xgroup_create("raw", "g", "0")
    async with stand.postgres.fresh_database() as url:
        connection = await open_connection(url, StoreSettings())
        await connection.execute(
            b"CREATE TABLE raw_history (id uuid PRIMARY KEY, source text, type text, time timestamptz, data json)"
        )
        began = time.perf_counter()
        done = 0
        while done < number:
            reply: Any = await client.xreadgroup("g", "me", {"raw": ">"}, count=RAW_BATCH)
            rows = reply[0][1]
            columns: tuple[list[Any], ...] = ([], [], [], [], [])
            for _, fields in rows:
                event = orjson.loads(fields[b"event"])
                columns[0].append(event["id"])
                columns[1].append(event["source"])
                columns[2].append(event["type"])
                columns[3].append(event["time"])
                columns[4].append(orjson.dumps(event["data"]).decode())
            async with connection.transaction():
                await connection.execute(_RAW_SQL, columns)
            ids = [entry_id for entry_id, _ in rows]
            pipeline = client.pipeline(transaction=False)
            pipeline.xack("raw", "g", *ids)
            pipeline.xdel("raw", *ids)
            await pipeline.execute()
            done += len(rows)
        seconds = time.perf_counter() - began
        await connection.close()
    await client.aclose()
    return number / seconds


def workflow(name: str, *, type: str = "bench.event", when: Any = None, steps: int = 1) -> dict[str, Any]:
    """A definition with instant steps."""
    trigger: dict[str, Any] = {"event": type}
    if when is not None:
        trigger["when"] = when
    return {
        "name": name,
        "trigger": trigger,
        "steps": [{"id": f"s{n}", "action": "instant", "with": {"text": "hello"}} for n in range(steps)],
    }


async def ours(stand: Servers, number: int, definitions: list[dict[str, Any]]) -> float:
    """Events/s from the first read to the last acknowledge: event, run and step recorded for each."""
    async with replica(stand, definitions) as (made, database_url):
        await fill(stand.redis_url, made.keys.stream("normal"), entries(number))
        tune_collector()
        began = time.perf_counter()
        reading = asyncio.create_task(made.consumer.read_forever())

        async def settled() -> bool:
            return bool((await made.bookkeeper.ledger())["handled"] >= number)

        await until(settled)
        seconds = time.perf_counter() - began
        for table in ("events", "runs"):
            if (found := await count(database_url, table)) != number:
                raise AssertionError(f"{found} rows in {table}, expected {number}")
        await made.consumer.stop(5)
        await reading
    return number / seconds
