"""Actions that do what they must not, and entries that nobody can read: only their own step or entry suffers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from appliance.embedded.valkey import EmbeddedValkey
from tests.chaos.api import api_of
from tests.chaos.appliance_process import Replica
from tests.chaos.site import Site, empty, open_site
from tests.servers import PostgresServer, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(valkey_server: EmbeddedValkey, postgres_server: PostgresServer) -> AsyncIterator[Site]:
    async with (
        postgres_server.fresh_database() as database_url,
        open_site(valkey_server.url, database_url) as opened,
    ):
        await empty(valkey_server.url)
        await opened.fleet.start()
        yield opened


@pytest.fixture
def replica(site: Site) -> Replica:
    return site.fleet.replicas[0]


def _alive(site: Site) -> Replica:
    """The youngest replica that lives (a dead one, if none does: its client will say so)."""
    return next((r for r in reversed(site.fleet.replicas) if r.process.returncode is None), site.fleet.replicas[0])


async def _misbehave(site: Site, replica: Replica, how: str, seconds: float = 3600.0) -> dict[str, Any]:
    """One event whose action misbehaves, and one that doesn't; returns the first one's finished run."""
    async with api_of(replica) as api:
        odd = await api.submit("chaos", {"how": how, "seconds": seconds})
        fine = await api.submit("chaos", {"how": "fine", "seconds": 0})
        site.accepted.ids |= {odd, fine}
        run = await api.finished_run(odd)
        assert (await api.finished_run(fine))["status"] == "succeeded", "others go on"
    assert replica.process.returncode is None
    return run


@pytest.mark.parametrize(
    ("how", "attempts"),
    [
        ("raise", 2),
        ("system-exit", 2),
        ("keyboard-interrupt", 2),
        ("cancelled", 2),
        ("hang", 2),
        ("swallow", 2),
        ("rubbish", None),
    ],
)
async def test_a_bad_action_fails_its_own_step(site: Site, replica: Replica, how: str, attempts: int | None) -> None:
    run = await _misbehave(site, replica, how)
    assert run["status"] == "failed"
    (step,) = run["steps"]
    assert step["status"] == "failed"
    assert step["error"]
    assert attempts in (None, step["attempt"])
    await site.check(most_repeated=0)


async def test_a_blocked_loop_is_reported_and_keeps_its_leases(site: Site, replica: Replica) -> None:
    """Blocked beyond the lease: the thread renews it, so the other replica must not repeat the step."""
    other = await site.fleet.start()
    try:
        async with api_of(other) as api:
            event_id = await api.submit("chaos", {"how": "block", "seconds": 4})
            site.accepted.ids.add(event_id)
            run = await api.finished_run(event_id)
        logs = replica.log + other.log
        assert "chaos" in next(line for line in logs.splitlines() if "block" in line or "stall" in line)
        assert run["steps"][0]["attempt"] <= 2
        await site.check(most_repeated=0)
    finally:
        assert await other.stop() == 0


async def test_a_poison_message_is_set_aside_after_some_deaths(site: Site) -> None:
    """An action that aborts the process: each delivery costs a replica, until the entry is set aside."""
    fields: dict[Any, Any] = {
        "type": "form_submitted",
        "template_id": "chaos",
        "data": '{"how": "abort", "seconds": 0}',
    }
    async with Redis.from_url(site.redis_url, protocol=2) as redis:  # who takes it in over HTTP may not live to answer
        added: Any = await redis.xadd("appliance:events:normal", fields)
    site.accepted.entries.add(("normal", added.decode()))
    poison = f"normal-{added.decode()}"
    settings = {"APPLIANCE_STREAM__MAX_DELIVERIES": "3"}
    deaths = 0

    async def keep_one_alive() -> Any:
        nonlocal deaths
        deaths = sum(replica.process.returncode == -signal.SIGABRT for replica in site.fleet.replicas)
        if all(replica.process.returncode is not None for replica in site.fleet.replicas):
            try:
                await site.fleet.start(settings=settings)
            except AssertionError:  # it has died before it was asked whether it is ready
                return False
        async with api_of(_alive(site)) as api:
            try:
                answer = await api.http.get(f"/api/v1/events/{poison}")
            except httpx.TransportError:
                return False  # it has just died
            return answer.status_code == 200 and answer.json()["outcome"] == "dead"

    await wait_until(keep_one_alive, "the entry is set aside", 90)
    assert 1 <= deaths <= 5
    async with api_of(_alive(site)) as api:
        (letter,) = (await api.get("dead-letters", event_id=poison))["items"]
        assert letter["error"]
        site.accepted.ids.add(await api.submit("chaos", {"how": "fine", "seconds": 0}))
    await site.check(most_repeated=0)


async def test_unreadable_entries_do_not_hold_up_the_others(site: Site) -> None:
    odd: list[dict[Any, Any]] = [
        {"event": "{"},
        {b"\xff\xfe": b"\x00"},
        {"type": "t", "data": "NaN"},
        {"type": "t", "data": '"\\ud800"'},
        {"type": "t", "data": '"\\u0000"'},
        {"type": "t\0", "data": "1"},
        {"work": "nonsense"},
    ]
    async with Redis.from_url(site.redis_url, protocol=2) as redis, api_of(_alive(site)) as api:
        for fields in odd:
            entry: Any = await redis.xadd("appliance:events:normal", fields)
            if "work" not in fields:
                site.accepted.entries.add(("normal", entry.decode()))
        event_id = await api.submit("chaos", {"how": "fine", "seconds": 0})
        site.accepted.ids.add(event_id)
        assert (await api.finished_run(event_id))["status"] == "succeeded"
    findings = await site.check(most_repeated=0)
    assert findings.letters >= len(odd) - 1


async def test_concurrent_duplicates_are_one_event(site: Site) -> None:
    async with api_of(_alive(site)) as api:
        form = {"how": "fine", "seconds": 0}
        ids = await asyncio.gather(*(api.submit("chaos", form, key="twin") for _ in range(20)))
        assert len(set(ids)) == 1
        site.accepted.ids |= set(ids)
        assert (await api.finished_run(ids[0]))["status"] == "succeeded"
    await site.check(most_repeated=0)
