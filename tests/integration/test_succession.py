"""Runs that are parked while their workflow changes: which go on in the new revision, and which stay on their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.engine.moves import Wanted
from appliance.plugin import Context
from appliance.store.pool import Connection
from appliance.workflows.loader import parse_document
from tests.integration.test_durable import NOTHING, World, told
from tests.integration.test_heart import Heart, db, failing, rows
from tests.servers import wait_until

__all__ = ["db"]

WAIT: dict[str, Any] = {"id": "paid", "wait": {"event": "paid"}, "forever": True}
EACH: dict[str, Any] = {"items": "{{ event.data.lines }}", "concurrency": 2}


@pytest_asyncio.fixture
async def heart(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Heart]:
    async with contextlib.AsyncExitStack() as stack:
        yield Heart(redis_url, database_url, tmp_path, stack)


@pytest_asyncio.fixture
async def world(heart: Heart, db: Connection) -> World:
    await heart.replica()
    return World(heart, db)


def flow(*steps: dict[str, Any], name: str = "w", follow: bool = True, **more: Any) -> dict[str, Any]:
    return {"name": name, "revisions": "follow" if follow else "pin", "steps": [*steps], **more}


async def numbers(world: World, workflow: str = "w") -> list[int]:
    """The revisions that the runs of a workflow are on."""
    found = await rows(
        world.db,
        "SELECT v.number FROM runs r JOIN revisions v ON v.id = r.revision_id JOIN workflows w ON w.id = r.workflow_id "  # noqa: S608
        f"WHERE w.name = '{workflow}' ORDER BY r.id",
    )
    return [number for (number,) in found]


async def parked(world: World, *definitions: dict[str, Any], **data: Any) -> str:
    """A run that waits, of the first of these definitions; the id of its event."""
    await world.put(*definitions)
    uid = await world.event("t", data)
    await world.until("waiting")
    await world.heart.at_rest()
    return uid


async def test_a_parked_run_goes_on_in_the_new_revision_at_its_next_wake(world: World) -> None:
    await parked(world, flow(told("a"), WAIT, told("b")))
    await world.put(flow(WAIT, told("c"), output="{{ run.revision }}"))
    await world.event("paid")
    await world.until("succeeded")
    assert await world.steps() == {"a": "succeeded", "paid": "succeeded", "c": "succeeded"}
    assert await numbers(world) == [2]
    assert (await world.output())["output"] == 2
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_a_pinned_run_goes_on_in_its_own(world: World) -> None:
    await parked(world, flow(told("a"), WAIT, told("b"), follow=False))
    await world.put(flow(told("a"), WAIT, told("c"), follow=False))
    await world.event("paid")
    await world.until("succeeded")
    assert await world.steps() == {"a": "succeeded", "paid": "succeeded", "b": "succeeded"}
    assert await numbers(world) == [1]


@pytest.mark.parametrize(("before", "after", "number"), [(False, True, 2), (True, False, 1)])
async def test_the_revision_in_force_says_whether_runs_follow(
    world: World, before: bool, after: bool, number: int
) -> None:
    await parked(world, flow(WAIT, told("b"), follow=before))
    await world.put(flow(WAIT, told("c"), follow=after))
    await world.event("paid")
    await world.until("succeeded")
    assert await numbers(world) == [number]


async def test_a_run_whose_step_has_gone_stays_and_the_log_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.put(flow(WAIT, told("b")))
    await world.event("t")
    await world.event("t")
    await world.until("waiting", "waiting")
    await world.put(flow({**WAIT, "id": "sent"}, told("c")))
    await world.event("paid")
    await world.until("succeeded", "succeeded")
    assert await numbers(world) == [1, 1]
    assert world.heart.calls["b"] == [1, 1]
    said = [record.message for record in caplog.records if "stay on revision 1" in record.message]
    assert len(said) == 1
    assert "it stands at the step `paid`, which the new definition does not have" in said[0]


async def test_a_run_in_hand_goes_on_in_its_own(world: World) -> None:
    go = asyncio.Event()

    async def until_told(_: Context) -> None:
        await go.wait()

    world.heart.behave["busy"] = until_told
    await parked(world, flow(WAIT, told("busy"), told("b")))
    await world.event("paid")
    await wait_until(lambda: world.heart.calls["busy"], "the attempt")
    await world.put(flow(WAIT, told("busy"), told("c")))
    go.set()
    await world.until("succeeded")
    assert await numbers(world) == [1]
    assert list(await world.steps()) == ["paid", "busy", "b"]


async def test_an_attempt_that_is_made_again_soon_is_in_hand(world: World) -> None:
    tries = 0

    async def second_time(_: Context) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            await world.put(flow(WAIT, told("busy"), told("c")))
        if tries < 3:
            raise failing_error()

    world.heart.behave["busy"] = second_time
    retry = {"retry": {"initial": "50ms", "factor": 1, "jitter": False}}
    await parked(world, flow(WAIT, told("busy", **retry), told("b")))
    await world.event("paid")
    await world.until("succeeded")
    assert tries == 3
    assert await numbers(world) == [1]


def failing_error() -> Exception:
    return RuntimeError("not yet")


async def test_an_answer_is_taken_by_the_new_revision_and_its_task_stays_as_it_was(world: World) -> None:
    ask = {"id": "ask", "human_task": {"title": "Pay?"}}
    await parked(world, flow(ask, told("b")))
    await world.put(flow({"id": "ask", "human_task": {"title": "Pay now?"}}, told("c")))
    ((task, title),) = await rows(world.db, "SELECT id::text, title FROM tasks")
    assert title == "Pay?"
    await world.heart.replicas[0].tasks.answer(task, {"yes": True}, "ann")
    await world.until("succeeded")
    assert await numbers(world) == [2]
    assert world.heart.calls["c"] == [1]


async def test_a_delay_lasts_as_long_as_it_was_to_when_it_began(world: World) -> None:
    await parked(world, flow({"id": "pause", "delay": "1h"}, told("b")))
    await world.put(flow({"id": "pause", "delay": "2h"}, told("c")))
    before = (await rows(world.db, "SELECT due_at FROM timers"))[0]
    await rows(
        world.db,
        "INSERT INTO timers (run_id, key, due_at, priority) "
        "SELECT id, '+signal', now(), priority FROM runs RETURNING 1",
    )

    async def moved() -> bool:
        return await numbers(world) == [2]

    await wait_until(moved, "the run to be looked at")
    await world.heart.at_rest()
    assert await rows(world.db, "SELECT due_at FROM timers WHERE key = ''") == [before]
    await rows(world.db, "UPDATE steps SET due_at = now() RETURNING 1")
    await rows(world.db, "UPDATE timers SET due_at = now() RETURNING 1")
    await world.until("succeeded")
    assert list(await world.steps()) == ["pause", "c"]


async def test_items_that_have_begun_and_those_that_follow_go_on_in_the_new_steps(world: World) -> None:
    item = {**WAIT, "wait": {"event": "paid", "match": {"path": "data.line", "value": "{{ item }}"}}}
    lines = ["x", "y", "z"]
    await parked(world, flow({"id": "e", "for_each": {**EACH, "steps": [item, told("b")]}}), lines=lines)
    give = {"id": "give", "transform": "{{ item }}{{ run.revision }}"}
    await world.put(flow({"id": "e", "for_each": {**EACH, "steps": [item, give]}}, output="{{ steps.e.output }}"))
    for line in ("x", "y"):
        await world.event("paid", {"line": line})

    async def asked() -> bool:
        return "paid[2]" in await world.steps()

    await wait_until(asked, "the third item")
    await world.event("paid", {"line": "z"})
    await world.until("succeeded")
    assert (await world.output())["output"] == ["x2", "y2", "z2"]
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_other_items_keep_a_run_where_it_is(world: World) -> None:
    await parked(world, flow({"id": "e", "for_each": {**EACH, "steps": [WAIT]}}), lines=[1])
    await world.put(flow({"id": "e", "for_each": {"items": [1, 2], "steps": [WAIT]}}))
    await world.event("paid")
    await world.until("succeeded")
    assert await numbers(world) == [1]


async def test_a_called_run_and_its_caller_follow_each_its_own_workflow(world: World) -> None:
    await world.put(flow(WAIT, name="sub", trigger="manual"))
    await parked(world, flow({"id": "call", "workflow": "sub"}, told("b")))
    await world.until("waiting", workflow="sub")
    await world.put(
        flow(WAIT, name="sub", trigger="manual", output="{{ run.revision }}"),
        flow({"id": "call", "workflow": "sub"}, told("c"), output="{{ steps.call.output }}"),
    )
    await world.event("paid")
    await world.until("succeeded")
    assert (await numbers(world), await numbers(world, "sub")) == ([2], [2])
    assert (await world.output())["output"] == 2
    assert world.heart.calls["c"] == [1]
    assert world.heart.calls["b"] == []


async def test_a_retry_that_waits_for_long_is_made_as_the_new_revision_says(world: World) -> None:
    world.heart.behave["a"] = failing(1)
    await world.put(flow(told("a", retry={"initial": "1h", "max": "1h", "jitter": False})))
    await world.event("t")
    await world.until("retrying")
    await world.put(flow({**told("a"), "with": {"how": "better"}}))
    await rows(world.db, "UPDATE steps SET due_at = now() RETURNING 1")
    await rows(world.db, "UPDATE timers SET due_at = now() RETURNING 1")
    await world.until("succeeded")
    assert world.heart.calls["better"] == [2]
    assert await numbers(world) == [2]


async def test_a_replica_that_does_not_know_the_new_revision_yet_moves_nothing_back(world: World) -> None:
    behind = await world.heart.idle()
    twice = [WAIT, {**WAIT, "id": "sent", "wait": {"event": "sent"}}]
    await world.put(flow(*twice, told("b")))
    await world.event("t")
    await world.until("waiting")
    await world.heart.replicas[0].catalog.put({"trigger": {"event": "t"}, **flow(*twice, told("c"))})
    await world.event("paid")

    async def moved() -> bool:
        return await numbers(world) == [2] and await world.status() == ["waiting"]

    await wait_until(moved, "the first wake")
    await world.heart.at_rest()
    assert behind.catalog.current("w").number == 1
    await world.heart.replicas[0].consumer.stop(10.0)
    world.heart.run(behind)
    await world.event("sent", replica=1)
    await world.until("succeeded")
    assert await numbers(world) == [2]
    assert world.heart.calls["c"] == [1]


async def test_a_rolled_back_workflow_takes_its_runs_back(world: World) -> None:
    twice = [WAIT, {**WAIT, "id": "sent", "wait": {"event": "sent"}}]
    first = flow(*twice, told("b"))
    await parked(world, first)
    await world.put(flow(*twice, told("c")))
    await world.event("paid")
    await world.until("waiting")

    async def moved() -> bool:
        return await numbers(world) == [2]

    await wait_until(moved, "the first wake")
    await world.put(first)
    await world.event("sent")
    await world.until("succeeded")
    assert await numbers(world) == [1]
    assert world.heart.calls["b"] == [1]


MACHINE: dict[str, Any] = {
    "name": "m",
    "revisions": "follow",
    "trigger": {"event": "begun"},
    "correlate": "{{ event.subject }}",
    "initial": "open",
}


async def test_a_state_machine_goes_on_in_the_new_definition_of_its_state(world: World) -> None:
    done = {"done": {"final": True}}
    await world.put({**MACHINE, "states": {"open": {"on": {"finish": {"next": "done"}}}, **done}})
    await world.event("begun", subject="k")
    await world.until("waiting", workflow="m")
    later = {"open": {"on": {"check": {"next": "checked"}}}, "checked": {"on": {"finish": {"next": "done"}}}, **done}
    await world.put({**MACHINE, "states": later})
    await world.event("check", subject="k")  # which the definition that it began with doesn't know
    await world.event("finish", subject="k")
    await world.until("succeeded", workflow="m")
    assert list(await world.steps()) == ["open", "checked", "done"]
    assert await numbers(world, "m") == [2]
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_what_would_not_be_undone_keeps_a_run_where_it_is(world: World) -> None:
    charge = told("charge", compensate={"action": "told", "with": {"how": "back"}})
    await parked(world, flow(charge, WAIT, told("b")))
    await world.put(flow(WAIT, told("c")))
    await world.event("paid")
    await world.until("succeeded")
    assert await numbers(world) == [1]


# --- by hand ---------------------------------------------------------------------------------------------------------


async def test_a_pinned_run_that_was_moved_goes_on_there(world: World) -> None:
    await parked(world, flow(WAIT, told("b"), follow=False))
    await world.put(flow(WAIT, told("c"), follow=False))
    control = world.heart.replicas[0].control
    assert len((await control.migrate("w", "ann", Wanted()))["moved"]) == 1
    assert await numbers(world) == [2]
    await world.event("paid")
    await world.until("succeeded")
    assert list(await world.steps()) == ["paid", "c"]
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_a_paused_run_that_was_moved_goes_on_there_when_it_is_resumed(world: World) -> None:
    world.heart.behave["a"] = failing(1)
    await world.put(flow(told("a", retry={"initial": "1h", "max": "1h", "jitter": False}), follow=False))
    await world.event("t")
    await world.until("retrying")
    ((run,),) = await rows(world.db, "SELECT id::text FROM runs")
    control = world.heart.replicas[0].control
    await control.pause_run(run, "ann")
    await world.put(flow({**told("a"), "with": {"how": "better"}}, told("b"), follow=False))
    await control.migrate("w", "ann", Wanted(runs=[run]))
    assert await world.status() == ["paused"]
    await rows(world.db, "UPDATE steps SET due_at = now() RETURNING 1")
    await control.resume_run(run, "ann")
    await world.until("succeeded")
    assert (world.heart.calls["better"], world.heart.calls["b"]) == ([2], [1])
    assert (await world.heart.replicas[0].history.get_run(run))["revision"] == 2


async def test_a_run_that_is_moved_while_it_is_woken_goes_on_where_it_was_moved_to(world: World) -> None:
    """Whoever read it before is fenced, and looks again."""
    await parked(world, flow(WAIT, told("b"), follow=False))
    await world.put(flow(WAIT, told("c"), follow=False))
    replica = world.heart.replicas[0]
    look = replica.catalog.revision
    moved: list[str] = []

    async def and_somebody_moves_it(revision_id: int) -> Any:
        replica.catalog.revision = look  # type: ignore[method-assign]
        moved.extend((await replica.control.migrate("w", "ann", Wanted()))["moved"])
        return await look(revision_id)

    replica.catalog.revision = and_somebody_moves_it  # type: ignore[method-assign]
    await world.event("paid")
    await world.until("succeeded")
    assert len(moved) == 1
    assert await numbers(world) == [2]
    assert (world.heart.calls["b"], world.heart.calls["c"]) == ([], [1])


@pytest.mark.parametrize("by_hand", [True, False])
async def test_a_run_leaves_flow_control_with_the_revision_that_had_it(world: World, by_hand: bool) -> None:
    await parked(world, flow(WAIT, told("b"), ordering_key="{{ event.type }}", follow=False))
    assert await rows(world.db, "SELECT keeps FROM places") == [(True,)]
    await world.put(flow(WAIT, told("c"), follow=not by_hand))
    if by_hand:
        await world.heart.replicas[0].control.migrate("w", "ann", Wanted())
        assert await rows(world.db, "SELECT keeps FROM places") == []
    await world.event("paid")
    await world.until("succeeded")
    assert await numbers(world) == [2]
    assert await rows(world.db, "SELECT keeps FROM places") == []


async def test_a_run_that_waits_for_its_place_goes_on_where_there_is_none_to_wait_for(world: World) -> None:
    go = asyncio.Event()

    async def until_told(_: Context) -> None:
        await go.wait()

    world.heart.behave["busy"] = until_told
    shaped = flow(WAIT, told("busy"), concurrency=1, follow=False)
    await parked(world, shaped)
    await world.event("t")
    await world.until("waiting", "waiting")
    await world.event("paid")
    await wait_until(lambda: world.heart.calls["busy"], "one of the two to be at work")

    async def queued() -> bool:
        return bool(await rows(world.db, "SELECT 1 FROM queue"))

    await wait_until(queued, "the other one to wait")
    await world.put(flow(WAIT, told("c"), follow=False))
    answer = await world.heart.replicas[0].control.migrate("w", "ann", Wanted())
    assert (len(answer["moved"]), len(answer["busy"])) == (1, 1)
    await wait_until(lambda: world.heart.calls["c"], "the other one to go on")
    assert await rows(world.db, "SELECT 1 FROM queue") == []
    go.set()
    await world.until("succeeded", "succeeded")


async def test_a_run_that_flow_control_holds_begins_in_its_own_revision(world: World) -> None:
    await parked(world, flow(WAIT, told("b"), ordering_key="{{ event.type }}"))
    await world.event("t")
    await world.until("waiting", "waiting")
    await world.put(flow(WAIT, told("c")))
    found = await world.heart.replicas[0].impact.of("w", world.heart.replicas[0].catalog.current("w").workflow)
    assert [(group.at, group.gaps) for group in found] == [
        (("paid",), ()),
        ((), ("it has not begun, and flow control says when it does",)),
    ]


async def test_the_example_of_the_page_follows(world: World) -> None:
    page = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text()
    section = page.partition("### Runs that are under way")[2]
    definition: Any = parse_document(section.partition("```yaml\n")[2].partition("```")[0].encode()).data
    for welcome in ("hello", "welcome"):
        definition["steps"][1] |= {"action": "noted", "with": {"text": f"{welcome}, {{{{ event.data.name }}}}"}}
        await world.put(definition)
        if welcome == "hello":
            await world.event("employee.hired", {"name": "Ann"})
            await world.until("waiting", workflow="onboarding")
    ((task,),) = await rows(world.db, "SELECT id::text FROM tasks")
    await world.heart.replicas[0].tasks.answer(task, {}, "bob")
    await world.until("succeeded", workflow="onboarding")
    assert world.heart.notes == ["welcome, Ann"]


async def test_runs_that_are_moved_to_and_fro_while_they_are_woken_do_everything_once(world: World) -> None:
    await world.heart.replica()
    await world.put(flow(WAIT, told("b"), follow=False))
    for number in range(30):
        await world.event("t", {"n": number})
    await world.until(*["waiting"] * 30)
    await world.put(flow(WAIT, told("c"), follow=False))
    woken = asyncio.Event()

    async def to_and_fro(replica: int) -> int:
        moved = 0
        for turn in range(200):
            answer = await world.heart.replicas[replica].control.migrate(
                "w", "ann", Wanted(to=1 + (turn + replica) % 2)
            )
            moved += len(answer["moved"])
            if turn == 2:
                woken.set()
            if await world.status() == ["succeeded"] * 30:
                break
        return moved

    async def wake() -> None:
        await woken.wait()
        await world.event("paid")

    *moved, _ = await asyncio.gather(to_and_fro(0), to_and_fro(1), wake())
    await world.until(*["succeeded"] * 30)
    assert sum(moved) > 0
    made = await rows(
        world.db,
        "SELECT v.number, s.key, s.status::text FROM runs r JOIN revisions v ON v.id = r.revision_id "
        "JOIN steps s ON s.run_id = r.id AND s.key <> 'paid'",
    )
    assert {(1, "b", "succeeded"), (2, "c", "succeeded")} >= set(made)
    assert len(made) == 30
    assert len(world.heart.calls["b"]) + len(world.heart.calls["c"]) == 30
    await world.heart.at_rest()
    assert await world.left() == NOTHING


async def test_runs_come_under_the_flow_control_of_the_revision_that_they_follow(world: World) -> None:
    at_work, most = 0, 0

    async def count(_: Context) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.02)
        at_work -= 1

    world.heart.behave["busy"] = count
    await world.put(flow(WAIT, told("b")))
    for _ in range(4):
        await world.event("t")
    await world.until(*["waiting"] * 4)
    await world.put(flow(WAIT, told("busy"), concurrency=1))
    await world.event("paid")
    await world.until(*["succeeded"] * 4)
    assert most == 1
    assert await numbers(world) == [2] * 4
    await world.heart.at_rest()
    assert await rows(world.db, "SELECT 1 FROM places UNION ALL SELECT 1 FROM queue") == []
