"""Resident memory while a long backlog is worked off."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.bench.stand import Servers, entries, fill, replica
from tests.bench.throughput import workflow

_PAGE_MIB = 4096 / 1_048_576


def resident_mib() -> float:
    """This process's resident memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_MIB


async def growth(stand: Servers, backlog: int) -> tuple[float, float]:
    """(MiB at the start, most MiB while ``backlog`` entries are worked off)."""
    async with replica(stand, [workflow("one")]) as (made, _):
        for start in range(0, backlog, 10_000):
            await fill(stand.redis_url, made.keys.stream("normal"), entries(min(10_000, backlog - start)))
        before = most = resident_mib()
        reading = asyncio.create_task(made.consumer.read_forever())
        while (await made.bookkeeper.ledger())["in_flight"]:
            most = max(most, resident_mib())
            await asyncio.sleep(0.05)
        await made.consumer.stop(5)
        await reading
    return before, most
