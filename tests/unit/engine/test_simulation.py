"""Thousands of made-up runs under crashes, lost leases, doubled timers and people: what holds whatever happens.

``SIMULATION_CASES`` says how many families of workflows (``make chaos`` plays many more), ``SIMULATION_SEED`` the
one with this number alone.
"""

from __future__ import annotations

import os
import random
from itertools import pairwise

import pytest

from appliance.engine.state import (
    ACTIVE,
    PAUSED,
    SUCCEEDED,
    UNKNOWN,
    WAITING,
    Facts,
    step_of,
)
from appliance.engine.turn import Turn
from appliance.store.rows import StepRow
from appliance.workflows.revision import Workflow
from tests.unit.engine.made import Maker
from tests.unit.engine.people import People
from tests.unit.engine.simulation import MAIN, Storm, World
from tests.unit.engine.tables import Run

CASES = int(os.environ.get("SIMULATION_CASES", "240"))
SEED = os.environ.get("SIMULATION_SEED")
_GROUPS = 8
_WAYS = 4
"""How often each family of workflows is played: compiling takes longer than playing."""
_ROUNDS = 60


def seeds(group: int) -> list[int]:
    """The seeds of one of the groups: a group is one test, so that they share the processors."""
    return [int(SEED)] if SEED is not None else list(range(group, CASES, _GROUPS))


GROUPS = range(1 if SEED is not None else _GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_whatever_happens_every_run_ends_and_nothing_is_done_twice(group: int) -> None:
    for seed in seeds(group):
        family = Maker(random.Random(seed), calm=False).family()
        for way in range(_WAYS):
            _wild(family, seed * _WAYS + way)


@pytest.mark.parametrize("group", GROUPS)
def test_neither_replicas_nor_crashes_decide_how_a_run_ends(group: int) -> None:
    for seed in seeds(group):
        family = Maker(random.Random(seed), calm=True).family()
        expected = _calm(family, seed, Storm())
        for way in range(1, _WAYS):
            storm = Storm(replicas=1 + way, crash=0.15, steal=0.1, twice=0.1)
            assert _calm(family, seed, storm) == expected, f"{seed=} {way=}\n{family[0].definition}"


def _wild(family: list[Workflow], seed: int) -> None:
    rng = random.Random(seed)
    crash, steal, twice = rng.choices([0.0, 0.1, 0.2], k=3)
    storm = Storm(rng.randint(1, 5), crash, steal, twice)
    world = World(family, seed, storm)
    people = People(world, rng)
    try:
        world.enqueue(MAIN, wake=False)
        people.disturb(rng.choice([0, 5, 20]), rng.choice([10.0, 200.0, 20_000.0]))
        world.play()
        for number in range(_ROUNDS):
            _check(world, people)
            if all(run.over for run in world.tables.runs.values()):
                break
            _help_on(world, people, giving_up=number > _ROUNDS - 10)
            world.play()
        left = [run.status for run in world.tables.runs.values() if not run.over]
        assert not left, f"runs that don't end: {left}"
    except BaseException as error:
        error.add_note(f"{seed=} (family {seed // _WAYS})\n{[w.definition for w in family]}\n{_shown(world)}")
        raise
    finally:
        world.close()


def _help_on(world: World, people: People, *, giving_up: bool) -> None:
    """Nothing happens any more by itself: give every run what it waits for."""
    for run in [run for run in world.tables.runs.values() if not run.over]:
        if run.status == PAUSED or run.asked == "pause":
            people.resume(run)
        for row in list(run.steps.values()):
            if row.status == UNKNOWN:
                people.settle((run, row.key))
        if giving_up:
            people.cancel(run)
    for which in [which for which, status in world.tables.tasks.items() if status == "open"]:
        people.answer(which)
    for which in sorted(world.tables.waits):
        people.send(which, fits=True)
    world.watch()


def _calm(family: list[Workflow], seed: int, storm: Storm) -> object:
    """How the runs end if everything that is asked for comes, in time and the same."""
    world = World(family, seed, storm)
    people = People(world, random.Random(seed))
    try:
        world.enqueue(MAIN, wake=False)
        for number in range(_ROUNDS):
            world.play()
            if all(run.over for run in world.tables.runs.values()):
                break
            _help_on(world, people, giving_up=number == 30)
        _check(world, people)
        runs = sorted(world.tables.runs.values(), key=lambda run: run.id)
        return [_ended(run) for run in runs]
    except BaseException as error:
        error.add_note(f"{seed=}\n{[w.definition for w in family]}\n{_shown(world)}")
        raise
    finally:
        world.close()


def _ended(run: Run) -> object:
    steps = {row.key: (row.status, row.attempt, row.output) for row in run.steps.values() if ".notify" not in row.key}
    return run.id, run.status, run.result, run.error, steps


# --- what must hold --------------------------------------------------------------------------------------------------


def _check(world: World, people: People) -> None:
    for run in world.tables.runs.values():
        if run.over:
            _check_over(world, run, disturbed=run.id in people.disturbed)
        elif run.status != PAUSED:
            _check_standing(world, run)
    for (run_id, key), times in world.begun.items():
        run = world.tables.runs[run_id]
        step = (workflow := world.workflow(run)).steps[workflow.by_id[step_of(key)]]
        if step.at_most_once:
            assert times <= 1 + world.again[run_id, key], f"{key} is made {times} times"


def _check_standing(world: World, run: Run) -> None:
    """Nothing happens any more: the run must stand at something that is there, and that can go on."""
    workflow = world.workflow(run)
    active = [row for row in run.steps.values() if row.status in ACTIVE]
    leaves = [row for row in active if not workflow.steps[workflow.by_id[step_of(row.key)]].threads]
    assert leaves, f"the run stands nowhere: {[row.key for row in active]}"
    for row in leaves:
        kind = workflow.steps[workflow.by_id[step_of(row.key)]].kind
        if row.status == UNKNOWN:
            continue
        assert row.status == WAITING, f"{row.key} is {row.status} for ever"
        asked_to_end = kind == "workflow" and row.error is not None
        assert asked_to_end or _is_live(world, run, row.key), f"nothing goes on behind {row.key}"
        if kind == "human_task":
            assert world.tables.tasks[run.id, row.key] == "open"
        elif kind == "workflow":
            assert not world.tables.runs[world.tables.children[run.id, row.key]].over
        else:
            key = "" if kind == "state" else row.key
            assert kind in ("wait", "state"), f"{row.key}, a {kind}, waits for ever"
            assert (run.id, key) in world.tables.waits


def _check_over(world: World, run: Run, *, disturbed: bool) -> None:
    """Nothing is left of a run that is over, and what it did is undone if it is to be."""
    assert not [row.key for row in run.steps.values() if row.status in ACTIVE and row.status != UNKNOWN]
    assert not [key for key in (*world.tables.timers, *world.tables.waits) if key[0] == run.id]
    assert not [key for key, status in world.tables.tasks.items() if key[0] == run.id and status == "open"]
    if run.error != "end":
        assert not [row.key for row in run.steps.values() if row.status == UNKNOWN]
        _check_undone(world.workflow(run), run)
        _check_known(world, run)


def _is_live(world: World, run: Run, key: str) -> bool:
    state = run.loaded()
    return Turn(world.workflow(run), Facts({}), state, 0.0).is_live(state.steps[key])


def _check_known(world: World, run: Run) -> None:
    """Of what can be undone no effect is forgotten, whoever died while it happened."""
    workflow = world.workflow(run)
    for key, row in run.steps.items():
        step = workflow.steps[workflow.by_id[step_of(key)]]
        if step.compensate is not None and not step.at_most_once and (run.id, key) in world.done:
            assert row.status == SUCCEEDED, f"{key} had its effect and is {row.status}"


def _check_undone(workflow: Workflow, run: Run) -> None:
    """What was done is undone, once, the last first."""
    undone = [row for row in run.steps.values() if step_of(row.key).endswith(".compensate")]
    if run.status == SUCCEEDED:
        assert not undone
        return
    done = {}
    for row in run.steps.values():
        step = workflow.steps[workflow.by_id[step_of(row.key)]]
        if row.status == SUCCEEDED and step.compensate is not None and not _in_handler(workflow, row):
            done[f"{row.key}".replace(step.id, f"{step.id}.compensate", 1)] = row
    assert {row.key for row in undone} == {*done}
    undone.sort(key=lambda row: row.seq)
    ends = [done[row.key].finished_at for row in undone]
    assert ends == sorted(ends, key=lambda at: at or 0.0, reverse=True), "the last is undone first"
    finished = [row.finished_at for row in run.steps.values() if not _in_handler(workflow, row) and row not in undone]
    for row, following in pairwise(undone):
        assert (row.finished_at or 0.0) <= (following.started_at or 0.0), "one after the other"
    if undone:
        assert max(at or 0.0 for at in finished) <= (undone[0].started_at or 0.0), "while nothing else is under way"


def _in_handler(workflow: Workflow, row: StepRow) -> bool:
    step = workflow.steps[workflow.by_id[step_of(row.key)]]
    while True:
        if step.owner is not None and not step.id.endswith(".compensate"):
            step = workflow.steps[step.owner]
        parent = workflow.threads[step.thread].parent
        if parent is None:
            return step.thread == workflow.on_error
        step = workflow.steps[parent]


def _shown(world: World) -> str:
    lines = []
    for run in world.tables.runs.values():
        lines.append(f"{run.id} {world.workflow(run).name} {run.status} {run.asked} {run.state} {run.error}")
        lines += [
            f"   {row.seq} {row.key} {row.status} {row.attempt} {row.due_at} {row.error}" for row in run.steps.values()
        ]
    return "\n".join([*lines, str(world.tables.timers), str(world.tables.waits), str(world.tables.tasks)])
