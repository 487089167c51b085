"""The life of a run as a pure function: ``advance(workflow, facts, state, given, now) -> (state, commands)``.

No I/O, no clock and no chance of its own, so that simulation under a virtual clock, dry runs and model checking are
cheap. The shell (``engine/drive.py``) carries out the commands and comes back with what happened. ``engine/turn.py``
is the state while it is being changed, ``engine/steps.py`` begins steps, ``engine/blocks.py`` joins and fails threads,
``engine/signals.py`` hands out what came in, ``engine/reopening.py`` lets failed runs go on.
"""

from __future__ import annotations

from typing import Any

from appliance.engine import blocks, reopening, shortcuts, signals
from appliance.engine.state import (
    ACTIVE,
    CANCELLED,
    FAILED,
    HANDLING,
    RETRYING,
    RUNNING,
    SUCCEEDED,
    TERMINAL,
    UNDOING,
    UNKNOWN,
    WAITING,
    ActionFailed,
    ActionSucceeded,
    Cancelled,
    Close,
    Command,
    Facts,
    Finish,
    Input,
    Resumed,
    Retried,
    RunAction,
    RunState,
    Started,
    StepState,
    path_of,
)
from appliance.engine.steps import LATE, deadline_passed, rendered, task_due, walk
from appliance.engine.turn import StepError, Turn
from appliance.errors import Malformed
from appliance.templating import TemplateError
from appliance.workflows.revision import Step, Workflow

MAX_RETRY_AFTER_S = 86_400.0
"""The longest wait that the other side may ask for: a wrong header must not park a run for years."""
_AMBIGUOUS = frozenset({"timeout", "error"})
"""Kinds of failure after which nobody knows whether the effect happened."""

Commands = tuple[Command, ...]


def advance(workflow: Workflow, facts: Facts, state: RunState, given: Input, now: float) -> tuple[RunState, Commands]:
    """What a run is after ``given`` happened at ``now`` (Unix seconds), and what is to be done next.

    A finished run stays as it is, but for a failed one that is retried. Raises ValueError for a result of a step that
    the run does not stand at: the caller has mixed up its runs.
    """
    if isinstance(given, Retried):
        return _retry(workflow, facts, state, now)
    if state.status in TERMINAL:
        return state, (Finish(),)
    usual = None
    if isinstance(given, ActionSucceeded):
        usual = shortcuts.last_success(workflow, state, given, now)
    elif isinstance(given, Started) and given.at is None:
        usual = shortcuts.first_attempt(workflow, state, now)
    return usual or take_turn(workflow, facts, state, given, now)


def take_turn(workflow: Workflow, facts: Facts, state: RunState, given: Input, now: float) -> tuple[RunState, Commands]:
    """:func:`advance` for whatever a run that is not over may be told."""
    turn = Turn(workflow, facts, state, now)
    match given:
        case ActionSucceeded():
            _succeeded(turn, given)
        case ActionFailed():
            _failed(turn, given)
        case Started():
            _begin(turn, given.at)
        case Resumed():
            _resume(turn, given)
        case Cancelled():
            _cancel(turn, given.reason)
    _play(turn)
    return turn.result(), tuple(turn.commands)


def scope(workflow: Workflow, facts: Facts, state: RunState, key: str, now: float) -> dict[str, Any]:
    """What the parameters of the step with this key see, but for secrets; raises StepError."""
    usual = shortcuts.names(facts, state, key)
    return usual if usual is not None else scope_of_turn(workflow, facts, state, key, now)


def scope_of_turn(workflow: Workflow, facts: Facts, state: RunState, key: str, now: float) -> dict[str, Any]:
    """:func:`scope` for any step."""
    turn = Turn(workflow, facts, state, now)
    return turn.scope(turn.step(state.steps[key]), path_of(key))


def postponed(state: RunState, keys: list[str], now: float) -> RunState:
    """The state if attempts that were asked for are not made for now: they are due at once, when it goes on."""
    due = {key: state.steps[key] for key in keys}
    again = {key: visit._replace(status=RETRYING, attempt=visit.attempt - 1, due_at=now) for key, visit in due.items()}
    return state._replace(status=RETRYING, steps={**state.steps, **again})


def _play(turn: Turn) -> None:
    """Go on until every thread stands at a step, then say what the run is."""
    while True:
        while turn.todo:
            walk(turn, *turn.todo.popleft())
        if turn.inbox and signals.work_in(turn):
            continue
        active = [visit for visit in turn.steps.values() if visit.status in ACTIVE]
        if active:
            turn.status = _status(turn, active)
            return
        if turn.ending is None:
            stands = {visit.key: visit.status for visit in turn.steps.values()}
            raise AssertionError(f"the run ({turn.status}) stands nowhere: {stands}")
        if not _go_on_ending(turn):
            return


def _status(turn: Turn, active: list[StepState]) -> str:
    statuses = {visit.status for visit in active if not turn.step(visit).threads}
    if RUNNING in statuses:
        return RUNNING
    return RETRYING if RETRYING in statuses else WAITING


# --- beginning and resuming ------------------------------------------------------------------------------------------


def _begin(turn: Turn, at: str | None = None) -> None:
    index = turn.workflow.first if at is None else turn.workflow.by_id[at]
    turn.todo.append((index, 0, (), None))


def _resume(turn: Turn, given: Resumed) -> None:
    known = {(signal.id, signal.key) for signal in turn.inbox}
    turn.inbox += tuple(signal for signal in given.signals if (signal.id, signal.key) not in known)
    if not turn.steps and turn.ending is None:
        _begin(turn)
        return
    if turn.inbox:
        signals.work_in(turn)  # before the deadlines: what came in came first
    for visit in list(turn.steps.values()):
        if visit.status not in ACTIVE or turn.steps[visit.key] is not visit:
            continue
        try:
            _look_at(turn, turn.step(visit), visit, lost=given.lost)
        except (TemplateError, StepError, Malformed) as error:  # a deadline that can't be computed any more
            _close(turn, turn.step(visit), visit, "expired")
            blocks.give_up(turn, visit._replace(error=str(error)))


def _look_at(turn: Turn, step: Step, visit: StepState, *, lost: bool) -> None:
    """Go on with an active visit, if it is time."""
    if visit.status == RUNNING:
        if lost and step.kind == "action":
            _attempt_lost(turn, step, visit)
        elif lost and not step.threads:
            turn.todo.append((step.index, step.thread, path_of(visit.key), None))  # recorded by an earlier release
            turn.put(visit._replace(status=CANCELLED, finished_at=turn.now))
    elif visit.due_at is not None and visit.due_at <= turn.now:
        _is_due(turn, step, visit)


def _attempt_lost(turn: Turn, step: Step, visit: StepState) -> None:
    """Whoever made the attempt is gone. Where it is not needed any more it is made again only if it is to be undone."""
    if step.at_most_once:
        turn.put(visit._replace(status=UNKNOWN, error="the process ended while it ran", due_at=None))
    elif step.compensate is None and not turn.is_live(visit):
        why = "the process ended while it ran: it may have had its effect"
        turn.put(visit._replace(status=CANCELLED, finished_at=turn.now, error=why))
    else:
        _attempt(turn, visit, max(1, visit.attempt))


def _is_due(turn: Turn, step: Step, visit: StepState) -> None:
    if visit.status == RETRYING and step.kind == "action":
        _attempt(turn, visit, visit.attempt + 1)
    elif visit.status == RETRYING:  # a person retried the run
        turn.put(visit._replace(status=CANCELLED, finished_at=turn.now, due_at=None))
        turn.todo.append((step.index, step.thread, path_of(visit.key), None))
    elif step.kind == "delay":
        blocks.leave(turn, visit._replace(status=SUCCEEDED, finished_at=turn.now))
    elif step.kind == "human_task" and not deadline_passed(turn, step, visit):
        _remind(turn, step, visit)
    elif step.deadline is not None:
        _expire(turn, step, visit)


def _attempt(turn: Turn, visit: StepState, attempt: int) -> None:
    turn.put(visit._replace(status=RUNNING, attempt=attempt, started_at=turn.now, due_at=None))
    turn.commands.append(RunAction(visit.key, visit.step, attempt))


def _remind(turn: Turn, step: Step, visit: StepState) -> None:
    reminded = visit._replace(attempt=visit.attempt + 1)
    turn.put(reminded._replace(due_at=task_due(turn, step, reminded)))
    if step.task is not None and step.task.notify is not None:
        notice = turn.workflow.steps[step.task.notify]
        latest = turn.latest(notice, path_of(visit.key))
        if latest is None or latest.status not in ACTIVE:
            turn.todo.append((notice.index, notice.thread, path_of(visit.key), None))


def _expire(turn: Turn, step: Step, visit: StepState) -> None:
    """A deadline passed."""
    deadline = step.deadline
    _close(turn, step, visit, "expired")
    if deadline is None or deadline.target is None:
        blocks.give_up(turn, visit._replace(error=LATE))
        return
    late = visit._replace(status=FAILED, finished_at=turn.now, due_at=None, error=LATE)
    if step.kind == "state":
        late = late._replace(status=SUCCEEDED, error=None, output={"deadline": True})
    live = turn.is_live(late)
    turn.put(late)
    if live:
        turn.todo.append((deadline.target, step.thread, path_of(visit.key), visit.key))


def _close(turn: Turn, step: Step, visit: StepState, status: str) -> None:
    if step.kind in blocks.PARKED_KINDS:
        turn.commands.append(Close(visit.key, step.kind, status))
        blocks.close_notice(turn, step, path_of(visit.key))


# --- results of attempts ---------------------------------------------------------------------------------------------


def _succeeded(turn: Turn, given: ActionSucceeded) -> None:
    visit = _current(turn, given.key)
    blocks.leave(turn, visit._replace(status=SUCCEEDED, finished_at=turn.now, output=given.output, error=None))


def _failed(turn: Turn, given: ActionFailed) -> None:
    visit = _current(turn, given.key)
    step = turn.step(visit)
    failed = visit._replace(error=given.error)
    if step.at_most_once and given.kind in _AMBIGUOUS:
        turn.put(failed._replace(status=UNKNOWN))
        return
    if not turn.is_live(visit):
        turn.put(failed._replace(status=CANCELLED, finished_at=turn.now, due_at=None))
        return
    due = _next_attempt(step, visit, given, turn.now) if given.retryable and not step.at_most_once else None
    if due is None:
        blocks.give_up(turn, failed)
    else:
        turn.put(failed._replace(status=RETRYING, due_at=due))


def _next_attempt(step: Step, current: StepState, given: ActionFailed, now: float) -> float | None:
    """When to try again, or None when the attempts are used up."""
    policy = step.retry
    if policy.by_error:
        named = [policy.by_error[name] for name in (*given.classes, given.kind) if name in policy.by_error]
        policy = named[0] if named else policy
    if current.attempt >= policy.max_attempts:
        return None
    asked = min(given.after_s or 0.0, MAX_RETRY_AFTER_S)
    due = now + max(policy.backoff_s(current.attempt, lambda: given.chance), asked)
    began = current.first_at if current.first_at is not None else now
    if policy.max_elapsed_s is not None and due > began + policy.max_elapsed_s:
        return None
    return due


def _current(turn: Turn, key: str) -> StepState:
    visit = turn.steps.get(key)
    standing = visit is not None and (
        visit.status == RUNNING or (visit.status == WAITING and turn.step(visit).kind == "workflow")
    )
    if visit is None or not standing:
        at = ", ".join(sorted(s.key for s in turn.steps.values() if s.status in ACTIVE))
        raise ValueError(f"a result of step {key!r} came to a run that stands at {at or 'no step'}")
    return visit


# --- ending ----------------------------------------------------------------------------------------------------------


def _cancel(turn: Turn, reason: str) -> None:
    if turn.ending is None:
        blocks.end_run(turn, CANCELLED, reason)


def _go_on_ending(turn: Turn) -> bool:
    """Nothing is active any more: undo, then let the workflow's ``on_error`` run, then finish. False: it is over."""
    if turn.ending == SUCCEEDED:
        return _finish_well(turn)
    if turn.phase != HANDLING:
        turn.phase = UNDOING
        if (undone := _next_to_undo(turn)) is not None:
            _undo(turn, undone)
            return True
        handler = turn.workflow.on_error if turn.ending == FAILED else None
        turn.phase = HANDLING
        if handler is not None:
            turn.todo.append((turn.workflow.threads[handler].first, handler, (), None))
            return True
    _finish(turn, turn.ending or FAILED)
    return False


def _finish_well(turn: Turn) -> bool:
    output = turn.workflow.output
    if output is not None:
        try:
            turn.output = rendered(output, turn.scope(turn.workflow.steps[0], ()))
        except (TemplateError, Malformed) as error:
            turn.ending, turn.error = FAILED, f"output: {error}"
            return True
    _finish(turn, SUCCEEDED)
    return False


def _finish(turn: Turn, status: str) -> None:
    turn.status, turn.finished_at = status, turn.now
    turn.commands.append(Finish(dead=turn.at if status == FAILED else None))


def _next_to_undo(turn: Turn) -> StepState | None:
    """The last step that succeeded, can be undone, and was not undone yet."""
    if not turn.workflow.compensates:
        return None
    undone = [
        visit
        for visit in turn.steps.values()
        if visit.status == SUCCEEDED
        and (step := turn.known(visit)) is not None
        and step.compensate is not None
        and _undo_key(turn, visit) not in turn.steps
    ]
    return max(undone, key=lambda visit: (visit.finished_at or 0.0, visit.seq), default=None)


def _undo(turn: Turn, visit: StepState) -> None:
    hidden = turn.workflow.steps[turn.step(visit).compensate or 0]
    key = _undo_key(turn, visit)
    turn.put(StepState(key, hidden.id, turn.next_seq(), RUNNING, 1, turn.now, turn.now))
    turn.commands.append(RunAction(key, hidden.id, 1))


def _undo_key(turn: Turn, visit: StepState) -> str:
    hidden = turn.workflow.steps[turn.step(visit).compensate or 0]
    return hidden.id + visit.key.removeprefix(visit.step)


def _retry(workflow: Workflow, facts: Facts, state: RunState, now: float) -> tuple[RunState, Commands]:
    """The failed step is due again at once, with all its attempts; what was cut off with it goes on, or begins anew."""
    undone = any(s.step.endswith(".compensate") for s in state.steps.values())
    if state.status != FAILED or state.at is None or undone or state.steps[state.at].status != FAILED:
        return state, (Finish(),)
    turn = Turn(workflow, facts, state._replace(phase="", ending=None, error=None, finished_at=None), now)
    failed = turn.steps[state.at]
    turn.at, turn.outcome, turn.output = None, None, None
    reopening.due_now(turn, failed)
    reopening.reopen(turn, failed)
    _play(turn)
    asked = [command.key for command in turn.commands if isinstance(command, RunAction)]
    others = tuple(command for command in turn.commands if not isinstance(command, RunAction))
    return postponed(turn.result(), asked, now), others
