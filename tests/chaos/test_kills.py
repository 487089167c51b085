"""Two replicas, one of which dies at an exact place: nothing is lost, and what is repeated carries the same key.

The victim works on one entry at a time, so that what its death may repeat can be told exactly.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from appliance.embedded.valkey import EmbeddedValkey
from tests.chaos.api import api_of, load
from tests.chaos.appliance_process import Replica
from tests.chaos.invariants import repeats
from tests.chaos.site import Site, empty, open_site
from tests.servers import PostgresServer, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE_AT_A_TIME = {"APPLIANCE_ENGINE__CONCURRENCY": "1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(valkey_server: EmbeddedValkey, postgres_server: PostgresServer) -> AsyncIterator[Site]:
    """Two servers and a survivor, for the module: each test brings its own victim."""
    async with (
        postgres_server.fresh_database() as database_url,
        open_site(valkey_server.url, database_url) as opened,
    ):
        await empty(valkey_server.url)
        await opened.fleet.start(name="survivor")
        yield opened


@pytest.fixture
def survivor(site: Site) -> Replica:
    return site.fleet.replicas[0]


async def _traffic_until_death(site: Site, through: Replica, victim: Replica) -> None:
    """Forms, one after the other, until the victim is dead; each accepted one must be accounted for."""
    async with api_of(through) as api:
        while victim.process.returncode is None:
            try:
                site.accepted.ids.add(await api.submit("call", {"n": len(site.accepted)}))
            except (httpx.TransportError, AssertionError):
                assert through is victim, "the survivor refused"
                await victim.ended(10)


# point -> how many effects the death of a replica that works on one entry may repeat
PLACES = {
    "after_read": 0,
    "before_action": 0,
    "after_action": 1,
    "before_commit": 1,
    "after_commit": 0,
    "before_ack": 0,
    "after_ack": 0,
}


@pytest.mark.parametrize(("point", "most_repeated"), PLACES.items())
async def test_kill_9_at(site: Site, survivor: Replica, point: str, most_repeated: int) -> None:
    before, _ = repeats(request.key for request in site.sink.requests)
    victim = await site.fleet.start(fault=f"kill@{point}#5", settings=ONE_AT_A_TIME)
    await asyncio.wait_for(_traffic_until_death(site, survivor, victim), 60)
    assert await victim.ended() == -signal.SIGKILL
    assert f"fault point: kill@{point}#5" in victim.log
    await site.check(most_repeated=before + most_repeated)


@pytest.mark.parametrize("point", ["before_xadd", "after_xadd"])
async def test_kill_9_while_an_event_is_taken_in(site: Site, point: str) -> None:
    """Whether the sender heard 202 or not: what it heard is kept, and what it sends again is told apart by its key."""
    before, _ = repeats(request.key for request in site.sink.requests)
    victim = await site.fleet.start(fault=f"kill@{point}#20")
    await load(victim, site.accepted, template_id="call", count=200, clients=4, key=point)
    assert await victim.ended() == -signal.SIGKILL
    again = await site.fleet.start()
    await load(again, site.accepted, template_id="call", count=40, clients=4, key=point)
    await site.check(most_repeated=before + 1000)
    assert await again.stop() == 0


async def test_a_zombie_is_fenced(site: Site, survivor: Replica) -> None:
    """Frozen beyond its lease right before the commit; thawed, it must neither commit nor acknowledge."""
    before, _ = repeats(request.key for request in site.sink.requests)
    zombie = await site.fleet.start(fault="stop@before_commit#3", settings=ONE_AT_A_TIME)
    async with api_of(survivor) as api:

        async def frozen() -> bool:
            site.accepted.ids.add(await api.submit("call", {"n": len(site.accepted)}))
            return "fault point: stop" in zombie.log

        await wait_until(frozen, "the zombie is frozen", 60)
    await site.at_rest()
    zombie.thaw()
    await site.check(most_repeated=before + 1)
    assert await zombie.stop() == 0, "a fenced replica goes on working, and stops in order"
    await site.check(most_repeated=before + 1)


async def test_sigterm_hands_the_work_over_and_repeats_nothing(site: Site, survivor: Replica) -> None:
    before, _ = repeats(request.key for request in site.sink.requests)
    leaving = await site.fleet.start()
    traffic = asyncio.create_task(load(survivor, site.accepted, template_id="call", count=400))
    at_start = len(site.accepted)
    await wait_until(lambda: len(site.accepted) >= at_start + 50, "traffic flows", 30)
    assert await leaving.stop() == 0, leaving.tail()
    await traffic
    await site.check(most_repeated=before)


async def test_the_second_signal_ends_it_at_once(site: Site, survivor: Replica) -> None:
    before, _ = repeats(request.key for request in site.sink.requests)
    site.sink.gate.clear()
    stubborn = await site.fleet.start()
    try:
        in_flight = len(site.sink.requests)
        async with api_of(survivor) as api:
            for n in range(40):
                site.accepted.ids.add(await api.submit("call", {"n": n}))
        await wait_until(lambda: len(site.sink.requests) >= in_flight + 30, "calls are in flight", 30)
        stubborn.signal(signal.SIGTERM)
        await wait_until(lambda: "SIGTERM" in stubborn.log, "the first signal is logged", 10)
        stubborn.signal(signal.SIGTERM)
        await stubborn.ended(10)
    finally:
        site.sink.gate.set()
    await site.check(most_repeated=before + 40)


async def test_a_stop_whose_grace_is_over_ends_all_the_same(site: Site, survivor: Replica) -> None:
    before, _ = repeats(request.key for request in site.sink.requests)
    site.sink.gate.clear()
    stubborn = await site.fleet.start(settings={"APPLIANCE_ENGINE__GRACE": "500ms"})
    try:
        in_flight = len(site.sink.requests)
        async with api_of(survivor) as api:
            for n in range(40):
                site.accepted.ids.add(await api.submit("call", {"n": n}))
        await wait_until(lambda: len(site.sink.requests) >= in_flight + 30, "calls are in flight", 30)
        assert await stubborn.stop(20) == 0, stubborn.tail()
    finally:
        site.sink.gate.set()
    await site.check(most_repeated=before + 40)


async def test_seeded_kills(site: Site, survivor: Replica) -> None:
    """Replicas die at random places under traffic; CHAOS_KILLS says how many, CHAOS_SEED which."""
    before, _ = repeats(request.key for request in site.sink.requests)
    kills = int(os.environ.get("CHAOS_KILLS", "3"))
    seed = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")  # noqa: T201
    dice = random.Random(seed)
    for _ in range(kills):
        fault = f"kill@{dice.choice(list(PLACES))}#{dice.randrange(1, 40)}"
        victim = await site.fleet.start(name="victim", fault=fault)
        await asyncio.wait_for(_traffic_until_death(site, survivor, victim), 120)
    await site.check(most_repeated=before + kills * 1000)
