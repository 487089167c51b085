"""The usual case at a third of its price: a run whose first step is an action, and that ends behind it.

What is here is what :func:`~appliance.engine.core.advance` and :func:`~appliance.engine.core.scope` do with the same
input, without a turn; a test holds the two together. None means: not the usual case.
"""

from __future__ import annotations

from typing import Any

from appliance.engine.state import (
    FAILED,
    RUNNING,
    SUCCEEDED,
    ActionSucceeded,
    Command,
    Facts,
    Finish,
    RunAction,
    RunState,
    StepState,
)
from appliance.workflows.revision import Workflow

_FRESH = RunState()
_OVER: tuple[Command, ...] = (Finish(),)


def first_attempt(workflow: Workflow, state: RunState, now: float) -> tuple[RunState, tuple[Command, ...]] | None:
    """A fresh run goes to its first step, an action without a condition."""
    step = workflow.steps[workflow.first]
    if step.kind != "action" or step.condition is not None or state != _FRESH:
        return None
    visit = StepState(step.id, step.id, 0, RUNNING, 1, now, now)
    return RunState(RUNNING, None, {step.id: visit}), (RunAction(step.id, step.id, 1),)


def last_success(
    workflow: Workflow, state: RunState, given: ActionSucceeded, now: float
) -> tuple[RunState, tuple[Command, ...]] | None:
    """The only step that a run went to has succeeded, and nothing follows."""
    if len(state.steps) != 1 or workflow.output is not None or state.ending is not None or state.inbox:
        return None
    visit = state.steps.get(given.key)
    if visit is None or visit.status != RUNNING or state.place is not None:
        return None
    step = workflow.steps[workflow.by_id[visit.step]]
    if step.follow is not None or step.thread != 0 or step.kind != "action":
        return None
    done = StepState(
        visit.key,
        visit.step,
        visit.seq,
        SUCCEEDED,
        visit.attempt,
        visit.first_at,
        visit.started_at,
        now,
        visit.due_at,
        given.output,
    )
    over = RunState(SUCCEEDED, state.at, {visit.key: done}, state.error, now, state.blocks, ending=SUCCEEDED)
    return over, _OVER


def names(facts: Facts, state: RunState, key: str) -> dict[str, Any] | None:
    """What the templates of the only step that a run went to see."""
    if len(state.steps) != 1 or state.place is not None or state.phase or "[" in key:
        return None
    visit = state.steps[key]
    if visit.status == FAILED:
        return None
    seen = {
        "event": facts.view,
        "steps": {visit.step: {"output": visit.output, "status": visit.status, "error": visit.error}},
        "run": facts.run,
        "input": facts.input,
        "error": None,
    }
    return seen if facts.events is None else {**seen, "events": facts.events}
