"""Criteria as they are written, parsed into a small tree and translated to JSON Logic.

The short form is ``{path, op, value}``, ``{all: […]}``, ``{any: […]}``, ``{not: …}``; a list means all of it. Any other
object with one key is JSON Logic and taken as it is, except that ``and``, ``or`` and ``!`` become the tree's own nodes,
so that an explanation can look inside. ``all`` exists in both languages: it is JSON Logic's when it has two arguments
of which the first reads or makes a list (``var``, ``filter`` …).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import re2

from appliance.errors import Problem
from appliance.rules import logic

OPERATORS = ("==", "!=", "in", ">", ">=", "<", "<=", "contains", "exists", "matches")
_ELSEWHERE = {"=": "==", "===": "==", "eq": "==", "<>": "!=", "ne": "!=", "=>": ">=", "=<": "<="}
"""What other languages write, and what it is here."""
MAX_DEPTH = 32
"""Deepest nesting of groups."""
_GROUPS = {"all": "all", "any": "any", "not": "not", "and": "all", "or": "any", "!": "not"}
_LIST_READERS = frozenset(
    ["var", "val", "filter", "map", "merge", "sort", "slice", "split", "keys", "values", "distinct"]
)


@dataclass(frozen=True, slots=True)
class Test:
    """One comparison of the short form."""

    path: str
    op: str
    value: Any

    def to_logic(self) -> Any:
        """The test in JSON Logic."""
        return _TRANSLATIONS[self.op]({"var": self.path}, self.value)

    def __str__(self) -> str:
        if self.op == "exists":
            return f"{self.path} {'exists' if self.value else 'does not exist'}"
        return f"{self.path} {self.op} {shown(self.value)}"


@dataclass(frozen=True, slots=True)
class Group:
    """``all``, ``any`` or ``not`` (the latter with one child)."""

    kind: str
    children: tuple[Node, ...]

    def to_logic(self) -> Any:
        """The group in JSON Logic; ``all`` of nothing holds, ``any`` of nothing doesn't."""
        parts = [child.to_logic() for child in self.children]
        if self.kind == "not":
            return {"!": parts}
        return {"and" if self.kind == "all" else "or": parts} if parts else self.kind == "all"

    def __str__(self) -> str:
        return f"{self.kind} of ({'; '.join(map(str, self.children))})"


@dataclass(frozen=True, slots=True)
class Logic:
    """JSON Logic as written; holds when its result is truthy."""

    expression: Any

    def to_logic(self) -> Any:
        """The expression, made a boolean."""
        return {"!!": [self.expression]}

    def __str__(self) -> str:
        return f"JSON Logic {shown(self.expression)}"


Node = Test | Group | Logic


def parse(spec: Any, key: str, problems: list[Problem], depth: int = 0) -> Node:
    """The tree of ``spec``; what is wrong with it is added to ``problems`` (and the node then is a stand-in)."""
    if depth > MAX_DEPTH:
        problems.append(Problem(f"nested deeper than {MAX_DEPTH} levels", key))
        return Group("all", ())
    if isinstance(spec, list):
        return Group("all", tuple(parse(item, f"{key}[{i}]", problems, depth + 1) for i, item in enumerate(spec)))
    if not isinstance(spec, dict) or not spec:
        problems.append(
            Problem(f"not a condition: {shown(spec)}", key, expected="{path, op, value}, a list of them, or JSON Logic")
        )
        return Group("all", ())
    if "path" in spec or "op" in spec or len(spec) != 1:
        return _parse_test(spec, key, problems)
    return _parse_single(spec, key, problems, depth)


def shown(value: Any, limit: int = 80) -> str:
    """A value for people: shortened."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def normal_path(path: str) -> str:
    """``event.data.x`` and ``data.x`` are the same thing, as in templates."""
    return path.removeprefix("event.")


def _parse_single(spec: dict[str, Any], key: str, problems: list[Problem], depth: int) -> Node:
    [(name, body)] = spec.items()
    if name not in _GROUPS or (name == "all" and _is_json_logic_all(body)):
        return _parse_logic(spec, key, problems)
    kind, inner = _GROUPS[name], f"{key}.{name}"
    if kind == "not":
        if name == "!" and isinstance(body, list):
            return (
                _parse_logic(spec, key, problems)
                if len(body) != 1
                else _parse_single({"!": body[0]}, key, problems, depth)
            )
        return Group("not", (_operand(name, body, inner, problems, depth),))
    if not isinstance(body, list) or not body:
        problems.append(Problem(f"{name} wants conditions", inner, expected="a list with at least one condition"))
        return Group("all", ())
    return Group(kind, tuple(_operand(name, item, f"{inner}[{i}]", problems, depth) for i, item in enumerate(body)))


def _operand(name: str, spec: Any, key: str, problems: list[Problem], depth: int) -> Node:
    """A child of a group; under JSON Logic's own names it may be any value, as there."""
    own = name in ("and", "or", "!")
    return Logic(spec) if own and not isinstance(spec, dict) else parse(spec, key, problems, depth + 1)


def _is_json_logic_all(body: Any) -> bool:
    if not isinstance(body, list) or len(body) != 2 or not isinstance(body[0], dict) or len(body[0]) != 1:
        return False
    return next(iter(body[0])) in _LIST_READERS


def _parse_logic(spec: dict[str, Any], key: str, problems: list[Problem]) -> Node:
    return Logic(spec) if check_logic(spec, key, problems, "{path, op, value} or JSON Logic") else Group("all", ())


def check_logic(spec: Any, key: str, problems: list[Problem], expected: str = "JSON Logic") -> bool:
    """Add to ``problems`` what is wrong with JSON Logic; returns whether it can be read at all."""
    try:
        found = logic.engine.check(orjson.dumps(spec).decode() if isinstance(spec, str) else spec)
    except logic.DataLogicError as error:
        problems.append(Problem(f"not JSON Logic: {error}", key))
        return False
    for diagnostic in found:
        if diagnostic["severity"] == "error":
            pointer = diagnostic["pointer"].replace("/", ".")
            problems.append(Problem(diagnostic["message"], key + pointer, expected=expected))
    return True


def _parse_test(spec: dict[str, Any], key: str, problems: list[Problem]) -> Node:
    before = len(problems)
    unknown = sorted(str(name) for name in spec if name not in ("path", "op", "value"))
    problems += [Problem(f"unknown key {name!r}", f"{key}.{name}", expected="path, op and value") for name in unknown]
    path, op = spec.get("path"), spec.get("op")
    if not isinstance(path, str) or not path or not all(path.split(".")):
        problems.append(Problem(f"no path: {shown(path)}", f"{key}.path", expected="a dotted path, such as data.email"))
    if op not in OPERATORS:
        near = _ELSEWHERE.get(str(op)) or next(iter(difflib.get_close_matches(str(op), OPERATORS, 1, 0.3)), None)
        hint = f"; did you mean {near}?" if near and op is not None else ""
        problems.append(
            Problem(f"unknown operator {shown(op)}{hint}", f"{key}.op", expected="one of " + " ".join(OPERATORS))
        )
    else:
        _check_value(op, spec, key, problems)
    if len(problems) > before:
        return Group("all", ())
    return Test(normal_path(str(path)), str(op), spec.get("value", True))


def _check_value(op: str, spec: dict[str, Any], key: str, problems: list[Problem]) -> None:
    if "value" not in spec and op != "exists":
        problems.append(Problem(f"{op} wants a value", f"{key}.value", expected=_EXPECTED[op][1]))
        return
    accepts, expected = _EXPECTED[op]
    value = spec.get("value", True)
    if not accepts(value):
        problems.append(Problem(f"{op} can't take {shown(value)}", f"{key}.value", expected=expected))
    elif op == "matches":
        _check_pattern(value, f"{key}.value", problems)


def _check_pattern(text: str, key: str, problems: list[Problem]) -> None:
    if len(text) > logic.MAX_PATTERN:
        problems.append(Problem(f"longer than {logic.MAX_PATTERN} characters", key))
        return
    try:
        logic.pattern(text)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        problems.append(Problem(f"not a pattern: {reason}", key, expected="a regular expression in RE2's syntax"))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # Beyond 64 bits the evaluator would take an integer for a float.
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(_is_scalar(item) for item in value)


def _is_ordered(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)


_SCALAR = (_is_scalar, "a text, number, boolean or null")
_ORDERED = (_is_ordered, "a number or a text")
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "==": _SCALAR,
    "!=": _SCALAR,
    "contains": _SCALAR,
    "in": (_is_list, "a list of texts, numbers, booleans or null"),
    ">": _ORDERED,
    ">=": _ORDERED,
    "<": _ORDERED,
    "<=": _ORDERED,
    "exists": (lambda value: isinstance(value, bool), "true or false"),
    "matches": (lambda value: isinstance(value, str), "a regular expression"),
}


def _ordering(op: str) -> Callable[[Any, Any], Any]:
    return lambda operand, value: logic.comparison(op, operand, value)


_TRANSLATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": logic.equality,
    "!=": lambda operand, value: {"!": [logic.equality(operand, value)]},
    "in": logic.membership,
    "contains": logic.contains,
    "exists": logic.exists,
    "matches": logic.matches,
    **{op: _ordering(op) for op in (">", ">=", "<", "<=")},
}
