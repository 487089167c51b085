"""State machines: what the states become as steps, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.errors import DefinitionError
from appliance.workflows.compile import compile_workflow
from appliance.workflows.loader import parse_document
from appliance.workflows.revision import Workflow

REFUND = """
name: refund
trigger: {event: email_received}
correlate: "{{ event.subject }}"
initial: pending
states:
  pending:
    enter: [{action: log}, {id: ask, action: mail}]
    on:
      APPROVED:
        next: paid
        when: {path: event.data.amount, op: "<=", value: 500}
        do: [{action: log}, {id: pay, action: bank}]
      NOTE: [{when: {path: data.x, op: exists}, do: [{action: log}]}, {do: [{action: log}]}]
      PING: {}
      AGAIN: {next: pending}
      "order.*": {next: closed}
    deadline: {after: 48h, next: expired, do: [{action: log}]}
  paid: {final: true, outcome: refunded}
  closed: {final: true}
  expired: {final: true, enter: [{id: bye, action: mail}]}
on_error: [{id: alarm, action: log}]
"""


def machine(text: str) -> Workflow:
    return compile_workflow(parse_document(text.encode()).data, actions=None)


def test_states_become_steps() -> None:
    compiled = machine(REFUND)
    assert [(s.id, s.kind) for s in compiled.steps] == [
        ("pending.enter.0", "action"),
        ("ask", "action"),
        ("pending", "state"),
        ("pending.APPROVED.0", "action"),
        ("pay", "action"),
        ("pending.NOTE.0", "action"),
        ("pending.NOTE.1", "action"),
        ("pending.deadline.0", "action"),
        ("paid", "end"),
        ("closed", "end"),
        ("bye", "action"),
        ("expired", "end"),
        ("alarm", "action"),
        ("pending.stay", "stay"),
    ]
    assert {s.thread for s in compiled.steps if s.id != "alarm"} == {0}
    ids = [s.id for s in compiled.steps]

    def target(index: int | None) -> str | None:
        return ids[index] if index is not None else None

    assert {s.id: target(s.follow) for s in compiled.steps} == {
        "pending.enter.0": "ask",
        "ask": "pending",
        "pending": None,
        "pending.APPROVED.0": "pay",
        "pay": "paid",
        "pending.NOTE.0": "pending.stay",
        "pending.NOTE.1": "pending.stay",
        "pending.deadline.0": "bye",
        "paid": None,
        "closed": None,
        "bye": "expired",
        "expired": None,
        "alarm": None,
        "pending.stay": "pending",
    }
    pending = compiled.steps[compiled.by_id["pending"]]
    assert [(t.events, target(t.target), t.to, t.condition is not None) for t in pending.transitions] == [
        (("APPROVED",), "pending.APPROVED.0", "paid", True),
        (("NOTE",), "pending.NOTE.0", "pending", True),
        (("NOTE",), "pending.NOTE.1", "pending", False),
        (("PING",), "pending.stay", "pending", False),
        (("AGAIN",), "pending.enter.0", "pending", False),
        (("order.*",), "closed", "closed", False),
    ]
    assert pending.deadline is not None
    assert (target(pending.deadline.target), pending.deadline.due.render({})) == ("pending.deadline.0", {"for": "48h"})
    outcomes = {s.id: (s.state, s.outcome) for s in compiled.steps if s.state is not None}
    assert outcomes == {
        "pending": ("pending", None),
        "paid": ("paid", "refunded"),
        "closed": ("closed", "closed"),
        "expired": ("expired", "expired"),
        "pending.stay": ("pending", None),
    }


def test_the_machine() -> None:
    compiled = machine(REFUND)
    assert compiled.machine is not None
    assert compiled.machine.initial == "pending"
    assert {name: compiled.steps[index].id for name, index in compiled.machine.states.items()} == {
        name: name for name in ("pending", "paid", "closed", "expired")
    }
    assert compiled.machine.correlate.render({"event": {"subject": "s"}}) == "s"
    assert compiled.machine.events == ("APPROVED", "NOTE", "PING", "AGAIN", "order.*")
    assert compiled.steps[compiled.first].id == "pending.enter.0"


def test_what_came_before_may_have_been_in_another_state() -> None:
    compiled = machine(
        REFUND.replace("{id: ask, action: mail}", "{id: ask, action: mail, with: {a: '{{ steps.pay.output }}'}}")
    )
    assert compiled.steps[compiled.by_id["ask"]].params is not None


def test_a_machine_may_go_on_for_ever_if_it_says_so() -> None:
    text = """
    {name: door, trigger: {event: door.made}, correlate: "{{ event.subject }}", initial: open, forever: true,
     states: {open: {on: {CLOSE: {next: closed}}}, closed: {on: {OPEN: {next: open}}}}}
    """
    assert machine(text).machine is not None
    with pytest.raises(DefinitionError, match="no way leads from 'open' to an end"):
        machine(text.replace(" forever: true,", ""))


def test_events_with_strange_names_have_steps_with_plain_ones() -> None:
    compiled = machine(REFUND.replace('"order.*": {next: closed}', '"a[b]#*": {next: closed, do: [{action: log}]}'))
    assert compiled.by_id["pending.a_b___.0"]


STATES = "{a: {on: {X: {next: b}}}, b: {final: true}}"


@pytest.mark.parametrize(
    ("states", "more", "key", "words"),
    [
        (STATES, {"initial": "c"}, "initial", "there is no state 'c'"),
        (STATES, {"initial": None}, "initial", "initial is missing"),
        (STATES, {"correlate": None}, "correlate", "correlate is missing"),
        (STATES, {"correlate": "{{ run.id }}"}, "correlate", "unknown name 'run'"),
        (STATES, {"steps": [{"id": "s", "end": None}]}, "states", "either steps or states"),
        ("{}", {}, "states", "at least 1"),
        ("{a: {on: {X: {next: bb}}}, bb1: {final: true}}", {}, "states.a.on.X.next", "did you mean 'bb1'?"),
        ("{a: {on: {X: [{next: b}, {next: c}]}}, b: {final: true}}", {}, "states.a.on.X[1].next", "no state 'c'"),
        ("{a: {on: {X: {nxt: b}}}, b: {final: true}}", {}, "states.a.on.X.nxt", "did you mean next?"),
        ("{a: {on: {X: b}}, b: {final: true}}", {}, "states.a.on.X", "expected a mapping or a list"),
        ("{a: {on: {X: {next: b}}, deadline: {after: 1d}}, b: {final: true}}", {}, "states.a.deadline.next", "missing"),
        (
            "{a: {on: {X: {next: b}}, deadline: {after: soon, next: b}}, b: {final: true}}",
            {},
            "states.a.deadline.after",
            "expected a duration",
        ),
        (
            "{a: {on: {X: {next: b}}, deadline: {after: 1d, next: c}}, b: {final: true}}",
            {},
            "states.a.deadline.next",
            "there is no state 'c'",
        ),
        ("{a: {on: {X: {next: b}}, outcome: x}, b: {final: true}}", {}, "states.a.outcome", "only a final state"),
        ("{a: {on: {X: {next: b}}}, b: {final: true, on: {X: {next: a}}}}", {}, "states.b.on", "there is no way out"),
        ("{a: {on: {X: {next: b}}}, b: {final: true}, c: {final: true}}", {}, "states.c", "nothing leads to 'c'"),
        (
            "{a: {on: {X: {next: b}, Y: {next: c}}}, b: {final: true}, c: {on: {X: {next: c}}}}",
            {},
            "states.c",
            "no way leads from 'c' to an end",
        ),
        ("{a: {on: {X: {next: b}, Y: {next: c}}}, b: {final: true}, c: {}}", {}, "states.c", "nothing ever happens"),
        (
            "{a: {on: {X: {next: b, do: [{action: l, next: end}]}}}, b: {final: true}}",
            {},
            "states.a.on.X.do[0].next",
            "doesn't end between two states",
        ),
        (
            "{a: {on: {X: {next: b, do: [{action: l, next: b}]}}}, b: {final: true}}",
            {},
            "states.a.on.X.do[0].next",
            "'b' is a state",
        ),
        (
            "{a: {enter: [{id: a, action: l}], on: {X: {next: b}}}, b: {final: true}}",
            {},
            "states.a",
            "already the id of states.a.enter[0]",
        ),
        (
            "{a: {on: {X: {next: b, when: 5}}}, b: {final: true}}",
            {},
            "states.a.on.X.when",
            "not a condition",
        ),
        (
            "{a: {on: {X: {next: b, do: [{action: l, with: {x: '{{ steps.q }}'}}]}}}, b: {final: true}}",
            {},
            "states.a.on.X.do[0].with",
            "there is no step 'q'",
        ),
    ],
)
def test_a_wrong_machine(states: str, more: dict[str, Any], key: str, words: str) -> None:
    definition = {
        "name": "w",
        "trigger": {"event": "t"},
        "initial": "a",
        "correlate": "{{ event.subject }}",
        "states": parse_document(states.encode()).data,
        **more,
    }
    with pytest.raises(DefinitionError) as refused:
        compile_workflow(definition, actions=None)
    found = {problem.key: str(problem) for problem in refused.value.problems}
    assert key in found, found
    assert words in found[key]
