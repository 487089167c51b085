"""The pure core: single transitions, and random workflows under failures and crashes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.core import MAX_RETRY_AFTER_S, advance
from appliance.engine.state import (
    CANCELLED,
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
    Resumed,
    Retried,
    RunAction,
    RunState,
    Started,
    WaitUntil,
)
from appliance.workflows.compile import compile_workflow
from appliance.workflows.revision import Workflow

VIEW = {"type": "t", "subject": None, "data": {"n": 1}}


def flow(*steps: dict[str, Any]) -> Workflow:
    return compile_workflow({"name": "w", "trigger": {"event": "t"}, "steps": list(steps)}, actions=None)


def start(workflow: Workflow, now: float = 0.0) -> tuple[RunState, Command]:
    return advance(workflow, VIEW, RunState(), Started(), now)


def test_steps_run_one_after_the_other_and_the_run_succeeds() -> None:
    workflow = flow({"id": "a", "action": "x"}, {"id": "b", "action": "y"})
    state, command = start(workflow)
    assert command == RunAction("a", "a", 1)
    state, command = advance(workflow, VIEW, state, ActionSucceeded("a", {"k": 1}), 1.0)
    assert command == RunAction("b", "b", 1)
    state, command = advance(workflow, VIEW, state, ActionSucceeded("b", None), 2.0)
    assert command == Finish()
    assert state.status == SUCCEEDED
    assert state.finished_at == 2.0
    assert [s.output for s in state.steps.values()] == [{"k": 1}, None]


def test_a_step_whose_condition_does_not_hold_is_skipped() -> None:
    workflow = flow(
        {"id": "a", "action": "x", "if": {"path": "data.n", "op": ">", "value": 5}, "next": "end"},
        {"id": "b", "action": "y", "if": {"path": "data.n", "op": "==", "value": 1}},
    )
    state, command = start(workflow)
    assert command == RunAction("b", "b", 1)
    assert state.steps["a"].status == SKIPPED


def test_a_condition_sees_earlier_outputs() -> None:
    workflow = flow(
        {"id": "a", "action": "x"},
        {"id": "b", "action": "y", "if": {"path": "steps.a.output.ok", "op": "==", "value": True}},
    )
    state, _ = start(workflow)
    assert advance(workflow, VIEW, state, ActionSucceeded("a", {"ok": True}), 1.0)[1] == RunAction("b", "b", 1)
    assert advance(workflow, VIEW, state, ActionSucceeded("a", {"ok": False}), 1.0)[1] == Finish()


def test_next_jumps_forward_and_end_ends() -> None:
    workflow = flow(
        {"id": "a", "action": "x", "next": "c", "on_error": "b"},
        {"id": "b", "action": "x", "next": "end"},
        {"id": "c", "action": "x"},
    )
    state, _ = start(workflow)
    state, command = advance(workflow, VIEW, state, ActionSucceeded("a", None), 1.0)
    assert command == RunAction("c", "c", 1)
    assert "b" not in state.steps


def test_a_retryable_failure_waits_and_tries_again_until_its_attempts_are_used_up() -> None:
    workflow = flow({"id": "a", "action": "x", "retry": {"max_attempts": 2, "initial": "10s", "jitter": False}})
    state, _ = start(workflow)
    state, command = advance(workflow, VIEW, state, ActionFailed("a", "away", True), 100.0)
    assert command == WaitUntil("a", 110.0)
    assert state.status == RETRYING
    assert advance(workflow, VIEW, state, Resumed(), 105.0) == (state, WaitUntil("a", 110.0))
    state, command = advance(workflow, VIEW, state, Resumed(), 110.0)
    assert command == RunAction("a", "a", 2)
    state, command = advance(workflow, VIEW, state, ActionFailed("a", "still away", True), 111.0)
    assert command == Finish(dead="a")
    assert (state.status, state.error) == (FAILED, "still away")


def test_a_rejected_attempt_is_not_repeated() -> None:
    workflow = flow({"id": "a", "action": "x"})
    state, _ = start(workflow)
    state, command = advance(workflow, VIEW, state, ActionFailed("a", "no", False), 1.0)
    assert command == Finish(dead="a")
    assert state.steps["a"].attempt == 1


def test_what_the_other_side_asks_for_is_a_lower_bound_with_a_cap() -> None:
    workflow = flow({"id": "a", "action": "x", "retry": {"initial": "1s", "jitter": False}})
    state, _ = start(workflow)
    assert advance(workflow, VIEW, state, ActionFailed("a", "", True, after_s=90.0), 0.0)[1] == WaitUntil("a", 90.0)
    assert advance(workflow, VIEW, state, ActionFailed("a", "", True, after_s=1e12), 0.0)[1] == WaitUntil(
        "a", MAX_RETRY_AFTER_S
    )


def test_max_elapsed_bounds_the_retries() -> None:
    workflow = flow({"id": "a", "action": "x", "retry": {"initial": "10s", "max_elapsed": "15s", "jitter": False}})
    state, _ = start(workflow)
    state, command = advance(workflow, VIEW, state, ActionFailed("a", "", True), 0.0)
    assert command == WaitUntil("a", 10.0)
    state, _ = advance(workflow, VIEW, state, Resumed(), 10.0)
    assert advance(workflow, VIEW, state, ActionFailed("a", "", True), 10.0)[1] == Finish(dead="a")


@pytest.mark.parametrize(
    ("on_error", "command", "status"),
    [
        ("b", RunAction("b", "b", 1), RUNNING),
        ("continue", RunAction("b", "b", 1), RUNNING),
        ("end", Finish(), SUCCEEDED),
    ],
)
def test_on_error(on_error: str, command: Command, status: str) -> None:
    workflow = flow({"id": "a", "action": "x", "on_error": on_error}, {"id": "b", "action": "y"})
    state, _ = start(workflow)
    state, got = advance(workflow, VIEW, state, ActionFailed("a", "no", False), 1.0)
    assert got == command
    assert state.status == status
    assert state.steps["a"].status == FAILED


def test_a_delay_parks_and_goes_on_when_it_is_over() -> None:
    workflow = flow({"id": "a", "delay": "1h"}, {"id": "b", "action": "x"})
    state, command = start(workflow, 1000.0)
    assert command == WaitUntil("a", 4600.0)
    assert state.status == WAITING
    assert advance(workflow, VIEW, state, Resumed(), 4599.0)[1] == WaitUntil("a", 4600.0)
    state, command = advance(workflow, VIEW, state, Resumed(), 4600.0)
    assert command == RunAction("b", "b", 1)
    assert state.steps["a"].status == SUCCEEDED


def test_a_delay_that_can_not_be_computed_fails_its_step() -> None:
    workflow = flow({"id": "a", "delay": {"until": "{{ event.data.when }}"}})
    state, command = start(workflow)
    assert command == Finish(dead="a")
    assert state.status == FAILED


def test_a_retried_run_begins_its_failed_step_anew() -> None:
    workflow = flow({"id": "a", "action": "x"}, {"id": "b", "action": "y", "retry": {"max_attempts": 1}})
    state, _ = start(workflow)
    state, _ = advance(workflow, VIEW, state, ActionSucceeded("a", None), 1.0)
    state, _ = advance(workflow, VIEW, state, ActionFailed("b", "no", True), 2.0)
    assert state.status == FAILED
    state, command = advance(workflow, VIEW, state, Retried(), 50.0)
    assert (state.status, state.error, command) == (RETRYING, None, WaitUntil("b", 50.0))
    state, command = advance(workflow, VIEW, state, Resumed(), 50.0)
    assert command == RunAction("b", "b", 1)
    assert state.steps["a"].status == SUCCEEDED


@pytest.mark.parametrize("status", [SUCCEEDED, CANCELLED])
def test_a_finished_run_stays_as_it_is(status: str) -> None:
    workflow = flow({"id": "a", "action": "x"})
    ended = RunState(status=status)
    for given_ in (Started(), Resumed(), ActionSucceeded("a", 1), ActionFailed("a", "", True), Retried()):
        assert advance(workflow, VIEW, ended, given_, 9.0) == (ended, Finish())


def test_a_result_of_another_step_is_refused() -> None:
    workflow = flow({"id": "a", "action": "x"})
    state, _ = start(workflow)
    with pytest.raises(ValueError, match="'b'"):
        advance(workflow, VIEW, state, ActionSucceeded("b", None), 1.0)


# --- random workflows ------------------------------------------------------------------------------------------------


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    """Sequences of actions and delays with conditions, forward jumps and every kind of on_error."""
    count = draw(st.integers(1, 6))
    steps: list[dict[str, Any]] = []
    for n in range(count):
        step: dict[str, Any] = {"id": f"s{n}"}
        later = [f"s{m}" for m in range(n + 1, count)]
        if draw(st.booleans()):
            step["action"] = "x"
            step["retry"] = {"max_attempts": draw(st.integers(1, 3)), "initial": "1s", "jitter": draw(st.booleans())}
            if draw(st.booleans()):
                step["on_error"] = draw(st.sampled_from(["continue", "end", *later]))
        else:
            step["delay"] = draw(st.sampled_from(["0s", "5s", "1h"]))
        if draw(st.booleans()):
            step["if"] = {"path": "data.n", "op": draw(st.sampled_from(["==", "!="])), "value": 1}
        steps.append(step)
    return flow(*steps)


class Story:
    """Drives a run under a virtual clock; the outcome of each attempt depends on its step and number only."""

    def __init__(self, workflow: Workflow, failing: dict[tuple[str, int], bool], crash_every: int) -> None:
        self.workflow = workflow
        self.failing = failing
        self.crash_every = crash_every
        self.effects: list[tuple[str, int]] = []
        self.now = 0.0
        self.turns = 0

    def run(self) -> RunState:
        """Play to the end. A crash between an effect and its record forgets what happened since the last record."""
        stored = RunState()
        state, command = advance(self.workflow, VIEW, stored, Started(), self.now)
        while not isinstance(command, Finish):
            self.turns += 1
            assert self.turns < 500, "the run does not end"
            if isinstance(command, WaitUntil):
                stored = state
                assert command.due_at >= self.now
                self.now = command.due_at
                state, command = advance(self.workflow, VIEW, stored, Resumed(), self.now)
                continue
            assert state.steps[command.key].status == RUNNING
            assert stored.steps.get(command.key, state.steps[command.key]).status not in (SUCCEEDED, SKIPPED)
            result = self._act(command)
            if self.crash_every and self.turns % self.crash_every == 0:
                given_ = Started() if stored == RunState() else Resumed()
                state, command = advance(self.workflow, VIEW, stored, given_, self.now)
                continue
            state, command = advance(self.workflow, VIEW, state, result, self.now)
            stored = state
        return state

    def _act(self, command: RunAction) -> ActionSucceeded | ActionFailed:
        self.effects.append((command.key, command.attempt))
        retryable = self.failing.get((command.step, command.attempt))
        if retryable is not None:
            return ActionFailed(command.key, "failed", retryable=retryable, chance=0.25)
        return ActionSucceeded(command.key, {"attempt": command.attempt})


@given(
    workflows(),
    st.dictionaries(st.tuples(st.sampled_from([f"s{n}" for n in range(6)]), st.integers(1, 3)), st.booleans()),
    st.sampled_from([0, 2, 3, 5]),
)
@settings(max_examples=400, deadline=None)
def test_every_run_ends_and_crashes_change_nothing_but_repeated_effects(
    workflow: Workflow, failing: dict[tuple[str, int], bool], crash_every: int
) -> None:
    calm = Story(workflow, failing, 0)
    expected = calm.run()
    assert expected.status in TERMINAL
    assert len(set(calm.effects)) == len(calm.effects), "without crashes no attempt happens twice"
    stormy = Story(workflow, failing, crash_every)
    got = stormy.run()
    assert got.status == expected.status
    assert {k: (s.status, s.output, s.attempt) for k, s in got.steps.items()} == {
        k: (s.status, s.output, s.attempt) for k, s in expected.steps.items()
    }
    assert set(stormy.effects) == set(calm.effects)
