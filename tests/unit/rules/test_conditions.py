"""Conditions: the short form against a plain reference, JSON Logic, explanations, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DefinitionError
from appliance.rules.conditions import compile_condition

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


# The reference: what docs/workflows.md says, in plain Python.


def look_up(view: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(view, dict):
            view = view.get(part)
        elif isinstance(view, list) and part.isdigit() and int(part) < len(view):
            view = view[int(part)]
        else:
            return None
    return view


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_number(actual: Any) -> float | None:
    if is_number(actual):
        return actual  # type: ignore[no-any-return]
    if isinstance(actual, str) and NUMBER.fullmatch(actual):
        return float(actual)
    return None


def equal(actual: Any, expected: Any) -> bool:
    if is_number(expected):
        return bool(as_number(actual) == expected)
    return type(actual) is type(expected) and bool(actual == expected)


def ordered(op: str, actual: Any, expected: Any) -> bool:
    left: Any = actual if isinstance(actual, str) and isinstance(expected, str) else None
    if is_number(expected):
        left = as_number(actual)
    if left is None:
        return False
    return bool({">": left > expected, ">=": left >= expected, "<": left < expected, "<=": left <= expected}[op])


def contained(actual: Any, expected: Any) -> bool:
    if isinstance(actual, list):
        return any(equal(item, expected) for item in actual)
    return isinstance(actual, str) and isinstance(expected, str) and expected in actual


def reference(spec: Any, view: dict[str, Any]) -> bool:
    if isinstance(spec, list):
        return all(reference(item, view) for item in spec)
    if "all" in spec:
        return all(reference(item, view) for item in spec["all"])
    if "any" in spec:
        return any(reference(item, view) for item in spec["any"])
    if "not" in spec:
        return not reference(spec["not"], view)
    return fulfils(spec["op"], look_up(view, spec["path"]), spec.get("value", True))


def fulfils(op: str, actual: Any, value: Any) -> bool:
    match op:
        case "==":
            return equal(actual, value)
        case "!=":
            return not equal(actual, value)
        case "in":
            return any(equal(actual, item) for item in value)
        case "contains":
            return contained(actual, value)
        case "exists":
            return (actual is not None) is value
        case "matches":
            return isinstance(actual, str) and re.search(value, actual) is not None
    return ordered(op, actual, value)


# Texts come from few letters so that equal ones meet; h, m and s make durations ("1h") to trip over.
texts = st.one_of(st.text("ab1hm0.-", max_size=4), st.sampled_from(["60m", "1h", "3600s", "é", "", " 1", "1e2", "inf"]))
numbers = st.one_of(st.integers(-3, 100), st.sampled_from([0.0, 0.5, -1.5, 1e20, 2**53 + 1]))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
views = st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3)
paths = st.lists(st.sampled_from(["a", "b", "c", "0", "1"]), min_size=1, max_size=3).map(".".join)
# Texts that read as durations are compared by their length when ordered; see the test below.
ordinary = texts.filter(lambda text: not re.search(r"\d[hms]", text))
tests = st.one_of(
    st.fixed_dictionaries({"path": paths, "op": st.sampled_from(["==", "!=", "contains"]), "value": scalars}),
    st.fixed_dictionaries(
        {"path": paths, "op": st.sampled_from([">", ">=", "<", "<="]), "value": st.one_of(numbers, ordinary)}
    ),
    st.fixed_dictionaries({"path": paths, "op": st.just("in"), "value": st.lists(scalars, max_size=3)}),
    st.fixed_dictionaries({"path": paths, "op": st.just("exists"), "value": st.booleans()}),
    st.fixed_dictionaries(
        {"path": paths, "op": st.just("matches"), "value": st.sampled_from(["a", "^a", "1$", "[ab]+1", "^$"])}
    ),
)
specs = st.recursive(
    tests,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.fixed_dictionaries({"all": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"any": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=6,
)


@given(specs, views)
def test_short_form_means_what_the_reference_says(spec: Any, view: dict[str, Any]) -> None:
    condition = compile_condition(spec)
    assert condition.holds(view) is reference(spec, view)


@given(specs, views)
def test_there_is_a_first_failure_exactly_when_it_does_not_hold(spec: Any, view: dict[str, Any]) -> None:
    condition = compile_condition(spec)
    failure = condition.first_failure(view)
    assert (failure is None) is condition.holds(view)
    if failure is not None:
        assert failure.text
        assert "can't be evaluated" not in failure.text
        assert failure.path == "" or failure.actual == look_up(view, failure.path)


@given(specs, views)
def test_equalities_are_necessary(spec: Any, view: dict[str, Any]) -> None:
    condition = compile_condition(spec)
    if condition.holds(view):
        for path, accepted in condition.equalities:
            assert any(equal(look_up(view, path), value) for value in accepted)
    if condition.is_equality:
        [(path, accepted)] = condition.equalities
        assert condition.holds(view) is (look_up(view, path) in accepted)


def holds(spec: Any, **view: Any) -> bool:
    return compile_condition(spec).holds(view)


@pytest.mark.parametrize(
    ("op", "value", "actual"),
    [("<=", 500, None), ("<", 1, ""), ("==", 0, ""), ("==", 1, True), (">", 0, True), ("<", "b", 1), ("==", None, "")],
)
def test_a_missing_value_or_one_of_another_kind_never_compares(op: str, value: Any, actual: Any) -> None:
    assert not holds({"path": "x", "op": op, "value": value}, x=actual)


def test_form_fields_compare_as_numbers() -> None:
    assert holds({"path": "data.amount", "op": ">", "value": 500}, data={"amount": "700"})
    assert not holds({"path": "data.amount", "op": ">", "value": 500}, data={"amount": "70"})
    assert holds({"path": "data.n", "op": "==", "value": 3}, data={"n": "3"})


def test_texts_that_read_as_durations_are_still_texts() -> None:
    assert not holds({"path": "x", "op": "==", "value": "60m"}, x="1h")
    assert not holds({"path": "x", "op": "in", "value": ["60m", "a"]}, x="1h")
    assert holds({"path": "x", "op": "!=", "value": "60m"}, x="1h")


def test_times_are_ordered_as_moments() -> None:
    spec = {"path": "time", "op": ">=", "value": "2030-01-01T00:00:00Z"}
    assert holds(spec, time="2030-01-01T01:00:00+01:00")
    assert not holds(spec, time="2030-01-01T00:30:00+01:00")


def test_leading_event_is_the_same_path() -> None:
    assert holds({"path": "event.data.x", "op": "==", "value": "a"}, data={"x": "a"})


def test_json_logic_is_taken_as_it_is() -> None:
    assert holds({"==": [{"var": "data.n"}, "3"]}, data={"n": 3})
    assert holds({"all": [{"var": "data.items"}, {">": [{"var": "price"}, 1]}]}, data={"items": [{"price": 2}]})
    assert not holds({"all": [{"var": "data.items"}, {">": [{"var": "price"}, 1]}]}, data={"items": [{"price": 1}]})
    assert holds({"and": [{"var": "a"}, {"or": [False, {"!": [{"var": "b"}]}]}]}, a=1)
    assert holds({"var": {"var": "which"}}, which="a", a="yes")
    assert holds({"missing": ["b"]}, a=1)
    assert not holds({"matches": [{"var": "a"}, "^x"]}, a="yx")


def test_a_mixed_list_and_group() -> None:
    spec = [{"path": "a", "op": "==", "value": 1}, {"some": [{"var": "l"}, {"==": [{"var": ""}, 2]}]}]
    assert holds(spec, a=1, l=[1, 2])
    assert not holds(spec, a=1, l=[1])


def test_an_evaluation_is_bounded() -> None:
    quadratic = {"map": [{"var": "l"}, {"map": [{"val": [[2], "l"]}, {"+": [1, 1]}]}]}
    assert holds({"!!": [quadratic]}, l=[1] * 10)
    assert not holds({"!!": [quadratic]}, l=[1] * 10_000)


@pytest.mark.parametrize("odd", [{"x": "\ud800"}, {"x": 2**70}, {"x": object()}, {}, {"x": {"y": [None]}}])
def test_odd_data_never_raises(odd: dict[str, Any]) -> None:
    for op, value in [("==", 1), ("contains", "a"), ("matches", "a"), ("<", "b"), ("in", [1, "a"])]:
        assert compile_condition({"path": "x", "op": op, "value": value}).holds(odd) is False


def test_only_what_is_read_is_handed_over() -> None:
    condition = compile_condition([{"path": "a.b", "op": "==", "value": 1}, {"path": "c", "op": "exists"}])
    # An object that the evaluator refuses, beside what the condition reads, goes unnoticed.
    assert condition.holds({"a": {"b": 1, "z": object()}, "c": [1], "d": object()})


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not holds({"path": "x", "op": "matches", "value": "^(a+)+$"}, x="a" * 50_000 + "!")


def test_a_failure_says_what_was_there() -> None:
    condition = compile_condition([{"path": "a", "op": "==", "value": 1}, {"path": "b.c", "op": "in", "value": ["x"]}])
    failure = condition.first_failure({"a": 1, "b": {"c": "y"}})
    assert failure is not None
    assert (failure.path, failure.op, failure.expected, failure.actual) == ("b.c", "in", ["x"], "y")
    assert failure.text == "b.c in ['x']: it is 'y'"
    missing = condition.first_failure({"a": 1})
    assert missing is not None
    assert missing.text == "b.c in ['x']: it is missing"
    either = compile_condition({"any": [{"path": "a", "op": ">", "value": 1}, {"path": "a", "op": "<", "value": 0}]})
    neither = either.first_failure({"a": 1})
    assert neither is not None
    assert neither.text == "none of: a > 1: it is 1; a < 0: it is 1"


@pytest.mark.parametrize(
    ("spec", "key", "words"),
    [
        ("a == 1", "when", "not a condition"),
        ({}, "when", "not a condition"),
        ({"path": "a", "op": "=", "value": 1}, "when.op", "unknown operator '='; did you mean ==?"),
        ({"path": "a", "op": "=>", "value": 1}, "when.op", "did you mean >=?"),
        ({"path": "a", "op": "contain", "value": 1}, "when.op", "did you mean contains?"),
        ({"path": "a", "value": 1}, "when.op", "unknown operator"),
        ({"path": "a..b", "op": "exists"}, "when.path", "no path"),
        ({"path": "a", "op": "=="}, "when.value", "wants a value"),
        ({"path": "a", "op": "in", "value": "contact"}, "when.value", "can't take 'contact'"),
        ({"path": "a", "op": "<", "value": None}, "when.value", "can't take None"),
        ({"path": "a", "op": "==", "value": {"x": 1}}, "when.value", "can't take"),
        ({"path": "a", "op": "matches", "value": "(?=x)"}, "when.value", "not a pattern: invalid perl operator"),
        ({"path": "a", "op": "matches", "value": "x" * 1001}, "when.value", "longer than 1000"),
        ({"path": "a", "op": "exists", "vlaue": False}, "when.vlaue", "unknown key"),
        ({"any": []}, "when.any", "wants conditions"),
        ({"any": [{"path": "a", "op": "exists"}, {"not": {"path": "b"}}]}, "when.any[1].not.op", "unknown operator"),
        ({"equals": [1, 2]}, "when", "unknown operator"),
        ({"<": [{"var": "a"}]}, "when", "at least 2 arguments"),
        ({"<": [{"now": []}, 2]}, "when.<.0", "unknown operator `now`"),
    ],
)
def test_what_is_wrong_is_named(spec: Any, key: str, words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        compile_condition(spec)
    [problem] = refused.value.problems
    assert problem.key == key
    assert words in problem.message


def test_every_problem_is_named() -> None:
    with pytest.raises(DefinitionError) as refused:
        compile_condition([{"path": "", "op": "~"}, 7], key="steps[0].if")
    assert [problem.key for problem in refused.value.problems] == [
        "steps[0].if[0].path",
        "steps[0].if[0].op",
        "steps[0].if[1]",
    ]


def test_nesting_is_bounded() -> None:
    spec: Any = {"path": "a", "op": "exists"}
    for _ in range(200):
        spec = {"not": spec}
    with pytest.raises(DefinitionError, match="nested deeper"):
        compile_condition(spec)
