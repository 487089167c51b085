"""The order of a key across replicas: what the gate may not be asked yet, on a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.engine.order import Order, ordered_runs
from appliance.errors import NotFound
from appliance.events import decode_entry, new_event
from appliance.identifiers import uuid7
from appliance.rules.matcher import Matcher, Rule
from appliance.settings import StreamSettings
from appliance.stream import client as stream_client
from appliance.stream.entry import Entry, Later, Verdict
from appliance.stream.group import Group
from appliance.stream.precedence import PAGE, Unsettled
from appliance.stream.work import WAKE, Work
from appliance.workflows.compile import compile_workflow
from appliance.workflows.revision import Revision
from tests.integration.test_group import KEYS, Bench
from tests.integration.test_heart import Heart
from tests.servers import wait_until

ORDERED = {
    "name": "w",
    "trigger": {"event": "t", "when": {"path": "data.k", "op": "exists"}},
    "ordering_key": "{{ event.data.k }}",
    "steps": [{"id": "a", "action": "x"}],
}


class Definitions:
    """The workflows of a test, in force."""

    def __init__(self, *definitions: dict[str, Any]) -> None:
        self.put(*definitions)

    def put(self, *definitions: dict[str, Any]) -> None:
        workflows = [compile_workflow(definition, actions=None) for definition in definitions]
        self.revisions = {w.name: Revision(n, n, 1, w) for n, w in enumerate(workflows, 1)}
        self.matcher = Matcher(Rule(name, r.workflow.triggers, r.id, r) for name, r in self.revisions.items())

    def current(self, name: str) -> Revision:
        if name not in self.revisions:
            raise NotFound(name)
        return self.revisions[name]


class Rows:
    """The runs that are recorded."""

    def __init__(self) -> None:
        self.runs: set[str] = set()
        self.asked = 0

    async def recorded(self, run_ids: list[str]) -> set[str]:
        self.asked += 1
        return self.runs & set(run_ids)


class Watched(Unsettled):
    """Counts what is asked of Redis."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.listed = 0
        self.fetched = 0

    async def page(self, priority: str, after: bytes, before: bytes) -> list[bytes]:
        found = await super().page(priority, after, before)
        self.listed += len(found)
        return found

    async def contents(self, priority: str, ids: Sequence[bytes]) -> list[Mapping[bytes, bytes] | None]:
        self.fetched += len(ids)
        return await super().contents(priority, ids)


class Site:
    """Two replicas, as far as order is concerned: ``a`` and ``b`` are their consumers."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.definitions = Definitions(ORDERED)
        self.rows = Rows()
        self.watched = {name: Watched(bench.commander, KEYS, "appliance") for name in "ab"}
        self.orders = {name: Order(self.definitions, self.rows, self.watched[name], KEYS) for name in "ab"}

    async def add(self, *keys: Any) -> None:
        for key in keys:
            await self.bench.producer.submit(new_event("t", {"k": key}, source="/t"))

    async def read(self, name: str, count: int) -> list[Entry]:
        entries = await self.bench.read(self._group(name), count)
        for entry in entries:
            self.orders[name].enter(entry)
        return entries

    async def take_over(self, name: str, count: int = 100) -> list[Entry]:
        claims, _ = await self._group(name).overdue("normal", 0, count)
        entries = await self._group(name).take("normal", [claim.id for claim in claims]) if claims else []
        for entry in entries:
            self.orders[name].enter(entry)
        return entries

    def _group(self, name: str) -> Group:
        return self.bench.a if name == "a" else self.bench.b

    def runs(self, entry: Entry) -> dict[str, str]:
        event = decode_entry(KEYS.stream(entry.priority), entry.id, entry.fields)
        return dict(ordered_runs(event, self.definitions))

    async def may_pass(self, name: str, entry: Entry) -> bool:
        async with asyncio.timeout(10):
            return await self.orders[name].may_pass(entry, self.runs(entry))

    def record(self, name: str, *entries: Entry) -> None:
        """These entries have been at the gate."""
        for entry in entries:
            self.rows.runs |= set(self.runs(entry).values())
            self.orders[name].passed(entry)


@pytest_asyncio.fixture
async def site(redis_url: str) -> AsyncIterator[Site]:
    bench = Bench(redis_url)
    await bench.a.found()
    yield Site(bench)
    for client in (bench.commander, *bench.readers):
        await client.aclose()


async def test_whether_an_order_is_to_be_kept_goes_by_the_workflows_in_force(site: Site) -> None:
    assert site.orders["a"].needed
    site.definitions.put({**ORDERED, "ordering_key": None})
    assert not site.orders["a"].needed


async def test_an_entry_waits_for_an_earlier_one_that_is_worked_on_here(site: Site) -> None:
    await site.add("x", "y", "x")
    first, other, second = await site.read("a", 10)
    waits = asyncio.create_task(site.may_pass("a", second))
    free = asyncio.create_task(site.may_pass("a", other))
    assert await site.may_pass("a", first)
    assert await free
    assert not waits.done()
    site.record("a", first)
    assert await waits


async def test_an_entry_that_leads_to_no_ordered_run_holds_nobody_up(site: Site) -> None:
    await site.bench.producer.submit(new_event("other", {"k": "x"}, source="/t"))
    await site.bench.producer.submit(new_event("t", {"no": "x"}, source="/t"))
    await site.bench.producer.enqueue("normal", [Work(WAKE, run=uuid7(), key="k")])
    await site.bench.commander.xadd(KEYS.stream("normal"), {"data": "{ no JSON"})
    await site.add("x")
    assert len(await site.read("a", 4)) == 4
    (mine,) = await site.read("b", 10)
    assert await site.may_pass("b", mine)
    assert site.watched["b"].fetched == 4
    assert site.rows.asked == 0


async def test_an_entry_that_a_frozen_replica_has_holds_up_those_of_its_key(site: Site) -> None:
    await site.add("x", "x", "y")
    (frozen,) = await site.read("a", 1)
    same, other = await site.read("b", 10)
    both = await asyncio.gather(site.may_pass("b", same), site.may_pass("b", other))
    assert list(both) == [False, True]
    site.orders["b"].left(same)
    assert not await site.may_pass("b", same)
    site.record("a", frozen)
    assert await site.may_pass("b", same)


async def test_reclaiming_brings_it(site: Site) -> None:
    await site.add("x", "x")
    (frozen,) = await site.read("a", 1)
    (mine,) = await site.read("b", 10)
    assert not await site.may_pass("b", mine)
    site.orders["b"].left(mine)
    await site.bench.b.renew("normal", mine.id)
    (again, _) = await site.take_over("b")
    assert again.id == frozen.id
    waits = asyncio.create_task(site.may_pass("b", mine))
    assert await site.may_pass("b", again)
    site.record("b", again)
    assert await waits


async def test_one_that_was_given_up_here_without_passing_still_counts(site: Site) -> None:
    await site.add("x", "x")
    first, second = await site.read("a", 10)
    waits = asyncio.create_task(site.may_pass("a", second))
    site.orders["a"].left(first)  # PostgreSQL was away, say: it is held, and handed over again
    assert not await waits


async def test_entries_under_our_name_that_nobody_has_in_hand_count(site: Site) -> None:
    """Their reply was lost, or they were read by the process before this one."""
    await site.add("x", "x")
    await site.bench.read(site.bench.a, 1)
    (mine,) = await site.read("a", 10)
    assert not await site.may_pass("a", mine)


async def test_what_is_settled_or_was_deleted_counts_no_more(site: Site) -> None:
    await site.add("x", "x", "x")
    settled, deleted = await site.read("a", 2)
    (mine,) = await site.read("b", 10)
    assert not await site.may_pass("b", mine)
    await site.bench.settle(site.bench.a, [settled])
    assert not await site.may_pass("b", mine)
    await site.bench.commander.xdel(KEYS.stream("normal"), deleted.id)
    site.orders["b"]._streams["normal"]._known.clear()  # or it would be remembered until it is settled
    assert await site.may_pass("b", mine)


async def test_one_that_was_not_entered_leaves_no_trace(site: Site) -> None:
    """The rules changed while it was in hand."""
    await site.add("x", "x")
    first, second = await site.bench.read(site.bench.a, 10)
    order = site.orders["a"]
    assert await order.may_pass(first, site.runs(first))
    assert not await order.may_pass(second, site.runs(second))
    assert len(order._here) == 0
    order.enter(second)
    order.enter(second)
    order.left(second)
    assert len(order._here) == 0


async def test_another_stream_is_another_order(site: Site) -> None:
    for priority in ("high", "low"):
        await site.bench.producer.submit(new_event("t", {"k": "x"}, source="/t"), priority)
    high, low = sorted(await site.read("a", 10), key=lambda entry: entry.priority)
    assert await site.may_pass("a", low)
    assert await site.may_pass("a", high)


async def test_a_workflow_that_is_started_by_its_name_keeps_its_order_too(site: Site) -> None:
    site.definitions.put({**ORDERED, "trigger": "manual"})
    for _ in range(2):
        event = new_event("workflow.start", {"k": "x"}, source="/t")._replace(start=("w", "manual"))
        await site.bench.producer.submit(event)
    (first,) = await site.read("a", 1)
    (second,) = await site.read("b", 10)
    assert not await site.may_pass("b", second)
    site.record("a", first)
    assert await site.may_pass("b", second)


async def test_an_event_with_several_ordered_runs_waits_for_all(site: Site) -> None:
    other = {**ORDERED, "name": "v", "ordering_key": "{{ event.data.j }}"}
    site.definitions.put(ORDERED, other)
    for k, j in (("x", 1), ("y", 2), ("x", 2)):
        await site.bench.producer.submit(new_event("t", {"k": k, "j": j}, source="/t"))
    first, second = await site.read("a", 2)
    (mine,) = await site.read("b", 10)
    assert len(site.runs(mine)) == 2
    site.rows.runs |= set(site.runs(first).values())
    assert not await site.may_pass("b", mine)
    site.rows.runs |= set(site.runs(second).values())
    assert await site.may_pass("b", mine)


async def test_other_rules_are_looked_at_anew(site: Site) -> None:
    site.definitions.put({**ORDERED, "trigger": {"event": "t", "when": {"path": "data.k", "op": "==", "value": "y"}}})
    await site.add("x", "y", "x")
    await site.read("a", 1)
    early, mine = await site.read("b", 10)
    assert await site.may_pass("b", early)
    site.orders["b"].passed(early)
    site.definitions.put(ORDERED)
    assert not await site.may_pass("b", mine)


async def test_rules_that_change_during_a_look_hide_nobody(site: Site) -> None:
    only_y = {**ORDERED, "trigger": {"event": "t", "when": {"path": "data.k", "op": "==", "value": "y"}}}
    site.definitions.put(only_y)
    await site.add("x", "y", "y", "x")
    await site.read("a", 1)
    (early,) = await site.read("b", 1)
    assert await site.may_pass("b", early)
    site.record("b", early)
    await site.bench.settle(site.bench.b, [early])
    (recorded,) = await site.read("a", 1)
    site.rows.runs |= set(site.runs(recorded).values())
    (mine,) = await site.read("b", 1)
    watched = site.watched["b"]
    contents = watched.contents

    async def meanwhile(priority: str, ids: Sequence[bytes]) -> list[Mapping[bytes, bytes] | None]:
        if ids:
            site.definitions.put(ORDERED)
        return await contents(priority, ids)

    watched.contents = meanwhile  # type: ignore[method-assign]
    await site.orders["b"].may_pass(mine, dict.fromkeys(site.runs(recorded), "run"))
    site.orders["b"].left(mine)
    assert not await site.may_pass("b", mine)


async def test_what_was_in_nobodys_way_is_not_listed_again(site: Site) -> None:
    await site.add(*range(50))
    elsewhere = await site.read("a", 30)
    mine = await site.read("b", 20)
    assert all(await asyncio.gather(*(site.may_pass("b", entry) for entry in mine[:10])))
    assert site.watched["b"].fetched == 30
    site.rows.runs |= {run for entry in elsewhere for run in site.runs(entry).values()}
    site.record("b", *mine)
    await site.add(*range(50))
    more = await site.read("b", 50)
    assert all(await asyncio.gather(*(site.may_pass("b", entry) for entry in more)))
    site.record("b", *more)
    listed = site.watched["b"].listed
    await site.add("last")
    (last,) = await site.read("b", 10)
    assert await site.may_pass("b", last)
    assert await site.may_pass("b", last)
    assert site.watched["b"].listed - listed < 200
    assert site.watched["b"].fetched == 30  # each was read once
    assert site.orders["b"]._streams["normal"]._floor == more[-1].id


async def test_more_than_a_page_of_them_is_looked_through(site: Site) -> None:
    number = PAGE + 300
    pipeline = site.bench.commander.pipeline()
    for n in range(number):
        pipeline.xadd(KEYS.stream("normal"), {"type": "t", "data": b'{"k": %d}' % n})
    await pipeline.execute()
    elsewhere = await site.read("a", number)
    await site.add(3, PAGE + 200, "new")
    low, high, new = await site.read("b", 10)
    assert [await site.may_pass("b", entry) for entry in (low, high, new)] == [False, False, True]
    site.rows.runs |= {run for entry in elsewhere[:-5] for run in site.runs(entry).values()}
    assert [await site.may_pass("b", entry) for entry in (low, high)] == [True, True]
    assert site.orders["b"]._streams["normal"]._floor == elsewhere[-6].id


async def test_nobody_passes_while_redis_can_not_be_asked(site: Site) -> None:
    await site.add("x")
    (mine,) = await site.read("a", 10)
    nowhere = stream_client.commander("redis://127.0.0.1:1", StreamSettings())
    order = Order(site.definitions, site.rows, Unsettled(nowhere, KEYS, "appliance"), KEYS)
    assert not await order.may_pass(mine, site.runs(mine))
    await nowhere.aclose()
    await site.bench.commander.flushall()
    assert not await site.may_pass("a", mine)


class _NotYet:
    """A handler that can do nothing so far."""

    async def handle(self, _: Entry) -> Verdict:
        return Later(60)

    async def set_aside(self, _: Entry, reason: str) -> Verdict:
        raise AssertionError(reason)


async def test_reading_stops_where_far_too_many_wait_and_taking_over_does_not(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        heart = Heart(redis_url, database_url, tmp_path, stack)
        replica = await heart.idle(engine={"concurrency": 16, "max_held": 4})
        replica.consumer._handler = _NotYet()
        for n in range(60):
            await heart.send(n=n)
        heart.run(replica)
        await wait_until(lambda: replica.consumer.free_slots() < 4, "fewer slots than are worth a read")
        read = (await replica.commander.xpending(KEYS.stream("normal"), "appliance"))["pending"]
        assert 16 < read <= 24
        assert replica.consumer.active == 0
        assert replica.consumer.reclaimable() == 17


@pytest.mark.parametrize("seed", range(3))
async def test_replicas_that_read_crash_and_take_over_pass_each_key_in_order(site: Site, seed: int) -> None:
    """Both work at once; now and then one forgets what it has in hand, and the other takes it over."""
    chance = random.Random(seed)
    await site.add(*(chance.randrange(5) for _ in range(120)))
    passed: list[Entry] = []

    async def work(name: str, entry: Entry, group: Group) -> None:
        order = site.orders[name]
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        with contextlib.suppress(asyncio.CancelledError):
            while not await site.may_pass(name, entry):
                order.left(entry)
                await asyncio.sleep(0.005)
                order.enter(entry)
            if not set(site.runs(entry).values()) <= site.rows.runs:  # what the gate's transaction makes sure of
                site.rows.runs |= set(site.runs(entry).values())
                passed.append(entry)
            order.passed(entry)
            await group.settle("normal", [(entry.id, "handled")])
        order.left(entry)

    at_work: dict[str, list[asyncio.Task[None]]] = {"a": [], "b": []}
    async with asyncio.timeout(30):
        while await site.bench.commander.xlen(KEYS.stream("normal")):
            name = chance.choice("ab")
            group = site.bench.a if name == "a" else site.bench.b
            if chance.random() < 0.1:
                for task in at_work[name]:
                    task.cancel()
                await asyncio.gather(*at_work[name])
                at_work[name].clear()
                name = "b" if name == "a" else "a"
                group = site.bench.a if name == "a" else site.bench.b
                entries = await site.take_over(name)
            else:
                entries = await site.read(name, chance.randint(1, 6))
            at_work[name] += [asyncio.create_task(work(name, entry, group)) for entry in entries]
            await asyncio.sleep(0.002)
    for tasks in at_work.values():
        await asyncio.gather(*tasks)
    assert len(passed) == 120
    by_key: dict[str, list[tuple[int, ...]]] = {}
    for entry in passed:
        (key,) = site.runs(entry)
        by_key.setdefault(key, []).append(tuple(map(int, entry.id.split(b"-"))))
    assert all(ids == sorted(ids) for ids in by_key.values())
