"""Servers that restart, vanish or forget, while two replicas work: nothing is lost that a server said it keeps."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import psycopg
import pytest
from redis.asyncio import Redis

from tests.chaos.api import Api, api_of, load
from tests.chaos.invariants import PRIORITIES, Accepted
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.site import Site, open_site
from tests.servers import PostgresServer, start_postgres, start_valkey, wait_until

_ONE_CRASH = 1000
"""What one replica may have under way: engine.concurrency."""


@pytest.fixture
async def site(redis_url: str, database_url: str) -> AsyncIterator[Site]:
    """Two replicas on the worker's servers."""
    async with open_site(redis_url, database_url) as opened:
        await asyncio.gather(opened.fleet.start(), opened.fleet.start())
        yield opened


async def _load(site: Site, count: int, key: str = "k") -> None:
    """Send ``count`` forms, again and again until each was accepted; keys tell the repetitions apart."""
    for _ in range(60):
        this_time = Accepted()
        await load(site.fleet.replicas[0], this_time, template_id="call", count=count, key=key)
        site.accepted.ids |= this_time.ids
        if len(this_time) == count:
            return
    raise AssertionError(f"only {len(this_time)} of {count} forms were accepted")


async def _calls(site: Site, count: int) -> None:
    await wait_until(lambda: len(site.sink.requests) > count, f"{count} calls were made", 30)


async def test_redis_restarts_with_its_append_only_file(tmp_path: Path, database_url: str) -> None:
    async with start_valkey(tmp_path) as valkey, open_site(valkey.url, database_url) as site:
        await asyncio.gather(site.fleet.start(), site.fleet.start())
        traffic = asyncio.create_task(_load(site, 600))
        await _calls(site, 50)
        assert valkey.process is not None
        os.kill(valkey.process.pid, signal.SIGKILL)
        await traffic
        await site.check(most_repeated=2 * _ONE_CRASH)


async def test_the_groups_vanish_while_a_read_blocks(site: Site) -> None:
    await _load(site, 20)
    await site.at_rest()
    async with Redis.from_url(site.redis_url, protocol=2) as redis:
        await redis.flushall()
        for attempt, destroy in enumerate((_del_streams, _destroy_groups)):
            await _load(site, 20, key=f"after-{attempt}")
            await site.at_rest()
            await destroy(redis)
    await _load(site, 20, key="last")
    await site.check(most_repeated=0, one_life=False)
    for replica in site.fleet.replicas:
        lines = [line for line in replica.log.splitlines() if "NOGROUP" in line or "group" in line.lower()]
        assert len(lines) < 60, "a missing group is no reason to flood the log"


async def _del_streams(redis: Redis) -> None:
    await redis.delete(*(f"appliance:events:{priority}" for priority in PRIORITIES))


async def _destroy_groups(redis: Redis) -> None:
    for priority in PRIORITIES:
        await redis.xgroup_destroy(f"appliance:events:{priority}", "appliance")


async def test_one_missing_group_does_not_stop_the_other_streams(site: Site) -> None:
    async with Redis.from_url(site.redis_url, protocol=2) as redis:
        await redis.xgroup_destroy("appliance:events:low", "appliance")
        await _load(site, 20)
        await site.check(most_repeated=0)


async def test_postgresql_restarts_and_loses_its_backends(tmp_path: Path, redis_url: str, valkey: Redis) -> None:
    async with (
        start_postgres(tmp_path) as server,
        server.fresh_database() as database_url,
        open_site(redis_url, database_url) as site,
    ):
        await asyncio.gather(site.fleet.start(), site.fleet.start())
        traffic = asyncio.create_task(_load(site, 600))
        await _calls(site, 50)
        await _terminate_backends(database_url)
        await _calls(site, 150)
        await _kill(server)
        await traffic
        # No step's result was recorded between its effect and the outage, at most for what was under way.
        await site.check(most_repeated=3 * _ONE_CRASH)


async def _terminate_backends(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )


async def _kill(server: PostgresServer) -> None:
    process = server.embedded.process
    assert process is not None
    os.kill(process.pid, signal.SIGQUIT)  # "immediate": as a crash, but its children go with it
    await asyncio.wait_for(asyncio.shield(process.exited), 20)


async def test_commit_replies_that_are_lost_are_not_guessed(redis_url: str, database_url: str) -> None:
    async with (
        Proxy.to_url(database_url) as proxy,
        open_site(redis_url, database_url, through=(redis_url, proxy.url)) as site,
    ):
        await site.fleet.start()
        traffic = asyncio.create_task(_load(site, 300))
        for goal in (30, 60, 90):
            await _calls(site, goal)
            proxy.mode = Mode.DROP_REPLY
            swallowed = proxy.swallowed
            await wait_until(lambda: proxy.swallowed > swallowed, "a reply is lost", 10)  # noqa: B023 - awaited here
            await proxy.cut()
            proxy.mode = Mode.PASS
        await traffic
        await site.check(most_repeated=3 * _ONE_CRASH)


async def test_an_xadd_whose_reply_is_lost_is_deduplicated(redis_url: str, database_url: str) -> None:
    async with (
        Proxy.to_url(redis_url) as proxy,
        open_site(redis_url, database_url, through=(proxy.url, database_url)) as site,
    ):
        replica = await site.fleet.start()
        async with api_of(replica) as api:
            proxy.mode = Mode.DROP_REPLY
            form = {"template_id": "call", "data": {"n": 1}}
            refused = await api.http.post("/submit", json=form, headers={"Idempotency-Key": "lost"})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            proxy.mode = Mode.PASS
            await proxy.cut()

            async def taken() -> str | None:
                answer = await api.http.post("/submit", json=form, headers={"Idempotency-Key": "lost"})
                return str(answer.json()["id"]) if answer.status_code in (200, 202) else None

            event_id = await wait_until(taken, "the retry is accepted", 20)
            site.accepted.ids.add(event_id)
            assert (await api.finished_run(event_id))["status"] == "succeeded"
        await site.check(most_repeated=0)
        assert len(site.sink.requests) == 1


async def test_a_black_holed_replica_is_replaced_and_comes_back(redis_url: str, database_url: str) -> None:
    async with Proxy.to_url(redis_url) as proxy, open_site(redis_url, database_url) as site:
        await site.fleet.start()
        cut_off = await site.fleet.start(settings={"REDIS_URL": proxy.url})
        traffic = asyncio.create_task(_load(site, 300))
        await _calls(site, 20)
        proxy.mode = Mode.BLACK_HOLE
        await traffic
        await site.check(most_repeated=_ONE_CRASH)
        proxy.mode = Mode.PASS
        await proxy.cut()
        await cut_off.ready()
        await _load(site, 20, key="healed")
        await site.check(most_repeated=_ONE_CRASH)


async def test_a_full_redis_refuses_what_comes_in_and_lets_go_what_is_there(tmp_path: Path, database_url: str) -> None:
    async with start_valkey(tmp_path) as valkey, open_site(valkey.url, database_url) as site:
        replica = await site.fleet.start()
        site.sink.gate.clear()
        await _load(site, 50)
        async with Redis.from_url(valkey.url, protocol=2) as redis, api_of(replica) as api:
            await redis.config_set("maxmemory", "1")
            refused = await api.http.post("/submit", json={"template_id": "call", "data": {}})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            site.sink.gate.set()
            await site.at_rest()
            await redis.config_set("maxmemory", "0")
        await _load(site, 20, key="after")
        await site.check(most_repeated=0)


async def test_a_redis_that_would_forget_events_is_not_ready(tmp_path: Path, database_url: str) -> None:
    async with start_valkey(tmp_path) as valkey, open_site(valkey.url, database_url) as site:
        replica = await site.fleet.start()
        async with Redis.from_url(valkey.url, protocol=2) as redis, api_of(replica) as api:
            await redis.config_set("maxmemory-policy", "allkeys-lru")

            async def unready() -> bool:
                answer = await api.http.get("/readyz")
                return answer.status_code == 503 and "allkeys-lru" in answer.text

            await wait_until(unready, "the replica says why it is not ready")
            await redis.config_set("maxmemory-policy", "noeviction")
            await wait_until(lambda: _ready(api), "the replica is ready again")


async def _ready(api: Api) -> bool:
    return (await api.http.get("/readyz")).status_code == 200


async def test_a_read_only_postgresql_pauses_consuming_and_not_ingest(
    tmp_path: Path, redis_url: str, valkey: Redis
) -> None:
    async with (
        start_postgres(tmp_path) as server,
        server.fresh_database() as database_url,
        open_site(redis_url, database_url) as site,
    ):
        replica = await site.fleet.start()
        await _load(site, 20)
        await site.at_rest()
        await _read_only(database_url, "on")
        await _load(site, 40, key="meanwhile")
        async with api_of(replica) as api:
            await wait_until(lambda: _not(_ready(api)), "the replica says that it can't commit")
        await _read_only(database_url, "off")
        await site.check(most_repeated=40)


async def _not(answer: Awaitable[bool]) -> bool:
    return not await answer


async def _read_only(database_url: str, value: str) -> None:
    """For every connection to come, and for those that are open: they are cut off."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("SET default_transaction_read_only = off")
        name = connection.info.dbname
        await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}'.encode())
    await _terminate_backends(database_url)
