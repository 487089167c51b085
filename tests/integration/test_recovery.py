"""Losing what Redis holds, in every way, and putting it back to work."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.recovery import Report
from appliance.errors import StoreUnavailable
from appliance.events import event_key, new_event
from appliance.plugin import Context
from appliance.replica import Replica
from appliance.settings import StoreSettings
from appliance.store.pool import Connection, open_pool
from appliance.store.recovery import RecoveryStore
from tests.integration.test_heart import Heart, db, failing, heart, instant, rows
from tests.servers import start_valkey, wait_until

__all__ = ["db", "heart"]

POSTGRES = {"durability": "postgres"}


async def recover(made: Replica) -> Report:
    """As ``appliance recover``: everything is looked at, however young."""
    return await made.recovery.sweep(grace_s=0.0, thorough=True)


async def recovered(made: Replica) -> None:
    """Sweep until there is nothing left to put back."""

    async def nothing() -> bool:
        return (await recover(made)).total == 0

    await wait_until(nothing, "nothing to be lost any more", timeout=20)


async def ended(db: Connection, number: int = 1) -> None:
    """Wait until so many runs have succeeded."""

    async def over() -> bool:
        return len(await rows(db, "SELECT 1 FROM runs WHERE status = 'succeeded'")) == number

    await wait_until(over, f"the end of {number} runs")


class Gate:
    """An action that waits until it is opened; counts who came."""

    def __init__(self) -> None:
        self.came = 0
        self.open = asyncio.Event()

    async def __call__(self, _: Context) -> None:
        self.came += 1
        await self.open.wait()


def steps(*ids: str) -> list[dict[str, Any]]:
    return [{"id": step_id, "action": "told", "with": {"how": step_id}} for step_id in ids]


async def started(heart: Heart, db: Connection, made: Replica, number: int = 1, **more: Any) -> Gate:
    """Events whose runs stand recorded at their second step, in the hands of ``made``."""
    gate = Gate()
    await heart.workflow("w", {"id": "first"}, {"id": "second"}, **more)
    await made.catalog.refresh()
    heart.behave |= {"first": instant, "second": gate}
    for _ in range(number):
        await heart.send()
    await wait_until(lambda: gate.came == number, "the runs to be at their second step")
    await made.bookkeeper.save()
    return gate


async def crash(made: Replica) -> None:
    """End a replica without a word: what it has in hand stays pending."""
    for task in list(made.consumer._active):
        task.cancel()
    await asyncio.wait(set(made.consumer._active) or {asyncio.create_task(asyncio.sleep(0))})
    for entry in made.leases.entries():
        made.leases.remove(entry)


async def test_runs_of_a_flushed_redis_are_completed(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    gate = await started(heart, db, made, 5)
    await made.bookkeeper.save()
    await made.commander.flushall()
    await crash(made)
    gate.open.set()
    report = await recover(made)
    assert report.events == 5
    await ended(db, 5)
    await heart.at_rest()
    assert heart.calls == {"first": [1] * 5, "second": [1] * 10}
    assert (await recover(made)).total == 0
    assert await heart.ledger() == {"handled": 5, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def lose_entry(made: Replica) -> None:
    stream = made.keys.stream("normal")
    client: Any = made.commander
    for entry_id, _ in await client.xrange(stream):
        await client.xdel(stream, entry_id)


async def trim(made: Replica) -> None:
    await made.commander.xtrim(made.keys.stream("normal"), maxlen=0, approximate=False)


async def delete(made: Replica) -> None:
    await made.commander.delete(made.keys.stream("normal"))


@pytest.mark.parametrize("lose", [lose_entry, trim, delete])
async def test_a_run_whose_entry_somebody_removed_goes_on(
    heart: Heart, db: Connection, lose: Callable[[Replica], Awaitable[None]]
) -> None:
    made = await heart.replica()
    gate = await started(heart, db, made)
    await crash(made)
    await lose(made)
    gate.open.set()
    assert (await recover(made)).events == 1
    await ended(db)
    await heart.at_rest()
    assert heart.calls == {"first": [1], "second": [1, 1]}
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_what_is_under_way_is_left_alone(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    gate = await started(heart, db, made, 3)
    await heart.workflow("other", {"id": "pause", "delay": "1h"}, trigger={"event": "other"})
    await made.producer.submit(new_event("other", {}, source="/t"))
    await wait_until(lambda: rows(db, "SELECT 1 FROM timers"), "the timer")
    assert (await recover(made)).total == 0
    gate.open.set()
    await heart.at_rest()
    assert heart.calls["second"] == [1, 1, 1]


async def test_entries_of_a_consumer_that_somebody_deleted_are_delivered_again(heart: Heart, db: Connection) -> None:
    made = await heart.idle(stream={"lease": "1s"})
    await heart.workflow("w", {"id": "only"})
    heart.behave["only"] = instant
    for _ in range(3):
        await heart.send()
    client: Any = made.commander
    stream = made.keys.stream("normal")
    await client.xreadgroup(made.settings.stream.group, "somebody", {stream: ">"}, count=2)
    await client.xgroup_delconsumer(stream, made.settings.stream.group, "somebody")
    heart.run(made)
    await ended(db)
    await made.group.tidy(3_600_000)
    assert (await recover(made)).adopted == 2
    await heart.at_rest()
    assert heart.calls["only"] == [1, 1, 1]
    assert await heart.ledger() == {"handled": 3, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_a_wake_that_was_lost_is_made_again(heart: Heart, db: Connection) -> None:
    """Its timer's row went when it was put into the stream."""
    made = await heart.idle()
    await heart.workflow("w", {"id": "pause", "delay": "50ms"}, {"id": "then"})
    heart.behave["then"] = instant
    reading = asyncio.create_task(made.consumer.read_forever())
    await heart.send()
    await wait_until(lambda: rows(db, "SELECT 1 FROM timers"), "the timer")
    await made.consumer.stop(1)
    await reading
    await wait_until(made.timers.fire, "the timer to fire")
    assert (await recover(made)).total == 0  # it is in the stream
    await made.commander.flushall()
    assert (await recover(made)).parked == 1
    assert (await recover(made)).total == 0
    other = await heart.replica()
    await ended(db)
    await heart.at_rest()
    assert heart.calls["then"] == [1]
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}
    assert (await recover(other)).total == 0


@pytest.mark.parametrize("how", ["event", "machine", "cancel"])
async def test_a_lost_wake_is_made_again_although_the_run_has_a_timer(heart: Heart, db: Connection, how: str) -> None:
    """That one is for its deadline, hours later."""
    made = await heart.idle()
    late = {"after": "1h"}
    if how == "machine":
        done = {"next": "done"}
        states = {"open": {"on": {"paid": done}, "deadline": late | done}, "done": {"final": True}}
        machine = {"correlate": "{{ event.data.n }}", "initial": "open", "states": states}
        await made.catalog.put({"name": "w", "trigger": {"event": "t"}, **machine})
    else:
        (first,) = steps("first")
        wait = {"id": "paid", "wait": {"event": "paid"}, "deadline": late}
        undo = {"action": "told", "with": {"how": "undo"}}
        await heart.workflow("w", steps=[{**first, "compensate": undo}, wait])
        heart.behave |= {"first": instant, "undo": instant}
    reading = asyncio.create_task(made.consumer.read_forever())
    await heart.send(n=1)
    await wait_until(lambda: rows(db, "SELECT 1 FROM timers"), "the timer")
    if how == "cancel":
        ((run,),) = await rows(db, "SELECT id::text FROM runs")
        await made.control.cancel_run(run, "me")
    else:
        await made.producer.submit(new_event("paid", {"n": 1}, source="/t"))
    await wait_until(lambda: rows(db, "SELECT 1 FROM timers WHERE due_at <= now()"), "the wake")
    await heart.at_rest()
    await made.consumer.stop(1)
    await reading
    assert (await recover(made)).total == 0  # there is a timer for it
    await wait_until(made.timers.fire, "the timer to fire")
    assert (await recover(made)).total == 0  # it is in the stream
    await made.commander.flushall()
    assert (await recover(made)).parked == 1
    assert (await recover(made)).total == 0
    other = await heart.replica()
    await wait_until(lambda: rows(db, "SELECT 1 FROM runs WHERE finished_at IS NOT NULL"), "the end of the run")
    await heart.at_rest()
    assert (await recover(other)).total == 0


@pytest.mark.parametrize("lose", [lose_entry, trim, delete])
async def test_a_wake_that_somebody_removed_is_no_lost_event(
    heart: Heart, db: Connection, lose: Callable[[Replica], Awaitable[None]]
) -> None:
    made = await heart.idle()
    await heart.workflow("w", {"id": "pause", "delay": "50ms"}, {"id": "then"})
    heart.behave["then"] = instant
    reading = asyncio.create_task(made.consumer.read_forever())
    await heart.send()
    await wait_until(lambda: rows(db, "SELECT 1 FROM timers"), "the timer")
    await made.consumer.stop(1)
    await reading
    await wait_until(made.timers.fire, "the timer to fire")
    await made.bookkeeper.save()
    await lose(made)
    assert (await recover(made)).parked == 1
    await heart.replica()
    await ended(db)
    await heart.at_rest()
    assert heart.calls["then"] == [1]
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_a_run_that_a_lost_wake_held_goes_on(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    gate = Gate()
    await heart.workflow("w", {"id": "pause", "delay": "50ms"}, {"id": "first"}, {"id": "second"})
    heart.behave |= {"first": instant, "second": gate}
    await heart.send()
    await wait_until(lambda: gate.came, "the second step")
    await crash(made)
    await made.commander.flushall()
    gate.open.set()
    assert (await recover(made)).held == 1
    await ended(db)
    await heart.at_rest()
    assert heart.calls == {"first": [1], "second": [1, 1]}
    assert (await heart.ledger())["difference"] == 0


@pytest.mark.parametrize("deadline", [{"forever": True}, {"deadline": {"after": "1h"}}])
async def test_a_run_whose_entry_was_lost_before_it_looked_back_is_told(
    heart: Heart, db: Connection, monkeypatch: pytest.MonkeyPatch, deadline: dict[str, Any]
) -> None:
    """It stands recorded that it waits, and that its event is over; what it waits for had come before."""
    made, late = await heart.replica(), Gate()

    async def never(_: str) -> None:
        await late(None)  # type: ignore[arg-type]

    wait = {"id": "paid", "wait": {"event": "paid"}, **deadline}
    gate = await started(heart, db, made, steps=[*steps("first", "second"), wait])
    await made.producer.submit(new_event("paid", {}, source="/t"))
    await wait_until(lambda: rows(db, "SELECT 1 FROM correlations"), "what it will wait for")
    await wait_until(lambda: rows(db, "SELECT 1 FROM events WHERE outcome = 'unmatched'"), "its outcome")
    monkeypatch.setattr(made.executor, "_look_back", never)
    gate.open.set()
    await wait_until(lambda: late.came, "the run to be parked")
    await made.commander.flushall()
    await crash(made)
    monkeypatch.undo()
    assert (await recover(made)).parked == 1
    await ended(db)
    await heart.at_rest()
    assert (await recover(made)).total == 0
    assert heart.calls == {"first": [1], "second": [1]}


async def test_a_run_of_an_event_that_is_over_is_not_left_to_an_entry_that_will_not_come(
    heart: Heart, db: Connection
) -> None:
    """Another replica had the event as well, and said that it is unmatched."""
    made = await heart.replica()
    gate = await started(heart, db, made)
    await made.commander.flushall()
    await crash(made)
    await db.execute("UPDATE events SET outcome = 'unmatched'")
    gate.open.set()
    assert (await recover(made)).held == 1
    await ended(db)
    await heart.at_rest()
    assert heart.calls == {"first": [1], "second": [1, 1]}
    assert (await recover(made)).total == 0


async def test_what_kills_the_process_is_not_revived(heart: Heart, db: Connection) -> None:
    """Its entry was set aside while its run stood in the middle: that is for a person to decide."""
    made = await heart.replica()
    await started(heart, db, made)
    (entry,) = made.leases.entries()
    await crash(made)
    made.leases.add(entry)
    await made.consumer.set_aside(entry, "it kills the process")
    await made.commander.flushall()
    await made.consumer.found()
    assert (await recover(made)).total == 0


async def test_a_redrive_that_was_lost_is_made_up_for(heart: Heart, db: Connection) -> None:
    made = await heart.idle()
    await heart.workflow("w", {"id": "w", "retry": {"max_attempts": 1}})
    heart.behave["w"] = failing(1)
    reading = asyncio.create_task(made.consumer.read_forever())
    await heart.send()
    await heart.at_rest()
    await made.consumer.stop(1)
    await reading
    ((letter,),) = await rows(db, "SELECT id::text FROM dead_letters")
    await made.control.redrive(letter, "me")
    assert (await recover(made)).total == 0  # its timer is there
    assert await made.timers.fire() == 1
    assert (await recover(made)).total == 0  # its work is in the stream
    await made.bookkeeper.save()
    await made.commander.flushall()
    report = await recover(made)
    assert (report.parked, report.events) == (1, 1)
    await heart.replica()
    await ended(db)
    await heart.at_rest()
    assert await rows(db, "SELECT outcome::text FROM events") == [("handled",)]
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_what_a_flush_under_load_took_is_counted(heart: Heart, db: Connection) -> None:
    """Work goes on after the ledger was saved for the last time, and in hands whose entries are gone."""
    made = await heart.replica(engine={"concurrency": 50})
    await heart.workflow("w", {"id": "first"}, {"id": "second"})

    async def short(_: Context) -> None:
        await asyncio.sleep(0.01)

    heart.behave |= {"first": short, "second": short}
    sent = [heart.send() for _ in range(600)]
    await asyncio.gather(*sent)
    await made.bookkeeper.save()
    await wait_until(lambda: len(heart.calls["second"]) > 150, "some work after that")
    await made.commander.flushall()
    await wait_until(lambda: not made.consumer._active, "what was in hand to be over")
    await recovered(made)
    await heart.at_rest()
    await recovered(made)
    ((known, over),) = await rows(db, "SELECT count(*), count(outcome) FROM events")
    assert known == over
    assert 150 < known < 600
    assert await rows(db, "SELECT 1 FROM runs WHERE status <> 'succeeded'") == []
    ledger = await heart.ledger()
    assert (ledger["handled"], ledger["difference"]) == (known, 600 - known)


async def test_with_durability_in_postgresql_a_flush_under_load_takes_nothing(heart: Heart, db: Connection) -> None:
    made = await heart.replica(engine={"concurrency": 50}, ingest=POSTGRES)
    await heart.workflow("w", {"id": "first"}, {"id": "second"})

    async def short(_: Context) -> None:
        await asyncio.sleep(0.01)

    heart.behave |= {"first": short, "second": short}
    saving = asyncio.create_task(made.bookkeeper.run_forever())

    async def send(number: int) -> None:
        for n in range(40):
            key = event_key("/t", f"{number}-{n}")
            await made.intake.submit(new_event("t", {}, source="/t", key=key))

    load = asyncio.gather(*(send(number) for number in range(20)))
    await wait_until(lambda: len(heart.calls["second"]) > 100, "some to be handled")
    await made.commander.flushall()
    await load
    await recovered(made)
    await heart.at_rest()
    await recovered(made)
    saving.cancel()
    assert await rows(db, "SELECT count(*), count(outcome) FROM events") == [(800, 800)]
    assert await rows(db, "SELECT 1 FROM runs WHERE status <> 'succeeded'") == []
    ledger = await heart.ledger()
    assert (ledger["handled"], ledger["difference"]) == (800, 0)
    await made.outbox.purge()
    assert await rows(db, "SELECT 1 FROM outbox") == []


async def test_of_two_sweeps_at_once_one_puts_things_back(heart: Heart, db: Connection) -> None:
    other = await heart.idle()
    made = await heart.replica()
    gate = await started(heart, db, made, 4)
    await made.commander.flushall()
    await crash(made)
    gate.open.set()
    await other.catalog.refresh()
    reports = await asyncio.gather(recover(made), recover(other), made.recovery.sweep(), recover(other))
    assert sum(report.events for report in reports) == 4
    await ended(db, 4)
    await heart.at_rest()
    assert await heart.ledger() == {"handled": 4, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_who_is_still_at_work_on_what_is_put_back_is_fenced(heart: Heart, db: Connection) -> None:
    """Another replica can't know that the entry which vanished is in somebody's hands."""
    other = await heart.idle()
    made = await heart.replica()
    gate = await started(heart, db, made)
    await made.commander.flushall()
    assert (await recover(made)).total == 0
    assert (await recover(other)).events == 1
    await wait_until(lambda: gate.came == 2, "the second handler")
    gate.open.set()
    await ended(db)
    await heart.at_rest()
    assert await rows(db, "SELECT key, status::text FROM steps ORDER BY seq") == [
        ("first", "succeeded"), ("second", "succeeded")
    ]  # fmt: skip
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_a_sweep_that_nobody_asked_for_leaves_the_young_alone(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    gate = await started(heart, db, made)
    await heart.workflow("other", {"id": "pause", "delay": "1h"}, trigger={"event": "other"})
    await made.producer.submit(new_event("other", {}, source="/t"))
    await wait_until(lambda: rows(db, "SELECT 1 FROM timers"), "the timer")
    await made.commander.flushall()
    await crash(made)
    await db.execute("DELETE FROM timers")
    assert (await made.recovery.sweep()).total == 0
    await db.execute("UPDATE events SET received_at = received_at - interval '2 minutes'")
    assert (await made.recovery.sweep()).total == 0
    await db.execute("UPDATE runs SET updated_at = updated_at - interval '2 minutes'")
    gate.open.set()
    report = await made.recovery.sweep()
    assert (report.events, report.parked, report.total) == (1, 1, 2)
    assert await rows(db, "SELECT due_at > now() + interval '50 minutes' FROM timers") == [(True,)]
    await ended(db)


async def test_a_server_that_kept_nothing_is_recovered_from(database_url: str, db: Connection, tmp_path: Path) -> None:
    """It stops, its files go, and another one starts in its place."""
    async with contextlib.AsyncExitStack() as stack, contextlib.AsyncExitStack() as first:
        server = await first.enter_async_context(start_valkey(tmp_path / "v"))
        heart = Heart(server.url, database_url, tmp_path, stack)
        made = await heart.replica(stream={"lease": "2s"})
        gate = await started(heart, db, made, 2)
        await first.aclose()
        shutil.rmtree(tmp_path / "v" / "valkey")
        await crash(made)
        gate.open.set()
        async with start_valkey(tmp_path / "v"):
            await wait_until(lambda: heart.foundations, "the groups to be made again")
            await recovered(made)
            await ended(db, 2)
            await heart.at_rest()
            assert (await heart.ledger())["difference"] == 0
            await stack.aclose()


@pytest.mark.parametrize("seed", [1, 2])
async def test_several_flushes_under_load_on_several_replicas_take_nothing(
    heart: Heart, db: Connection, seed: int
) -> None:
    chance = random.Random(seed)
    made = [await heart.replica(engine={"concurrency": 50}, ingest=POSTGRES, stream={"lease": "2s"}) for _ in range(2)]
    await heart.workflow("w", {"id": "first"}, {"id": "second"})
    await heart.workflow("v", {"id": "third"})

    async def short(_: Context) -> None:
        await asyncio.sleep(chance.random() * 0.03)

    heart.behave |= dict.fromkeys(("first", "second", "third"), short)
    side = []
    for each in made:
        await each.catalog.refresh()
        side += [asyncio.create_task(each.bookkeeper.run_forever()), asyncio.create_task(each.outbox.run_forever())]
    accepted = 0

    async def send() -> None:
        nonlocal accepted
        for _ in range(60):
            await chance.choice(made).intake.submit(new_event("t", {}, source="/t"))
            accepted += 1
            await asyncio.sleep(chance.random() * 0.02)

    load = asyncio.gather(*(send() for _ in range(10)))
    for _ in range(3):
        enough = min(600, accepted + chance.randrange(50, 200))
        await wait_until(lambda enough=enough: accepted >= enough, "some load")  # type: ignore[misc]
        await made[0].commander.flushall()
        if chance.random() < 0.5:
            await recover(chance.choice(made))
    await load

    async def all_over() -> bool:
        await recover(chance.choice(made))
        over = await rows(db, "SELECT 1 FROM events HAVING count(outcome) = 600")
        return bool(over) and not await rows(db, "SELECT 1 FROM runs WHERE status <> 'succeeded'")

    await wait_until(all_over, "all events to be handled", timeout=30)
    await heart.at_rest()
    await recovered(made[0])
    for task in side:
        task.cancel()
    ledger = await heart.ledger()
    assert (ledger["handled"], ledger["difference"]) == (600, 0)


async def test_a_replica_that_is_frozen_while_it_sweeps_lets_others_sweep(
    database_url: str, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await open_pool(database_url, StoreSettings())
    frozen, other = RecoveryStore(pool, hold_s=1.0), RecoveryStore(pool)

    async def still(*_: Any) -> None:
        """Frozen: nothing is sent."""

    async def gets_it() -> bool:
        async with other.alone(wait=False) as alone:
            return alone

    async def sweep_frozen() -> None:
        async with frozen.alone(wait=False):
            assert not await gets_it()
            await wait_until(gets_it, "the other to get the lock")

    async def held_for_long() -> bool:
        found = "SELECT 1 FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory'"
        return bool(await rows(db, f"{found} AND now() - xact_start > interval '3 s'"))

    with monkeypatch.context() as patch, contextlib.suppress(StoreUnavailable):  # its connection is gone
        patch.setattr(frozen, "_stay", still)
        await sweep_frozen()
    async with frozen.alone(wait=True):
        await wait_until(held_for_long, "it to sweep for longer than it may be silent")
        assert not await gets_it()
    assert await gets_it()
    await pool.close()
