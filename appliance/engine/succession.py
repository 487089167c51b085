"""Whether a run can go on in another definition: what of the place where it stands that definition lacks.

A run stands at steps, known by their ids, within blocks whose progress is counted by branch and item. All that must be
found again in the new definition. What comes behind may be anything, and so may what was done already, unless it may
have to be undone.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.engine.state import FAILED, RUNNING, SUCCEEDED, TERMINAL, UNKNOWN, WAITING, RunState, StepState, step_of
from appliance.workflows.revision import Step, Workflow

_BEGUN = frozenset({SUCCEEDED, RUNNING, WAITING, UNKNOWN})
"""Statuses of a step that had its effect, or may have it yet."""


def gaps(old: Workflow, new: Workflow, state: RunState) -> tuple[str, ...]:
    """Why a run of ``old`` that stands as ``state`` can't go on in ``new``, in words for people; empty: it can.

    Of ``state`` its active steps, the ids and statuses of the others, ``ending`` and ``place`` are looked at. What a
    step waits for (until when, which events, which form) was fixed when it began, and stays so.
    """
    if state.status in TERMINAL:
        return ("it is over",)
    if old.machine is not None and new.machine is None:
        return ("it is a state machine, and the new definition is not",)
    if old.machine is None and new.machine is not None:
        return ("it goes through steps, and the new definition is a state machine",)
    return tuple(dict.fromkeys(_all(old, new, state)))


def _all(old: Workflow, new: Workflow, state: RunState) -> Iterator[str]:
    active = state.active()
    if not active and state.ending is None:
        yield from _not_begun(old, new, state)
    yield from _machine(old, new, state)
    for visit in active:
        yield from _standing(old, new, visit)
    yield from _to_undo(old, new, state)
    if state.ending == FAILED:
        yield from _to_retry(old, new, state)


def _not_begun(old: Workflow, new: Workflow, state: RunState) -> Iterator[str]:
    if state.steps:
        yield "it is a rerun that has not begun: it is to begin behind steps that were taken over"
    elif old.control is not None or new.control is not None:
        yield "it has not begun, and flow control says when it does"
    elif old.inputs != new.inputs:
        yield "it has not begun, and what it is to begin with was checked by other `inputs`"


def _machine(old: Workflow, new: Workflow, state: RunState) -> Iterator[str]:
    if old.machine is None or new.machine is None:
        return
    if old.machine.correlate.written != new.machine.correlate.written:
        yield "its business key was made by another `correlate`"
    place = (state.place or {}).get("state")
    if place is not None and place not in new.machine.states:
        yield f"it is in the state `{place}`, which the new definition does not have"


def _standing(old: Workflow, new: Workflow, visit: StepState) -> Iterator[str]:
    """What the step of an active visit lacks in ``new``."""
    step, index = old.steps[old.by_id[visit.step]], new.by_id.get(visit.step)
    if index is None:
        if step.kind != "state":  # which was said of the place
            yield f"it stands at the step `{step.id}`, which the new definition does not have"
        return
    found = new.steps[index]
    if found.kind != step.kind:
        yield f"it stands at the step `{step.id}`, a `{step.kind}`, which in the new definition is a `{found.kind}`"
        return
    here, there = _place(old, step), _place(new, found)
    if here != there:
        yield f"it stands at the step `{step.id}` {_named(here)}, which in the new definition is {_named(there)}"
        return
    yield from _around(old, new, step, found)
    yield from _waits(step, found, visit)


def _waits(step: Step, found: Step, visit: StepState) -> Iterator[str]:
    """What the run waits for at a step, and the new definition would not know what to do with."""
    if visit.status == WAITING and visit.due_at is not None and step.deadline is not None and found.deadline is None:
        yield f"it waits at `{step.id}` until a deadline, and the new definition has none there"
    elif step.kind == "state" and visit.due_at is None and not found.transitions:
        yield f"it is in the state `{step.id}` without a deadline, and in the new definition no event leads on"
    elif step.at_most_once and visit.status == RUNNING and not found.at_most_once:
        yield f"an attempt of `{step.id}` may have been made, and the new definition would make it again"


def _around(old: Workflow, new: Workflow, step: Step, found: Step) -> Iterator[str]:
    """What is different about the blocks around a step that stands in the same place, itself counted in."""
    blocks = [(step, found), *zip(_blocks(old, step), _blocks(new, found), strict=True)]
    for before, after in blocks:
        if before.kind == "parallel":
            had, has = _branches(old, before), _branches(new, after)
            if had != has:
                yield f"`{before.id}` has the branches {_listed(had)}, and in the new definition {_listed(has)}"
            elif before.join != after.join:
                yield f"`{before.id}` is joined by {before.join} branches, and in the new definition by {after.join}"
        elif before.kind == "for_each" and _items(before) != _items(after):
            yield f"`{before.id}` goes through other items in the new definition"


def _to_undo(old: Workflow, new: Workflow, state: RunState) -> Iterator[str]:
    """What was done, or may be, and may have to be undone: the new definition must know how."""
    for step_id in dict.fromkeys(visit.step for visit in state.steps.values() if visit.status in _BEGUN):
        step = _step(old, step_id)
        if step is None or step.compensate is None:
            continue
        found = _step(new, step_id)
        if found is None or found.compensate is None:
            yield f"what the step `{step_id}` did would not be undone: the new definition has no `compensate` for it"
        elif _place(old, step) != _place(new, found) or any(_around_items(old, new, step, found)):
            yield f"the step `{step_id}`, which may have to be undone, is in another place in the new definition"


def _to_retry(old: Workflow, new: Workflow, state: RunState) -> Iterator[str]:
    """A run that is about to end as failed may be tried again: at the step that failed, and in the blocks around it."""
    if state.at is None:
        return
    needed = [visit.step for visit in state.steps.values()] if state.blocks else [step_of(state.at)]
    for step_id in dict.fromkeys(needed):
        step, found = _step(old, step_id), _step(new, step_id)
        if step is None:
            continue
        same = found is not None and found.kind == step.kind and _place(old, step) == _place(new, found)
        if found is None or not same or any(_around(old, new, step, found)):
            yield f"it failed, and a retry needs the step `{step_id}`, which the new definition does not have as it was"


def _around_items(old: Workflow, new: Workflow, step: Step, found: Step) -> Iterator[bool]:
    """Of each block around a step, whether it goes through other items."""
    for before, after in zip(_blocks(old, step), _blocks(new, found), strict=True):
        yield _items(before) != _items(after)


def _step(workflow: Workflow, step_id: str) -> Step | None:
    index = workflow.by_id.get(step_id)
    return None if index is None else workflow.steps[index]


def _place(workflow: Workflow, step: Step) -> tuple[str, ...]:
    """Where a step stands: the branches around it (and around what it belongs to), the innermost first."""
    place = []
    while True:
        thread = workflow.threads[step.thread]
        if thread.parent is not None:
            step = workflow.steps[thread.parent]
            place.append(f"the branch `{thread.name}` of `{step.id}`" if step.kind == "parallel" else f"`{step.id}`")
        elif step.owner is not None:
            step = workflow.steps[step.owner]
            place.append(f"what belongs to `{step.id}`")
        else:
            return (*place, *(["`on_error`"] if thread.index == workflow.on_error else []))


def _blocks(workflow: Workflow, step: Step) -> Iterator[Step]:
    """The blocks around a step, the innermost first; around a hidden one those of the step that it belongs to."""
    while True:
        thread = workflow.threads[step.thread]
        if thread.parent is not None:
            step = workflow.steps[thread.parent]
            yield step
        elif step.owner is not None:
            step = workflow.steps[step.owner]
        else:
            return


def _items(block: Step) -> object:
    return block.items.written if block.items is not None else None


def _named(place: tuple[str, ...]) -> str:
    return "in " + ", in ".join(place) if place else "outside of all blocks"


def _branches(workflow: Workflow, block: Step) -> list[str]:
    return [workflow.threads[thread].name for thread in block.threads]


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
