"""Flow control on real servers: who is at work at once, who waits, who is left out; nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.events import new_event
from appliance.plugin import Context, Reject, Retry
from appliance.store.pool import Connection
from tests.integration.test_durable import World, told
from tests.integration.test_heart import QUICK, Heart, db, rows
from tests.servers import wait_until

__all__ = ["db"]

TENANT = "{{ event.data.tenant }}"


class Crew:
    """Actions that count how many are at work at once, for each tenant and together."""

    def __init__(self) -> None:
        self.at_work: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: dict[str, list[int]] = defaultdict(list)
        self.ends: dict[str, float] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.pause_s = 0.0

    async def work(self, ctx: Context) -> int:
        data: Any = ctx.event.data
        tenant, number = str(data.get("tenant")), int(data.get("n", 0))
        self.order[tenant].append(number)
        for name in (tenant, "all"):
            self.at_work[name] += 1
            self.most[name] = max(self.most[name], self.at_work[name])
        await asyncio.sleep(self.pause_s)
        await self.gate.wait()
        for name in (tenant, "all"):
            self.at_work[name] -= 1
        self.ends[f"{tenant}-{number}"] = time.monotonic()
        return number


@pytest_asyncio.fixture
async def heart(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Heart]:
    async with contextlib.AsyncExitStack() as stack:
        yield Heart(redis_url, database_url, tmp_path, stack)


@pytest.fixture
def crew() -> Crew:
    return Crew()


@pytest_asyncio.fixture
async def world(heart: Heart, db: Connection, crew: Crew) -> World:
    await heart.replica()
    made = World(heart, db)
    made.heart.behave = defaultdict(lambda: crew.work)
    return made


async def flood(world: World, tenant: str, number: int, *, first: int = 0) -> None:
    """Add this many events of a tenant, in order."""
    replica = world.heart.replicas[0]
    pipeline = replica.commander.pipeline(transaction=False)
    for n in range(first, first + number):
        fields = new_event("t", {"tenant": tenant, "n": n}, source="/t").to_entry()
        pipeline.execute_command(
            "XADD", replica.keys.stream("normal"), "*", *(x for pair in fields.items() for x in pair)
        )
    await pipeline.execute()


async def ended(world: World, number: int, status: str = "succeeded") -> None:
    async def reached() -> bool:
        found = await rows(world.db, f"SELECT count(*) FROM runs WHERE status = '{status}'")  # noqa: S608
        return bool(found[0][0] == number)

    await wait_until(reached, f"{number} runs to be {status}", timeout=60)


async def in_order(world: World) -> None:
    """Nothing is left, and the ledger balances."""
    await world.heart.at_rest()
    for table in ("places", "queue", "timers"):
        assert await rows(world.db, f"SELECT * FROM {table}") == [], table  # noqa: S608
    assert (await world.heart.ledger())["difference"] == 0


async def test_no_more_are_at_work_than_the_limits_allow(world: World, crew: Crew) -> None:
    await world.heart.replica()
    await world.put({"name": "w", "concurrency": [4, {"key": TENANT, "limit": 2}], "steps": [told("a")]})
    crew.pause_s = 0.002
    for tenant in ("x", "y", "z"):
        await flood(world, tenant, 30)
    await ended(world, 90)
    assert crew.most["all"] <= 4
    assert all(crew.most[tenant] <= 2 for tenant in ("x", "y", "z"))
    await in_order(world)


async def test_a_parked_run_gives_its_place_back_and_takes_one_again(world: World, crew: Crew) -> None:
    steps = [told("a"), {"id": "pause", "wait": {"event": "go"}, "forever": True}, told("b")]
    await world.put({"name": "w", "concurrency": 1, "steps": steps})
    await flood(world, "x", 5)
    await ended(world, 5, "waiting")

    async def all_parked() -> bool:
        return not await rows(world.db, "SELECT * FROM places") and not await rows(world.db, "SELECT * FROM queue")

    await wait_until(all_parked, "all to be parked")
    await world.event("go", {})
    await ended(world, 5)
    assert crew.most["all"] == 1
    await in_order(world)


async def test_the_limits_in_force_count_for_runs_of_earlier_revisions(world: World, crew: Crew) -> None:
    steps = [{"id": "pause", "wait": {"event": "go"}, "forever": True}, told("b")]
    await world.put({"name": "w", "concurrency": 10, "steps": steps})
    await flood(world, "x", 6)
    await ended(world, 6, "waiting")
    await world.heart.at_rest()
    await world.put({"name": "w", "concurrency": 2, "steps": steps})
    crew.gate.clear()
    await world.event("go", {})
    await wait_until(lambda: crew.at_work["all"] == 2, "two to be at work")
    crew.gate.set()
    await ended(world, 6)
    assert crew.most["all"] == 2
    await in_order(world)


async def test_a_run_that_backs_off_lets_others_work(world: World, crew: Crew) -> None:
    failed: list[int] = []

    async def fail_once(ctx: Context) -> int:
        data: Any = ctx.event.data
        if data["n"] == 0 and not failed:
            failed.append(0)
            raise Retry("not now", after=60)
        return await crew.work(ctx)

    world.heart.behave["a"] = fail_once
    await world.put({"name": "w", "concurrency": 1, "steps": [told("a", retry=QUICK)]})
    await flood(world, "x", 4)
    await ended(world, 3)
    assert await rows(world.db, "SELECT status::text FROM runs WHERE status <> 'succeeded'") == [("retrying",)]
    await world.db.execute(b"UPDATE timers SET due_at = now(); ")
    await world.db.execute(b"UPDATE steps SET due_at = now() WHERE status = 'retrying'")
    await ended(world, 4)
    await in_order(world)


async def test_events_of_a_key_are_worked_on_in_their_order(world: World, crew: Crew) -> None:
    """Also where one backs off, for however long, and another fails for good."""
    tries: Counter[tuple[str, int]] = Counter()

    async def now_and_then(ctx: Context) -> int:
        data: Any = ctx.event.data
        tries[data["tenant"], data["n"]] += 1
        if data["n"] % 5 == 2 and tries[data["tenant"], data["n"]] < 3:
            raise Retry("not now")
        if data["n"] == 7:
            raise Reject("never")
        return await crew.work(ctx)

    world.heart.behave["a"] = now_and_then
    await world.heart.replica(engine={"park_after": "20ms"})
    await world.put({"name": "w", "ordering_key": TENANT, "steps": [told("a", retry=QUICK), told("b")]})
    world.heart.behave["b"] = crew.work
    await asyncio.gather(*(flood(world, tenant, 20) for tenant in ("x", "y", "z")))
    await ended(world, 57)
    await ended(world, 3, "failed")
    expected = [n for n in range(20) for _ in "ab" if n != 7]
    assert crew.order == dict.fromkeys("xyz", expected)
    assert crew.most["x"] == 1
    await world.heart.at_rest()
    assert await world.heart.ledger() == {"handled": 57, "unmatched": 0, "dead": 3, "in_flight": 0, "difference": 0}
    assert await rows(world.db, "SELECT * FROM places") == []


async def test_throttled_runs_get_their_turns_one_by_one(world: World) -> None:
    await world.put({"name": "w", "throttle": {"limit": 2, "period": "6h", "burst": 1}, "steps": [told("a")]})
    await flood(world, "x", 6)
    await ended(world, 3)
    await ended(world, 3, "waiting")
    due = [at for (at,) in await rows(world.db, "SELECT extract(epoch FROM due_at)::float8 FROM timers ORDER BY 1")]
    assert [round(later - sooner) for sooner, later in itertools.pairwise(due)] == [3 * 3600, 3 * 3600]
    await world.heart.at_rest()
    assert (await world.heart.ledger())["handled"] == 6


async def test_a_turn_comes(world: World, crew: Crew) -> None:
    await world.put({"name": "w", "throttle": {"limit": 10, "period": "1s"}, "steps": [told("a")]})
    await flood(world, "x", 13)
    await ended(world, 13)
    await in_order(world)


async def test_what_is_over_the_rate_leaves_its_reason(world: World) -> None:
    await world.put({"name": "w", "rate_limit": {"limit": 2, "period": "1h", "key": TENANT}, "steps": [told("a")]})
    await flood(world, "x", 5)
    await flood(world, "y", 1)
    await ended(world, 3)
    await ended(world, 3, "cancelled")
    found = await rows(world.db, "SELECT DISTINCT result ->> 'outcome', error FROM runs WHERE status = 'cancelled'")
    assert found == [("rate_limited", "rate_limit: 2 runs in 1h have begun for 'x'")]
    assert await rows(world.db, "SELECT reason, count FROM skipped") == [("rate_limited", 3)]
    await world.heart.at_rest()
    assert await world.heart.ledger() == {"handled": 6, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_the_last_event_counts(world: World, crew: Crew) -> None:
    debounce = {"period": "300ms", "key": TENANT}
    await world.put({"name": "w", "debounce": debounce, "steps": [told("a")], "output": "{{ event.data.n }}"})
    await asyncio.gather(flood(world, "x", 4), flood(world, "y", 2))
    await ended(world, 2)
    await ended(world, 4, "cancelled")
    found = await rows(world.db, "SELECT result -> 'output' FROM runs WHERE status = 'succeeded' ORDER BY 1::text")
    assert sorted(output for (output,) in found) == [1, 3]
    await in_order(world)


async def test_a_batch_sees_all_its_events(world: World, crew: Crew) -> None:
    output = {"all": "{{ events | map(attribute='data') | map(attribute='n') | list }}", "first": "{{ event.data.n }}"}
    await world.put({"name": "w", "batch": {"size": 3, "timeout": "500ms"}, "steps": [told("a")], "output": output})
    await flood(world, "x", 5)
    await ended(world, 2)
    found = await rows(world.db, "SELECT result -> 'output' FROM runs ORDER BY id")
    assert sorted(o["all"] for (o,) in found) == [[0, 1, 2], [3, 4]]
    assert all(o["first"] == o["all"][0] for (o,) in found)
    assert await world.heart.ledger() == {"handled": 5, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}
    await in_order(world)


async def test_a_second_run_of_a_singleton_is_left_out(world: World, crew: Crew) -> None:
    crew.gate.clear()
    await world.put({"name": "w", "singleton": {"mode": "skip", "key": TENANT}, "steps": [told("a")]})
    await flood(world, "x", 1)
    await wait_until(lambda: crew.at_work["x"] == 1, "the first to be at work")
    await flood(world, "x", 2, first=1)
    await flood(world, "y", 1)
    await ended(world, 2, "cancelled")
    crew.gate.set()
    await ended(world, 2)
    await flood(world, "x", 1, first=3)
    await ended(world, 3)
    await in_order(world)


async def test_a_singleton_is_replaced(world: World, crew: Crew) -> None:
    crew.gate.clear()
    steps = [told("a", compensate={"action": "told", "with": {"how": "undo"}}), told("b")]
    await world.put({"name": "w", "singleton": "replace", "steps": steps})
    await flood(world, "x", 1)
    await wait_until(lambda: crew.at_work["x"] == 1, "the first to be at work")
    await flood(world, "x", 1, first=1)
    await flood(world, "x", 1, first=2)
    await ended(world, 1, "cancelled")  # the second, which never began
    crew.gate.set()
    await ended(world, 1)
    await ended(world, 2, "cancelled")
    found = await rows(world.db, "SELECT result ->> 'outcome' FROM runs WHERE status = 'cancelled' ORDER BY id")
    assert found == [(None,), ("replaced",)]
    assert crew.order["x"] == [0, 0, 2, 2]  # done, undone; the last one's two steps
    await in_order(world)


async def test_an_event_may_start_a_shaped_run_and_another(world: World, crew: Crew) -> None:
    await world.put(
        {"name": "w", "rate_limit": {"limit": 1, "period": "1h"}, "steps": [told("a")]},
        {"name": "v", "steps": [told("b")]},
    )
    await flood(world, "x", 3)
    await ended(world, 4)
    await ended(world, 2, "cancelled")
    assert await world.status("v") == ["succeeded"] * 3
    await in_order(world)
    assert (await world.heart.ledger())["handled"] == 3


async def test_a_run_that_fails_gives_its_places_back(world: World, crew: Crew) -> None:
    async def never(_: Context) -> None:
        raise Reject("never")

    world.heart.behave["a"] = never
    await world.put({"name": "w", "concurrency": 1, "ordering_key": TENANT, "steps": [told("a")]})
    await flood(world, "x", 5)
    await ended(world, 5, "failed")
    await in_order(world)
    assert (await world.heart.ledger())["dead"] == 5


async def test_an_entry_that_is_set_aside_gives_back_what_it_had_in_hand_and_asks_for_it_when_it_is_redriven(
    world: World, crew: Crew
) -> None:
    """It is that of two runs: one is at work, the other is parked, and goes on without it."""
    kills = {"name": "w", "concurrency": 1, "steps": [told("a")]}
    await world.put(kills)
    await world.put({"name": "parked", "ordering_key": "all", "steps": [{"id": "d", "delay": "1h"}]})
    crew.gate.clear()
    replica = world.heart.replicas[0]
    await flood(world, "a", 1)
    await world.until("waiting", workflow="parked")
    await wait_until(lambda: crew.at_work["all"] == 1, "the other to be at work")
    ((task, entry),) = replica.consumer._active.items()
    task.cancel()
    await asyncio.wait({task})
    await world.put({**kills, "enabled": False})
    await replica.consumer.set_aside(entry, "it kills the process")
    await world.put(kills)
    held = "SELECT w.name FROM places JOIN runs ON runs.id = run_id JOIN workflows w ON w.id = workflow_id ORDER BY 1"
    assert await rows(world.db, held) == [("parked",)]
    await flood(world, "a", 1, first=1)
    await wait_until(lambda: crew.at_work["all"] == 2, "the next to be at work")  # the first is still counted
    ((letter,),) = await rows(world.db, "SELECT id::text FROM dead_letters")
    await replica.control.redrive(letter, "ann")
    await world.until("waiting", "running")
    assert await rows(world.db, held) == [("parked",), ("w",)]
    crew.gate.set()
    await world.until("succeeded", "succeeded")
    assert await world.status("parked") == ["waiting", "waiting"]
    await world.heart.at_rest()
    assert (await world.heart.ledger())["difference"] == 0


async def test_called_workflows_take_their_turns(world: World, crew: Crew) -> None:
    crew.pause_s = 0.005
    items = {"items": list(range(12)), "concurrency": 12}
    call = {"id": "call", "workflow": {"name": "one", "input": {"n": "{{ item }}"}}}
    await world.put({"name": "one", "trigger": "manual", "concurrency": 2, "steps": [told("a")]})
    await world.put({"name": "w", "steps": [{"id": "each", "for_each": {**items, "steps": [call]}}]})
    await world.event("t", {"tenant": "x"})
    await world.until("succeeded")
    assert await world.status("one") == ["succeeded"] * 12
    assert crew.most["all"] <= 2
    await in_order(world)


async def test_one_tenant_floods_and_the_other_is_served(world: World, crew: Crew) -> None:
    """Once the flood is in the queue; the same behind a flood that isn't read yet is a figure of the benchmark."""
    crew.pause_s = 0.1
    await world.put({"name": "w", "concurrency": [6, {"key": TENANT, "limit": 4}], "steps": [told("a")]})

    async def served(name: str) -> float:
        began = time.monotonic()
        await flood(world, name, 10)
        await wait_until(lambda: all(f"{name}-{n}" in crew.ends for n in range(10)), f"{name} to be served", timeout=60)
        return max(crew.ends[f"{name}-{n}"] for n in range(10)) - began

    usual = min([await served("calm"), await served("calm again")])
    for start in range(0, 10_000, 1000):
        await flood(world, "flood", 1000, first=start)

    async def held() -> bool:
        found = await rows(world.db, "SELECT count(*) FROM events WHERE type = 't'")
        return bool(found[0][0] == 10_020)

    await wait_until(held, "the flood to be taken in", timeout=60)
    beside = await served("other")
    assert beside <= 3 * usual
    assert len([name for name in crew.ends if name.startswith("flood")]) < 5000
