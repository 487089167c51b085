"""The ledger after losses, to the entry: every interleaving that once made it wrong, made to happen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from appliance.engine.timers import Timers
from appliance.errors import StreamUnavailable
from appliance.events import new_event
from appliance.replica import Replica
from appliance.store.pool import Connection
from appliance.stream.entry import Entry, Verdict
from appliance.stream.ledger import Account
from appliance.stream.producer import Send
from tests.integration.test_heart import Heart, db, failing, heart, instant, rows
from tests.integration.test_recovery import (
    POSTGRES,
    Gate,
    crash,
    ended,
    lose_entry,
    recover,
    recovered,
    started,
)
from tests.servers import wait_until

__all__ = ["db", "heart"]

ONE = {"accepted": 1, "handled": 1, "unmatched": 0, "duplicate": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def ledger(made: Replica) -> dict[str, int]:
    await made.bookkeeper.complete()
    found = await made.bookkeeper.ledger()
    return {name: found[name] for name in ONE}


async def handled(heart: Heart, number: int = 1) -> None:
    await heart.at_rest()
    await recovered(heart.replicas[0])
    await heart.at_rest()
    assert await ledger(heart.replicas[0]) == ONE | {"accepted": number, "handled": number}


async def dead_letter(heart: Heart, db: Connection, minutes: int) -> str:
    """The letter of an event that came ``minutes`` ago and failed, with nobody reading any more."""
    entry_id = f"{int((time.time() - minutes * 60) * 1000)}-0"
    async with Redis.from_url(heart.urls[0], protocol=2) as client:
        await client.xadd("appliance:events:normal", {"type": "t"}, id=entry_id)
    made = await heart.idle()
    await heart.workflow("w", {"id": "w", "retry": {"max_attempts": 1}})
    heart.behave["w"] = failing(1)
    reading = asyncio.create_task(made.consumer.read_forever())
    await wait_until(lambda: rows(db, "SELECT 1 FROM dead_letters"), "the dead letter")
    await heart.at_rest()
    await made.consumer.stop(1)
    await reading
    ((letter,),) = await rows(db, "SELECT id::text FROM dead_letters")
    return str(letter)


@pytest.mark.parametrize("minutes", [0, 2])
async def test_a_lost_redrive_of_an_event_of_an_earlier_minute(heart: Heart, db: Connection, minutes: int) -> None:
    letter = await dead_letter(heart, db, minutes)
    (made,) = heart.replicas
    await made.control.redrive(letter, "me")
    assert await made.timers.fire() == 1
    await made.bookkeeper.save()
    await made.commander.flushall()
    assert (await recover(made)).events == 1
    heart.run(await heart.idle())
    await ended(db)
    await handled(heart)


@pytest.mark.parametrize("minutes", [0, 2])
async def test_a_redrive_that_was_settled_before_the_loss(heart: Heart, db: Connection, minutes: int) -> None:
    """By the history it is one event, which was settled twice, and of another minute than it came in."""
    letter = await dead_letter(heart, db, minutes)
    (made,) = heart.replicas
    other = await heart.replica()
    await made.control.redrive(letter, "me")
    await ended(db)
    await heart.at_rest()
    await made.bookkeeper.save()
    await heart.send()  # and one that was settled after the counters were saved
    await ended(db, 2)
    await heart.at_rest()
    await other.commander.flushall()
    await handled(heart, 2)


async def test_what_was_put_back_is_lost_again_before_the_counters_were_saved(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    gate = await started(heart, db, made)
    await made.commander.flushall()
    await crash(made)
    other = await heart.idle()
    assert (await recover(other)).events == 1
    await crash(made)
    await made.commander.flushall()
    gate.open.set()
    await recovered(other)
    await ended(db)
    await handled(heart)


async def test_who_is_late_with_an_accepted_event_that_was_put_in_again(heart: Heart, db: Connection) -> None:
    """It is recorded under the entry that was lost, and counted with the other one."""
    other = await heart.idle(ingest=POSTGRES)
    made = await heart.replica()
    gate = Gate()
    await heart.workflow("w", {"id": "only"})
    await made.catalog.refresh()
    heart.behave["only"] = gate
    await other.intake.submit(new_event("t", {}, source="/t"))
    await wait_until(lambda: gate.came, "the handler")
    await other.outbox.settle(0.0)
    await other.bookkeeper.save()
    made.group.found = _nothing  # type: ignore[method-assign]
    await made.commander.flushall()
    assert (await recover(other)).resent == 1
    gate.open.set()
    await ended(db)
    await handled(heart)


async def _nothing() -> Any:
    raise StreamUnavailable("not now")


async def test_counters_that_were_read_before_the_loss_are_not_saved_after_it(heart: Heart, db: Connection) -> None:
    """A slow replica's copy would open the life again that had just been closed."""
    other = await heart.idle(ingest=POSTGRES)
    made = await heart.idle(ingest=POSTGRES)
    await heart.workflow("w", {"id": "only"})
    heart.behave["only"] = instant
    await other.bookkeeper.save()
    read, go = asyncio.Event(), asyncio.Event()
    book: Any = made.bookkeeper._ledger
    accounts = book.accounts

    async def slowly() -> list[Account]:
        found: list[Account] = await accounts()
        if not read.is_set():
            read.set()
            await go.wait()
        return found

    book.accounts = slowly
    saving = asyncio.create_task(made.bookkeeper.save())
    await read.wait()
    await other.intake.submit(new_event("t", {}, source="/t"))
    await other.intake.drain()
    await other.outbox.settle(0.0)
    await made.commander.flushall()
    ready = other.recovery._around.ready

    async def between() -> None:
        await ready()
        go.set()
        await saving

    other.recovery._around = replace(other.recovery._around, ready=between)
    assert (await recover(other)).resent == 1
    other.recovery._around = replace(other.recovery._around, ready=ready)
    heart.run(other)
    await ended(db)
    await heart.at_rest()
    assert await ledger(other) == ONE


async def test_a_life_that_ends_during_a_sweep_takes_nothing_along(heart: Heart) -> None:
    made = await heart.idle()
    sends = [Send("normal", new_event("t", {}, source="/t").to_entry(), "m", counted=True, life="another")]
    (answer,) = await made.producer.put(sends)
    assert isinstance(answer, StreamUnavailable)
    assert await made.commander.xlen(made.keys.stream("normal")) == 0


async def test_entries_behind_a_deleted_stream_begin_another_life(heart: Heart, db: Connection) -> None:
    """Also when as many come before anybody notices."""
    made = await heart.idle()
    await heart.workflow("w", {"id": "only"})
    heart.behave["only"] = instant
    for _ in range(3):
        await heart.send()
    await made.bookkeeper.save()
    await made.commander.delete(made.keys.stream("normal"))
    for _ in range(4):
        await heart.send()
    heart.run(made)
    await ended(db, 4)
    await heart.at_rest()
    assert await ledger(made) == ONE | {"accepted": 7, "handled": 4, "difference": 3}


async def dropped(made: Replica) -> None:
    """Its lease is renewed, upon which Redis forgets who has it."""
    (entry,) = made.leases.entries()
    assert await made.group.renew("normal", entry.id)
    await lose_entry(made)
    assert await made.group.renew("normal", entry.id)


async def fired(made: Replica) -> None:
    await lose_entry(made)
    await made.commander.xgroup_delconsumer(made.keys.stream("normal"), "appliance", made.consumer_name)


async def watched(made: Replica) -> None:
    """Somebody looks for missing streams while the reader waits in its connection."""
    await made.consumer.found()
    await dropped(made)
    await made.consumer.found()


async def disbanded(made: Replica) -> None:
    await lose_entry(made)
    await made.commander.xgroup_destroy(made.keys.stream("normal"), "appliance")
    await wait_until(made.group.found, "the group")


Deletion = Callable[[Replica], Awaitable[None]]


@pytest.mark.parametrize("lose", [lose_entry, dropped, watched, fired, disbanded])
async def test_an_entry_that_was_deleted_while_it_was_worked_on(heart: Heart, db: Connection, lose: Deletion) -> None:
    made = await heart.replica()
    gate = await started(heart, db, made)
    await lose(made)
    gate.open.set()
    await ended(db)
    await handled(heart)
    assert heart.calls == {"first": [1], "second": [1]}


async def test_a_deleted_entry_is_settled_when_the_group_is_gone(heart: Heart, db: Connection) -> None:
    """Nobody has it delivered again: who holds it is the only one who can count it."""
    made = await heart.replica()
    gate = await started(heart, db, made)
    await lose_entry(made)
    group: Any = made.group
    settle, found, tried = group.settle, group.found, asyncio.Event()

    async def without_group(*args: Any, **named: Any) -> set[bytes]:
        group.settle = settle
        await made.commander.xgroup_destroy(made.keys.stream("normal"), "appliance")
        try:
            lost: set[bytes] = await settle(*args, **named)
            return lost
        finally:
            tried.set()

    async def afterwards() -> Any:
        await tried.wait()
        return await found()

    group.settle, group.found = without_group, afterwards
    gate.open.set()
    await ended(db)
    await handled(heart)


async def test_an_entry_that_is_lost_between_its_commit_and_its_acknowledgement(heart: Heart, db: Connection) -> None:
    """Who holds it goes on, although it is pending with nobody: an outcome that stands recorded is not added again."""
    made = await heart.replica(stream={"lease": "2s"})
    handler: Any = made.consumer._handler
    handle = handler.handle

    async def slowly(entry: Entry) -> Verdict:
        verdict: Verdict = await handle(entry)
        await fired(made)
        then = time.monotonic()
        await wait_until(lambda: entry.renewed_at > then, "the next renewal")
        return verdict

    handler.handle = slowly
    gate = await started(heart, db, made)
    gate.open.set()
    await ended(db)
    await wait_until(lambda: not made.consumer._active, "the end of the work")
    await handled(heart)


@pytest.mark.parametrize("lose", [lose_entry, dropped, fired, disbanded])
async def test_a_deleted_entry_that_another_replica_puts_back(heart: Heart, db: Connection, lose: Deletion) -> None:
    """Of two who are at work on one event one counts it."""
    other = await heart.idle()
    made = await heart.replica()
    gate = await started(heart, db, made)
    await lose(made)
    assert (await recover(other)).events == 1
    gate.open.set()
    await ended(db)
    await handled(heart)


@pytest.mark.parametrize("lose", ["fired", "disbanded"])
async def test_an_entry_that_two_replicas_have_is_counted_once(heart: Heart, db: Connection, lose: str) -> None:
    made = await heart.replica()
    gate = await started(heart, db, made)
    stream = made.keys.stream("normal")
    if lose == "fired":
        await made.commander.xgroup_delconsumer(stream, "appliance", made.consumer_name)
    else:
        await made.commander.xgroup_destroy(stream, "appliance")
    other = await heart.idle()
    assert (await recover(other)).adopted == (lose == "fired")
    heart.run(other)
    gate.open.set()
    await ended(db)
    await handled(heart)


async def test_an_entry_without_an_owner_is_settled_before_somebody_deletes_it(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    gate = await started(heart, db, made)
    stream = made.keys.stream("normal")
    await made.commander.xgroup_delconsumer(stream, "appliance", made.consumer_name)
    gate.open.set()
    await ended(db)
    await wait_until(lambda: not made.consumer._active, "the end of the work")
    await lose_entry(made)
    await handled(heart)


async def test_internal_work_that_was_deleted_in_hand_is_not_made_up_for_twice(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    gate = Gate()
    await heart.workflow("w", {"id": "pause", "delay": "50ms"}, {"id": "second"})
    heart.behave["second"] = gate
    await heart.send()
    await wait_until(lambda: gate.came, "the second step")
    await dropped(made)
    await made.bookkeeper.save()
    gate.open.set()
    await ended(db)
    await handled(heart)


async def test_a_signal_is_due_at_once_where_the_database_is_ahead(heart: Heart, db: Connection) -> None:
    made = await heart.idle()
    behind = Timers(made.pool, made.producer, 0.05, lambda: time.time() - 3600)
    run = "01890000-0000-7000-8000-000000000000"
    insert = "INSERT INTO timers (run_id, key, due_at, priority) VALUES (%s, %s, now(), 'normal')"
    for key in ("", "+signal"):
        await db.execute(insert, [run, key])
    assert await behind.fire() == 1
    assert await rows(db, "SELECT key FROM timers") == [("",)]
