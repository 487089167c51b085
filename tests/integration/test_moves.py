"""Moving runs to another revision, and what a new definition would mean for them, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from appliance.engine import impact as impact_module
from appliance.engine import moves as moves_module
from appliance.engine.following import obstacles
from appliance.engine.impact import Impact, Touched
from appliance.engine.moves import Wanted
from appliance.errors import Conflict, DefinitionError, Fenced, Malformed, NotFound, Problem
from appliance.identifiers import uuid7
from appliance.store.queries import named
from appliance.store.runs import Runs
from appliance.store.unfinished import Unfinished
from appliance.workflows.compile import compile_workflow
from tests.integration.stand import PARKED, PLAIN, SAGA, Stand, standing

WITHOUT_B = {"name": "plain", "steps": [{"id": "a", "action": "x"}, {"id": "c", "action": "x"}]}
AT_A, AT_B = {"a": "retrying"}, {"a": "succeeded", "b": "retrying"}
GONE = "it stands at the step `b`, which the new definition does not have"


@pytest_asyncio.fixture
async def stand(database_url: str) -> AsyncIterator[Stand]:
    async with standing(database_url) as made:
        yield made


async def on(stand: Stand, *runs: str) -> list[tuple[int, int]]:
    """Revision and version of runs."""
    found = await stand.rows(
        "SELECT v.number, r.version FROM unnest(%s::uuid[]) WITH ORDINALITY AS u (id, at) JOIN runs r ON r.id = u.id "
        "JOIN revisions v ON v.id = r.revision_id ORDER BY u.at",
        list(runs),
    )
    return [(number, version) for number, version in found]


async def migrate(stand: Stand, dry_run: bool = False, **wanted: Any) -> dict[str, Any]:
    return await stand.control.migrate("plain", "ann", Wanted(**wanted), dry_run=dry_run)


async def test_parked_and_paused_runs_move_and_others_say_why_not(stand: Stand) -> None:
    waits, paused = await stand.run(steps=AT_A), await stand.run(status="paused", steps=AT_A)
    stays = await stand.run(steps=AT_B)
    held = await stand.run(status="running", state={"by": "normal-1-1"}, steps={"a": "running"})
    begun = await stand.run(status="running", state={"by": None}, steps={"a": "running"})
    over = await stand.run(status="succeeded", state=None, steps={"a": "succeeded"})
    await stand.workflow(WITHOUT_B)
    answer = await migrate(stand)
    stayed = [{"id": stays, "revision": 1, "reasons": [GONE]}]
    for name in ("moved", "busy"):  # two runs of one millisecond have no order
        answer[name] = sorted(answer[name])
    moved, busy = sorted([waits, paused]), sorted([held, begun])
    assert answer == {"to": 2, "moved": moved, "stayed": stayed, "busy": busy, "next_cursor": None}
    assert await on(stand, waits, paused, stays, held, begun, over) == [(2, 2), (2, 2), (1, 1), (1, 1), (1, 1), (1, 1)]
    assert [await stand.status(run) for run in (waits, paused)] == ["waiting", "paused"]
    assert await stand.rows("SELECT actor, action, subject, detail FROM audit_log ORDER BY subject") == [
        ("ann", "run.migrate", run, {"from": 1, "to": 2}) for run in sorted((waits, paused))
    ]


async def test_whoever_was_about_to_write_the_run_is_fenced(stand: Stand) -> None:
    run = await stand.run(steps=AT_A)
    await stand.workflow(WITHOUT_B)
    await migrate(stand)
    with pytest.raises(Fenced):
        await stand.commit(run, "waiting", 1)
    await stand.commit(run, "waiting", 2, PARKED)
    assert await on(stand, run) == [(2, 3)]


async def test_a_run_that_is_taken_up_meanwhile_is_busy(stand: Stand) -> None:
    taken, free = await stand.run(steps=AT_A), await stand.run(steps=AT_A)
    await stand.workflow(WITHOUT_B)
    async with stand.writing(taken, status="running"):
        answer = await asyncio.wait_for(migrate(stand), 10)  # it doesn't wait for the lock
    assert (answer["moved"], answer["busy"]) == ([free], [taken])
    assert await on(stand, taken, free) == [(1, 2), (2, 2)]


async def test_a_run_that_has_moved_on_since_it_was_looked_at_is_busy(stand: Stand) -> None:
    run = await stand.run(steps=AT_A)
    await stand.workflow(WITHOUT_B)
    look = stand.catalog.revision

    async def and_then_it_goes_on(revision_id: int) -> Any:
        await stand.rows("UPDATE runs SET version = version + 1 WHERE id = %s", run)
        return await look(revision_id)

    stand.catalog.revision = and_then_it_goes_on  # type: ignore[method-assign]
    assert (await migrate(stand))["busy"] == [run]
    assert [number for number, _ in await on(stand, run)] == [1]


async def test_runs_are_moved_back_and_forth_by_the_numbers_of_revisions(stand: Stand) -> None:
    first = await stand.run(steps=AT_A)
    await stand.workflow(WITHOUT_B)
    second = await stand.run(steps=AT_A)
    await stand.workflow(PLAIN)
    assert (await migrate(stand, source=2))["moved"] == [second]
    assert await on(stand, first, second) == [(1, 1), (3, 2)]
    assert (await migrate(stand, to=2, source=1))["moved"] == [first]
    assert (await migrate(stand, to=1))["moved"] == [first, second]
    assert await on(stand, first, second) == [(1, 3), (1, 3)]


async def test_a_dry_run_says_what_would_become_of_each_and_changes_nothing(stand: Stand) -> None:
    moves, stays = await stand.run(steps=AT_A), await stand.run(steps=AT_B)
    await stand.workflow(WITHOUT_B)
    answer = await migrate(stand, dry_run=True)
    assert (answer["moved"], [each["id"] for each in answer["stayed"]]) == ([moves], [stays])
    assert await on(stand, moves) == [(1, 1)]
    assert await stand.one("SELECT count(*) FROM audit_log") == 0


async def test_named_runs_are_each_answered_for(stand: Stand) -> None:
    moves, other = await stand.run(steps=AT_A), await stand.run(steps=AT_A)
    foreign = await stand.run(SAGA, steps={"charge": "retrying"})
    over = await stand.run(status="failed", state={"at": "a"}, steps={"a": "failed"})
    await stand.workflow(WITHOUT_B)
    there = await stand.run(steps=AT_A)
    answer = await migrate(stand, runs=[moves, foreign, over, there])
    assert answer["moved"] == [moves]
    reasons = {each["id"]: (each["revision"], *each["reasons"]) for each in answer["stayed"]}
    unknown = "'plain' has no such run that is not over"
    there_already = (2, "it is on that revision already")
    assert reasons == {foreign: (None, unknown), over: (None, unknown), there: there_already}
    assert await on(stand, other) == [(1, 1)]


async def test_a_named_run_that_is_on_another_revision_than_was_said_stays(stand: Stand) -> None:
    first = await stand.run(steps=AT_A)
    await stand.workflow(WITHOUT_B)
    second = await stand.run(steps=AT_A)
    await stand.workflow(PLAIN)
    answer = await migrate(stand, source=2, runs=[first, second])
    why = "'plain' has no such run on revision 2 that is not over"
    assert (answer["moved"], answer["stayed"]) == ([second], [{"id": first, "revision": None, "reasons": [why]}])


async def test_what_is_read_of_a_run_says_the_same_as_all_of_it(stand: Stand) -> None:
    steps = {
        "charge": "succeeded",
        "each": "running",
        "book[0]": "failed",
        "book[1]": "succeeded",
        "book[2]": "waiting",
    }
    state = {**PARKED, "blocks": {"each": [3, 3, {"0": None, "1": "book[1]"}]}, "at": "book[0]", "ending": "failed"}
    run_id = await stand.run(SAGA, state=state | {"phase": "", "outcome": None, "output": None}, steps=steps)
    old = compile_workflow({"trigger": "manual", **SAGA}, actions=None)
    read = await Unfinished(stand.pool).page(stand.catalog.current("saga").workflow_id, limit=9)
    whole = await Runs(stand.pool).load(run_id)
    assert whole is not None
    for definition in (
        {"name": "saga", "steps": [*SAGA["steps"], {"id": "more", "action": "x"}]},
        {"name": "saga", "steps": SAGA["steps"][1:]},
        {"name": "saga", "steps": SAGA["steps"][:1]},
        {"name": "saga", "steps": [{"id": "book", "action": "x"}]},
    ):
        new = compile_workflow({"trigger": "manual", **definition}, actions=None)
        assert [obstacles(run, old, new) for run in read] == [obstacles(whole, old, new)]
    assert obstacles(whole, old, new) != ()


async def test_very_many_runs_are_moved_page_by_page(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves_module, "PAGE", 2)
    runs = [await stand.run(steps=AT_A) for _ in range(5)]
    await stand.workflow(WITHOUT_B)
    moved: list[str] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        answer = await migrate(stand, after=cursor)
        moved, cursor, pages = moved + answer["moved"], answer["next_cursor"], pages + 1
    assert (moved, pages) == (sorted(runs), 3)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"asked": "cancel"}, "it is being cancelled"),
        ({"asked": "retry"}, "it is about to be tried again"),
        ({"details": {"rerun": {"from": "b"}}, "steps": {"a": "succeeded"}}, "it is a rerun that has not begun"),
    ],
)
async def test_what_is_about_to_happen_to_a_run_comes_first(stand: Stand, columns: Any, reason: str) -> None:
    await stand.run(**{"steps": AT_A, **columns})
    await stand.workflow(WITHOUT_B)
    ((why,),) = [each["reasons"] for each in (await migrate(stand))["stayed"]]
    assert why.startswith(reason)


async def test_what_is_not_there_is_named(stand: Stand) -> None:
    run = await stand.run(steps=AT_A)
    with pytest.raises(NotFound, match="there is no workflow 'nothing'"):
        await stand.control.migrate("nothing", "ann", Wanted())
    with pytest.raises(NotFound, match="to: 'plain' has no revision 7"):
        await migrate(stand, to=7)
    with pytest.raises(NotFound, match="from: 'plain' has no revision 8"):
        await migrate(stand, source=8)
    with pytest.raises(Malformed, match="runs: 'x' is not the id of a run"):
        await migrate(stand, runs=[run, "x"])
    with pytest.raises(Malformed, match="cursor: not what an earlier answer gave"):
        await migrate(stand, after="x")


async def test_a_revision_that_can_not_be_used_any_more_is_no_target_and_no_start(stand: Stand) -> None:
    run = await stand.run(steps=AT_A)
    second = await stand.workflow(WITHOUT_B)
    look, broken = stand.catalog.revision, [1]

    async def of_those_that_are_whole(revision_id: int) -> Any:
        found = await look(revision_id)
        if found.number in broken:
            raise DefinitionError(Problem("an operator has gone"))
        return found

    stand.catalog.revision = of_those_that_are_whole  # type: ignore[method-assign]
    with pytest.raises(Conflict, match="revision 1 of 'plain' can't be used any more: an operator has gone"):
        await migrate(stand, to=1)
    (stayed,) = (await migrate(stand))["stayed"]
    assert (stayed["id"], stayed["revision"]) == (run, None)
    assert "its own revision can't be used any more" in stayed["reasons"][0]
    assert [group.gaps for group in await Impact(stand.pool, stand.catalog).of("plain", second.workflow)] == [
        ("its revision can't be used any more: an operator has gone",)
    ]
    broken[:] = [2]
    with pytest.raises(Conflict, match="its revision in force can't be used any more"):
        await migrate(stand)


async def test_nothing_is_moved_to_where_it_would_fail_for_want_of_an_action(stand: Stand) -> None:
    run = await stand.run(steps=AT_A)
    await stand.workflow({"name": "plain", "steps": [{"id": "a", "action": "x"}, {"id": "b", "action": "y"}]})
    stand.catalog.gone = {"y"}
    for dry_run in (True, False):
        with pytest.raises(Conflict, match="revision in force can't be used any more: no action 'y' is installed"):
            await migrate(stand, dry_run)
    assert await on(stand, run) == [(1, 1)]
    stand.catalog.gone = {"z"}
    assert (await migrate(stand))["moved"] == [run]


# --- what a new definition means -------------------------------------------------------------------------------------


async def touched(stand: Stand, definition: dict[str, Any] | None = None) -> list[Touched]:
    """What a definition would mean for the runs of ``plain``, or disabling it."""
    new = (await stand.workflow(definition)).workflow if definition is not None else None
    return await Impact(stand.pool, stand.catalog).of("plain", new)


async def test_runs_that_stand_alike_are_counted_together(stand: Stand) -> None:
    at_a = [await stand.run(steps=AT_A) for _ in range(3)]
    at_b = await stand.run(steps=AT_B)
    await stand.workflow({**WITHOUT_B, "description": "between"})
    other = await stand.run(status="paused", steps=AT_A)
    await stand.run(status="succeeded", state=None, steps={"a": "succeeded"})
    await stand.run(SAGA, steps={"charge": "retrying"})
    assert await touched(stand, WITHOUT_B) == [
        Touched(1, "waiting", ("a",), 3, min(at_a), ()),
        Touched(1, "waiting", ("b",), 1, at_b, (GONE,)),
        Touched(2, "paused", ("a",), 1, other, ()),
    ]


async def test_a_disabled_workflow_leaves_its_runs_as_they_are(stand: Stand) -> None:
    run = await stand.run(steps=AT_B)
    assert await touched(stand) == [Touched(1, "waiting", ("b",), 1, run, ())]


async def test_a_run_that_has_not_begun_stands_at_no_step(stand: Stand) -> None:
    run = await stand.run(status="running")
    assert await touched(stand, WITHOUT_B) == [Touched(1, "running", (), 1, run, ())]


async def test_a_new_workflow_touches_nothing(stand: Stand) -> None:
    assert await Impact(stand.pool, stand.catalog).of("new", None) == []


async def test_blocks_and_items_are_counted_once(stand: Stand) -> None:
    state = {**PARKED, "blocks": {"each": [3, 2, {}]}}
    steps = {"charge": "succeeded", "each": "running", "book[0]": "retrying", "book[1]": "retrying"}
    run = await stand.run(SAGA, state=state, steps=steps)
    found = await Impact(stand.pool, stand.catalog).of("saga", None)
    assert found == [Touched(1, "waiting", ("book",), 1, run, ())]


async def test_no_more_runs_are_looked_at_than_it_says(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impact_module, "MAX_RUNS", 4)
    monkeypatch.setattr(impact_module, "_PAGE", 2)
    for number in range(6):
        found = await Impact(stand.pool, stand.catalog).of("plain", None)
        assert (sum(group.runs for group in found), found.more) == (min(number, 4), number > 4)
        await stand.run(steps=AT_A)


async def test_what_has_no_end_is_not_listed_for_ever(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impact_module, "MAX_GROUPS", 1)
    await stand.run(steps=AT_A)
    for _ in range(2):
        await stand.run(steps=AT_B)
    found = await Impact(stand.pool, stand.catalog).of("plain", None)
    assert ([(group.at, group.runs) for group in found], found.more) == ([(("b",), 2)], True)


async def test_runs_that_are_over_cost_nothing(stand: Stand) -> None:
    """However many there are: the unfinished ones are found by an index of their own."""
    run = await stand.run(steps=AT_A)
    ((workflow_id, revision_id),) = await stand.rows("SELECT workflow_id, revision_id FROM runs")
    await stand.rows(
        "INSERT INTO runs (id, workflow_id, revision_id, status, version, started_at, updated_at, priority) "
        "SELECT gen_random_uuid(), %s, %s, 'succeeded', 1, now(), now(), 'normal' FROM generate_series(1, 20000)",
        workflow_id,
        revision_id,
    )
    await stand.rows("ANALYZE runs")
    statement = "EXPLAIN (ANALYZE, FORMAT JSON) " + named("unfinished")["page"].decode()
    plan = (await stand.one(statement, workflow_id, uuid7(0), *[None] * 4, 500))[0]["Plan"]
    nodes = [plan]
    for node in nodes:
        nodes += node.get("Plans", ())
    assert [node["Index Name"] for node in nodes if "Index Name" in node]
    read_whole = sum(node.get("Rows Removed by Filter", 0) for node in nodes)
    assert read_whole < 10, "at most a partition with next to nothing in it"
    assert [group.example for group in await touched(stand)] == [run]
