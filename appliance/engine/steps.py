"""Beginning a step, by its kind: what it does at once, what it waits for, where it leads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from appliance.engine import blocks
from appliance.engine.state import (
    FAILED,
    SKIPPED,
    SUCCEEDED,
    WAITING,
    Ask,
    Call,
    Listen,
    Path,
    RunAction,
    StepState,
    path_of,
)
from appliance.engine.turn import MAX_VISITS, StepError, Turn
from appliance.errors import Malformed
from appliance.events import dumps, loads
from appliance.templating import Template, TemplateError
from appliance.workflows.revision import CONTINUE, END, Step, due_at


class Parked(Exception):
    """The thread stands at the step that was begun: it does not go on for now."""


LATE = "its deadline passed"

Next = int | None
"""The step to go on with; None: the thread is over."""


def walk(turn: Turn, index: Next, thread: int, path: Path, last: str | None) -> None:
    """Go on in a thread from a step until it stands at one or is over."""
    while index is not None:
        if len(turn.steps) >= MAX_VISITS:
            turn.at = turn.at or last or next(reversed(turn.steps))
            blocks.end_run(turn, FAILED, f"the run went through {MAX_VISITS} steps")
            return
        step = turn.workflow.steps[index]
        if step.condition is not None and not step.condition.holds(turn.condition_scope(step, path)):
            visit = turn.visit(step, path, SKIPPED)
            turn.put(visit._replace(attempt=0, first_at=None, started_at=None, finished_at=turn.now))
            index = step.after
            continue
        visit = turn.put(turn.visit(step, path))
        if step.kind == "action":  # by far the most frequent
            turn.commands.append(RunAction(visit.key, step.id, 1))
            return
        try:
            index = _BEGIN[step.kind](turn, step, visit)
        except Parked:
            return
        except (TemplateError, StepError, Malformed) as error:
            blocks.give_up(turn, visit._replace(error=str(error)))
            return
        last = visit.key
    blocks.end_thread(turn, thread, path, last)


def _choose(turn: Turn, step: Step, visit: StepState) -> Next:
    scope = turn.condition_scope(step, path_of(visit.key))
    for number, branch in enumerate(step.branches):
        if branch.condition is None or branch.condition.holds(scope):
            _done(turn, visit, {"branch": number})
            return branch.target
    _done(turn, visit, {"branch": None})
    return step.follow


def _transform(turn: Turn, step: Step, visit: StepState) -> Next:
    scope = turn.scope(step, path_of(visit.key))
    _done(turn, visit, step.logic.evaluate(scope) if step.logic is not None else rendered(step.params, scope))
    return step.follow


def _delay(turn: Turn, step: Step, visit: StepState) -> Next:
    due = _due(step.delay, turn.scope(step, path_of(visit.key)), turn.now, step.hours)
    if due <= turn.now:
        turn.put(visit._replace(status=SUCCEEDED, finished_at=turn.now, due_at=due))
        return step.follow
    turn.put(visit._replace(status=WAITING, due_at=due))
    raise Parked


def _parallel(turn: Turn, step: Step, visit: StepState) -> Next:
    blocks.open_block(turn, visit, len(step.threads))
    raise Parked


def _for_each(turn: Turn, step: Step, visit: StepState) -> Next:
    blocks.open_block(turn, visit, len(turn.items(step, path_of(visit.key))))
    raise Parked


def _wait(turn: Turn, step: Step, visit: StepState) -> Next:
    scope = turn.scope(step, path_of(visit.key))
    values = tuple(rendered(value, scope) for _, value in step.wait.match) if step.wait is not None else ()
    parked = turn.put(visit._replace(status=WAITING, due_at=_deadline(turn, step, visit)))
    turn.commands.append(Listen(parked.key, step.id, values))
    raise Parked


def _human_task(turn: Turn, step: Step, visit: StepState) -> Next:
    path = path_of(visit.key)
    task = step.task
    about = rendered(task.about, turn.scope(step, path)) if task is not None else {}
    # The reminders are counted in `attempt`, from 0.
    parked = turn.put(visit._replace(status=WAITING, attempt=0))
    deadline = _deadline(turn, step, visit)
    turn.put(parked._replace(due_at=task_due(turn, step, parked)))
    turn.commands.append(Ask(parked.key, step.id, about, deadline))
    if task is not None and task.notify is not None:
        notice = turn.workflow.steps[task.notify]
        turn.todo.append((notice.index, notice.thread, path, None))
    raise Parked


def _workflow(turn: Turn, step: Step, visit: StepState) -> Next:
    given = rendered(step.params, turn.scope(step, path_of(visit.key)))
    turn.put(visit._replace(status=WAITING, due_at=_deadline(turn, step, visit)))
    turn.commands.append(Call(visit.key, step.id, step.flow or "", given))
    raise Parked


def _end(turn: Turn, step: Step, visit: StepState) -> Next:
    output = rendered(step.params, turn.scope(step, path_of(visit.key)))
    _done(turn, visit, output)
    if turn.phase:  # in the workflow's on_error: the run is about to end as it is
        turn.output, turn.outcome = output, step.outcome or turn.outcome
        blocks.stop(turn)
        raise Parked
    turn.outcome, turn.output = step.outcome, output
    if step.state is not None:
        turn.place = {**(turn.place or {}), "state": step.state, "entered_at": turn.now, "due_at": None}
    error = f"ended as {step.outcome or 'failed'} at {step.id}" if step.fails else None
    blocks.end_run(turn, FAILED if step.fails else SUCCEEDED, error)
    raise Parked


def _state(turn: Turn, step: Step, visit: StepState) -> Next:
    due = _deadline(turn, step, visit)
    turn.place = {**(turn.place or {}), "state": step.state, "entered_at": turn.now, "due_at": due}
    turn.put(visit._replace(status=WAITING, due_at=due))
    raise Parked


def _stay(turn: Turn, step: Step, visit: StepState) -> Next:
    """Back to the state without entering it anew: its deadline goes on."""
    _done(turn, visit, None)
    state = turn.workflow.steps[step.follow if step.follow is not None else step.index]
    due = (turn.place or {}).get("due_at")
    turn.put(turn.visit(state, ())._replace(status=WAITING, due_at=due))
    raise Parked


_BEGIN: Mapping[str, Callable[[Turn, Step, StepState], Next]] = {
    "choose": _choose,
    "transform": _transform,
    "delay": _delay,
    "parallel": _parallel,
    "for_each": _for_each,
    "wait": _wait,
    "human_task": _human_task,
    "workflow": _workflow,
    "end": _end,
    "state": _state,
    "stay": _stay,
}


def behind(turn: Turn, visit: StepState) -> Next:
    """Where a thread goes on behind a visit that is over."""
    step = turn.step(visit)
    if visit.status == SKIPPED:
        return step.after
    if visit.status == FAILED:
        if visit.error == LATE and step.deadline is not None and step.deadline.target is not None:
            return step.deadline.target
        if step.on_error == CONTINUE:
            return step.follow
        return turn.workflow.by_id[step.on_error] if step.on_error not in (None, END) else None
    taken: int | None = visit.output["branch"] if step.kind == "choose" else None
    return step.follow if taken is None else step.branches[taken].target


def task_due(turn: Turn, step: Step, visit: StepState) -> float | None:
    """When to look at a task again: its next reminder or its deadline, whichever comes first."""
    deadline = _deadline(turn, step, visit)
    reminders = step.task.reminders if step.task is not None else ()
    began = visit.started_at if visit.started_at is not None else turn.now
    dues = [began + after for after in reminders[visit.attempt : visit.attempt + 1]]
    return min([*dues, *([deadline] if deadline is not None else [])], default=None)


def deadline_passed(turn: Turn, step: Step, visit: StepState) -> bool:
    """Whether a task's time is over (rather than a reminder due)."""
    deadline = _deadline(turn, step, visit)
    return deadline is not None and deadline <= turn.now


def _deadline(turn: Turn, step: Step, visit: StepState) -> float | None:
    """A time limit, counted from when the step began."""
    if step.deadline is None:
        return None
    began = visit.started_at if visit.started_at is not None else turn.now
    return _due(step.deadline.due, turn.scope(step, path_of(visit.key)), began, step.hours)


def _due(template: Template | None, scope: Mapping[str, Any], now: float, hours: Any) -> float:
    due = template.render(scope) if template is not None else {"for": 0}
    return due_at(due, datetime.fromtimestamp(now, UTC), hours).timestamp()


def rendered(template: Template | None, scope: Mapping[str, Any]) -> Any:
    """A template's value as JSON data that can be stored, sharing nothing; raises TemplateError, Malformed."""
    if template is None:
        return None
    return template.render(scope) if template.is_literal else loads(dumps(template.render(scope)))


def _done(turn: Turn, visit: StepState, output: Any) -> StepState:
    if output is not None:
        output = loads(dumps(output))
    return turn.put(visit._replace(status=SUCCEEDED, finished_at=turn.now, output=output))
