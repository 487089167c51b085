"""The smallest change with which an event would be taken: for each operator, for groups, and that it always holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.events import from_cloudevent, new_event
from appliance.rules.changes import NOTHING, OPAQUE, Remedy, applied, remedy
from appliance.rules.conditions import compile_condition
from appliance.rules.matcher import Matcher, Rule, Trigger


def found(when: Any, data: Any, *, type: str = "t", event: str = "t", **attributes: Any) -> Remedy:
    condition = None if when is None else compile_condition(when)
    return remedy([Trigger(event, condition)], view(data, type, **attributes))


def view(data: Any, type: str = "t", **attributes: Any) -> dict[str, Any]:
    return new_event(type, data, source="/s", attributes=attributes).view()


def asks(path: str, op: str, *value: Any) -> dict[str, Any]:
    return {"path": path, "op": op, **({"value": value[0]} if value else {})}


@pytest.mark.parametrize(
    ("op", "value", "actual", "to", "text"),
    [
        (">=", 100, 80, 100, "data.x ≥ 100; was 80"),
        (">", 100, 80, 101, "data.x > 100; was 80"),
        ("<=", 5, 8, 5, "data.x ≤ 5; was 8"),
        ("<", 5, 8, 4, "data.x < 5; was 8"),
        (">=", 100, "80", "100", "data.x ≥ 100; was '80'"),
        (">=", 100, [1], 100, "data.x ≥ 100; was [1]"),
        (">=", 100, None, 100, "data.x ≥ 100; it is missing"),
        (">", "b", "a", "bx", "data.x > 'b'; was 'a'"),
        (">", "2030-01-01T00:00:00Z", "", "2030-01-01T00:00:01Z", "data.x > '2030-01-01T00:00:00Z'; was ''"),
        ("==", "gold", "tin", "gold", "data.x = 'gold'; was 'tin'"),
        ("==", None, 1, None, "data.x = None; was 1"),
        ("==", True, "true", True, "data.x = True; was 'true'"),
        ("!=", 5, 5, 6, "data.x ≠ 5; was 5"),
        ("!=", None, None, "x", "data.x ≠ None; it is missing"),
        ("in", ["a", "b"], "c", "a", "data.x in ['a', 'b']; was 'c'"),
        ("contains", "vip", ["new"], ["new", "vip"], "data.x contains 'vip'; was ['new']"),
        ("contains", "vip", "new ", "new vip", "data.x contains 'vip'; was 'new '"),
        ("contains", 3, None, [3], "data.x contains 3; it is missing"),
        ("exists", True, None, "x", "data.x exists; it is missing"),
        ("exists", False, 7, None, "data.x does not exist; was 7"),
        ("matches", r"^[a-z]{3}-\d+$", "?", "aaa-0", "data.x matches '^[a-z]{3}-\\\\d+$'; was '?'"),
    ],
)
def test_each_operator_has_its_smallest_change(op: str, value: Any, actual: Any, to: Any, text: str) -> None:
    (change,) = found(asks("data.x", op, value), {"x": actual}).changes
    assert (change.path, change.before, change.after, change.text) == ("data.x", actual, to, text)


@pytest.mark.parametrize(
    ("op", "value", "actual"),
    [
        ("==", 5, 5),
        ("!=", 5, 6),
        ("in", [1, 2], 2),
        ("contains", "a", "banana"),
        ("contains", 1, [1, 2, "1"]),
        ("exists", True, 0),
        ("matches", "a+", "caat"),
        (">", 5, 9),
        ("<=", 5, "4"),
    ],
)
def test_each_operator_can_be_undone(op: str, value: Any, actual: Any) -> None:
    (change,) = found({"not": asks("data.x", op, value)}, {"x": actual}).changes
    assert change.path == "data.x"


def test_of_alternatives_the_cheapest_is_told() -> None:
    dear = [asks("data.a", "==", 1), asks("data.b", "==", 2)]
    remedy = found({"any": [dear, asks("data.c", "==", 3)]}, {})
    assert [change.text for change in remedy.changes] == ["data.c = 3; it is missing"]
    nearer = found({"any": [dear, [asks("data.c", "==", 3), asks("data.d", "==", 4)]]}, {"d": 4})
    assert [change.path for change in nearer.changes] == ["data.c"]


def test_one_change_may_serve_two_tests() -> None:
    shared = asks("data.b", "==", 2)
    when = [{"any": [asks("data.a", "==", 1), shared]}, {"any": [shared, asks("data.c", "==", 3)]}]
    assert [change.path for change in found(when, {}).changes] == ["data.b"]
    between = found([asks("data.x", ">", 1), asks("data.x", "<", 2)], {"x": 7})
    assert [change.after for change in between.changes] == [1.5]


def test_the_type_is_changed_where_no_trigger_wants_it() -> None:
    (change,) = found(None, {}, type="mail", event="order.*").changes
    assert (change.path, change.after, change.text) == ("type", "order.x", "type fits 'order.*'; was 'mail'")
    triggers = [Trigger("b"), Trigger("a", compile_condition(asks("data.x", ">=", 5)))]
    assert [c.text for c in remedy(triggers, view({"x": 1}, "a")).changes] == ["type = 'b'; was 'a'"]


def test_what_stands_in_the_way_is_replaced() -> None:
    (change,) = found(asks("data.who.name", "==", "Ann"), {"who": "Bob"}).changes
    assert (change.path, change.before, change.after) == ("data.who", "Bob", {"name": "Ann"})
    (made,) = found(asks("data.lines.0.sku", "==", "A1"), {"lines": []}).changes
    assert applied(view({"lines": []}), [(made.path, made.after)])["data"] == {"lines": [{"sku": "A1"}]}
    assert found(asks("data.lines.5.sku", "==", "A1"), {"lines": []}) == Remedy(note=NOTHING)


def test_an_attribute_stays_one_that_an_event_may_have() -> None:
    assert found([asks("source", "exists", False)], {}) == Remedy(note=NOTHING)
    assert found([asks("time", "<", "a")], {}) == Remedy(note=NOTHING)
    assert [c.after for c in found(asks("subject", "contains", "x"), {}).changes] == ["x"]


def test_simple_json_logic_is_inverted_and_other_is_not() -> None:
    assert [c.text for c in found({"<": [5, {"var": "data.x"}]}, {"x": 4}).changes] == ["data.x > 5; was 4"]
    assert [c.after for c in found({"in": [{"var": "data.x"}, ["a"]]}, {}).changes] == ["a"]
    assert [c.after for c in found({"!!": [{"var": "data.x"}]}, {}).changes] == [True]
    opaque = {">": [{"+": [{"var": "data.x"}, 1]}, 5]}
    assert found(opaque, {"x": 1}) == Remedy(note=OPAQUE)
    assert [c.path for c in found({"or": [opaque, {"==": [{"var": "data.y"}, 1]}]}, {}).changes] == ["data.y"]


def test_what_contradicts_itself_has_no_remedy() -> None:
    assert found([asks("data.x", "==", 1), asks("data.x", "==", 2)], {}) == Remedy(note=NOTHING)
    assert found([{"any": [asks("data.x", "matches", "(a|b)")]}], {}) == Remedy(note=NOTHING)


def test_a_large_event_and_many_tests_take_no_long_search() -> None:
    when = {"all": [{"any": [asks(f"data.a{i}", "in", [1, 2, 3]), asks(f"data.b{i}", ">", i)]} for i in range(20)]}
    many = {"lines": [{"text": "x" * 1000}] * 5000}
    assert len(found(when, many).changes) == 20


PATHS = st.sampled_from(["data", "data.a", "data.b", "data.a.c", "data.b.0", "subject", "type", "kind"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(-5, 5, width=16),
    st.sampled_from(["", "a", "ab", "1", "-2.5", "1h", "2030-01-01T00:00:00Z", "t"]),
)
ORDERED = SCALARS.filter(lambda value: value is not None and not isinstance(value, bool))
TESTS = st.one_of(
    st.builds(asks, PATHS, st.sampled_from(["==", "!=", "contains"]), SCALARS),
    st.builds(asks, PATHS, st.sampled_from([">", ">=", "<", "<="]), ORDERED),
    st.builds(asks, PATHS, st.just("in"), st.lists(SCALARS, max_size=3)),
    st.builds(asks, PATHS, st.just("exists"), st.booleans()),
    st.builds(asks, PATHS, st.just("matches"), st.sampled_from(["a", "^a+$", "[0-9]{2}", r"\d\.", "(a|b)", ""])),
    st.builds(
        lambda path, op, value: {op: [{"var": path}, value]}, PATHS, st.sampled_from(["==", ">", "!=="]), SCALARS
    ),
)
CRITERIA = st.recursive(
    TESTS,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"all": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"any": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=5,
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(when=CRITERIA, data=DATA, event=st.sampled_from(["t", "other", "t*", "?"]), kind=SCALARS)
def test_with_the_changes_that_are_told_the_workflow_takes_the_event(
    when: Any, data: Any, event: str, kind: Any
) -> None:
    rule = Rule("w", (Trigger(event, compile_condition(when)),), 0, None)
    matcher, before = Matcher([rule]), view(data, kind=kind)
    if matcher.match(before):
        return
    told = remedy(rule.triggers, before)
    assert bool(told.changes) is (told.note is None)
    if told.changes:
        after = applied(before, [(change.path, change.after) for change in told.changes])
        assert matcher.match(from_cloudevent(after).view())
        assert len({change.path for change in told.changes}) == len(told.changes)


@settings(max_examples=200, deadline=None)
@given(test=TESTS.filter(lambda test: test.get("op") != "matches"), data=DATA)
def test_a_single_test_of_data_wants_a_single_change(test: Any, data: Any) -> None:
    told = found(test, data)
    assert len(told.changes) <= 1
