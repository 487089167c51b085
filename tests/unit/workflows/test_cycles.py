"""Workflows that trigger themselves: which are found, with which path, which aren't, and at what cost."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from appliance.workflows.compile import compile_workflow
from appliance.workflows.cycles import MAX_CYCLES, find_cycles, overlap
from appliance.workflows.revision import Workflow


def made(name: str, trigger: Any, *steps: dict[str, Any], **more: Any) -> Workflow:
    given = list(steps) or [{"id": "note", "action": "log"}]
    return compile_workflow({"name": name, "trigger": trigger, "steps": given, **more}, actions=None)


def on(event: str, *when: Any) -> dict[str, Any]:
    return {"event": event, "when": list(when)} if when else {"event": event}


def publish(type: str, **params: Any) -> dict[str, Any]:
    return {"id": "tell", "action": "publish", "with": {"type": type, **params}}


PUBLISH_X = {"action": "publish", "with": {"type": "x"}}
X_TO_A = "a -publishes x-> a"


def asks(path: str, op: str, value: Any) -> dict[str, Any]:
    return {"path": path, "op": op, "value": value}


def told(*workflows: Workflow) -> list[str]:
    return [str(cycle) for cycle in find_cycles(workflows)]


def test_the_path_names_what_leads_on() -> None:
    a = made("a", on("workflow.completed", asks("data.workflow", "==", "b")), publish("order.paid"))
    b = made("b", on("order.paid"))
    assert told(a, b) == ["a -publishes order.paid-> b -completes-> a"]
    assert told(a) == told(b) == []


@pytest.mark.parametrize(
    ("trigger", "step", "path"),
    [
        (on("x"), publish("x"), X_TO_A),
        (on("x.*"), publish("x.{{ event.data.kind }}"), "a -publishes x.*-> a"),
        (on("order.*.done"), publish("order.{{ event.id }}.*"), "a -publishes order.*.*-> a"),
        (on("*"), publish("anything"), "a -publishes anything-> a"),
        ([on("y"), on("x")], {"id": "both", "parallel": {"branches": {"one": [publish("x")]}}}, X_TO_A),
        (on("x"), {"id": "s", "action": "log", "compensate": PUBLISH_X}, X_TO_A),
        (on("x", asks("data.k", "==", 1)), publish("x", data={"k": "{{ event.data.k }}"}), X_TO_A),
        (on("x", asks("data.k", "==", 1)), publish("x", data="{{ event.data }}"), X_TO_A),
        (on("x", asks("source", "==", "workflow:a")), publish("x"), X_TO_A),
        (on("x", {"==": [{"var": "data.k"}, 2]}), publish("x", data={"k": 1}), X_TO_A),
        (on("x", asks("data.k", ">", 1)), publish("x", data={"k": 2}), X_TO_A),
    ],
)
def test_what_leads_to_itself_is_found(trigger: Any, step: dict[str, Any], path: str) -> None:
    assert told(made("a", trigger, step)) == [path]


@pytest.mark.parametrize(
    ("trigger", "step"),
    [
        (on("x"), publish("y")),
        (on("x"), publish("{{ event.data.type }}")),
        (on("x.*"), publish("y.{{ event.data.kind }}")),
        (on("x", asks("data.k", "==", 2)), publish("x", data={"k": 1})),
        (on("x", asks("data.k", "==", 2)), publish("x")),
        (on("x", asks("data.k", ">", 1)), publish("x", data={"k": 1})),
        (on("x", asks("kind", "in", ["b", "c"])), publish("x", attributes={"kind": "a"})),
        (on("x", {"not": asks("source", "==", "workflow:a")}), publish("x")),
        (on("x", asks("source", "!=", "workflow:a")), publish("x")),
        (on("x", {"any": [asks("data.k", "==", 1), asks("subject", "==", "s")]}), publish("x", data={"k": 2})),
        (on("workflow.failed"), {"id": "note", "action": "log"}),
        (on("workflow.completed", asks("data.workflow", "!=", "a")), {"id": "note", "action": "log"}),
        (on("*"), {"id": "note", "action": "log"}),
    ],
)
def test_what_can_not_lead_to_itself_is_not(trigger: Any, step: dict[str, Any]) -> None:
    assert told(made("a", trigger, step)) == []


def test_ends_lead_on_as_far_as_they_are_announced() -> None:
    assert told(made("log", on("workflow.completed"))) == ["log -completes-> log"]
    # A failure that a failure started isn't announced; one that a published event started is.
    alert = made("alert", on("workflow.failed"), publish("alert"))
    assert told(alert, made("page", on("alert"))) == ["alert -publishes alert-> page -fails-> alert"]
    # A trigger on everything has no such events made for it, but takes those that others want.
    everything = made("every", on("*"))
    assert told(everything, made("log", on("workflow.completed", asks("data.workflow", "==", "x")))) == [
        "every -completes-> every"
    ]


def test_calls_lead_on_and_disabled_workflows_are_begun_by_calls_only() -> None:
    caller = made("caller", on("x"), {"id": "call", "workflow": "called"})
    called = made("called", "manual", publish("x"), enabled=False)
    assert told(caller, called) == ["called -publishes x-> caller -calls-> called"]
    assert told(made("a", on("x"), publish("x"), enabled=False)) == []
    assert find_cycles([made("a", on("x"), publish("x"))], enabled=set()) == []


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        ("a*", "*b", True),
        ("a*c", "ab*", True),
        ("a*b", "*ab*", True),
        ("a*", "b*", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("*", "", True),
        ("*.paid", "order.*.x", False),
    ],
)
def test_globs_overlap_where_one_text_fits_both(a: str, b: str, common: bool) -> None:
    assert overlap(a, b) is overlap(b, a) is common


def ring(count: int, *, glob: bool = False) -> list[Workflow]:
    tail, end = (".*", ".{{ event.id }}") if glob else ("", "")
    return [made(f"w{i}", on(f"t{i}{tail}"), publish(f"t{(i + 1) % count}{end}")) for i in range(count)]


def test_a_long_way_is_told_shortened() -> None:
    (path,) = told(*ring(500))
    assert path.startswith("w0 -publishes t1-> w1 ")
    assert path.endswith(" … 490 more … -publishes t0-> w0")
    assert len(told(*ring(500, glob=True))) == 1


def test_very_many_workflows_cost_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case would take minutes if every workflow were compared with every other."""
    count = 2000
    before = [asks("data.workflow", "==", f"w{i - 1}") for i in range(count)]
    chain = [made(f"w{i}", on("workflow.completed", before[i])) for i in range(count)]
    assert told(*chain) == []
    apart = [made(f"w{i}", on("x", asks("data.k", "==", i)), publish("x", data={"k": i - 1})) for i in range(count)]
    assert told(*apart) == []
    # Beyond the bound types alone decide, and no more than some are told.
    everybody = [made(f"w{i}", on("workflow.completed")) for i in range(count)]
    assert len(told(*everybody)) == MAX_CYCLES


def test_workflows_that_are_called_from_a_cycle_and_lead_nowhere_are_no_part_of_it() -> None:
    a = made("a", on("x"), {"id": "first", "workflow": {"name": "b"}}, publish("x"))
    assert told(a, made("b", on("y"))) == [X_TO_A]


@pytest.mark.parametrize("seed", range(60))
def test_whoever_is_asked_about_is_in_a_cycle_if_it_is_in_any(seed: int) -> None:
    chance = Random(seed)
    names = [f"w{number}" for number in range(7)]
    events = ["x", "y", "z", "workflow.completed", "workflow.failed", "*.y"]
    workflows = []
    for name in names:
        steps: list[dict[str, Any]] = [publish(chance.choice(["x", "y", "z", "a.y"]))] if chance.random() < 0.5 else []
        if chance.random() < 0.3:
            steps.append({"id": "call", "workflow": {"name": chance.choice([n for n in names if n != name])}})
        workflows.append(made(name, on(chance.choice(events)), *steps))
    enabled = {name for name in names if chance.random() < 0.8}
    every = find_cycles(workflows, enabled)
    within = {name for cycle in every for name in cycle.names}
    for name in names:
        mine = find_cycles(workflows, enabled, through=name)
        assert bool(mine) == (name in within), (name, every)
        assert all(name in cycle.names for cycle in mine)


def test_a_cycle_that_is_asked_about_is_told_beside_many_others() -> None:
    many = [made(f"w{number:02}", on(f"x{number}"), publish(f"x{number}")) for number in range(MAX_CYCLES + 5)]
    knot = [made(f"k{number:02}", on("k"), publish("k")) for number in range(MAX_CYCLES + 5)]
    for workflows in (many, knot):
        name = workflows[-1].name
        assert [cycle.names[0] for cycle in find_cycles(workflows, through=name)] == [name]
