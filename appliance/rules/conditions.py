"""Conditions: what a rule or a step asks of the data before it, compiled once and evaluated by JSON Logic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from appliance.errors import DefinitionError, Malformed, Problem
from appliance.rules import logic
from appliance.rules.criteria import Group, Logic, Node, Test, check_logic, parse, shown

# What a compiled condition reads: (key, the same below it or () for all of it), ….
_Reads = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first test that failed: what was asked, and what was there instead (``actual``; None when missing)."""

    path: str
    op: str
    expected: Any
    actual: Any
    text: str


class Condition:
    """A compiled condition. Immutable; may be shared between threads and runs."""

    __slots__ = ("_reads", "_rule", "equalities", "is_equality", "paths", "root", "spec")

    spec: Any
    """The condition as it was written."""
    root: Node
    """The same as a tree."""
    equalities: tuple[tuple[str, tuple[Any, ...]], ...]
    """(path, values): tests that the condition can't hold without: that the path's value is one of ``values``."""
    is_equality: bool
    """Whether the only test is one equality with texts, so that whoever finds it fulfilled needn't evaluate it."""

    paths: tuple[tuple[str, ...], ...]
    """What it reads, as far as that can be told beforehand: ``("data", "email")`` …."""

    def __init__(self, spec: Any, root: Node) -> None:
        self.spec = spec
        self.root = root
        self._rule = logic.engine.compile(root.to_logic())
        facts = self._rule.facts()
        self._reads = _reads(facts)
        self.paths = tuple(tuple(path) for path in facts["reads"] if path)
        self.equalities = tuple(_equalities(root))
        self.is_equality = len(self.equalities) == 1 and _sole_text_equality(root)

    def holds(self, view: Mapping[str, Any]) -> bool:
        """Whether ``view`` fulfils the condition; never raises, whatever the data. A missing path counts as null."""
        try:
            return self._rule.evaluate(view if self._reads is None else _project(view, self._reads)) is True
        except logic.DataLogicError:
            return False

    def first_failure(self, view: Mapping[str, Any]) -> Mismatch | None:
        """The first test that fails, or None when the condition holds."""
        return None if self.holds(view) else _failure(self.root, view)


class Expression:
    """Compiled JSON Logic that builds data. Immutable; may be shared between threads and runs."""

    __slots__ = ("_reads", "_rule", "paths")

    paths: tuple[tuple[str, ...], ...]
    """What it reads, as far as that can be told beforehand."""

    def __init__(self, spec: Any) -> None:
        self._rule = logic.engine.compile(orjson.dumps(spec).decode())
        facts = self._rule.facts()
        self._reads = _reads(facts)
        self.paths = tuple(tuple(path) for path in facts["reads"] if path)

    def evaluate(self, view: Mapping[str, Any]) -> Any:
        """The data (JSON), from what ``view`` holds; raises Malformed when it can't be built."""
        try:
            return self._rule.evaluate(view if self._reads is None else _project(view, self._reads))
        except logic.DataLogicError as error:
            raise Malformed(f"logic: {error}", code="logic") from None


def compile_expression(spec: Any, *, key: str) -> Expression:
    """Compile JSON Logic (any JSON data); raises DefinitionError that names every problem below ``key``."""
    problems: list[Problem] = []
    check_logic(spec, key, problems)
    if problems:
        raise DefinitionError(*problems)
    try:
        return Expression(spec)
    except logic.DataLogicError as error:
        raise DefinitionError(Problem(f"not JSON Logic: {error}", key)) from None


def compile_condition(spec: Any, *, key: str = "when") -> Condition:
    """Compile the short form or JSON Logic; raises DefinitionError that names every problem below ``key``."""
    problems: list[Problem] = []
    root = parse(spec, key, problems)
    if problems:
        raise DefinitionError(*problems)
    try:
        return Condition(spec, root)
    except logic.DataLogicError as error:
        raise DefinitionError(Problem(f"not a condition: {error}", key)) from None


def _reads(facts: Mapping[str, Any]) -> _Reads | None:
    """What to hand to the evaluator, which copies all it is given; None when that can't be told beforehand."""
    if facts["computed_reads"] or not all(facts["reads"]):
        return None
    tree: dict[str, Any] = {}
    for path in sorted(facts["reads"], key=len, reverse=True):
        below = tree
        for part in path[:-1]:
            below = below.setdefault(part, {})
        below[path[-1]] = {}  # read as a whole, so whatever was read below it is included
    return _frozen(tree)


def _frozen(tree: dict[str, Any]) -> _Reads:
    return tuple((key, _frozen(below)) for key, below in tree.items())


def _project(view: Mapping[str, Any], reads: _Reads) -> dict[str, Any]:
    picked = {}
    for key, below in reads:
        if key in view:
            value = view[key]
            picked[key] = _project(value, below) if below and isinstance(value, dict) else value
    return picked


def _equalities(node: Node) -> Iterable[tuple[str, tuple[Any, ...]]]:
    match node:
        case Test(path, "==", value) if _indexable(value):
            yield path, (value,)
        case Test(path, "in", values) if values and all(_indexable(value) for value in values):
            yield path, tuple(values)
        case Group("all", children):
            for child in children:
                yield from _equalities(child)


def _indexable(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _sole_text_equality(node: Node) -> bool:
    while isinstance(node, Group) and node.kind == "all" and len(node.children) == 1:
        node = node.children[0]
    match node:
        case Test(_, "==", str()):
            return True
        case Test(_, "in", values):
            return all(isinstance(value, str) for value in values)
    return False


def _failure(node: Node, view: Mapping[str, Any]) -> Mismatch:
    match node:
        case Test(path, op, expected):
            actual = logic.resolve(view, path)
            was = "it is missing" if actual is None else f"it is {shown(actual)}"
            return Mismatch(path, op, expected, actual, f"{node}: {was}")
        case Logic(expression):
            return Mismatch("", "json-logic", expression, None, f"{node}: not fulfilled")
        case Group("all", children):
            for child in children:
                if not Condition(None, child).holds(view):
                    return _failure(child, view)
        case Group("any", children) if children:
            failures = [_failure(child, view) for child in children]
            first = failures[0]
            text = "none of: " + "; ".join(failure.text for failure in failures)
            return Mismatch(first.path, first.op, first.expected, first.actual, text)
        case Group("not", (child,)):
            path, op, value = (child.path, child.op, child.value) if isinstance(child, Test) else ("", "", None)
            actual = logic.resolve(view, path) if path else None
            return Mismatch(path, f"not {op}".strip(), value, actual, f"not: but {child} holds")
    return Mismatch("", "", None, None, f"{node}: can't be evaluated")
