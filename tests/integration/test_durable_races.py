"""What comes in, falls due and is asked for at the worst moment: nothing is lost, nothing goes round for ever."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.engine import core, drive
from appliance.errors import Fenced
from appliance.events import Event, new_event
from appliance.identifiers import uuid7
from appliance.plugin import Context, Reject
from appliance.store import runs as store_runs
from appliance.store.pool import Connection
from appliance.stream.entry import Entry, Settled
from tests.integration.test_durable import MACHINE, NOTHING, World, told
from tests.integration.test_heart import QUICK, Heart, db, failing, rows
from tests.servers import wait_until

__all__ = ["db"]


@pytest_asyncio.fixture
async def heart(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Heart]:
    async with contextlib.AsyncExitStack() as stack:
        yield Heart(redis_url, database_url, tmp_path, stack)


@pytest_asyncio.fixture
async def world(heart: Heart, db: Connection) -> World:
    await heart.replica()
    return World(heart, db)


async def run_id(world: World, workflow: str = "w") -> str:
    found = await rows(
        world.db,
        "SELECT r.id::text FROM runs r JOIN workflows w ON w.id = r.workflow_id "  # noqa: S608
        f"WHERE w.name = '{workflow}' ORDER BY r.id DESC",
    )
    return str(found[0][0])


def gate(world: World, how: str) -> asyncio.Event:
    """An action that waits until the test lets it go."""
    go = asyncio.Event()

    async def until_told(_: Context) -> None:
        await go.wait()

    world.heart.behave[how] = until_told
    return go


async def called(world: World, how: str, times: int = 1) -> None:
    await wait_until(lambda: len(world.heart.calls[how]) >= times, f"{how} to be called")


def paid(**more: Any) -> dict[str, Any]:
    match = {"path": "data.order", "value": "{{ event.data.order }}"}
    return {"id": "paid", "wait": {"event": "paid", "match": match}, "forever": True, **more}


# --- events ----------------------------------------------------------------------------------------------------------


async def test_an_event_before_the_wait_is_found_although_another_branch_backs_off(world: World) -> None:
    go = gate(world, "first")
    world.heart.behave["a"] = failing(2)
    branches = {"x": [paid()], "y": [told("a", retry=QUICK)]}
    await world.put({"name": "w", "steps": [told("first"), {"id": "p", "parallel": {"branches": branches}}]})
    await world.event("t", {"order": 1})
    await called(world, "first")
    await world.event("paid", {"order": 1})
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM events WHERE type = 'paid' AND outcome IS NOT NULL"), "it")
    go.set()
    await world.until("succeeded")


async def test_an_event_that_overtakes_the_start_of_the_run_is_found(world: World) -> None:
    """Its entry was behind the one that starts the run, and another replica was faster."""
    replica = world.heart.replicas[0]
    await world.put({"name": "w", "steps": [paid()]})
    began = int(time.time() * 1000) - 3000
    first = new_event("t", {"order": 1}, source="/t")._replace(uid=uuid7(began))
    second = new_event("paid", {"order": 1}, source="/t")._replace(uid=uuid7(began + 1000))
    await replica.producer.submit(second)
    await world.heart.at_rest()
    await replica.producer.submit(first)
    await world.until("succeeded")


async def test_a_second_visit_waits_for_another_event(world: World) -> None:
    """Looking back must not find what the first visit of the same step has taken."""
    wait = {"id": "seen", "wait": {"event": "seen"}, "forever": True}
    machine = {
        "name": "m",
        "trigger": {"event": "asked"},
        "correlate": "{{ event.data.key }}",
        "initial": "open",
        "states": {
            "open": {"on": {"look": {"do": [wait, told("looked")]}, "stop": {"next": "done"}}},
            "done": {"final": True},
        },
    }
    await world.put(machine)
    await world.event("asked", {"key": "a"})
    await world.until("waiting", workflow="m")
    for times in (1, 2):
        await world.event("look", {"key": "a"})
        await wait_until(lambda: rows(world.db, "SELECT 1 FROM waits WHERE key LIKE 'seen%'"), "the machine to wait")
        await world.heart.at_rest()
        assert len(world.heart.calls["looked"]) == times - 1
        await world.event("seen", {})
        await called(world, "looked", times)
        await world.heart.at_rest()


async def test_a_machine_that_is_retried_hears_what_came_meanwhile(world: World) -> None:
    async def refuse(_: Context) -> None:
        raise Reject("no")

    machine = {
        "name": "m",
        "trigger": {"event": "asked"},
        "correlate": "{{ event.data.key }}",
        "initial": "open",
        "states": {
            "open": {
                "enter": [told("hello")],
                "on": {"yes": {"next": "done"}},
                "deadline": {"after": "1h", "next": "done"},
            },
            "done": {"final": True},
        },
    }
    world.heart.behave["hello"] = refuse
    await world.put(machine)
    await world.event("asked", {"key": "a"})
    await world.until("failed", workflow="m")
    await world.heart.at_rest()
    await world.event("yes", {"key": "a"})
    await world.heart.at_rest()
    world.heart.behave["hello"] = failing(0)
    await world.heart.replicas[0].control.retry_run(await run_id(world, "m"), "me")
    await world.until("succeeded", workflow="m")


async def test_a_machine_that_ends_at_once_leaves_nothing(world: World) -> None:
    machine = {
        "name": "m",
        "trigger": {"event": "asked"},
        "correlate": "{{ event.data.key }}",
        "initial": "open",
        "states": {
            "open": {
                "enter": [{"id": "bad", "transform": "{{ event.data.nothing.at_all }}"}],
                "on": {"yes": {"next": "done"}},
                "deadline": {"after": "1h", "next": "done"},
            },
            "done": {"final": True},
        },
    }
    await world.put(machine)
    await world.event("asked", {"key": "a"})
    await world.until("failed", workflow="m")
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_more_signals_than_are_loaded_at_once_are_all_looked_at(world: World) -> None:
    go = gate(world, "hello")
    await world.put(MACHINE)
    await world.event("asked", {"key": "a"})
    await called(world, "hello")
    await world.event("asked", {"key": "a"})
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM signals"), "the machine to be told")
    # as if so many had come in that the state does not take
    await world.db.execute(
        b"INSERT INTO signals (run_id, id, key, kind, event_uid) "
        b"SELECT run_id, gen_random_uuid(), key, kind, event_uid FROM signals, generate_series(1, 2500)"
    )
    await world.event("yes", {"key": "a"})
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM events WHERE type = 'yes' AND outcome IS NOT NULL"), "it")
    go.set()
    await world.until("succeeded", workflow="m")


async def test_an_answer_is_seen_behind_a_thousand_events_that_wait(world: World) -> None:
    """A machine that asks somebody takes no events: what it waits for must not stand in line behind them."""
    ask = {"id": "ask", "human_task": {"title": "Really?", "form": {"type": "object"}}, "deadline": {"after": "1d"}}
    machine = {
        "name": "m",
        "trigger": {"event": "asked"},
        "correlate": "{{ event.data.key }}",
        "initial": "open",
        "states": {
            "open": {"enter": [ask], "on": {"yes": {"next": "done"}}, "deadline": {"after": "1h", "next": "done"}},
            "done": {"final": True},
        },
    }
    await world.put(machine)
    await world.event("asked", {"key": "a"})
    await world.until("waiting", workflow="m")
    await world.heart.at_rest()
    await world.event("yes", {"key": "a"})
    await world.heart.at_rest()
    await world.db.execute(
        b"INSERT INTO signals (run_id, id, key, kind, event_uid) "
        b"SELECT run_id, gen_random_uuid(), key, kind, event_uid FROM signals, generate_series(1, 1500)"
    )
    ((task,),) = await rows(world.db, "SELECT id::text FROM tasks")
    await world.heart.replicas[0].tasks.answer(task, {}, "me")
    await world.until("succeeded", workflow="m")


async def test_more_listeners_than_are_told_at_once_are_all_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.store.runs._TOLD_AT_ONCE", 3)
    await world.put({"name": "w", "steps": [{"id": "seen", "wait": {"event": "seen"}, "forever": True}]})
    for _ in range(7):
        await world.event("t")
    await world.until(*["waiting"] * 7)
    await world.heart.at_rest()
    await world.event("seen")
    await world.until(*["succeeded"] * 7)


async def test_of_very_many_events_that_came_before_the_one_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at a few at a time: looking back must go on behind those that are not it."""
    for module in ("appliance.store.runs", "appliance.engine.executor"):
        monkeypatch.setattr(f"{module}.MOST_SIGNALS", 3)
    go = gate(world, "first")
    wait = {"id": "seen", "wait": {"event": "seen", "when": {"path": "data.n", "op": "==", "value": 8}}}
    await world.put({"name": "w", "steps": [told("first"), {**wait, "forever": True}]})
    await world.event("t")
    await called(world, "first")
    for number in range(9):
        await world.event("seen", {"n": number})

    async def all_handled() -> bool:
        found = await rows(world.db, "SELECT count(*) FROM events WHERE type = 'seen' AND outcome IS NOT NULL")
        return bool(found[0][0] == 9)

    await wait_until(all_handled, "the events to be handled")
    go.set()
    await world.until("succeeded")
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_a_busy_run_is_waited_for_by_one_wake(world: World) -> None:
    """However much comes in for it: each wake would be an entry in hand that asks again and again."""
    go = gate(world, "hello")
    await world.put(MACHINE)
    await world.event("asked", {"key": "a"})
    await called(world, "hello")
    replica = world.heart.replicas[0]
    for number in range(1, 6):
        await world.event("note", {"key": "a"})

        async def told_and_woken(number: int = number) -> bool:
            ((signals, timers),) = await rows(
                world.db, "SELECT (SELECT count(*) FROM signals), (SELECT count(*) FROM timers)"
            )
            return bool((signals, timers) == (number, 0))

        await wait_until(told_and_woken, "the machine to be told")

    async def settled() -> bool:
        return bool(await replica.commander.xlen(replica.keys.stream("normal")) == 2)

    await wait_until(settled, "one wake to be left beside the event")
    go.set()
    await called(world, "noted", 5)


async def test_calls_do_not_wait_for_the_next_look_at_the_timers(heart: Heart, db: Connection) -> None:
    await heart.replica(engine={"timer_poll": "60s"})
    world = World(heart, db)
    child = {"name": "child", "trigger": "manual", "steps": [told("c")]}
    await world.put(child, {"name": "w", "steps": [{"id": "call", "workflow": "child"}]})
    await world.event("t")
    await world.until("succeeded")


# --- answers, cancels, pauses ----------------------------------------------------------------------------------------


async def test_a_run_whose_task_was_answered_can_be_cancelled(world: World) -> None:
    """The task is no longer open, and the answer was not looked at: that must not fence the cancel for ever."""
    ask = {"id": "ask", "human_task": {"title": "Really?", "form": {"type": "object"}}, "deadline": {"after": "1d"}}
    undo = told("a", compensate={"action": "told", "with": {"how": "una"}})
    await world.put({"name": "w", "steps": [undo, ask]})
    await world.event("t")
    await world.until("waiting")
    await world.heart.at_rest()
    control = world.heart.replicas[0].control
    await control.pause_run(await run_id(world), "me")
    ((task,),) = await rows(world.db, "SELECT id::text FROM tasks")
    await world.heart.replicas[0].tasks.answer(task, {}, "me")
    await world.heart.at_rest()
    await control.cancel_run(await run_id(world), "me")
    await world.until("cancelled")
    await world.heart.at_rest()
    assert await world.left() == NOTHING
    assert world.heart.calls["una"] == [1]


async def test_a_run_that_is_cancelled_while_it_stops_for_a_pause_is_cancelled(world: World) -> None:
    """It has taken notice of the pause when the cancel is asked for: that is another request."""
    both = [gate(world, "x"), gate(world, "y")]
    undo = told("a", compensate={"action": "told", "with": {"how": "una"}})
    branches = {"one": [told("x"), told("x2")], "two": [told("y"), told("y2")]}
    await world.put({"name": "w", "steps": [undo, {"id": "p", "parallel": {"branches": branches}}]})
    await world.event("t")
    await called(world, "x")
    await called(world, "y")
    control = world.heart.replicas[0].control
    run = await run_id(world)
    await control.pause_run(run, "me")
    both[0].set()
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM steps WHERE key = 'x' AND status = 'succeeded'"), "x", 5)
    await control.cancel_run(run, "me")
    both[1].set()
    await world.until("cancelled")


async def test_a_run_that_is_resumed_while_it_stops_for_a_pause_goes_on(world: World) -> None:
    both = [gate(world, "x"), gate(world, "y")]
    branches = {"one": [told("x"), told("x2")], "two": [told("y"), told("y2")]}
    await world.put({"name": "w", "steps": [told("a"), {"id": "p", "parallel": {"branches": branches}}]})
    await world.event("t")
    await called(world, "x")
    await called(world, "y")
    control = world.heart.replicas[0].control
    run = await run_id(world)
    await control.pause_run(run, "me")
    both[0].set()
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM steps WHERE key = 'x' AND status = 'succeeded'"), "x", 5)
    await control.resume_run(run, "me")
    both[1].set()
    await world.until("succeeded")


async def test_a_run_that_stops_for_a_pause_does_not_spin(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attempt under way takes its time; what is not begun meanwhile must not be asked for over and over."""
    turns = 0
    plain = core.advance

    def counted(*given: Any) -> Any:
        nonlocal turns
        turns += 1
        return plain(*given)

    monkeypatch.setattr(drive, "advance", counted)
    both = [gate(world, "x"), gate(world, "y")]
    branches = {"one": [told("x"), told("x2"), told("x3")], "two": [told("y")]}
    await world.put({"name": "w", "steps": [told("a"), {"id": "p", "parallel": {"branches": branches}}]})
    await world.event("t")
    await called(world, "x")
    await called(world, "y")
    control = world.heart.replicas[0].control
    run = await run_id(world)
    await control.pause_run(run, "me")
    both[0].set()
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM steps WHERE key = 'x' AND status = 'succeeded'"), "x")
    before = turns
    for _ in range(100):  # the loop's turns
        await rows(world.db, "SELECT 1")
    assert turns - before < 5
    both[1].set()
    await world.until("paused")


async def test_a_rerun_that_failed_is_retried_at_the_step_that_failed(world: World) -> None:
    async def refuse(_: Context) -> None:
        raise Reject("no")

    world.heart.behave["b"] = refuse
    await world.put({"name": "w", "steps": [told("a"), told("b"), told("c")]})
    await world.event("t")
    await world.until("failed")
    await world.heart.at_rest()
    control = world.heart.replicas[0].control
    again = await control.rerun(await run_id(world), "me", start="b")
    await world.until("failed", "failed")
    await world.heart.at_rest()
    world.heart.behave["b"] = failing(0)
    await control.retry_run(again["run"], "me")
    await world.until("failed", "succeeded")
    assert world.heart.calls["b"] == [1, 1, 1]
    assert world.heart.calls["c"] == [1]


# --- two at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["load", "to_wake", "prior"])
async def test_a_run_that_ends_while_it_is_read_is_read_as_of_one_moment(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its steps are read behind it: else a run that goes on would have no step at which it stands."""
    go = gate(world, "b")
    await world.put({"name": "w", "steps": [told("a"), told("b")]})
    uid = await world.event("t")
    await called(world, "b")
    read = store_runs._rows

    async def slowly(connection: Connection, name: str, *values: Any) -> list[tuple[Any, ...]]:
        if name == "steps":
            go.set()
            await world.until("succeeded")
        return await read(connection, name, *values)

    runs, which = world.heart.replicas[0].runs, await run_id(world)
    monkeypatch.setattr(store_runs, "_rows", slowly)
    if how == "prior":
        (prior,) = await runs.prior([uid])
        found = prior.runs[0] if prior is not None else None
    elif how == "to_wake":
        (waking,) = await runs.to_wake([which])
        found = waking.run if waking is not None else None
    else:
        found = await runs.load(which)
    assert found is not None
    assert found.state.status == "running"
    assert {step.key: step.status for step in found.state.steps.values()} == {"a": "succeeded", "b": "running"}


def copy_of(event: Event) -> Entry:
    """Another entry with the same event; as if it had been looked up before the other one's commit."""
    return Entry("normal", b"%d-0" % (time.time() * 1000), event.to_entry(), time.monotonic())


async def test_an_event_that_comes_twice_is_not_taken_for_one_of_another_machine(world: World) -> None:
    """The live machine of its key is the one that it has begun itself."""
    await world.put(MACHINE)
    asked, executor = new_event("asked", {"key": "a"}, source="/t"), world.heart.replicas[0].executor
    await world.heart.replicas[0].producer.submit(asked)
    await world.until("waiting", workflow="m")
    await world.heart.at_rest()
    copy = copy_of(asked)
    with pytest.raises(Fenced):
        await executor.handle(copy)
    copy.redelivered = True
    assert await executor.handle(copy) == Settled("handled")
    assert await rows(world.db, "SELECT outcome::text FROM events") == [("handled",)]
    assert world.heart.calls["hello"] == [1]


async def test_who_has_older_workflows_does_not_end_an_event_that_has_a_run(world: World) -> None:
    """The run would be nobody's if the replica that has it were gone: with an outcome, an event is not added again."""
    wait = {"id": "seen", "wait": {"event": "t"}, "forever": True}
    await world.put({"name": "v", "trigger": {"event": "other"}, "steps": [wait]})
    other = await world.heart.idle()
    go = gate(world, "b")
    newer = {"name": "w", "trigger": {"event": "t"}, "steps": [told("a"), told("b")]}
    await world.heart.replicas[0].catalog.put(newer)
    event = new_event("t", None, source="/t")
    await world.heart.replicas[0].producer.submit(event)
    await called(world, "b")
    copy = copy_of(event)
    with pytest.raises(Fenced):
        await other.executor.handle(copy)
    assert await rows(world.db, "SELECT outcome::text FROM events") == [(None,)]
    go.set()
    await world.until("succeeded")
    await world.heart.at_rest()
    copy.redelivered = True
    assert await other.executor.handle(copy) == Settled("handled")


# --- mistakes of our own ---------------------------------------------------------------------------------------------


async def test_a_run_on_which_the_core_fails_becomes_a_dead_letter_and_can_be_redriven(
    heart: Heart, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await heart.replica(stream={"max_deliveries": 2})
    world = World(heart, db)

    def fail(*_: Any) -> None:
        raise AssertionError("the run stands nowhere")

    await world.put({"name": "w", "steps": [{"id": "pause", "delay": "300ms"}, told("a")]})
    await world.event("t")
    await wait_until(lambda: rows(db, "SELECT 1 FROM timers"), "the run to be parked")
    monkeypatch.setattr(drive, "advance", fail)
    await wait_until(lambda: rows(db, "SELECT 1 FROM dead_letters"), "the dead letter", 20)
    monkeypatch.undo()
    await world.heart.at_rest()
    ((letter, of_run, error),) = await rows(db, "SELECT id::text, run_id::text, error FROM dead_letters")
    assert (of_run, "AssertionError" in error) == (await run_id(world), True)
    assert await rows(db, "SELECT outcome::text FROM events") == [("dead",)]
    await replica.control.redrive(letter, "me")
    await world.until("succeeded")
    await world.heart.at_rest()
    assert await rows(db, "SELECT outcome::text FROM events") == [("handled",)]


# --- secrets ---------------------------------------------------------------------------------------------------------


async def test_parameters_that_can_not_be_made_do_not_tell_the_secret(heart: Heart, db: Connection) -> None:
    await heart.replica(secrets={"token": "hunter2hunter2"})
    world = World(heart, db)
    await world.put({"name": "w", "steps": [{**told("a"), "with": {"how": "{{ event.data[secrets.token] }}"}}]})
    await world.event("t", {"x": 1})
    await world.until("failed")
    ((error,),) = await rows(db, "SELECT error FROM steps")
    assert "[secret]" in error
    for table in ("steps", "runs", "attempts", "dead_letters"):
        assert not await rows(db, f"SELECT 1 FROM {table} WHERE error LIKE '%hunter2%'")  # noqa: S608
