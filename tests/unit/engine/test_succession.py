"""Which runs can go on in another definition, and why not; and that those that can do so come to an end in it.

``SIMULATION_CASES`` and ``SIMULATION_SEED`` are as in ``test_simulation.py``.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.executor import _facts
from appliance.engine.following import obstacles
from appliance.engine.state import ACTIVE, CANCELLED, FAILED, SUCCEEDED, TIMER, UNKNOWN, RunState, Started
from appliance.engine.succession import gaps
from appliance.errors import DefinitionError
from appliance.store.runs import StoredRun
from appliance.workflows.compile import compile_workflow
from appliance.workflows.nesting import nested_lists
from appliance.workflows.revision import Revision, Workflow
from tests.unit.engine.life import Life, Step, act, flow, undoable
from tests.unit.engine.made import Maker
from tests.unit.engine.people import People
from tests.unit.engine.simulation import EVENT, MAIN, START, Storm, World
from tests.unit.engine.tables import Run
from tests.unit.engine.test_simulation import _ROUNDS, GROUPS, _help_on, _shown, seeds

PAGE = (Path(__file__).parents[3] / "docs" / "workflows.md").read_text()
TABLE = PAGE.partition("### Runs that are under way")[2].partition("\n**By hand.**")[0]
REASONS = re.findall(r"^\| [^|]+ \| (.*) \|$", TABLE, re.MULTILINE)[1:]

ASK: Step = {"id": "ask", "human_task": {"title": "Say"}}
WAIT: Step = {"id": "ask", "wait": {"event": "go"}, "forever": True}
LATE: Step = {"id": "ask", "wait": {"event": "go"}, "deadline": {"after": "1h"}}


def both(*branches: list[Step], join: Any = "all") -> Step:
    return {"id": "both", "parallel": {"branches": dict(zip("xyz", branches, strict=False)), "join": join}}


def each(*steps: Step, items: Any = ("a", "b")) -> Step:
    return {"id": "each", "for_each": {"items": items if isinstance(items, str) else [*items], "steps": [*steps]}}


def machine(**more: Any) -> Workflow:
    states = {"open": {"on": {"go": {"next": "done"}}}, "done": {"final": True}}
    made = {"name": "w", "trigger": {"event": "t"}, "correlate": "{{ event.id }}", "initial": "open", "states": states}
    return compile_workflow(made | more, actions=None)


def state_of(workflow: Workflow, *done: str) -> RunState:
    """A run of a workflow that has begun, with the attempts of these steps made."""
    life = Life(workflow)
    for key in done:
        if key.startswith("no:"):
            life.fail(key.removeprefix("no:"))
        else:
            life.ok(key)
    return life.state


def copied(workflow: Workflow) -> Workflow:
    return compile_workflow(dict(workflow.definition), actions=None)


def names(**more: Any) -> Workflow:
    return flow(WAIT, inputs={"type": "object", **more})


DIFFERENT = [
    (flow(ASK), flow(act("b")), (), "it stands at the step `ask`, which the new definition does not have"),
    (flow(ASK), flow(WAIT), (), "it stands at the step `ask`, a `human_task`, which in the new definition is a `wait`"),
    (
        flow(WAIT),
        flow(both([WAIT], [act("b")])),
        (),
        "it stands at the step `ask` outside of all blocks, which in the new definition is in the branch `x` of `both`",
    ),
    (
        flow(each(WAIT)),
        flow(both([each(WAIT)], [act("b")])),
        (),
        "it stands at the step `ask` in `each`, which in the new definition is in `each`, in the branch `x` of `both`",
    ),
    (
        flow(act("a"), on_error=[WAIT]),
        flow(WAIT),
        ("no:a",),
        "it stands at the step `ask` in `on_error`, which in the new definition is outside of all blocks",
    ),
    (
        flow(both([WAIT], [act("b")])),
        flow(both([WAIT], [act("b")], join="any")),
        (),
        "`both` is joined by 2 branches, and in the new definition by 1",
    ),
    (
        flow(both([WAIT], [act("b")])),
        flow(both([WAIT], [act("b")], [act("c")])),
        (),
        "`both` has the branches `x`, `y`, and in the new definition `x`, `y`, `z`",
    ),
    (
        flow(each(WAIT)),
        flow(each(WAIT, items="{{ event.data.lines }}")),
        (),
        "`each` goes through other items in the new definition",
    ),
    (
        flow(undoable("charge"), WAIT),
        flow(act("charge"), WAIT),
        ("charge",),
        "what the step `charge` did would not be undone: the new definition has no `compensate` for it",
    ),
    (
        flow(undoable("charge"), WAIT),
        flow(WAIT),
        ("charge",),
        "what the step `charge` did would not be undone: the new definition has no `compensate` for it",
    ),
    (
        flow(undoable("charge"), WAIT),
        flow(each(undoable("charge")), WAIT),
        ("charge",),
        "the step `charge`, which may have to be undone, is in another place in the new definition",
    ),
    (flow(LATE), flow(WAIT), (), "it waits at `ask` until a deadline, and the new definition has none there"),
    (
        flow(act("charge", effects="at_most_once")),
        flow(act("charge")),
        (),
        "an attempt of `charge` may have been made, and the new definition would make it again",
    ),
    (
        machine(),
        machine(initial="new", states={"new": {"on": {"go": {"next": "done"}}}, "done": {"final": True}}),
        (),
        "it is in the state `open`, which the new definition does not have",
    ),
    (
        machine(),
        machine(states={"open": {"deadline": {"after": "1h", "next": "done"}}, "done": {"final": True}}),
        (),
        "it is in the state `open` without a deadline, and in the new definition no event leads on",
    ),
    (machine(), machine(correlate="{{ event.type }}"), (), "its business key was made by another `correlate`"),
    (flow(WAIT), machine(), (), "it goes through steps, and the new definition is a state machine"),
    (machine(), flow(WAIT), (), "it is a state machine, and the new definition is not"),
    (
        names(),
        names(required=["name"]),
        None,
        "it has not begun, and what it is to begin with was checked by other `inputs`",
    ),
    (
        flow(WAIT),
        flow(WAIT, concurrency={"limit": 1}),
        None,
        "it has not begun, and flow control says when it does",
    ),
]


@pytest.mark.parametrize(("old", "new", "done", "why"), DIFFERENT, ids=[case[3][:60] for case in DIFFERENT])
def test_what_a_run_stands_on_and_the_new_definition_lacks_is_said(
    old: Workflow, new: Workflow, done: tuple[str, ...] | None, why: str
) -> None:
    state = RunState() if done is None else state_of(old, *done)
    assert why in gaps(old, new, state)
    assert gaps(old, copied(old), state) == ()


def test_the_reasons_of_the_page_are_those_that_are_given() -> None:
    assert set(REASONS) <= {why for _, _, _, why in DIFFERENT}
    assert len(REASONS) > 8


@pytest.mark.parametrize(
    ("old", "new", "done"),
    [
        (flow(act("a"), WAIT, act("b")), flow(WAIT, act("c")), ("a",)),
        (flow(WAIT), flow(act("a"), WAIT), ()),
        (flow(WAIT), flow({**LATE, "on_error": "continue"}, act("b")), ()),
        (flow(LATE), flow({**LATE, "deadline": {"after": "5h"}}), ()),
        (flow(act("a")), flow(act("a", effects="at_most_once")), ()),
        (flow(act("charge"), WAIT), flow(undoable("charge"), WAIT), ("charge",)),
        (flow(each(act("a"), WAIT)), flow(each(WAIT, act("b")) | {"description": "b"}), ("a[0]",)),
        (machine(), machine(states={"open": {"on": {"x": {"next": "done"}}}, "done": {"final": True}}), ()),
        (flow(WAIT), flow({"id": "c", "choose": [{"steps": [WAIT]}]}), ()),
    ],
    ids=[
        "what is done is gone",
        "what comes before is new",
        "other ways on",
        "another deadline",
        "more careful",
        "it can be undone now",
        "other steps in a block",
        "other transitions",
        "a choice around it",
    ],
)
def test_the_rest_may_be_different(old: Workflow, new: Workflow, done: tuple[str, ...]) -> None:
    assert gaps(old, new, state_of(old, *done)) == ()


def test_a_run_that_is_over_goes_nowhere() -> None:
    assert gaps(flow(act("a")), flow(act("a")), state_of(flow(act("a")), "a")) == ("it is over",)


def test_what_was_failed_at_must_be_there_for_a_retry() -> None:
    old = flow(act("a"), on_error=[WAIT])
    life = Life(old)
    life.fail("a")
    why = "it failed, and a retry needs the step `a`, which the new definition does not have as it was"
    assert gaps(old, flow(act("b"), on_error=[WAIT]), life.state) == (why,)
    assert gaps(old, flow(act("a"), act("b"), on_error=[WAIT, act("c")]), life.state) == ()


def test_what_undoes_and_tells_is_needed_while_it_is_at_work() -> None:
    old = flow(undoable("charge"), act("b"))
    life = Life(old)
    life.ok("charge")
    life.fail("b")
    assert life.standing() == ["charge.compensate"]
    gone = gaps(old, flow(act("charge"), act("b")), life.state)
    assert "it stands at the step `charge.compensate`, which the new definition does not have" in gone
    task = {"id": "ask", "human_task": {"title": "Say", "notify": {"action": "tell"}}}
    told = Life(flow(task))
    assert gaps(told.workflow, flow(ASK), told.state) == (
        "it stands at the step `ask.notify`, which the new definition does not have",
    )


def test_steps_that_are_gone_are_not_missed_later() -> None:
    """The run goes on, fails, undoes what it knows of, and is tried again, with a step behind it that nobody knows."""
    life = Life(flow(act("old"), WAIT, act("b")))
    life.ok("old")
    life.workflow = flow(WAIT, act("c"), on_error=[act("alarm")])
    life.event("go", "ask")
    assert life.asked == ["c"]
    life.fail("c")
    assert life.asked == ["alarm"]
    life.ok("alarm")
    assert life.over == FAILED
    life.retry()
    life.ok("c")
    assert life.over == SUCCEEDED


def test_a_rerun_that_has_not_begun_stays_where_it_was_put() -> None:
    run = StoredRun("r", None, 1, 1, 1, 0.0, "normal", RunState(), details={"rerun": {"from": "a"}})
    assert obstacles(run, flow(act("a")), flow(act("a"))) == (
        "it is a rerun that has not begun, and the revision of those was chosen",
    )


# --- whatever the new definition is ----------------------------------------------------------------------------------


class Changing(World):
    """A world in which definitions change, and parked runs follow as far as they can."""

    def __init__(self, family: list[Workflow], seed: int, storm: Storm) -> None:
        super().__init__(family, seed, storm)
        self.all = {revision.id: revision for revision in self.revisions.values()}
        self.moved = self.stayed = 0
        self.owed: set[tuple[str, str]] = set()
        """What was done and can be undone: run and key of the step."""

    def publish(self, workflow: Workflow) -> None:
        revision = Revision(len(self.all), self.revisions[workflow.name].workflow_id, len(self.all), workflow)
        self.all[revision.id] = self.revisions[workflow.name] = revision

    def workflow(self, run: Run) -> Workflow:
        return self.all[run.revision].workflow

    def _stored(self, run: Run, holder: str | None) -> Any:
        drive = super()._stored(run, holder)
        own = self.all[run.revision]
        drive.revision, target = own, self.revisions[own.workflow.name]
        if holder is not None and run.holder == TIMER and target.id != own.id:
            state = run.loaded()
            stored = StoredRun(
                run.id, None, 0, 0, run.version, START, "normal", state, details=run.details, asked=run.asked
            )
            if obstacles(stored, own.workflow, target.workflow):
                self.stayed += 1
            else:
                self.moved += 1
                self._owe(run, own.workflow)
                drive.revision, drive.moves = target, True
        drive.facts = _facts(run.id, drive.revision, EVENT.view(), run.details.get("input", EVENT.data), START)
        return drive

    def _owe(self, run: Run, own: Workflow) -> None:
        for key, row in run.steps.items():
            index = own.by_id.get(key.partition("[")[0].partition("#")[0])
            if row.status == SUCCEEDED and index is not None and own.steps[index].compensate is not None:
                self.owed.add((run.id, key))


def lists_of(definition: Step) -> Iterator[list[Any]]:
    """Every list of steps in a definition."""
    roots = [definition[name] for name in ("steps", "on_error") if name in definition]
    for state in definition.get("states", {}).values():
        roots += [state["enter"]] if state.get("enter") else []
        for ways in state.get("on", {}).values():
            roots += [way["do"] for way in (ways if isinstance(ways, list) else [ways]) if way.get("do")]
    while roots:
        steps = roots.pop()
        yield steps
        roots += [inner for step in steps for _, inner in nested_lists(step)]


def another(definition: Step, rng: random.Random) -> Workflow | None:
    """A definition of the same name that is a little different, or very; None if what was tried is refused."""
    for _ in range(20):
        made = copy.deepcopy(definition)
        try:
            for _ in range(rng.randint(1, 3)):
                rng.choice(CHANGES)(made, rng)
            return compile_workflow(made, actions=None)
        except (DefinitionError, KeyError, IndexError, ValueError):
            continue  # there was nothing to change so, or it can't be so
    return None


def _drop(made: Step, rng: random.Random) -> None:
    steps = rng.choice([*lists_of(made)])
    steps.pop(rng.randrange(len(steps)))


def _add(made: Step, rng: random.Random) -> None:
    steps = rng.choice([*lists_of(made)])
    step: Step = {"id": f"new{rng.randrange(10_000)}", "action": "x"}
    if rng.random() < 0.5:
        step["compensate"] = {"action": "undo"}
    steps.insert(rng.randint(0, len(steps)), step)


def _swap(made: Step, rng: random.Random) -> None:
    steps = rng.choice([*lists_of(made)])
    rng.shuffle(steps)


def _wrap(made: Step, rng: random.Random) -> None:
    steps = rng.choice([*lists_of(made)])
    at = rng.randrange(len(steps))
    other = {"id": f"new{rng.randrange(10_000)}", "action": "x"}
    block: Step = {"parallel": {"branches": {"b0": [steps[at]], "b1": [other]}, "join": "all"}}
    if rng.random() < 0.5:
        block = {"for_each": {"items": ["a", "b"], "steps": [steps[at]]}}
    steps[at] = {"id": f"new{rng.randrange(10_000)}", **block}


def _unwrap(made: Step, rng: random.Random) -> None:
    steps = rng.choice([*lists_of(made)])
    at = rng.randrange(len(steps))
    inside = [inner for _, inner in nested_lists(steps[at])]
    steps[at : at + 1] = rng.choice(inside)


def _retouch(made: Step, rng: random.Random) -> None:
    """Another part of a step: how it is undone, how long it waits, how it is joined …."""
    step = rng.choice(rng.choice([*lists_of(made)]))
    for name in ("compensate", "deadline", "forever", "effects", "on_error", "next", "if", "retry"):
        if rng.random() < 0.3:
            step.pop(name, None)
    if "action" in step and rng.random() < 0.5:
        step["compensate"] = {"action": "undo"}
    if "wait" in step or "human_task" in step:
        rng.choice([step.update, step.__ior__])(
            {"deadline": {"after": "1m"}} if rng.random() < 0.5 else {"forever": True}
        )
    if "parallel" in step:
        step["parallel"]["join"] = rng.choice(["any", "all", 2])
    if "for_each" in step:
        step["for_each"]["items"] = rng.choice([["a"], "{{ event.data.lines }}", "{{ event.data.n }}"])


def _rework(made: Step, rng: random.Random) -> None:
    """Something else altogether, whose steps have the same ids."""
    other = Maker(rng, calm=False).family()[0].definition
    for name in ("steps", "states", "initial", "correlate", "forever", "on_error"):
        made.pop(name, None)
        if name in other:
            made[name] = copy.deepcopy(other[name])


def _restate(made: Step, rng: random.Random) -> None:
    """Another way between the states of a machine."""
    states = made["states"]
    name = rng.choice([*states])
    if rng.random() < 0.3:
        del states[name]
    elif rng.random() < 0.5:
        states[name].pop("deadline", None)
    else:
        states[name]["on"] = {rng.choice(["go", "back", "done"]): {"next": rng.choice([*states])}}


CHANGES: list[Callable[[Step, random.Random], None]] = [
    _drop, _drop, _add, _swap, _wrap, _unwrap, _retouch, _retouch, _rework, _restate,
]  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_whatever_definitions_become_runs_that_follow_come_to_an_end(group: int) -> None:
    moved = stayed = 0
    for seed in seeds(group)[::2]:  # compiling the definitions takes most of the time
        world = _played(seed)
        moved, stayed = moved + world.moved, stayed + world.stayed
    assert moved, "no run ever followed"
    assert stayed, "every run could follow"


def _played(seed: int) -> Changing:
    rng = random.Random(seed)
    family = Maker(rng, calm=False).family()
    world = Changing(family, seed, Storm(rng.randint(1, 3), rng.choice([0.0, 0.1]), 0.1, 0.1))
    people = People(world, rng)
    try:
        world.enqueue(MAIN, wake=False)
        people.disturb(rng.choice([0, 5]), rng.choice([10.0, 200.0]))
        for after_s in (1.0, 30.0, 300.0, 4000.0):
            world.later(rng.uniform(0, after_s), lambda: _change(world, rng))
        for number in range(_ROUNDS):
            world.play()
            if all(run.over for run in world.tables.runs.values()):
                break
            _change(world, rng)
            _help_on(world, people, giving_up=number > _ROUNDS - 20)
        _check(world)
    except BaseException as error:
        definitions = [revision.workflow.definition for revision in world.all.values()]
        error.add_note(f"{seed=}\n{definitions}\n{_shown(world)}")
        raise
    finally:
        world.close()
    return world


def _change(world: Changing, rng: random.Random) -> None:
    """Another definition of one of the workflows, or an earlier one again."""
    name = rng.choice([*world.revisions])
    earlier = [revision.workflow for revision in world.all.values() if revision.workflow.name == name]
    found = rng.choice(earlier) if rng.random() < 0.2 else another(dict(rng.choice(earlier).definition), rng)
    if found is not None:
        world.publish(found)


def _check(world: Changing) -> None:
    for run in world.tables.runs.values():
        assert run.over, f"a run that doesn't end: {run.id}"
        assert not [row.key for row in run.steps.values() if row.status in ACTIVE and row.status != UNKNOWN]
        assert not [key for key in (*world.tables.timers, *world.tables.waits) if key[0] == run.id]
    for run_id, key in world.owed:
        run = world.tables.runs[run_id]
        if run.status in (FAILED, CANCELLED) and run.error != "end":
            step = key.partition("[")[0].partition("#")[0]
            assert key.replace(step, f"{step}.compensate", 1) in run.steps, f"{key} of {run_id} was not undone"


def test_a_run_may_begin_in_a_definition_that_came_after_it() -> None:
    old, new = flow(act("a")), flow(act("b"))
    assert gaps(old, new, RunState()) == ()
    life = Life(old)
    life.workflow, life.state = new, RunState()
    life.given(Started())
    assert life.asked == ["b"]
