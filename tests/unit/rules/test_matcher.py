"""The matcher's index gives what trying every rule gives, in order, and says why not."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from appliance.rules.conditions import compile_condition
from appliance.rules.matcher import Matcher, Rule, Trigger

types = st.sampled_from(["a", "a.b", "a.b.c", "b", "form[1]", ""])
globs = st.sampled_from(["a", "a.b", "*", "a*", "a.*", "*.c", "a.?", "form[1]", "form[?]", "b*b"])
scalars = st.sampled_from(["x", "y", "1", "1.0", "1e0", 1, 1.0, 2, True, None, "", "."])
conditions = st.one_of(
    st.none(),
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"path": st.sampled_from(["p", "data.q"]), "op": st.sampled_from(["==", "!="]), "value": scalars}
            ),
            st.fixed_dictionaries(
                {"path": st.just("p"), "op": st.just("in"), "value": st.lists(scalars, min_size=1, max_size=3)}
            ),
            st.fixed_dictionaries({"any": st.just([{"path": "p", "op": "==", "value": "x"}])}),
        ),
        max_size=2,
    ),
)
triggers = st.lists(st.tuples(globs, conditions), min_size=1, max_size=2)
events = st.fixed_dictionaries(
    {"type": types},
    optional={"p": scalars | st.just(["x"]), "data": st.fixed_dictionaries({}, optional={"q": scalars}) | scalars},
)


def rules_of(specs: list[list[tuple[str, Any]]]) -> list[Rule]:
    return [
        Rule(
            f"w{order}",
            tuple(Trigger(event, None if when is None else compile_condition(when)) for event, when in triggers),
            order,
            None,
        )
        for order, triggers in enumerate(specs)
    ]


def fits(pattern: str, event_type: str) -> bool:
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, event_type, re.DOTALL) is not None


def by_trying_all(rules: list[Rule], view: dict[str, Any]) -> list[str]:
    return [
        rule.workflow
        for rule in rules
        if any(
            fits(trigger.event, view["type"]) and (trigger.condition is None or trigger.condition.holds(view))
            for trigger in rule.triggers
        )
    ]


@given(st.lists(triggers, max_size=6), st.lists(events, min_size=1, max_size=4))
def test_the_index_gives_what_trying_every_rule_gives(specs: Any, views: list[dict[str, Any]]) -> None:
    rules = rules_of(specs)
    matcher = Matcher(reversed(rules))
    for view in views:
        expected = by_trying_all(rules, view)
        assert [rule.workflow for rule in matcher.match(view)] == expected
        verdicts = matcher.explain(view)
        assert [verdict.workflow for verdict in verdicts] == [rule.workflow for rule in rules]
        assert [verdict.workflow for verdict in verdicts if verdict.matched] == expected
        assert all((verdict.failure is None) is verdict.matched for verdict in verdicts)


def test_only_candidates_are_evaluated() -> None:
    """With 1,000 workflows filed by value, an event evaluates the one that shares its value."""
    condition = compile_condition([{"path": "t", "op": "==", "value": "w7"}, {"path": "n", "op": ">", "value": 1}])
    evaluated: list[int] = []

    class Watched:
        is_equality = False

        def __init__(self, number: int) -> None:
            self.number = number
            self.equalities = (("org", ("acme",)), ("t", (f"w{number}",)))

        def holds(self, view: Any) -> bool:
            evaluated.append(self.number)
            return condition.holds(view)

    matcher = Matcher(
        Rule(f"w{n}", (Trigger("order.*" if n % 2 else "order.paid", Watched(n)),), n, None)  # type: ignore[arg-type]
        for n in range(1000)
    )
    found = matcher.match({"type": "order.paid", "org": "acme", "t": "w7", "n": 2})
    assert [rule.workflow for rule in found] == ["w7"]
    assert evaluated == [7]


def test_types_from_senders_are_not_remembered_without_end() -> None:
    matcher = Matcher([Rule("w", (Trigger("a*"),), 0, None)])
    for n in range(10_000):
        assert len(matcher.match({"type": f"a{n}"})) == 1
    assert len(matcher._types) <= 4096


def test_a_verdict_names_the_first_test_that_failed() -> None:
    when = [{"path": "template_id", "op": "==", "value": "contact"}, {"path": "data.n", "op": ">", "value": 3}]
    matcher = Matcher([Rule("w", (Trigger("form_submitted", compile_condition(when)),), 0, None)])
    [verdict] = matcher.explain({"type": "form_submitted", "template_id": "contact", "data": {"n": 3}})
    assert verdict.reason == "data.n > 3: it is 3"
    [verdict] = matcher.explain({"type": "form_sent"})
    assert verdict.reason == "type is 'form_sent', the trigger wants 'form_submitted'"
    assert verdict.failure is not None
    assert verdict.failure.path == "type"
    assert matcher.explain({"type": "form_submitted"}, "other") == []
