"""Milliseconds from XADD to the action, and to the acknowledge, beside a bare blocking reader."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import orjson
import redis.asyncio

from appliance.events import new_event
from appliance.plugin import Action, Context, Params
from tests.bench.stand import Servers, flush, replica, until
from tests.bench.throughput import workflow


@dataclass(frozen=True)
class Spread:
    """Milliseconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        ordered = sorted(seconds)
        return cls(ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000)


class _Anything(Params):
    text: str = ""


async def _pace(client: Any, stream: str, number: int, rate: float) -> None:
    """Add entries one by one at a steady rate; each carries the moment at which it was added."""
    began = time.perf_counter()
    for n in range(number):
        await asyncio.sleep(max(0.0, began + n / rate - time.perf_counter()))
        entry = new_event("bench.event", {"added": time.perf_counter(), "text": "x" * 240}, source="/b").to_entry()
        await client.execute_command("XADD", stream, "*", *(part for pair in entry.items() for part in pair))


async def _reached(seen: list[float], number: int) -> bool:
    return len(seen) >= number


async def bare(stand: Servers, number: int, rate: float) -> Spread:
    """A blocking reader that does nothing but acknowledge."""
    await flush(stand.redis_url)
    client = redis.asyncio.Redis.from_url(stand.redis_url, protocol=2)
    await client.xgroup_create("latency", "g", "0", mkstream=True)
    seen: list[float] = []
    adding = asyncio.create_task(_pace(client, "latency", number, rate))
    while len(seen) < number:
        reply: Any = await client.xreadgroup("g", "me", {"latency": ">"}, count=100, block=1000)
        for _, rows in reply:
            for entry_id, fields in rows:
                seen.append(time.perf_counter() - orjson.loads(fields[b"event"])["data"]["added"])
                await client.xack("latency", "g", entry_id)
    await adding
    await client.aclose()
    return Spread.of(seen)


async def ours(stand: Servers, number: int, rate: float) -> tuple[Spread, Spread]:
    """(to the action, to the acknowledge)."""
    acted: list[float] = []
    added: dict[str, float] = {}
    settled: list[float] = []

    async def act(params: _Anything, ctx: Context) -> None:
        acted.append(time.perf_counter() - ctx.event.data["added"])
        added[ctx.event.uid] = ctx.event.data["added"]

    async with replica(stand, [workflow("one")], actions={"instant": Action(params=_Anything, run=act)}) as (made, _):
        handle, settle = made.executor.handle, made.group.settle
        uids: dict[bytes, str] = {}

        async def handled(entry: Any) -> Any:
            uids[entry.id] = entry.fields[b"uid"].decode()
            return await handle(entry)

        async def acknowledged(priority: str, outcomes: list[tuple[bytes, str]], **more: Any) -> set[bytes]:
            lost = await settle(priority, outcomes, **more)
            now = time.perf_counter()
            settled.extend(now - added[uids[entry_id]] for entry_id, _ in outcomes)
            return lost

        made.executor.handle = handled  # type: ignore[method-assign]
        made.group.settle = acknowledged  # type: ignore[method-assign]
        reading = asyncio.create_task(made.consumer.read_forever())
        await _pace(made.commander, made.keys.stream("normal"), number, rate)
        await until(lambda: _reached(settled, number))
        await made.consumer.stop(5)
        await reading
    return Spread.of(acted), Spread.of(settled)
