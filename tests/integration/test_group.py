"""One consumer of the group against a real Valkey: reading, claiming, settling, leases and the ledger's counters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
import redis.asyncio
from redis import Redis as SyncRedis

from appliance.events import new_event
from appliance.settings import IngestSettings, StreamSettings
from appliance.stream import client as stream_client
from appliance.stream.client import Script
from appliance.stream.entry import DEAD, DUPLICATE, HANDLED, INTERNAL, UNMATCHED, Entry
from appliance.stream.group import Group
from appliance.stream.keys import Keys
from appliance.stream.leases import Leases
from appliance.stream.ledger import Account, Ledger
from appliance.stream.producer import Producer
from appliance.stream.work import WAKE, Work
from tests.servers import wait_until

KEYS = Keys("appliance")
ALL = {"high": 100, "normal": 100, "low": 100}


class Bench:
    """Two consumers, a producer and a ledger on one Valkey."""

    def __init__(self, url: str) -> None:
        self.url = url
        settings = StreamSettings()
        self.commander = stream_client.commander(url, settings)
        self.readers = [stream_client.reader(url, settings) for _ in range(2)]
        self.a = Group(self.commander, self.readers[0], KEYS, "appliance", "a")
        self.b = Group(self.commander, self.readers[1], KEYS, "appliance", "b")
        self.producer = Producer(self.commander, KEYS, IngestSettings())
        self.book = Ledger(self.commander, KEYS, "appliance")

    async def add(self, count: int, priority: str = "normal") -> None:
        for number in range(count):
            await self.producer.submit(new_event("t", {"n": number}, source="/t"), priority)

    async def read(self, group: Group, count: int = 100) -> list[Entry]:
        entries, errors = await group.read(dict.fromkeys(ALL, count))
        assert errors == []
        return entries

    async def ledger(self) -> Account:
        return sum(await self.book.accounts(), Account())

    async def settle(self, group: Group, entries: list[Entry], outcome: str = HANDLED) -> set[bytes]:
        return await group.settle(entries[0].priority, [(entry.id, outcome) for entry in entries])


@pytest_asyncio.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    made = Bench(redis_url)
    await made.a.found()
    yield made
    for client in (made.commander, *made.readers):
        await client.aclose()


async def test_what_one_reads_the_other_does_not(bench: Bench) -> None:
    await bench.add(10)
    first = await bench.read(bench.a, 6)
    second = await bench.read(bench.b)
    assert len(first) == 6
    assert len(second) == 4
    assert {entry.id for entry in first}.isdisjoint(entry.id for entry in second)


async def test_every_outcome_is_counted_and_the_sum_holds_at_every_moment(bench: Bench) -> None:
    await bench.add(6)
    await bench.add(2, "high")
    assert await bench.ledger() == Account(accepted=8, in_flight=8)
    entries = await bench.read(bench.a)
    normal = [entry for entry in entries if entry.priority == "normal"]
    for entry, outcome in zip(normal, (HANDLED, HANDLED, UNMATCHED, DUPLICATE, DEAD), strict=False):
        assert await bench.settle(bench.a, [entry], outcome) == set()
        assert (await bench.ledger()).difference == 0
    assert await bench.ledger() == Account(accepted=8, handled=2, unmatched=1, duplicate=1, dead=1, in_flight=3)


async def test_ids_of_another_life_lie_behind_the_former_ones_within_a_millisecond_too(bench: Bench) -> None:
    stream, ledger = KEYS.stream("normal"), KEYS.ledger("normal")
    pipeline: Any = bench.commander.pipeline(transaction=True)  # for which the server's clock stands still
    pipeline.xadd(stream, {"type": "t"})
    pipeline.flushall()
    pipeline.eval(Script("found").source, 2, stream, ledger, "appliance", "another")
    pipeline.xadd(stream, {"type": "t"})
    before, _, _, behind = await pipeline.execute()
    assert [int(part) for part in before.split(b"-")] < [int(part) for part in behind.split(b"-")]
    assert (await bench.ledger()).in_flight == 1


async def test_settled_entries_leave_the_stream(bench: Bench, valkey: redis.asyncio.Redis) -> None:
    await bench.add(3)
    entries = await bench.read(bench.a)
    await bench.settle(bench.a, entries[:2])
    assert await valkey.xlen(KEYS.stream("normal")) == 1
    assert (await valkey.xpending(KEYS.stream("normal"), "appliance"))["pending"] == 1


async def test_who_lost_an_entry_can_not_settle_it(bench: Bench) -> None:
    await bench.add(1)
    (entry,) = await bench.read(bench.a)
    (claim,), _ = await bench.b.overdue("normal", 0, 10)
    (again,) = await bench.b.take("normal", [claim.id])
    assert again.fields == entry.fields
    assert again.redelivered
    assert await bench.settle(bench.a, [entry]) == {entry.id}
    assert await bench.ledger() == Account(accepted=1, in_flight=1)
    assert await bench.settle(bench.b, [again]) == set()
    assert await bench.ledger() == Account(accepted=1, handled=1)


async def test_settling_twice_counts_once(bench: Bench) -> None:
    await bench.add(1)
    entries = await bench.read(bench.a)
    assert await bench.settle(bench.a, entries) == set()
    assert await bench.settle(bench.a, entries) == {entries[0].id}
    assert await bench.ledger() == Account(accepted=1, handled=1)


async def test_internal_work_is_no_accepted_event(bench: Bench) -> None:
    await bench.producer.enqueue("normal", [Work(WAKE, run="r", key="k"), Work(WAKE, run="r", key="k")])
    assert await bench.ledger() == Account()
    entries = await bench.read(bench.a)
    assert len(entries) == 2
    await bench.settle(bench.a, entries, INTERNAL)
    assert await bench.ledger() == Account()


async def test_a_redriven_event_is_in_flight_again(bench: Bench) -> None:
    await bench.add(1)
    await bench.settle(bench.a, await bench.read(bench.a), DEAD)
    assert await bench.ledger() == Account(accepted=1, dead=1)
    await bench.producer.enqueue("normal", [Work(WAKE, run="r", key="k", reopens=True)], reopened=1)
    assert await bench.ledger() == Account(accepted=1, in_flight=1)
    await bench.settle(bench.a, await bench.read(bench.a), HANDLED)
    assert await bench.ledger() == Account(accepted=1, handled=1)


async def test_a_parked_event_whose_run_fails_later_moves_to_dead(bench: Bench) -> None:
    await bench.add(1)
    await bench.settle(bench.a, await bench.read(bench.a), HANDLED)
    await bench.producer.enqueue("normal", [Work(WAKE, run="r", key="k")])
    await bench.settle(bench.a, await bench.read(bench.a), "handled>dead")
    assert await bench.ledger() == Account(accepted=1, dead=1)


async def test_a_deleted_entry_shows_as_a_difference(bench: Bench, valkey: redis.asyncio.Redis) -> None:
    await bench.add(2)
    (entry, _) = await bench.read(bench.a)
    await valkey.xdel(KEYS.stream("normal"), entry.id)
    assert (await bench.ledger()).difference == 1
    claims, vanished = await bench.b.overdue("normal", 0, 10)
    assert (len(claims), vanished) == (1, 1)


async def test_entries_from_before_our_time_are_not_ours_to_account_for(
    redis_url: str, valkey: redis.asyncio.Redis
) -> None:
    stream = KEYS.stream("normal")
    for _ in range(3):
        await valkey.xadd(stream, {"type": "t"})
    await valkey.xtrim(stream, maxlen=1, approximate=False)
    bench = Bench(redis_url)
    await bench.a.found()
    assert await bench.ledger() == Account(accepted=1, in_flight=1)
    for client in (bench.commander, *bench.readers):
        await client.aclose()


async def test_a_destroyed_group_is_made_again_and_delivers_what_was_not_settled(
    bench: Bench, valkey: redis.asyncio.Redis
) -> None:
    await bench.add(3)
    entries = await bench.read(bench.a)
    await bench.settle(bench.a, entries[:1])
    await valkey.xgroup_destroy(KEYS.stream("normal"), "appliance")
    foundation = await bench.a.found()
    assert foundation.made == ("normal",)
    assert foundation.lost == {}
    again = await bench.read(bench.a)
    assert [entry.id for entry in again] == [entry.id for entry in entries[1:]]
    assert all(entry.redelivered for entry in again), "somebody may have handled them before"
    assert (await bench.ledger()).difference == 0


async def test_a_lost_stream_begins_a_new_ledger(bench: Bench, valkey: redis.asyncio.Redis) -> None:
    await bench.add(3)
    await bench.settle(bench.a, (await bench.read(bench.a))[:1])
    await bench.ledger()
    await valkey.delete(KEYS.stream("normal"))
    foundation = await bench.a.found()
    assert foundation.lost["normal"]["handled"] == "1"
    assert await bench.ledger() == Account()


async def test_tidying_keeps_what_another_group_still_needs(bench: Bench, valkey: redis.asyncio.Redis) -> None:
    stream = KEYS.stream("normal")
    await valkey.xgroup_create(stream, "audit", "0")
    await bench.a.tidy(3_600_000)
    await bench.add(5)
    await bench.settle(bench.a, await bench.read(bench.a))
    assert (await bench.ledger()) == Account(accepted=5, handled=5)
    await bench.a.tidy(3_600_000)
    assert await valkey.xlen(stream) == 5, "the other group has read nothing yet"
    reply: Any = await valkey.xreadgroup("audit", "x", {stream: ">"}, count=4)
    ((_, rows),) = reply
    await valkey.xack(stream, "audit", *(entry_id for entry_id, _ in rows))
    await bench.a.tidy(3_600_000)
    assert await valkey.xlen(stream) <= 2


async def test_a_consumer_that_is_gone_is_removed_but_never_its_pending_entries(
    bench: Bench, valkey: redis.asyncio.Redis
) -> None:
    await bench.add(1)
    await bench.read(bench.b)
    await bench.a.tidy(-1)
    names = [row["name"] for row in await valkey.xinfo_consumers(KEYS.stream("normal"), "appliance")]
    assert names == [b"b"]
    assert (await valkey.xpending(KEYS.stream("normal"), "appliance"))["pending"] == 1


async def test_a_blocked_read_can_be_ended(bench: Bench) -> None:
    began = time.monotonic()
    reading = asyncio.create_task(bench.a.wait(60_000, 10))
    await wait_until(lambda: _blocked(bench), "the read to block")
    await bench.a.interrupt()
    assert await reading == []
    assert time.monotonic() - began < 30


async def _blocked(bench: Bench) -> bool:
    return bool((await bench.commander.info("clients"))["blocked_clients"])


def leases(bench: Bench, consumer: str, lease_s: float) -> Leases:
    def connect() -> SyncRedis:
        return stream_client.renewer(bench.url)

    return Leases(KEYS, "appliance", consumer, lease_s, connect)


async def test_leases_are_renewed_while_the_loop_is_blocked(bench: Bench) -> None:
    await bench.add(1)
    held = leases(bench, "a", 0.3)
    (entry,) = await bench.read(bench.a)
    held.add(entry)
    held.start(lambda _: None)
    time.sleep(1.0)  # noqa: ASYNC251 - what a plugin that blocks the loop does
    claims, _ = await bench.b.overdue("normal", 300, 10)
    assert claims == []
    assert held.holds(entry)
    await held.stop()


async def test_renewing_does_not_steal_back_what_another_has_taken_over(bench: Bench) -> None:
    await bench.add(1)
    held = leases(bench, "a", 0.3)
    (entry,) = await bench.read(bench.a)
    held.add(entry)
    lost: list[Entry] = []
    (claim,), _ = await bench.b.overdue("normal", 0, 10)
    await bench.b.take("normal", [claim.id])
    held.start(lost.append)
    await wait_until(lambda: lost, "the loss to be noticed")
    assert lost == [entry]
    assert not held.holds(entry)
    assert [claim.id for claim in await bench.b.own("normal")] == [entry.id]
    await held.stop()


async def test_released_entries_can_be_taken_over_at_once(bench: Bench) -> None:
    await bench.add(2)
    entries = await bench.read(bench.a)
    held = leases(bench, "a", 30.0)
    await held.release(bench.commander, entries[:1])
    claims, _ = await bench.b.overdue("normal", 30_000, 10)
    assert [claim.id for claim in claims] == [entries[0].id]


async def test_duplicates_are_told_at_the_door(bench: Bench) -> None:
    key = "00000000-0000-0000-0000-000000000001"
    events = [new_event("t", {}, source="/t", key=key) for _ in range(20)]
    answers = await asyncio.gather(*(bench.producer.submit(event) for event in events))
    fresh = [answer for answer in answers if not answer.duplicate]
    assert len(fresh) == 1
    assert {answer.uid for answer in answers} == {fresh[0].uid}
    assert await bench.ledger() == Account(accepted=1, in_flight=1)


async def test_a_group_that_came_a_moment_ago_still_gets_what_is_settled_now(
    bench: Bench, valkey: redis.asyncio.Redis
) -> None:
    stream = KEYS.stream("normal")
    await bench.add(2)
    entries = await bench.read(bench.a)
    await valkey.xgroup_create(stream, "audit", "0")
    await bench.settle(bench.a, entries)
    assert await valkey.xlen(stream) == 2


async def test_when_ours_is_the_only_group_again_nothing_that_is_settled_stays(
    bench: Bench, valkey: redis.asyncio.Redis
) -> None:
    stream = KEYS.stream("normal")
    await valkey.xgroup_create(stream, "audit", "0")
    await bench.a.tidy(3_600_000)
    await bench.add(5)
    await bench.settle(bench.a, (await bench.read(bench.a))[:4])
    await valkey.xgroup_destroy(stream, "audit")
    await bench.a.tidy(3_600_000)
    assert await bench.ledger() == Account(accepted=5, handled=4, in_flight=1)
    (claim,) = await bench.a.own("normal")
    await bench.settle(bench.a, await bench.a.take("normal", [claim.id]))
    await bench.a.tidy(3_600_000)
    assert await valkey.xlen(stream) == 0


async def test_who_leaves_does_not_drop_what_arrives_at_that_moment(bench: Bench) -> None:
    """XGROUP DELCONSUMER drops the consumer's pending entries."""
    for _ in range(200):
        await bench.add(1)
        await asyncio.gather(bench.a.leave(), bench.read(bench.a))
    assert len(await bench.a.own("normal")) == 200


async def test_forgetting_an_entry_does_not_forget_its_next_delivery(bench: Bench) -> None:
    await bench.add(1)
    held = leases(bench, "a", 30.0)
    (old,) = await bench.read(bench.a)
    held.add(old)
    held.remove(old)
    (new,) = await bench.a.take("normal", [old.id])
    held.add(new)
    held.remove(old)
    assert held.entries() == [new]
