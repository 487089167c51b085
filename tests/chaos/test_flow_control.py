"""Flow control under deaths, outages, people and changes: limits and orders hold, everybody has a turn."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from appliance.embedded.valkey import EmbeddedValkey
from tests.chaos.gauge import Gauge
from tests.chaos.mixture import Crowd, open_crowd
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.scene import HEAL_S, LONG, SETTINGS
from tests.chaos.shapes import CONTROLS, adopting, definitions, fails, put, send_round, shifted
from tests.chaos.site import Site, open_site
from tests.chaos.storm import Storm
from tests.chaos.tables import Tables, open_tables
from tests.chaos.test_durable import Meddler
from tests.chaos.verdicts import broken, nobody_waits, summary
from tests.servers import PostgresServer, start_postgres, start_valkey, wait_until

pytestmark = pytest.mark.timeout(1200 if LONG else 120)
_BURST = 5
_ROUNDS = 150 if LONG else 4
_LEAST_ROUNDS = 2
_MOST_KILLS = 60
_CONCURRENCY = 20
_SETTINGS = {
    **SETTINGS,
    "APPLIANCE_ENGINE__CONCURRENCY": str(_CONCURRENCY),
    "APPLIANCE_STREAM__MAX_DELIVERIES": "1000",  # deaths are no entry's fault here
    "APPLIANCE_STORE__STATEMENT_TIMEOUT": "10s",  # half of it: how long a frozen replica may hold up the others
}


@dataclass(slots=True)
class Yard:
    """The place, the sink that measures, the tables, chance, and those who send."""

    site: Site
    gauge: Gauge
    tables: Tables
    dice: random.Random
    crowd: Crowd
    frozen: dict[int, float] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def storm(self, short: int) -> Storm:
        """Of ``short`` deaths, or as many as were asked for."""
        kills = min(int(os.environ.get("CHAOS_KILLS", short)), _MOST_KILLS)
        return Storm(self.site.fleet, self.dice, kills, freezes=LONG, frozen=self.frozen)

    async def load(self) -> int:
        """Rounds of events until it is enough; returns how many."""
        sent = 0
        while sent < _ROUNDS and not (self.done.is_set() and sent >= _LEAST_ROUNDS):
            await send_round(self.crowd, sent, _BURST)
            sent += 1
        return sent

    async def check(self, *, deaths: int, faults: int, one_life: bool = True) -> None:
        """Everything that must hold at rest. ``faults`` left no line in a log; ``deaths`` may have repeated effects."""
        await self.tables.all_over(HEAL_S)
        await self.site.at_rest()
        await nobody_waits(self.tables)
        found = [*await self.tables.violations(), *await broken(self.tables, self.gauge, self.frozen)]
        print(f"{await summary(self.tables)}; {len(found)} broken")  # noqa: T201
        assert not found, "\n".join(found)
        await self.site.check(most_repeated=deaths * 2 * _CONCURRENCY * 5, faults=faults, one_life=one_life)


def _seeded() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")  # noqa: T201
    return random.Random(seed)


@asynccontextmanager
async def open_yard(
    redis_url: str, database_url: str, *, through: tuple[str, str] | None = None
) -> AsyncIterator[Yard]:
    """A yard without any replica yet."""
    dice = _seeded()
    async with (
        Gauge(random.Random(dice.random()), fails) as gauge,
        open_site(redis_url, database_url, through=through, settings=_SETTINGS) as site,
        open_tables(database_url) as tables,
        open_crowd(site, tables, dice, busy=False) as crowd,
    ):
        site.sink = gauge
        put(site.fleet, *definitions(gauge.url))
        yield Yard(site, gauge, tables, dice, crowd)


@pytest.fixture
async def yard(redis_url: str, database_url: str) -> AsyncIterator[Yard]:
    async with open_yard(redis_url, database_url) as opened:
        yield opened


async def test_limits_and_orders_outlive_deaths(yard: Yard) -> None:
    storm = yard.storm(short=3)
    deaths = storm.kills
    load = asyncio.create_task(yard.load())
    await storm.blow()
    yard.done.set()
    await load
    await yard.check(deaths=deaths, faults=storm.blind)


@pytest.mark.skipif(not LONG, reason="part of the long form: the same is an integration test of the gatekeeper's")
async def test_a_replica_that_freezes_while_it_decides_holds_nobody_up(yard: Yard) -> None:
    frozen = await yard.site.fleet.start(fault="stop@before_decision#3")
    await yard.site.fleet.start()
    yard.done.set()
    load = asyncio.create_task(yard.load())
    await wait_until(lambda: "fault point: stop" in frozen.log, "the replica is frozen", 30)
    yard.frozen[frozen.pid] = time.time()
    yard.site.fleet.replicas.remove(frozen)  # nobody is to ask it anything
    await load
    await yard.tables.all_over(HEAL_S)
    frozen.thaw()
    yard.site.fleet.replicas.append(frozen)
    await yard.check(deaths=1, faults=0)


async def test_limits_and_orders_outlive_people_and_changes(yard: Yard) -> None:
    """Limits are moved, and flow control comes and goes, while people meddle and processes die."""
    storm = yard.storm(short=1)
    storm.width = 3 if LONG else 2
    deaths = storm.kills
    meddler = Meddler(yard.crowd)
    load = asyncio.create_task(yard.load())
    others = [asyncio.create_task(meddler.meddle(storm)), asyncio.create_task(_change(yard))]
    await storm.blow()
    yard.done.set()
    await asyncio.gather(load, *others)
    resuming = asyncio.create_task(meddler.resume_all(yard.tables))
    await yard.tables.all_over(HEAL_S)
    await resuming
    await yard.check(deaths=deaths, faults=storm.blind)


async def _change(yard: Yard) -> None:
    """Raise and lower a limit, give a workflow flow control and take it away, until it is enough."""
    while not yard.done.is_set():
        url = yard.gauge.url
        put(yard.site.fleet, shifted(url, yard.dice.randint(1, 4)), adopting(url, yard.dice.choice(CONTROLS)))
        await asyncio.sleep(yard.dice.uniform(0.2, 1.0))


@dataclass(frozen=True, slots=True)
class Servers:
    """What the replicas of a yard use, PostgreSQL through a proxy."""

    valkey: EmbeddedValkey
    postgres: PostgresServer
    proxy: Proxy


Outage = Callable[[Yard, Servers], Awaitable[None]]


async def _lose_replies(yard: Yard, servers: Servers) -> None:
    """Of whatever PostgreSQL is doing at this moment: commits, too."""
    proxy = servers.proxy
    proxy.mode = Mode.DROP_REPLY
    enough = proxy.swallowed + yard.dice.randrange(1, 5)
    await wait_until(lambda: proxy.swallowed >= enough, "replies are lost", 10)
    await proxy.cut()
    proxy.mode = Mode.PASS


async def _cut(_: Yard, servers: Servers) -> None:
    await servers.proxy.cut()


async def _end_backends(yard: Yard, _: Servers) -> None:
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%FROM unnest(%' "
        "AND pid <> pg_backend_pid() AND datname = current_database()"
    )
    with contextlib.suppress(psycopg.OperationalError):  # it is down, and about to be started again
        async with await psycopg.AsyncConnection.connect(yard.site.database_url, autocommit=True) as connection:
            await connection.execute(ended)


async def _crash(_: Yard, servers: Servers) -> None:
    """PostgreSQL dies at once with all its connections, and is started again."""
    process = servers.postgres.embedded.process
    assert process is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGQUIT)
    await asyncio.wait_for(asyncio.shield(process.exited), 20)


async def _flush(yard: Yard, _: Servers) -> None:
    async with Redis.from_url(yard.site.redis_url, protocol=2) as redis:
        await redis.flushall()


async def _kill_redis(_: Yard, servers: Servers) -> None:
    """It is started again with its append-only file."""
    process = servers.valkey.process
    assert process is not None
    with contextlib.suppress(ProcessLookupError):  # it is down, and about to be started again
        os.kill(process.pid, signal.SIGKILL)


_OUTAGES: tuple[Outage, ...] = (_lose_replies, _lose_replies, _cut, _end_backends, _crash, _flush, _kill_redis)
"""Servers that die are started again five times in five minutes: not each of these more than four times."""


async def test_limits_and_orders_outlive_outages(tmp_path: Path) -> None:
    """PostgreSQL and Redis fail in turns; what is accepted is in PostgreSQL, so that nothing may be lost."""
    async with (
        start_valkey(tmp_path) as valkey,
        start_postgres(tmp_path / "postgres") as postgres,
        postgres.fresh_database() as database_url,
        Proxy.to_url(database_url) as proxy,
        open_yard(valkey.url, database_url, through=(valkey.url, proxy.url)) as yard,
    ):
        settings = {"APPLIANCE_INGEST__DURABILITY": "postgres"}
        await asyncio.gather(*(yard.site.fleet.start(settings=settings) for _ in range(2)))
        load = asyncio.create_task(yard.load())
        outages = yard.dice.sample(_OUTAGES * 4, 28) if LONG else yard.dice.sample(_OUTAGES, 4)
        for outage in outages:
            await _more(yard)
            await wait_until(lambda: _up(yard), "both servers are there", 60)
            await outage(yard, Servers(valkey, postgres, proxy))
        yard.done.set()
        await load
        await wait_until(lambda: _up(yard), "both servers are there", 60)
        await _recover(yard)
        await yard.check(deaths=2 * len(outages), faults=len(outages), one_life=False)


async def _up(yard: Yard) -> bool:
    """Whether those that were ended have been started again."""
    with contextlib.suppress(psycopg.OperationalError, RedisError, OSError):
        async with Redis.from_url(yard.site.redis_url, protocol=2) as redis:
            await redis.ping()
        await yard.tables.rows("SELECT 1")
        return True
    return False


async def _more(yard: Yard) -> None:
    """Wait until there were some more calls."""
    before = len(yard.gauge.attempts) + yard.dice.randrange(20, 60)
    await wait_until(lambda: len(yard.gauge.attempts) > before or _idle(yard), "more calls", 30)


def _idle(yard: Yard) -> bool:
    return bool(yard.gauge.attempts) and time.time() - yard.gauge.attempts[-1].begun > 3


async def _recover(yard: Yard) -> None:
    """Ask for it, as an operator would, until nothing is found any more and all is over."""

    async def nothing() -> bool:
        found = (await yard.crowd.ask("POST", "recover")).json()["recovered"]
        unsent = await yard.tables.rows("SELECT FROM outbox WHERE sent_at IS NULL LIMIT 1")
        left = await yard.tables.rows("SELECT FROM runs WHERE finished_at IS NULL LIMIT 1")
        return not (unsent or found or left)

    await wait_until(nothing, "nothing is lost any more", 2 * HEAL_S)
