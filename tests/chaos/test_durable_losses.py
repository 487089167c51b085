"""Redis loses what it holds, in every way and under load: recorded runs are completed, what was lost is counted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.chaos.api import api_of
from tests.chaos.invariants import PRIORITIES, inspect
from tests.chaos.mixture import FOLLOWERS, KINDS, Crowd, open_crowd
from tests.chaos.scene import HEAL_S, Scene, scene
from tests.chaos.tables import Tables
from tests.servers import wait_until

__all__ = ["scene"]
_STREAMS = [f"appliance:events:{priority}" for priority in PRIORITIES]
_GROUP = "appliance"
_SELF_SUFFICIENT = tuple(kind for kind in KINDS if kind not in FOLLOWERS)
"""Kinds that need no second event: that one may be lost as well."""


async def _flush(redis: Redis, _: random.Random) -> None:
    await redis.flushall()


async def _delete(redis: Redis, _: random.Random) -> None:
    await redis.delete(*_STREAMS)


async def _trim(redis: Redis, _: random.Random) -> None:
    for stream in _STREAMS:
        await redis.xtrim(stream, maxlen=0, approximate=False)


async def _remove(redis: Redis, dice: random.Random) -> None:
    """Half of the entries, whether they are being worked on or not."""
    for stream in _STREAMS:
        entries: Any = await redis.xrange(stream)
        for entry_id, _ in entries:
            if dice.random() < 0.5:
                await redis.xdel(stream, entry_id)


async def _fire_consumers(redis: Redis, _: random.Random) -> None:
    """Those of the replicas that work: their entries are pending with nobody."""
    for stream in _STREAMS:
        if await redis.exists(stream):
            for consumer in await redis.xinfo_consumers(stream, _GROUP):
                await redis.xgroup_delconsumer(stream, _GROUP, consumer["name"])


async def _destroy_groups(redis: Redis, _: random.Random) -> None:
    for stream in _STREAMS:
        if await redis.exists(stream):
            await redis.xgroup_destroy(stream, _GROUP)


Loss = Callable[[Redis, random.Random], Awaitable[None]]
_LOSSES: tuple[Loss, ...] = (_flush, _delete, _trim, _remove, _fire_consumers, _destroy_groups)


@pytest.fixture
async def redis(scene: Scene) -> AsyncIterator[Redis]:
    async with Redis.from_url(scene.site.redis_url, protocol=2) as client:
        yield client


@pytest.mark.parametrize("durability", ["redis", "postgres"])
async def test_what_redis_loses_under_load(scene: Scene, redis: Redis, durability: str) -> None:
    """Every way once, in whatever order."""
    losses = scene.dice.sample(_LOSSES, len(_LOSSES))
    lost = await _lose(scene, redis, durability, losses)
    await scene.check(losses=len(losses), lost=lost)


@pytest.mark.parametrize("durability", ["redis", "postgres"])
async def test_a_flush_under_load_is_accounted_for(scene: Scene, redis: Redis, durability: str) -> None:
    losses = (_flush, _flush)
    lost = await _lose(scene, redis, durability, losses)
    await scene.check(losses=len(losses), lost=lost)


async def _lose(scene: Scene, redis: Redis, durability: str, losses: Sequence[Loss]) -> int:
    """Load, the losses in its midst, recovery; returns how many events that had been accepted were lost for good."""
    settings = {"APPLIANCE_INGEST__DURABILITY": durability}
    await asyncio.gather(*(scene.site.fleet.start(settings=settings) for _ in range(2)))
    kinds = KINDS if durability == "postgres" else _SELF_SUFFICIENT
    async with open_crowd(scene.site, scene.tables, scene.dice) as crowd:
        over = asyncio.Event()
        load = asyncio.create_task(_load(crowd, kinds, over))
        for lose in losses:
            await _more_runs(scene.tables, 2 * len(kinds))
            await lose(redis, scene.dice)
        over.set()
        await load
        await _recover(scene)
    if durability == "postgres":
        return 0  # the check finds whatever is missing
    found = await inspect(scene.site.redis_url, scene.site.database_url, scene.site.accepted)
    scene.site.accepted.ids -= set(found.lost)
    print(f"{len(found.lost)} were lost that nobody had looked at yet")  # noqa: T201
    return len(found.lost)


async def _load(crowd: Crowd, kinds: tuple[str, ...], over: asyncio.Event) -> None:
    number = 0
    while not over.is_set() and number < 60:
        await asyncio.gather(*(crowd.run(kind, str(number)) for kind in kinds))
        number += 1


async def _more_runs(tables: Tables, number: int) -> None:
    """Wait until so many runs have begun since."""
    ((before,),) = await tables.rows("SELECT count(*) FROM runs")

    async def more() -> bool:
        ((now,),) = await tables.rows("SELECT count(*) FROM runs")
        return bool(now >= before + number)

    await wait_until(more, f"{number} more runs", HEAL_S)


async def _recover(scene: Scene) -> None:
    """Ask for it, as an operator would, until nothing is found any more and all is over."""
    async with api_of(scene.site.fleet.replicas[0]) as api:

        async def nothing() -> bool:
            unsent = await scene.tables.rows("SELECT FROM outbox WHERE sent_at IS NULL LIMIT 1")
            found = (await api.post("recover"))["recovered"]
            left = await scene.tables.rows("SELECT FROM runs WHERE finished_at IS NULL LIMIT 1")
            return not (unsent or found or left)

        await wait_until(nothing, "nothing is lost any more", HEAL_S)
    await scene.tables.all_over(HEAL_S)
