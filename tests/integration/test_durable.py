"""Every kind of step on real servers: what is parked is rows, what comes in wakes it, whatever replica has it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from appliance.events import new_event
from appliance.plugin import Context, Reject
from appliance.store.pool import Connection
from tests.integration.test_heart import QUICK, Heart, db, failing, instant, rows
from tests.servers import wait_until

__all__ = ["db"]


@pytest_asyncio.fixture
async def heart(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Heart]:
    async with contextlib.AsyncExitStack() as stack:
        yield Heart(redis_url, database_url, tmp_path, stack)


def told(step_id: str, **more: Any) -> dict[str, Any]:
    return {"id": step_id, "action": "told", "with": {"how": step_id}, **more}


class World:
    """A heart with whole definitions and events of any type."""

    def __init__(self, heart: Heart, db: Connection) -> None:
        self.heart = heart
        self.heart.behave = defaultdict(lambda: instant)
        self.db = db

    async def put(self, *definitions: dict[str, Any]) -> None:
        for definition in definitions:
            await self.heart.replicas[0].catalog.put({"trigger": {"event": "t"}, **definition})
        for replica in self.heart.replicas[1:]:
            await replica.catalog.refresh()

    async def event(self, type: str, data: Any = None, replica: int = 0, **more: Any) -> str:
        event = new_event(type, data, source="/t", **more)
        return (await self.heart.replicas[replica].producer.submit(event)).uid

    async def status(self, workflow: str = "w") -> list[str]:
        found = await rows(
            self.db,
            "SELECT r.status::text FROM runs r JOIN workflows w ON w.id = r.workflow_id "  # noqa: S608
            f"WHERE w.name = '{workflow}' ORDER BY r.id",
        )
        return [status for (status,) in found]

    async def until(self, *statuses: str, workflow: str = "w") -> None:
        async def reached() -> bool:
            return await self.status(workflow) == list(statuses)

        await wait_until(reached, f"{workflow} to be {statuses}")

    async def steps(self) -> dict[str, str]:
        return dict(await rows(self.db, "SELECT key, status::text FROM steps ORDER BY seq"))

    async def output(self, workflow: str = "w") -> Any:
        found = await rows(
            self.db,
            "SELECT r.result FROM runs r JOIN workflows w ON w.id = r.workflow_id "  # noqa: S608
            f"WHERE w.name = '{workflow}'",
        )
        return found[0][0]

    async def left(self) -> dict[str, int]:
        """Rows of what runs wait for that are still there."""
        left = {}
        for table in ("timers", "waits", "machines"):
            left[table] = (await rows(self.db, f"SELECT count(*) FROM {table}"))[0][0]  # noqa: S608
        left["tasks"] = (await rows(self.db, "SELECT count(*) FROM tasks WHERE status = 'open'"))[0][0]
        left["signals"] = (await rows(self.db, "SELECT count(*) FROM signals WHERE taken IS NULL"))[0][0]
        return left


NOTHING = {"timers": 0, "waits": 0, "machines": 0, "tasks": 0, "signals": 0}


@pytest_asyncio.fixture
async def world(heart: Heart, db: Connection) -> World:
    await heart.replica()
    return World(heart, db)


async def test_branches_run_at_once_and_are_joined(world: World) -> None:
    together = asyncio.Barrier(2)

    async def meet(_: Context) -> dict[str, int]:
        async with asyncio.timeout(5):
            await together.wait()
        return {"n": 1}

    world.heart.behave |= {"a": meet, "b": meet}
    branches = {"x": [told("a")], "y": [told("b")]}
    await world.put(
        {
            "name": "w",
            "steps": [{"id": "p", "parallel": {"branches": branches, "join": "all"}}, told("c")],
            "output": "{{ steps.p.output }}",
        }
    )
    await world.event("t")
    await world.until("succeeded")
    assert await world.output() == {"outcome": None, "output": {"x": {"n": 1}, "y": {"n": 1}}}
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_the_first_branch_wins_and_what_the_others_wait_for_is_withdrawn(world: World) -> None:
    waiting = {"id": "wait", "wait": {"event": "never"}, "forever": True}
    branches = {"fast": [told("a")], "slow": [waiting], "slower": [{"id": "pause", "delay": "10d"}]}
    await world.put({"name": "w", "steps": [{"id": "p", "parallel": {"branches": branches, "join": "any"}}, told("b")]})
    await world.event("t")
    await world.until("succeeded")
    assert await world.steps() == {
        "p": "succeeded",
        "a": "succeeded",
        "wait": "cancelled",
        "pause": "cancelled",
        "b": "succeeded",
    }
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_items_run_side_by_side_and_give_their_results_in_order(world: World) -> None:
    running, most = 0, 0

    async def count(ctx: Context) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return len(ctx.idempotency_key)

    world.heart.behave["a"] = count
    each = {
        "items": "{{ event.data.lines }}",
        "concurrency": 3,
        "steps": [told("a"), {"id": "give", "transform": "{{ item }}"}],
    }
    await world.put({"name": "w", "steps": [{"id": "e", "for_each": each}], "output": "{{ steps.e.output }}"})
    await world.event("t", {"lines": list(range(12))})
    await world.until("succeeded")
    assert (await world.output())["output"] == list(range(12))
    assert most == 3


async def test_an_event_wakes_the_run_that_waits_for_its_value(world: World) -> None:
    match = {"path": "data.order", "value": "{{ event.data.order }}"}
    wait = {"id": "paid", "wait": {"event": "paid", "match": match}, "deadline": {"after": "1h"}}
    await world.put({"name": "w", "steps": [wait], "output": "{{ steps.paid.output.data.sum }}"})
    await world.event("t", {"order": 1})
    await world.event("t", {"order": 2})
    await world.until("waiting", "waiting")
    await world.heart.at_rest()
    await world.event("paid", {"order": "2", "sum": 20})
    await world.until("waiting", "succeeded")
    await world.heart.at_rest()
    assert await world.heart.ledger() == {"handled": 3, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}
    assert await world.left() == NOTHING | {"timers": 1, "waits": 1}


async def test_an_event_that_came_before_the_wait_is_not_lost(world: World) -> None:
    go = asyncio.Event()

    async def until_told(_: Context) -> None:
        await go.wait()

    world.heart.behave["first"] = until_told
    wait = {"id": "paid", "wait": {"event": "paid", "match": {"path": "data.order", "value": "{{ event.data.order }}"}}}
    await world.put({"name": "w", "steps": [told("first"), {**wait, "forever": True}]})
    await world.event("t", {"order": 1})
    await wait_until(lambda: world.heart.calls["first"], "the first step")
    await world.event("paid", {"order": 1})
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM events WHERE type = 'paid' AND outcome IS NOT NULL"), "it")
    go.set()
    await world.until("succeeded")


async def test_an_event_that_came_before_its_run_had_begun_is_not_lost(world: World) -> None:
    """The run's own event is handled later: it was taken over after a crash, or there was a backlog."""
    wait = {"id": "paid", "wait": {"event": "paid"}, "forever": True}
    await world.put({"name": "w", "steps": [wait]})
    first = new_event("t", None, source="/t")
    await world.event("paid")
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM events WHERE outcome = 'unmatched'"), "what came later")
    await world.heart.replicas[0].producer.submit(first)
    await world.until("succeeded")


async def test_a_replica_with_older_workflows_tells_those_who_wait(world: World) -> None:
    """It learns of the wait from the version that its own commit reads."""
    other = await world.heart.idle()
    wait = {"id": "paid", "wait": {"event": "paid"}, "forever": True}
    await world.heart.replicas[0].catalog.put({"name": "w", "trigger": {"event": "t"}, "steps": [wait]})
    await world.event("t")
    await world.until("waiting")
    await world.heart.at_rest()
    await world.heart.replicas[0].consumer.stop(0)
    assert not other.catalog.listeners.wants("paid")
    world.heart.run(other)
    await world.event("paid")
    await world.until("succeeded")


async def test_a_workflow_that_another_replica_put_just_now_can_be_started(world: World) -> None:
    other = await world.heart.idle()
    await world.heart.replicas[0].catalog.put({"name": "fresh", "trigger": "manual", "steps": [told("a")]})
    await world.heart.replicas[0].consumer.stop(0)
    world.heart.run(other)
    start = new_event("workflow.requested", {}, source="/t", start=("fresh", "manual"))
    await world.heart.replicas[0].producer.submit(start)
    await world.until("succeeded", workflow="fresh")


async def test_a_deadline_goes_another_way(world: World) -> None:
    wait = {"id": "paid", "wait": {"event": "paid"}, "deadline": {"after": "100ms", "next": "late"}}
    await world.put({"name": "w", "steps": [{**wait, "next": "end"}, told("late")]})
    await world.event("t")
    await world.until("succeeded")
    assert await world.steps() == {"paid": "failed", "late": "succeeded"}
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_a_called_workflow_gives_its_output_to_the_caller(world: World) -> None:
    child = {"name": "child", "trigger": "manual", "steps": [told("c")], "output": {"double": "{{ input.n * 2 }}"}}
    call = {"id": "call", "workflow": {"name": "child", "input": {"n": "{{ event.data.n }}"}}}
    await world.put(child, {"name": "w", "steps": [call], "output": "{{ steps.call.output.double }}"})
    await world.event("t", {"n": 21})
    await world.until("succeeded")
    assert (await world.output())["output"] == 42
    await world.heart.at_rest()
    assert await world.left() == NOTHING
    assert await world.heart.ledger() == {"handled": 1, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_a_called_workflow_that_fails_fails_its_caller_and_leaves_one_dead_letter(world: World) -> None:
    async def refuse(_: Context) -> None:
        raise Reject("no")

    world.heart.behave["c"] = refuse
    child = {"name": "child", "trigger": "manual", "steps": [told("c")]}
    await world.put(child, {"name": "w", "steps": [{"id": "call", "workflow": "child"}]})
    await world.event("t")
    await world.until("failed")
    await world.heart.at_rest()
    assert await rows(world.db, "SELECT step, error FROM dead_letters") == [("call", "child: no")]
    assert await world.heart.ledger() == {"handled": 0, "unmatched": 0, "dead": 1, "in_flight": 0, "difference": 0}


async def test_cancelling_a_run_cancels_what_it_called(world: World) -> None:
    child = {"name": "child", "trigger": "manual", "steps": [{"id": "pause", "delay": "10d"}]}
    await world.put(child, {"name": "w", "steps": [{"id": "call", "workflow": "child"}]})
    await world.event("t")
    await world.until("waiting", workflow="child")
    await world.heart.at_rest()
    ((run_id,),) = await rows(world.db, "SELECT id::text FROM runs WHERE origin IS NULL")
    await world.heart.replicas[0].control.cancel_run(run_id, "me")
    await world.until("cancelled")
    await world.until("cancelled", workflow="child")
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_a_failure_undoes_what_was_done_in_reverse_and_then_tells(world: World) -> None:
    async def refuse(_: Context) -> None:
        raise Reject("no")

    world.heart.behave["c"] = refuse
    undo = {"a": told("a"), "b": told("b")}
    for name, step in undo.items():
        step["compensate"] = {"action": "told", "with": {"how": f"un{name}"}}
    await world.put({"name": "w", "steps": [undo["a"], undo["b"], told("c")], "on_error": [told("sorry")]})
    await world.event("t")
    await world.until("failed")
    assert list(world.heart.calls) == ["a", "b", "c", "unb", "una", "sorry"]
    assert await rows(world.db, "SELECT step FROM dead_letters") == [("c",)]


async def test_a_task_is_asked_answered_once_and_gone(world: World) -> None:
    task = {
        "title": "Really?",
        "form": {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}},
    }
    task["notify"] = {"action": "told", "with": {"how": "notify"}}
    await world.put({"name": "w", "steps": [{"id": "ask", "human_task": task}], "output": "{{ steps.ask.output.ok }}"})
    await world.event("t")
    await world.until("waiting")
    await world.heart.at_rest()
    tasks = world.heart.replicas[0].tasks
    ((task_id,),) = await rows(world.db, "SELECT id::text FROM tasks WHERE status = 'open'")
    answers = await asyncio.gather(
        *(tasks.answer(task_id, {"ok": True}, "me") for _ in range(3)), return_exceptions=True
    )
    assert [type(a).__name__ for a in answers].count("Conflict") == 2
    await world.until("succeeded")
    assert (await world.output())["output"] is True
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_an_answer_is_heard_while_an_attempt_is_under_way(world: World) -> None:
    go = asyncio.Event()

    async def until_told(_: Context) -> None:
        await go.wait()

    world.heart.behave["long"] = until_told
    task = {"title": "Really?", "form": {"type": "object"}}
    branches = {"x": [told("long")], "y": [{"id": "ask", "human_task": task}, told("then")]}
    await world.put({"name": "w", "steps": [{"id": "p", "parallel": {"branches": branches, "join": "all"}}]})
    await world.event("t")
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM tasks WHERE status = 'open'"), "the task")
    ((task_id,),) = await rows(world.db, "SELECT id::text FROM tasks")
    await world.heart.replicas[0].tasks.answer(task_id, {}, "me")
    await wait_until(lambda: world.heart.calls["then"], "the step behind the answer")
    assert world.heart.calls["long"] == [1]
    go.set()
    await world.until("succeeded")
    await world.heart.at_rest()
    assert await world.left() == NOTHING
    assert await rows(world.db, "SELECT taken FROM signals") == [("taken",)]


async def test_an_answer_in_time_wins_although_it_is_looked_at_late(world: World) -> None:
    go = asyncio.Event()

    async def until_told(_: Context) -> None:
        await go.wait()

    world.heart.behave["long"] = until_told
    task = {"title": "Really?", "form": {"type": "object"}}
    ask = {"id": "ask", "human_task": task, "deadline": {"after": "700ms", "next": "late"}}
    branches = {
        "x": [told("long", effects="at_most_once")],
        "y": [{**ask, "next": "end"}, told("late")],
    }
    await world.put({"name": "w", "steps": [{"id": "p", "parallel": {"branches": branches, "join": "all"}}]})
    await world.event("t")
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM tasks WHERE status = 'open'"), "the task")
    ((task_id,),) = await rows(world.db, "SELECT id::text FROM tasks")
    await world.heart.replicas[0].tasks.answer(task_id, {}, "me")
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM tasks WHERE due_at < now()"), "the deadline to pass")
    go.set()
    await world.until("succeeded")
    assert await world.steps() == {"p": "succeeded", "long": "succeeded", "ask": "succeeded"}


MACHINE = {
    "name": "m",
    "trigger": {"event": "asked"},
    "correlate": "{{ event.data.key }}",
    "initial": "open",
    "states": {
        "open": {
            "enter": [told("hello")],
            "on": {
                "yes": {"next": "done", "do": [told("pay")]},
                "note": {"do": [told("noted")]},
            },
            "deadline": {"after": "1h", "next": "late"},
        },
        "done": {"final": True},
        "late": {"final": True},
    },
}


async def test_events_find_their_machine_by_its_key(world: World) -> None:
    await world.put(MACHINE)
    for key in ("a", "b"):
        await world.event("asked", {"key": key})
    await world.until("waiting", "waiting", workflow="m")
    for type in ("note", "other", "yes"):
        await world.event(type, {"key": "a"})
    await world.until("succeeded", "waiting", workflow="m")
    assert world.heart.calls["pay"] == [1]
    await world.heart.at_rest()
    assert (await world.left())["machines"] == 1


async def test_two_events_of_a_new_key_at_once_make_one_machine(world: World) -> None:
    second = await world.heart.replica()
    await world.put(MACHINE)
    await second.catalog.refresh()
    await asyncio.gather(*(world.event("asked", {"key": "a"}, replica=n % 2) for n in range(8)))
    await world.until("waiting", workflow="m")
    await world.heart.at_rest()
    assert world.heart.calls["hello"] == [1]
    found = await rows(world.db, "SELECT taken, taken_by, count(*) FROM signals GROUP BY 1, 2")
    assert found == [("ignored", "open", 7)], "each is recorded on the machine"
    await world.event("yes", {"key": "a"})
    await world.until("succeeded", workflow="m")
    await world.event("asked", {"key": "a"})
    await world.until("succeeded", "waiting", workflow="m")


async def test_an_event_that_comes_while_a_machine_is_busy_waits_its_turn(world: World) -> None:
    go = asyncio.Event()

    async def until_told(_: Context) -> None:
        await go.wait()

    world.heart.behave["hello"] = until_told
    await world.put(MACHINE)
    await world.event("asked", {"key": "a"})
    await wait_until(lambda: world.heart.calls["hello"], "the machine to begin")
    await world.event("yes", {"key": "a"})
    await wait_until(lambda: rows(world.db, "SELECT 1 FROM signals"), "the machine to be told")
    go.set()
    await world.until("succeeded", workflow="m")


async def test_an_effect_of_unknown_outcome_waits_for_a_person(world: World) -> None:
    async def break_down(_: Context) -> None:
        raise RuntimeError("who knows")

    world.heart.behave["pay"] = break_down
    await world.put({"name": "w", "steps": [told("pay", effects="at_most_once"), told("then")]})
    await world.event("t")
    await world.until("waiting")
    await world.heart.at_rest()
    assert await world.steps() == {"pay": "unknown"}
    assert world.heart.calls["pay"] == [1]
    ((run_id,),) = await rows(world.db, "SELECT id::text FROM runs")
    await world.heart.replicas[0].control.settle_step(run_id, "pay", "succeeded", "me", output=7)
    await world.until("succeeded")
    assert world.heart.calls["pay"] == [1]


async def test_a_run_that_several_entries_wake_goes_through_once(world: World) -> None:
    for _ in range(2):
        await world.heart.replica()
    branches = {f"b{n}": [{"id": f"d{n}", "delay": "100ms"}, told(f"a{n}", retry=QUICK)] for n in range(5)}
    for n in range(5):
        world.heart.behave[f"a{n}"] = failing(2)
    await world.put({"name": "w", "steps": [{"id": "p", "parallel": {"branches": branches, "join": "all"}}, told("z")]})
    await asyncio.gather(*(world.event("t") for _ in range(3)))
    await world.until(*["succeeded"] * 3)
    await world.heart.at_rest()
    assert await world.left() == NOTHING
    assert world.heart.calls["z"] == [1, 1, 1]
    assert await world.heart.ledger() == {"handled": 3, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}
