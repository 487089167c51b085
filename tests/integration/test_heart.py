"""The heart against real servers: consumer, executor, timers and control together, with actions that do as told."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio

from appliance.events import event_key, new_event
from appliance.identifiers import derived_uuid7
from appliance.outbound import make_client
from appliance.plugin import Action, Context, Params, Retry
from appliance.registry import Registry
from appliance.replica import Replica
from appliance.settings import Settings, StoreSettings
from appliance.store.pool import Connection, open_connection, open_pool
from appliance.stream.consumer import Consumer
from appliance.stream.entry import HANDLED, Entry, Settled, Verdict
from appliance.stream.group import Foundation
from appliance.stream.reclaim import Reclaimer
from tests.servers import wait_until


class Told(Params):
    """Which of the test's behaviours to follow."""

    how: str


class Noted(Params):
    """A text to be kept in ``Heart.notes``."""

    text: str


class Heart:
    """Replicas on one pair of servers. ``behave[how]`` is what the action does; ``calls`` what it was called for."""

    def __init__(self, redis_url: str, database_url: str, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.urls = (redis_url, database_url)
        self.folder = folder
        self.stack = stack
        self.behave: dict[str, Callable[[Context], Any]] = {}
        self.calls: dict[str, list[int]] = defaultdict(list)
        self.notes: list[str] = []
        self.replicas: list[Replica] = []
        self.foundations: list[Foundation] = []
        self._tasks: dict[int, list[asyncio.Task[None]]] = defaultdict(list)

    async def act(self, params: Told, ctx: Context) -> Any:
        self.calls[params.how].append(ctx.attempt)
        return await self.behave[params.how](ctx)

    async def note(self, params: Noted, _: Context) -> None:
        self.notes.append(params.text)

    async def replica(self, **settings: Any) -> Replica:
        """A replica that runs: reader, reclaimer and timers."""
        made = await self.idle(**settings)
        self.run(made)
        return made

    async def idle(self, **settings: Any) -> Replica:
        """A replica that does not read yet."""
        values: dict[str, Any] = {"stream": {"block": "200ms"}, "engine": {"timer_poll": "50ms"}}
        for name, section in settings.items():
            values[name] = {**values.get(name, {}), **section}
        config = Settings(config_dir=self.folder, data_dir=self.folder, **values)
        pool = await open_pool(self.urls[1], config.store)
        self.stack.push_async_callback(pool.close)
        noted = Action(params=Noted, run=self.note)
        registry = Registry.of({"told": Action(params=Told, run=self.act), "noted": noted})
        http = make_client(config.outbound)
        self.stack.push_async_callback(http.aclose)
        resources = await self.stack.enter_async_context(
            registry.open(data_dir=self.folder, config_dir=self.folder, http=http)
        )

        async def founded(foundation: Foundation) -> None:
            self.foundations.append(foundation)

        made = Replica(config, self.urls, pool, registry, resources, http, founded)
        self.stack.push_async_callback(made.close_clients)
        self.stack.push_async_callback(made.recorder.close)
        self.stack.push_async_callback(made.gatekeeper.close)
        await made.catalog.load()
        await made.consumer.found()
        self.replicas.append(made)
        self.stack.push_async_callback(self._stop, made)
        return made

    def run(self, made: Replica) -> None:
        for loop in (made.consumer.read_forever, made.reclaimer.run_forever, made.timers.run_forever):
            self._tasks[id(made)].append(asyncio.create_task(loop()))

    async def _stop(self, made: Replica) -> None:
        made.timers.stop()
        await made.consumer.stop(0.0)
        await asyncio.wait_for(asyncio.gather(*self._tasks[id(made)]), 10)

    async def workflow(self, name: str, *steps: dict[str, Any], **more: Any) -> None:
        """Put a workflow for events of the type ``t``; steps without an action are told by their id."""
        told = [{} if "delay" in step else {"action": "told", "with": {"how": step["id"]}} for step in steps]
        whole = [base | step for base, step in zip(told, steps, strict=True)]
        await self.replicas[0].catalog.put({"name": name, "trigger": {"event": "t"}, "steps": whole, **more})

    async def send(self, **data: Any) -> str:
        return (await self.replicas[0].producer.submit(new_event("t", data, source="/t"))).uid

    async def ledger(self) -> dict[str, int]:
        found = await self.replicas[0].bookkeeper.ledger()
        return {name: found[name] for name in ("handled", "unmatched", "dead", "in_flight", "difference")}

    async def at_rest(self) -> None:
        async def rest() -> bool:
            accounts = await self.replicas[0].bookkeeper.ledger()
            lengths = [await self.replicas[0].commander.xlen(s) for s in self.replicas[0].keys.streams.values()]
            return accounts["in_flight"] == 0 and sum(lengths) == 0

        await wait_until(rest, "the streams to be empty")


@pytest_asyncio.fixture
async def heart(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Heart]:
    async with contextlib.AsyncExitStack() as stack:
        yield Heart(redis_url, database_url, tmp_path, stack)


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await open_connection(database_url, StoreSettings())
    yield connection
    await connection.close()


async def rows(db: Connection, statement: str) -> list[tuple[Any, ...]]:
    cursor = await db.execute(statement.encode())
    return list(await cursor.fetchall())


async def instant(_: Context) -> None:
    """An action that takes no time."""


def failing(times: int, then: Callable[[Context], Any] = instant) -> Callable[[Context], Any]:
    """Fails so many times, for now."""
    left = [times]

    async def fail(ctx: Context) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise Retry("not now")
        return await then(ctx)

    return fail


QUICK = {"initial": "50ms", "max": "50ms", "jitter": False}


async def test_a_step_behind_a_delay_may_be_retried(heart: Heart, db: Connection) -> None:
    """The entry that woke the run holds on to it while it backs off, whatever step the timer was of."""
    await heart.replica()
    await heart.workflow("w", {"id": "pause", "delay": "50ms"}, {"id": "call", "retry": QUICK})
    heart.behave["call"] = failing(2)
    await heart.send()
    await wait_until(lambda: rows(db, "SELECT 1 FROM runs WHERE status = 'succeeded'"), "the run's end")
    await heart.at_rest()
    assert heart.calls["call"] == [1, 2, 3]


async def test_two_runs_of_an_event_that_fail_at_once_count_once(heart: Heart, db: Connection) -> None:
    await heart.replica()
    for name in ("a", "b"):
        await heart.workflow(name, {"id": "pause", "delay": "50ms"}, {"id": name, "retry": {"max_attempts": 1}})
    together = asyncio.Barrier(2)

    async def fail(_: Context) -> None:
        await together.wait()
        raise Retry("never")

    heart.behave["a"] = heart.behave["b"] = fail
    await heart.send()
    await wait_until(lambda: rows(db, "SELECT 1 FROM runs HAVING count(*) FILTER (WHERE status = 'failed') = 2"), "it")
    await heart.at_rest()
    assert await heart.ledger() == {"handled": 0, "unmatched": 0, "dead": 1, "in_flight": 0, "difference": 0}
    assert await rows(db, "SELECT outcome::text FROM events") == [("dead",)]


async def test_a_parked_run_that_fails_does_not_end_the_event_for_the_others(heart: Heart, db: Connection) -> None:
    await heart.replica()
    await heart.workflow("a", {"id": "pause", "delay": "50ms"}, {"id": "a", "retry": {"max_attempts": 1}})
    await heart.workflow("b", {"id": "b", "retry": QUICK | {"max_attempts": 1000}})
    heart.behave["a"] = failing(1)

    async def until_a_failed(_: Context) -> None:
        if not await rows(db, "SELECT 1 FROM runs WHERE status = 'failed'"):
            raise Retry("not now")

    heart.behave["b"] = until_a_failed
    await heart.send()
    await heart.at_rest()
    assert await rows(db, "SELECT status::text FROM runs ORDER BY status") == [("failed",), ("succeeded",)]
    assert await rows(db, "SELECT outcome::text FROM events") == [("dead",)]
    assert await heart.ledger() == {"handled": 0, "unmatched": 0, "dead": 1, "in_flight": 0, "difference": 0}


async def test_a_parked_retry_is_made_by_its_timer_alone(heart: Heart, db: Connection) -> None:
    """While another run of the event holds the entry, the entry has no business with a run that is parked."""
    await heart.replica(engine={"park_after": "300ms"})
    slow = {"initial": "600ms", "max": "600ms", "jitter": False}
    await heart.workflow("a", {"id": "a", "retry": slow})
    await heart.workflow("b", {"id": "b", "retry": QUICK | {"max_attempts": 1000}})
    done = asyncio.Event()

    async def slowly(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Retry("not now")
        await asyncio.sleep(0.5)  # so that who comes in between would be seen
        done.set()

    async def until_done(_: Context) -> None:
        if not done.is_set():
            raise Retry("not now")

    heart.behave |= {"a": slowly, "b": until_done}
    await heart.send()
    await heart.at_rest()
    assert heart.calls["a"] == [1, 2]
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def letters(db: Connection) -> list[str]:
    return [
        letter for (letter,) in await rows(db, "SELECT id::text FROM dead_letters WHERE status = 'open' ORDER BY id")
    ]


async def test_many_redrives_at_once_do_not_wait_for_each_other(heart: Heart, db: Connection) -> None:
    made = await heart.replica(store={"pool_size": 2})
    await heart.workflow("w", {"id": "w", "retry": {"max_attempts": 1}})
    heart.behave["w"] = failing(6)
    await asyncio.gather(*(heart.send() for _ in range(6)))
    await heart.at_rest()
    async with asyncio.timeout(5):
        await asyncio.gather(*(made.control.redrive(letter, "me") for letter in await letters(db)))

    async def handled() -> bool:
        return (await heart.ledger())["handled"] == 6

    await wait_until(handled, "all to be handled")
    assert await heart.ledger() == {"handled": 6, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_a_run_that_is_cancelled_right_after_its_redrive_leaves_a_settled_event(
    heart: Heart, db: Connection
) -> None:
    made = await heart.idle()
    reading = asyncio.create_task(made.consumer.read_forever())
    await heart.workflow("w", {"id": "w", "retry": {"max_attempts": 1}})
    heart.behave["w"] = failing(1)
    await heart.send()
    await heart.at_rest()
    ((run_id,),) = await rows(db, "SELECT id::text FROM runs")
    await made.control.retry_run(run_id, "me")
    await made.control.cancel_run(run_id, "me")
    assert await made.timers.fire() == 1
    await heart.at_rest()
    assert await rows(db, "SELECT outcome::text FROM events") == [("handled",)]
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}
    await made.consumer.stop(0)
    await reading


async def test_internal_work_that_is_set_aside_and_redriven_is_counted_once(heart: Heart, db: Connection) -> None:
    made = await heart.idle()
    await heart.workflow("w", {"id": "w", "retry": {"max_attempts": 1}})
    heart.behave["w"] = failing(1)
    reading = asyncio.create_task(made.consumer.read_forever())
    await heart.send()
    await heart.at_rest()

    async def entry() -> Any:
        assert await made.timers.fire() == 1
        found: list[Any] = []

        async def read() -> bool:
            nonlocal found
            found, _ = await made.group.read({"normal": 1})
            return bool(found)

        await wait_until(read, "the work's entry")
        made.leases.add(found[0])
        return found[0]

    await made.consumer.stop(0)
    await reading
    for _ in range(2):  # first the wake, then the redo of the wake
        (letter,) = await letters(db)
        await made.control.redrive(letter, "me")
        assert await rows(db, "SELECT outcome::text FROM events") == [(None,)]
        await made.consumer.set_aside(await entry(), "it kills the process")
        assert await rows(db, "SELECT outcome::text FROM events") == [("dead",)]
        assert await heart.ledger() == {"handled": 0, "unmatched": 0, "dead": 1, "in_flight": 0, "difference": 0}
    (letter,) = await letters(db)
    await made.control.redrive(letter, "me")
    other = await heart.idle()
    task = other.consumer.accept(await entry_for(other, made))
    assert task is not None
    await task
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}
    assert await rows(db, "SELECT status::text FROM runs") == [("succeeded",)]
    assert await letters(db) == []


async def entry_for(reader: Replica, other: Replica) -> Any:
    assert await other.timers.fire() == 1
    found, _ = await reader.group.read({"normal": 1})
    return found[0]


async def test_a_redriven_entry_goes_on_although_another_run_of_its_event_is_dead(heart: Heart, db: Connection) -> None:
    made = await heart.idle()
    await heart.workflow("a", {"id": "a", "retry": {"max_attempts": 1}})
    await heart.workflow("b", {"id": "b"})
    started = asyncio.Event()

    async def hang(_: Context) -> None:
        started.set()
        await asyncio.sleep(60)

    heart.behave |= {"a": failing(1), "b": hang}
    await heart.send()
    (entry,), _ = await made.group.read({"normal": 1})
    task = made.consumer.accept(entry)
    assert task is not None
    await wait_until(lambda: letters(db), "the run of a to fail")
    await started.wait()
    task.cancel()
    await asyncio.wait({task})
    await made.consumer.set_aside(entry, "it kills the process")
    heart.behave["b"] = instant
    (of_entry,) = [r[0] for r in await rows(db, "SELECT id::text FROM dead_letters WHERE kind = 'entry'")]
    await made.control.redrive(of_entry, "me")
    heart.run(made)
    await heart.at_rest()
    await wait_until(lambda: rows(db, "SELECT 1 FROM runs WHERE status = 'succeeded'"), "the run of b")
    await heart.at_rest()
    assert await heart.ledger() == {"handled": 0, "unmatched": 0, "dead": 1, "in_flight": 0, "difference": 0}
    (of_step,) = await letters(db)
    await made.control.redrive(of_step, "me")

    async def handled() -> bool:
        return (await heart.ledger())["handled"] == 1

    await wait_until(handled, "the event to be handled")
    assert await rows(db, "SELECT outcome::text FROM events") == [("handled",)]


async def test_an_entry_delivered_again_counts_what_was_committed_for_it(heart: Heart, db: Connection) -> None:
    """It died between its commit and its acknowledge; meanwhile its run was woken and failed."""
    made = await heart.idle()
    await heart.workflow("w", {"id": "pause", "delay": "10ms"}, {"id": "w", "retry": {"max_attempts": 1}})
    heart.behave["w"] = failing(1)
    await heart.send()
    (entry,), _ = await made.group.read({"normal": 1})
    made.leases.add(entry)
    await made.executor.handle(entry)
    made.leases.remove(entry)
    await wait_until(made.timers.fire, "the timer")
    (wake,), _ = await made.group.read({"normal": 1})
    task = made.consumer.accept(wake)
    assert task is not None
    await task
    heart.run(made)
    await heart.at_rest()
    assert await heart.ledger() == {"handled": 0, "unmatched": 0, "dead": 1, "in_flight": 0, "difference": 0}


async def test_what_postgresql_can_not_index_is_set_aside_and_stops_nobody(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    await heart.workflow("w", {"id": "w"})
    heart.behave["w"] = instant
    chance = random.Random(1)
    poison = "".join(chr(chance.randrange(0x10000, 0x1FFFF)) for _ in range(1000))
    await made.commander.xadd(made.keys.stream("normal"), {"type": "t", "id": poison, "data": "{}"})
    await heart.send()
    await heart.at_rest()
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 1, "in_flight": 0, "difference": 0}


async def test_a_strange_key_of_another_program_hurts_no_other_event(heart: Heart, db: Connection) -> None:
    made = await heart.idle()
    await heart.workflow("w", {"id": "w"})
    heart.behave["w"] = instant
    for key in ("not-a-uuid", "another"):
        strange: dict[Any, Any] = new_event("t", {}, source="/t").to_entry() | {b"key": key.encode()}
        await made.commander.xadd(made.keys.stream("normal"), strange)
    await made.producer.submit(new_event("t", {}, source="/t", key=event_key("/t", "1")))
    heart.run(made)
    await heart.at_rest()
    assert await heart.ledger() == {"handled": 3, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_work_that_is_not_ours_is_an_event_that_can_not_be_read(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    for work in (b'{"kind":"wake","run":"1"}', b'{"kind":"redo","letter":[]}', b'{"kind":"wake"}', b'"hello"'):
        await made.commander.xadd(made.keys.stream("normal"), {b"work": work})
    await heart.at_rest()
    assert await heart.ledger() == {"handled": 0, "unmatched": 0, "dead": 4, "in_flight": 0, "difference": 0}


class Recording:
    """A handler that remembers what it was given, and settles it when it may."""

    def __init__(self) -> None:
        self.seen: list[Entry] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle(self, entry: Entry) -> Verdict:
        self.seen.append(entry)
        await self.gate.wait()
        return Settled(HANDLED)

    async def set_aside(self, entry: Entry, reason: str) -> Verdict:
        self.seen.append(entry)
        raise RuntimeError(reason)


def consumer(made: Replica, handler: Recording) -> Consumer:
    """A consumer beside the replica's own, which does not run."""
    settings = made.settings

    async def founded(_: Foundation) -> None: ...

    return Consumer(
        made.commander,
        made.group,
        made.leases,
        handler,
        (settings.stream, settings.engine),
        on_founded=founded,
        can_commit=lambda: True,
    )


async def test_what_is_read_first_after_a_lost_connection_may_have_been_handled(heart: Heart) -> None:
    """After a failover the group may deliver again what was settled before."""
    made = await heart.idle()
    handler = Recording()
    reading = asyncio.create_task((own := consumer(made, handler)).read_forever())
    # An entry id ahead of time would be suspect at once, so first let the start's second go by.
    await heart.send()
    await wait_until(lambda: handler.seen, "the first entry")
    await wait_until(lambda: made.group._suspect_until_ms < time.time() * 1000, "the start's suspicion to end")
    reader_id = made.group._reader_id
    assert reader_id is not None
    await made.commander.client_kill_filter(_id=str(reader_id))
    for _ in range(3):
        await heart.send()
    await wait_until(lambda: len(handler.seen) == 4, "the other entries")
    assert [entry.redelivered for entry in handler.seen[1:]] == [True] * 3
    await own.stop(1)
    await reading


async def test_a_stop_waits_for_the_read_that_is_under_way(heart: Heart) -> None:
    made = await heart.idle(stream={"block": "1s"})
    handler = Recording()
    own = consumer(made, handler)
    made.group._reader_id = None  # the read can't be interrupted
    reading = asyncio.create_task(own.read_forever())

    async def blocked() -> bool:
        return bool((await made.commander.info("clients"))["blocked_clients"])

    await wait_until(blocked, "the read to block")
    stopping = asyncio.create_task(own.stop(1))
    await asyncio.sleep(0.1)
    await heart.send()
    await asyncio.gather(stopping, reading)
    assert len(handler.seen) == 1
    assert await made.commander.xlen(made.keys.stream("normal")) == 0
    assert await heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_two_replicas_of_one_name_leave_each_other_in_peace(heart: Heart) -> None:
    """A fixed name, and a new process before the old one has ended (or a name given to all replicas)."""
    settings = {"stream": {"consumer": "same", "lease": "2s"}}
    old = await heart.idle(**settings)
    handler = Recording()
    handler.gate.clear()
    own = consumer(old, handler)
    reading = asyncio.create_task(own.read_forever())
    await heart.send()
    await wait_until(lambda: handler.seen, "the entry")
    new = await heart.idle(**settings)
    again = Recording()
    other = consumer(new, again)
    reclaiming = asyncio.create_task(Reclaimer(new.group, new.leases, other, new.settings.stream).run_forever())
    await asyncio.sleep(3)
    assert again.seen == []
    handler.gate.set()
    await heart.at_rest()
    for each in (own, other):
        await each.stop(1)
    await asyncio.gather(reading, reclaiming)


async def test_a_name_that_is_kept_finds_what_its_last_life_left(heart: Heart) -> None:
    settings = {"stream": {"consumer": "same", "lease": "1s"}}
    old = await heart.idle(**settings)
    await heart.send()
    assert len((await old.group.read({"normal": 1}))[0]) == 1
    await heart.workflow("w", {"id": "w"})
    heart.behave["w"] = instant
    await heart.replica(**settings)
    await heart.at_rest()
    assert heart.calls["w"] == [1]


async def test_orderly_stops_are_not_deaths(heart: Heart, db: Connection) -> None:
    """An entry that waits for a retry while many replicas are replaced is not the one that kills them."""
    first = await heart.idle()
    await heart.workflow("w", {"id": "w"})
    heart.behave["w"] = instant
    await heart.send()
    await first.group.read({"normal": 1})
    for _ in range(8):
        (claim,) = await first.group.own("normal")
        (entry,) = await first.group.take("normal", [claim.id])
        await first.leases.release(first.commander, [entry])
    await heart.replica()
    await heart.at_rest()
    assert await letters(db) == []
    assert heart.calls["w"] == [1]


async def test_a_suspect_that_can_not_be_set_aside_holds_up_no_other(heart: Heart) -> None:
    made = await heart.idle(stream={"lease": "500ms", "max_deliveries": 2})
    handler = Recording()
    own = consumer(made, handler)
    for _ in range(2):
        await heart.send()
    entries, _ = await made.group.read({"normal": 2})
    for entry, times in zip(entries, (3, 1), strict=True):
        for _ in range(times):
            await made.group.take("normal", [entry.id])
    reclaiming = asyncio.create_task(Reclaimer(made.group, made.leases, own, made.settings.stream).run_forever())
    await wait_until(lambda: len({entry.id for entry in handler.seen}) == 2, "both entries to be tried")
    assert len(made.leases) <= 1
    await own.stop(0)
    await reclaiming


async def test_a_retry_goes_on_behind_the_steps_that_are_recorded(heart: Heart) -> None:
    replica = await heart.replica()
    replica.group._suspect_until_ms = 0  # nothing is looked up because of its age
    heart.behave |= {"first": _well, "second": _fails_once()}
    await heart.workflow("w", {"id": "first"}, {"id": "second", "retry": {"initial": "10ms"}})
    await heart.send()
    await heart.at_rest()
    assert heart.calls == {"first": [1], "second": [1, 2]}
    assert (await heart.ledger())["handled"] == 1


async def test_a_copy_of_an_entry_repeats_no_action(heart: Heart) -> None:
    """Somebody reads our entries and adds them again: at once with a key, later without one."""
    replica = await heart.replica()
    replica.group._suspect_until_ms = 0
    heart.behave["only"] = _well
    await heart.workflow("w", {"id": "only"})
    stream = replica.keys.stream("normal")
    keyed = new_event("t", {}, source="/t", key=event_key("/t", "1"))
    old = new_event("t", {}, source="/t")
    old = old._replace(uid=derived_uuid7(int(time.time() * 1000) - 60_000, "old"))
    for event in (keyed, old):
        for _ in range(2):
            fields = [part for pair in event.to_entry().items() for part in pair]
            client: Any = replica.commander
            await client.execute_command("XADD", stream, "*", *fields)
            await heart.at_rest()
    assert heart.calls["only"] == [1, 1]
    assert (await heart.ledger())["difference"] == 0


async def _well(_: Context) -> None:
    """All is well."""


def _fails_once() -> Callable[[Context], Any]:
    async def fail(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise Retry("once")

    return fail


async def test_an_entry_whose_task_ends_with_an_error_is_given_up(heart: Heart) -> None:
    """Kept, it would be renewed for ever by a replica that has nobody at work on it."""

    class Broken:
        async def handle(self, entry: Entry) -> Verdict:
            raise ValueError("handling")

        async def set_aside(self, entry: Entry, reason: str) -> Verdict:
            raise ValueError("setting aside")

    made = await heart.idle()
    await heart.send()
    (entry,), _ = await made.group.read({"normal": 1})
    entry.failures = made.settings.stream.max_deliveries
    consumer = Consumer(
        made.commander, made.group, made.leases, Broken(), (made.settings.stream, made.settings.engine),
        on_founded=made.consumer._on_founded, can_commit=lambda: True,
    )  # fmt: skip
    task = consumer.accept(entry)
    assert task is not None
    await asyncio.wait({task})
    assert isinstance(task.exception(), ValueError)
    await wait_until(lambda: ("normal", entry.id) not in made.leases, "the entry is given up")


async def test_events_wait_while_a_workflow_in_force_is_of_a_later_release(heart: Heart, db: Connection) -> None:
    """Read by this one, they would count as those that no workflow is for."""
    replica = await heart.replica()
    heart.behave["a"] = instant
    await heart.workflow("w", {"id": "a"})
    put = b"UPDATE revisions SET definition = %s, digest = %s"
    later = b"""{"name": "w", "trigger": {"event": "t"}, "steps": [{"id": "a", "quantum": 1}]}"""
    kept = await rows(db, "SELECT definition::text, digest FROM revisions")
    await db.execute(put, [later.decode(), "later"])
    await db.execute(b"UPDATE catalog_version SET version = version + 1")
    replica.catalog._current.clear()  # as in a process that did not compile it itself
    replica.catalog._old.clear()
    await replica.catalog.refresh()
    assert replica.catalog.unusable == ("w",)
    await heart.send()
    await replica.timers.fire()
    assert await heart.ledger() == {"handled": 0, "unmatched": 0, "dead": 0, "in_flight": 1, "difference": 0}
    await db.execute(put, list(kept[0]))
    await db.execute(b"UPDATE catalog_version SET version = version + 1")
    await replica.catalog.refresh()
    await heart.at_rest()
    assert (await heart.ledger())["handled"] == 1
