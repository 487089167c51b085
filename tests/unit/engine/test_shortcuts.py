"""The usual case goes a shorter way to the same place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine import shortcuts
from appliance.engine.core import advance, scope, scope_of_turn, take_turn
from appliance.engine.state import ActionFailed, ActionSucceeded, Facts, Input, Resumed, RunState, Started
from appliance.workflows.compile import compile_workflow

FACTS = Facts({"type": "t", "data": {"n": 1}}, {"n": 1}, {"id": "r"})
BATCH = FACTS._replace(events=[{"type": "t", "data": {"n": 1}}, {"type": "t", "data": {"n": 2}}])
ONE: dict[str, Any] = {"id": "a", "action": "x", "with": {"n": "{{ event.data.n }}"}}
DEFINITIONS: list[dict[str, Any]] = [
    {"steps": [ONE]},
    {"steps": [{**ONE, "compensate": {"action": "y"}}]},
    {"steps": [ONE, {"id": "b", "action": "y"}]},
    {"steps": [{**ONE, "on_error": "b", "next": "end"}, {"id": "b", "action": "y"}]},
    {"steps": [ONE], "output": "{{ steps.a.output }}"},
    {"steps": [{**ONE, "if": {"path": "data.n", "op": "==", "value": 1}}]},
    {"steps": [{"id": "d", "delay": "1h"}]},
    {"steps": [ONE], "on_error": [{"id": "sorry", "action": "y"}]},
]


@given(
    st.sampled_from(DEFINITIONS),
    st.sampled_from([FACTS, BATCH]),
    st.integers(0, 2),
    st.sampled_from([None, 1, {"k": [1]}]),
)
def test_they_give_what_a_turn_gives(definition: dict[str, Any], facts: Facts, failures: int, output: Any) -> None:
    workflow = compile_workflow({"name": "w", "trigger": {"event": "t"}, **definition}, actions=None)
    state = RunState()
    story: list[Input] = [Started(), *[ActionFailed("a", "no", True)] * failures, ActionSucceeded("a", output)]
    for told in story:
        if isinstance(told, ActionFailed | ActionSucceeded) and "a" not in state.steps:
            return
        shorter = advance(workflow, facts, state, told, 5.0)
        assert shorter == take_turn(workflow, facts, state, told, 5.0)
        state, _ = shorter
        if "a" in state.steps:
            assert scope(workflow, facts, state, "a", 5.0) == scope_of_turn(workflow, facts, state, "a", 5.0)
        if isinstance(told, ActionFailed):
            state, _ = advance(workflow, facts, state, Resumed(), 1e6)


@pytest.mark.parametrize("definition", DEFINITIONS[:2])
def test_the_usual_case_takes_them(definition: dict[str, Any]) -> None:
    workflow = compile_workflow({"name": "w", "trigger": {"event": "t"}, **definition}, actions=None)
    begun = shortcuts.first_attempt(workflow, RunState(), 1.0)
    assert begun is not None
    assert shortcuts.names(FACTS, begun[0], "a") is not None
    assert shortcuts.last_success(workflow, begun[0], ActionSucceeded("a", 1), 2.0) is not None


def test_a_batch_sees_its_events_either_way() -> None:
    workflow = compile_workflow({"name": "w", "trigger": {"event": "t"}, **DEFINITIONS[0]}, actions=None)
    begun, _ = advance(workflow, BATCH, RunState(), Started(), 1.0)
    assert scope(workflow, BATCH, begun, "a", 1.0)["events"] == BATCH.events
    assert scope_of_turn(workflow, BATCH, begun, "a", 1.0)["events"] == BATCH.events
    assert "events" not in scope(workflow, FACTS, begun, "a", 1.0)
