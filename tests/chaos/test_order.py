"""The order of a key, whatever becomes of the replicas: killed, frozen, slow, and with calls that fail."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import defaultdict
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance.embedded.valkey import EmbeddedValkey
from tests.chaos.api import api_of
from tests.chaos.appliance_process import Replica
from tests.chaos.sinks import Reply
from tests.chaos.site import LEASE_S, Site, empty, open_site
from tests.servers import PostgresServer, wait_until

pytestmark = pytest.mark.timeout(300)

_STREAM = "appliance:events:normal"
_IN_ORDER = """
name: in-order
trigger: {{event: step.taken}}
ordering_key: "{{{{ event.data.k }}}}"
steps:
  - id: call
    action: webhook
    with: {{url: "{url}", json: {{k: "{{{{ event.data.k }}}}", n: "{{{{ event.data.n }}}}"}}}}
    retry: {{max_attempts: 100, initial: 20ms, max: 100ms}}
"""
_ONE_AT_A_TIME = {"APPLIANCE_ENGINE__CONCURRENCY": "1"}


class Lane:
    """A site with a workflow that keeps an order; events are numbered in the order of their entries."""

    def __init__(self, site: Site, redis: Redis) -> None:
        self.site = site
        self.redis = redis
        self.number = 0
        self.keys: dict[str, list[int]] = defaultdict(list)

    async def add(self, key: str) -> None:
        self.keys[key].append(self.number)
        data = json.dumps({"k": key, "n": self.number})
        await self.redis.xadd(_STREAM, {"type": "step.taken", "data": data})
        self.number += 1

    def effects(self) -> dict[str, list[int]]:
        """By key the numbers of the events, as their effects came; a repeat counts where it came first."""
        seen: dict[str, dict[int, None]] = defaultdict(dict)
        for request in self.site.sink.requests:
            body = json.loads(request.body)
            seen[body["k"]][int(body["n"])] = None
        return {key: list(numbers) for key, numbers in seen.items()}

    def came(self) -> int:
        """How many events have had their effect."""
        return sum(map(len, self.effects().values()))

    async def in_order(self) -> None:
        """All effects came, each key's in the order of its entries, and nothing is left."""

        try:
            await wait_until(lambda: self.came() == self.number, "every event's effect", 60)
        except AssertionError:
            missing = {key: sorted(set(all_) - set(self.effects().get(key, []))) for key, all_ in self.keys.items()}
            raise AssertionError(f"missing: {missing}") from None
        await self.site.at_rest()
        assert self.effects() == self.keys


@pytest_asyncio.fixture
async def lane(valkey_server: EmbeddedValkey, postgres_server: PostgresServer) -> AsyncIterator[Lane]:
    async with (
        postgres_server.fresh_database() as database_url,
        open_site(valkey_server.url, database_url) as site,
        Redis.from_url(valkey_server.url, protocol=2) as redis,
    ):
        await empty(valkey_server.url)
        site.fleet.workflow("in-order", _IN_ORDER.format(url=site.sink.url))
        yield Lane(site, redis)


async def test_a_later_event_waits_for_one_that_a_frozen_replica_has_in_hand(lane: Lane) -> None:
    """It was read, and nothing of it is recorded: only the pending list knows of it."""
    await lane.site.fleet.start(name="survivor")
    frozen = await lane.site.fleet.start(fault="stop@after_read#3", settings=_ONE_AT_A_TIME)

    async def is_frozen() -> bool:
        await lane.add("x")
        return "fault point: stop" in frozen.log

    await wait_until(is_frozen, "the replica is frozen", 60)
    for n in range(20):
        await lane.add("xy"[n % 2])
    await lane.in_order()
    frozen.thaw()
    await lane.add("x")
    await lane.in_order()
    assert await frozen.stop() == 0


async def test_order_outlives_kills_freezes_and_retries(lane: Lane) -> None:
    dice = random.Random(int(os.environ.get("CHAOS_SEED", "7")))
    lane.site.sink.script(*(Reply(503) if dice.random() < 0.2 else Reply() for _ in range(400)))
    replicas = [await lane.site.fleet.start() for _ in range(2)]
    events = asyncio.create_task(_flow(lane, dice, 300))
    for strike in range(1, 4):
        await wait_until(lambda at=70 * strike: events.done() or lane.number >= at, "traffic flows", 60)  # type: ignore[misc]
        await _strike(lane, dice, replicas)
    await events
    await lane.in_order()
    async with api_of(replicas[0]) as api:
        assert (await api.balanced())["handled"] == 300


async def _flow(lane: Lane, dice: random.Random, number: int) -> None:
    """Events of ten keys, a few at a time, never more than fifty that have not come through."""
    while lane.number < number:
        for _ in range(min(dice.randint(1, 12), number - lane.number)):
            await lane.add(str(dice.randrange(10)))
        await wait_until(lambda: lane.number - lane.came() < 50, "effects", 60)


async def _strike(lane: Lane, dice: random.Random, replicas: list[Replica]) -> None:
    """One replica is killed, and another takes its place; or it is frozen for longer than its lease."""
    victim = replicas.pop(dice.randrange(2))
    if dice.random() < 0.5:
        await victim.kill()
        replicas.append(await lane.site.fleet.start())
        return
    victim.freeze()
    at = asyncio.get_running_loop().time()
    await wait_until(lambda: asyncio.get_running_loop().time() > at + 1.5 * LEASE_S, "its lease to run out", 30)
    victim.thaw()
    replicas.append(victim)
