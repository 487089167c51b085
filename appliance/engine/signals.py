"""What came in for a run: events that it listens for, answers, ends of called runs, a person's word on the unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.engine import blocks
from appliance.engine.state import (
    ACTIVE,
    CANCELLED,
    FAILED,
    RETRYING,
    SUCCEEDED,
    UNKNOWN,
    WAITING,
    Close,
    Signal,
    StepState,
    Take,
    path_of,
)
from appliance.engine.turn import Turn
from appliance.rules.matcher import fits
from appliance.workflows.revision import Step

_KINDS: Mapping[str, str] = {"answer": "human_task", "child": "workflow", "event": "wait"}
"""The kind of step that a signal is for."""


def work_in(turn: Turn) -> bool:
    """Offer what is in the inbox to the steps that wait; returns whether any of it was taken or turned down.

    What nobody waits for now stays: a state machine that is busy takes it when it gets to a state, and an event that a
    person sent to a run when a step waits for such. The rest of the steps' own is turned down.
    """
    before, turn.inbox = turn.inbox, ()
    kept = tuple(signal for signal in before if not _offer(turn, signal))
    turn.inbox = kept
    return len(kept) < len(before)


def _offer(turn: Turn, signal: Signal) -> bool:
    """Whether the signal is done with. A run that is about to end only wants to know what became of its effects."""
    if turn.ending is not None and not turn.phase and signal.kind not in ("settle", "child"):
        return False
    if not signal.key:
        return _offer_to_any(turn, signal)
    visit = turn.steps.get(signal.key)
    if signal.kind == "settle":
        return _settle(turn, signal, visit)
    if visit is None or visit.status != WAITING or turn.step(visit).kind != _KINDS.get(signal.kind):
        return _took(turn, signal, signal.key, taken=False)
    if signal.kind == "event":
        return _took(turn, signal, visit.key, taken=_event(turn, signal, visit))
    if signal.kind == "answer":
        _reached(turn, visit, signal.payload.get("answer"), "answered")
    else:
        _child(turn, visit, signal.payload)
    return _took(turn, signal, visit.key, taken=True)


def _offer_to_any(turn: Turn, signal: Signal) -> bool:
    """An event for a state machine, or one that a person sent to a run."""
    for visit in [s for s in turn.steps.values() if s.status in ACTIVE]:
        step = turn.step(visit)
        if visit.status != WAITING:
            continue
        if step.kind == "state":
            return _took(turn, signal, step.state or "", taken=_transition(turn, signal, step, visit))
        # A wait within a state machine is told of its own events by its key; these are for the states.
        wanted = step.wait is not None and turn.workflow.machine is None and _is_of(step.wait.events, signal)
        if wanted and _event(turn, signal, visit):
            return _took(turn, signal, visit.key, taken=True)
    return False


def _event(turn: Turn, signal: Signal, visit: StepState) -> bool:
    step = turn.step(visit)
    condition = step.wait.condition if step.wait is not None else None
    if condition is not None and not condition.holds(_criteria_scope(turn, step, visit, signal.payload)):
        return False
    _reached(turn, visit, signal.payload, "answered")
    return True


def _transition(turn: Turn, signal: Signal, step: Step, visit: StepState) -> bool:
    for transition in step.transitions:
        if not _is_of(transition.events, signal):
            continue
        condition = transition.condition
        if condition is None or condition.holds(_criteria_scope(turn, step, visit, signal.payload)):
            turn.place = {**(turn.place or {}), "event": signal.payload}
            output = {"event": signal.payload.get("id"), "type": signal.payload.get("type"), "to": transition.to}
            turn.put(visit._replace(status=SUCCEEDED, finished_at=turn.now, due_at=None, output=output))
            turn.todo.append((transition.target, step.thread, (), visit.key))
            return True
    return False


def _child(turn: Turn, visit: StepState, payload: Mapping[str, Any]) -> None:
    if payload.get("status") == SUCCEEDED:
        _reached(turn, visit, payload.get("output"), "answered")
        return
    called = turn.step(visit).flow
    why = payload.get("error") or payload.get("outcome") or "it was " + str(payload.get("status"))
    turn.commands.append(Close(visit.key, "workflow", "answered"))
    failed = visit._replace(error=f"{called}: {why}", due_at=None)
    if turn.is_live(visit):
        blocks.give_up(turn, failed)
    else:
        turn.put(failed._replace(status=CANCELLED, finished_at=turn.now))


def _reached(turn: Turn, visit: StepState, output: Any, status: str) -> None:
    step = turn.step(visit)
    turn.commands.append(Close(visit.key, step.kind, status))
    blocks.close_notice(turn, step, path_of(visit.key))
    blocks.leave(turn, visit._replace(status=SUCCEEDED, finished_at=turn.now, due_at=None, output=output, error=None))


def _settle(turn: Turn, signal: Signal, visit: StepState | None) -> bool:
    if visit is None or visit.status != UNKNOWN:
        return _took(turn, signal, signal.key, taken=False)
    verdict = signal.payload.get("status")
    if verdict == SUCCEEDED:
        done = visit._replace(status=SUCCEEDED, finished_at=turn.now, output=signal.payload.get("output"), error=None)
        blocks.leave(turn, done)
    elif verdict == FAILED:
        blocks.give_up(turn, visit._replace(error=signal.payload.get("error") or visit.error))
    elif turn.is_live(visit):
        turn.put(visit._replace(status=RETRYING, due_at=turn.now))
    else:
        turn.put(visit._replace(status=CANCELLED, finished_at=turn.now))
    return _took(turn, signal, visit.key, taken=True)


def _took(turn: Turn, signal: Signal, by: str, *, taken: bool) -> bool:
    turn.commands.append(Take(signal.id, signal.key, by, taken))
    return True


def _is_of(events: tuple[str, ...], signal: Signal) -> bool:
    return signal.kind == "event" and any(fits(event, str(signal.payload.get("type"))) for event in events)


def _criteria_scope(turn: Turn, step: Step, visit: StepState, view: Mapping[str, Any]) -> dict[str, Any]:
    """The event that came in at the root, and what the step sees beside it."""
    return {**view, **turn.scope(step, path_of(visit.key))}
