"""Values with which a comparison would hold, or would not: guesses, nearest first, each of which is tried out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from appliance.rules.criteria import Test, normal_path
from appliance.rules.logic import number_in

_MOST = 24
"""Values tried for one comparison."""
_ROOT_TEXTS = frozenset(["id", "source", "type", "subject", "time"])
_SAME = {"===": "==", "!==": "!=", "==": "==", "!=": "!=", ">": ">", ">=": ">=", "<": "<", "<=": "<="}
_MIRRORED = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "==": "==", "!=": "!="}
_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a", "b": "", "A": "", "z": "", "t": "\t", "n": "\n"}
_LARGEST = 1e300
"""Beyond it no other number is looked for."""
_UNKNOWN = ["x", 1, True]
"""What may stand where anything may."""


def values(test: Test, actual: Any, others: Iterable[Test], *, want: bool) -> Iterator[Any]:
    """Values for the test's path with which it may hold (or with ``want`` False, may not); ``others`` are of that path.

    What the event has there now (``actual``) gives the kind: a number that came as a text stays one.
    """
    found: list[Any] = [*_own(test, actual, want), *_bounds([test, *others])]
    for other in others:
        found += _own(other, actual, True) + _own(other, actual, False)
    found += [*_UNKNOWN, None]
    if isinstance(actual, str) and number_in(actual) is not None:
        found = [inner for value in found for inner in (_as_text(value), value)]
    seen: list[str] = []
    for value in found:
        if (mark := repr(value)) not in seen and _possible(test.path, value) and len(seen) < _MOST:
            seen.append(mark)
            yield value


def comparison_in(expression: Any) -> Test | None:
    """The test that JSON Logic makes, if it compares one value of the event with a constant (or asks for it only)."""
    if not isinstance(expression, Mapping) or len(expression) != 1:
        return None
    [(op, given)] = expression.items()
    arguments = given if isinstance(given, list) else [given]
    if op in ("var", "!!"):
        path = _path(expression if op == "var" else arguments[0]) if len(arguments) == 1 else None
        return None if path is None else Test(path, "truthy", True)
    if len(arguments) != 2:
        return None
    left, right = (_path(argument) for argument in arguments)
    if op == "in" and right is not None and _is_constant(arguments[0]):
        return Test(right, "contains", arguments[0])
    if op == "in" and left is not None and isinstance(arguments[1], list) and all(map(_is_constant, arguments[1])):
        return Test(left, "in", arguments[1])
    if op not in _SAME:
        return None
    if left is not None and _is_constant(arguments[1]):
        return Test(left, _SAME[op], arguments[1])
    if right is not None and _is_constant(arguments[0]):
        return Test(right, _MIRRORED[_SAME[op]], arguments[0])
    return None


def _path(argument: Any) -> str | None:
    if not isinstance(argument, Mapping) or list(argument) != ["var"]:
        return None
    name = argument["var"]
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    return normal_path(name) if isinstance(name, str) and name and all(name.split(".")) else None


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


# --- by operator -----------------------------------------------------------------------------------------------------


def _own(test: Test, actual: Any, want: bool) -> list[Any]:
    make = _MAKERS[test.op]
    return make(test.value, actual) if want else _AVOIDERS.get(test.op, _different)(test.value, actual)


def _same(value: Any, _: Any) -> list[Any]:
    return [value]


def _different(value: Any, _: Any) -> list[Any]:
    """Something of the same kind that isn't it."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1]
    return [f"{value}x", None] if isinstance(value, str) else list(_UNKNOWN)


def _one_of(value: Any, _: Any) -> list[Any]:
    return list(value)


def _none_of(value: Any, actual: Any) -> list[Any]:
    return [other for item in value for other in _different(item, actual)]


def _beside(direction: int) -> Callable[[Any, Any], list[Any]]:
    """The bound itself, and what lies next to it in one direction."""

    def make(value: Any, _: Any) -> list[Any]:
        if isinstance(value, str):
            return [value, *_moments(value, direction), value + "x" if direction > 0 else value[:-1]]
        if not _is_number(value) or abs(value) > _LARGEST:
            return [direction, value]
        return [value, value + direction, value + direction / 2, math.nextafter(value, direction * math.inf)]

    return make


def _moments(text: str, direction: int) -> list[str]:
    try:
        moment = datetime.fromisoformat(text) + timedelta(seconds=direction)
    except (ValueError, OverflowError):
        return []
    return [moment.astimezone(UTC).isoformat().replace("+00:00", "Z")] if moment.tzinfo is not None else []


def _with(value: Any, actual: Any) -> list[Any]:
    if isinstance(actual, list):
        return [[*actual, value]]
    return [actual + value, value, [value]] if isinstance(actual, str) and isinstance(value, str) else [[value], value]


def _without(value: Any, actual: Any) -> list[Any]:
    if isinstance(actual, str) and isinstance(value, str):
        return [actual.replace(value, "") if value else None]
    if not isinstance(actual, list):
        return [None]
    return [[item for item in actual if item != value and (not isinstance(item, str) or number_in(item) != value)], []]


def _there(value: Any, _: Any) -> list[Any]:
    return list(_UNKNOWN) if value else [None]


def _pattern(value: str, _: Any) -> list[Any]:
    text = _example(value)
    return [] if text is None else [text]


def _example(pattern: str) -> str | None:
    """A text in which a simple pattern is found; None for patterns with groups."""
    made: list[str] = []
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        if sign == "\\" and at + 1 < len(pattern):
            made.append(_CLASSES.get(pattern[at + 1], pattern[at + 1]))
            at += 1
        elif sign == "[" and (end := pattern.find("]", at + 2)) > 0:
            made.append(_member(pattern[at + 1 : end]))
            at = end
        elif (
            sign == "{"
            and made
            and (end := pattern.find("}", at)) > 0
            and pattern[at + 1 : end].split(",")[0].isdigit()
        ):
            made[-1] *= min(64, int(pattern[at + 1 : end].split(",")[0]))
            at = end
        elif sign in "()|":
            return None
        elif sign not in "^$*?+":
            made.append("x" if sign == "." else sign)
        at += 1
    return "".join(made)


def _member(inside: str) -> str:
    """A character of a class such as ``a-z`` or ``^,``."""
    if inside[:1] != "^":
        return _CLASSES.get(inside[1:2], inside[1:2]) if inside[0] == "\\" else inside[0]
    return next((c for c in "xa0-_ " if c not in inside), "~")


def _typed(value: str, _: Any) -> list[Any]:
    return [value.replace("*", "x").replace("?", "x")]


_MAKERS: dict[str, Callable[[Any, Any], list[Any]]] = {
    "==": _same,
    "!=": _different,
    "in": _one_of,
    ">": _beside(1),
    ">=": _beside(1),
    "<": _beside(-1),
    "<=": _beside(-1),
    "contains": _with,
    "exists": _there,
    "matches": _pattern,
    "fits": _typed,
    "truthy": lambda _, __: [True, 1, "x"],
}
_AVOIDERS: dict[str, Callable[[Any, Any], list[Any]]] = {
    "!=": _same,
    "in": _none_of,
    ">": _beside(-1),
    ">=": _beside(-1),
    "<": _beside(1),
    "<=": _beside(1),
    "contains": _without,
    "exists": lambda value, actual: _there(not value, actual),
    "matches": lambda _, __: ["", "-", None],
    "truthy": lambda _, __: [False, None],
}


def _bounds(tests: list[Test]) -> list[Any]:
    """Numbers between the numbers that the tests of one path name: what fulfils two of them lies there."""
    numbers = sorted({float(test.value) for test in tests if _is_number(test.value) and abs(test.value) <= _LARGEST})
    return [(low + high) / 2 for low, high in pairwise(numbers)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_text(value: Any) -> Any:
    return str(value) if _is_number(value) else value


def _possible(path: str, value: Any) -> bool:
    """Whether an event can have such a value there: its own attributes are texts, and others scalars."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    root = "." not in path and path != "data"
    if path in _ROOT_TEXTS:
        return (isinstance(value, str) and value != "") or (value is None and path == "subject")
    return not (root and isinstance(value, list | dict))
