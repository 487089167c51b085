"""The life of a run as a pure function: ``advance(workflow, view, state, given, now) -> (state, command)``.

No I/O, no clock and no chance of its own, so that simulation under a virtual clock, dry runs and model checking are
cheap. The shell (``engine/executor.py``) carries out the command and comes back with what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from appliance.engine.state import (
    FAILED,
    RETRYING,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    TERMINAL,
    WAITING,
    ActionFailed,
    ActionSucceeded,
    Command,
    Finish,
    Input,
    Resumed,
    Retried,
    RunAction,
    RunState,
    Started,
    StepState,
    WaitUntil,
)
from appliance.templating import TemplateError
from appliance.workflows.revision import CONTINUE, END, Step, Workflow, due_at

MAX_RETRY_AFTER_S = 86_400.0
"""The longest wait that the other side may ask for: a wrong header must not park a run for years."""

View = Mapping[str, Any]
"""The event as criteria see it (``Event.view()``)."""


def advance(workflow: Workflow, view: View, state: RunState, given: Input, now: float) -> tuple[RunState, Command]:
    """What a run is after ``given`` happened at ``now`` (Unix seconds), and what is to be done next.

    A finished run stays as it is. Raises ValueError for a result of a step that the run does not stand at: the caller
    has mixed up its runs.
    """
    if isinstance(given, Retried):
        return _retry(state, now)
    if state.status in TERMINAL:
        return state, Finish()
    match given:
        case Started():
            return _enter(workflow, view, state, 0, now)
        case Resumed():
            return _resume(workflow, view, state, now)
        case ActionSucceeded():
            return _succeeded(workflow, view, state, given, now)
        case ActionFailed():
            return _failed(workflow, view, state, given, now)


def _enter(workflow: Workflow, view: View, state: RunState, index: int, now: float) -> tuple[RunState, Command]:
    """Go to the first step from ``index`` on whose condition holds; past the last one the run has succeeded."""
    while index < len(workflow.steps):
        step = workflow.steps[index]
        if step.condition is None or step.condition.holds(_scope(view, state)):
            return _begin(workflow, view, state, step, now)
        skipped = StepState(_key(state, step), step.id, len(state.steps), SKIPPED, finished_at=now)
        state = state.with_step(skipped)
        index += 1
    return _finish(state, SUCCEEDED, now)


def _begin(workflow: Workflow, view: View, state: RunState, step: Step, now: float) -> tuple[RunState, Command]:
    key = _key(state, step)
    fresh = StepState(key, step.id, len(state.steps), RUNNING, attempt=1, first_at=now, started_at=now)
    if step.kind == "delay":
        return _delay(workflow, view, state.with_step(fresh, at=key, status=RUNNING), fresh, now)
    return state.with_step(fresh, at=key, status=RUNNING), RunAction(key, step.id, 1)


def _delay(workflow: Workflow, view: View, state: RunState, fresh: StepState, now: float) -> tuple[RunState, Command]:
    step = _step(workflow, fresh)
    scope = {"event": view, "steps": state.outputs()}
    try:
        rendered = step.delay.render(scope) if step.delay is not None else {"for": 0}
        due = due_at(rendered, datetime.fromtimestamp(now, UTC)).timestamp()
    except TemplateError as error:
        return _give_up(workflow, view, state, fresh._replace(error=str(error)), now)
    if due <= now:
        return _leave(workflow, view, state, fresh._replace(status=SUCCEEDED, finished_at=now, due_at=due), now)
    return state.with_step(fresh._replace(status=WAITING, due_at=due), status=WAITING), WaitUntil(fresh.key, due)


def _resume(workflow: Workflow, view: View, state: RunState, now: float) -> tuple[RunState, Command]:
    if state.at is None:
        return _enter(workflow, view, state, 0, now)
    current = state.steps[state.at]
    if current.status in (WAITING, RETRYING) and current.due_at is not None and current.due_at > now:
        return state, WaitUntil(current.key, current.due_at)
    if current.status == WAITING:
        return _leave(workflow, view, state, current._replace(status=SUCCEEDED, finished_at=now), now)
    attempt = current.attempt + 1 if current.status == RETRYING else max(1, current.attempt)
    again = current._replace(status=RUNNING, attempt=attempt, started_at=now, due_at=None)
    if _step(workflow, again).kind == "delay":
        return _delay(workflow, view, state, again, now)
    return state.with_step(again, status=RUNNING), RunAction(again.key, again.step, again.attempt)


def _retry(state: RunState, now: float) -> tuple[RunState, Command]:
    """The failed step is due again at once, with all its attempts."""
    if state.status != FAILED or state.at is None:
        return state, Finish()
    failed = state.steps[state.at]
    due = failed._replace(
        status=RETRYING, attempt=0, first_at=now, started_at=None, finished_at=None, due_at=now, error=None
    )
    return state.with_step(due, RETRYING)._replace(error=None, finished_at=None), WaitUntil(due.key, now)


def _succeeded(
    workflow: Workflow, view: View, state: RunState, given: ActionSucceeded, now: float
) -> tuple[RunState, Command]:
    done = _current(state, given.key)._replace(status=SUCCEEDED, finished_at=now, output=given.output, error=None)
    return _leave(workflow, view, state, done, now)


def _failed(
    workflow: Workflow, view: View, state: RunState, given: ActionFailed, now: float
) -> tuple[RunState, Command]:
    current = _current(state, given.key)
    step = _step(workflow, current)
    failed = current._replace(error=given.error)
    due = _next_attempt(step, current, given, now) if given.retryable else None
    if due is None:
        return _give_up(workflow, view, state, failed, now)
    waiting = failed._replace(status=RETRYING, due_at=due)
    return state.with_step(waiting, status=RETRYING), WaitUntil(waiting.key, due)


def _next_attempt(step: Step, current: StepState, given: ActionFailed, now: float) -> float | None:
    """When to try again, or None when the attempts are used up."""
    policy = step.retry
    if current.attempt >= policy.max_attempts:
        return None
    asked = min(given.after_s or 0.0, MAX_RETRY_AFTER_S)
    due = now + max(policy.backoff_s(current.attempt, lambda: given.chance), asked)
    began = current.first_at if current.first_at is not None else now
    if policy.max_elapsed_s is not None and due > began + policy.max_elapsed_s:
        return None
    return due


def _give_up(
    workflow: Workflow, view: View, state: RunState, failed: StepState, now: float
) -> tuple[RunState, Command]:
    """No further attempt: go where ``on_error`` points, or fail the run."""
    step = _step(workflow, failed)
    failed = failed._replace(status=FAILED, finished_at=now, due_at=None)
    state = state.with_step(failed)
    if step.on_error is None:
        ended = state._replace(status=FAILED, at=failed.key, error=failed.error, finished_at=now)
        return ended, Finish(dead=failed.key)
    if step.on_error == CONTINUE:
        return _leave(workflow, view, state, failed, now)
    if step.on_error == END:
        return _finish(state, SUCCEEDED, now)
    return _enter(workflow, view, state, workflow.by_id[step.on_error], now)


def _leave(workflow: Workflow, view: View, state: RunState, done: StepState, now: float) -> tuple[RunState, Command]:
    """Go on behind a step that is over."""
    state = state.with_step(done)
    step = _step(workflow, done)
    if step.next == END:
        return _finish(state, SUCCEEDED, now)
    index = step.index + 1 if step.next is None else workflow.by_id[step.next]
    return _enter(workflow, view, state, index, now)


def _finish(state: RunState, status: str, now: float) -> tuple[RunState, Command]:
    return RunState(status, None, state.steps, state.error, now), Finish()


def _scope(view: View, state: RunState) -> dict[str, Any]:
    """What an ``if`` sees: the event's attributes at the root, and ``event`` and ``steps``."""
    return {**view, "event": view, "steps": state.outputs()}


def _step(workflow: Workflow, visit: StepState) -> Step:
    return workflow.steps[workflow.by_id[visit.step]]


def _current(state: RunState, key: str) -> StepState:
    if state.at != key:
        raise ValueError(f"a result of step {key!r} came to a run that stands at {state.at!r}")
    return state.steps[key]


def _key(state: RunState, step: Step) -> str:
    """The step's id; from its second visit on with the visit's number behind it."""
    visits = sum(1 for s in state.steps.values() if s.step == step.id)
    return step.id if visits == 0 else f"{step.id}#{visits + 1}"
