"""What would have to be different: the smallest change of an event with which a workflow would take it.

A search over changes, fewest first: whatever test stands in the way names values with which it would hold, each is
tried, and so on until the event fits. Nothing is trusted: what is handed out was applied to the event, and the result
is an event that the very conditions take that the matcher evaluates.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from appliance.errors import Malformed
from appliance.events import from_cloudevent
from appliance.rules import candidates, logic
from appliance.rules.conditions import Condition
from appliance.rules.criteria import Group, Logic, Node, Test, shown
from appliance.rules.matcher import Trigger, fits, is_glob

_MOST_TRIES = 400
"""Events that one search evaluates: some 20 ms. Criteria that want more are rare, and a person reads the answer."""
_SIGNS = {"==": "=", "!=": "≠", ">=": "≥", "<=": "≤", "matches": "matches", "contains": "contains"}
_OPPOSITES = {
    "==": "≠",
    "!=": "=",
    ">": "≤",
    ">=": "<",
    "<": "≥",
    "<=": ">",
    "in": "not in",
    "contains": "without",
    "matches": "does not match",
}
OPAQUE = "no change found: there is JSON Logic that can't be inverted"
NOTHING = "no change found"


@dataclass(frozen=True, slots=True)
class Change:
    """One value of an event that would have to be another. ``before`` is None where there is none."""

    path: str
    before: Any
    after: Any
    text: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changes that, all together, make an event fit; without any, ``note`` says why there are none."""

    changes: tuple[Change, ...] = ()
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _OfType:
    """The test that a trigger makes of the event's type."""

    event: str
    path: str = "type"

    def __str__(self) -> str:
        return f"type {'fits' if is_glob(self.event) else '='} {self.event!r}"


_Leaf = Test | Logic | _OfType
_Any = Node | _OfType
_Edits = dict[str, tuple[Any, str]]
"""By path: the new value, and what it is for. In the order in which they are to be made."""


def remedy(triggers: Sequence[Trigger], view: Mapping[str, Any]) -> Remedy:
    """The smallest change of an event (as criteria see it) with which one of the triggers would take it.

    The fewest values; of several such changes the one whose trigger and criteria are written first. Fewer changes may
    exist where criteria contradict each other in many ways: the search is bounded.
    """
    search = _Search(triggers, view)
    edits = search.run()
    if edits is None:
        return Remedy(note=OPAQUE if search.opaque else NOTHING)
    return Remedy(
        tuple(
            Change(path, actual := logic.resolve(view, path), value, f"{text}; {_was(actual)}")
            for path, (value, text) in edits.items()
        )
    )


def applied(view: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The event with the values at these paths replaced, in order; objects that are missing on the way are made.

    Shares with ``view`` what didn't change: events may be large.
    """
    changed: Any = view
    for path, value in changes:
        changed = _replaced(changed, path.split("."), value)
    return dict(changed)


def _replaced(place: Any, parts: list[str], value: Any) -> Any:
    if not parts:
        return value
    part, *rest = parts
    if isinstance(place, list):
        at = int(part)
        return [*place[:at], _replaced(place[at] if at < len(place) else None, rest, value), *place[at + 1 :]]
    known = place if isinstance(place, Mapping) else {}
    return {**known, part: _replaced(known.get(part), rest, value)}


class _Search:
    """One search. ``opaque``: something stood in the way of which nobody can say when it would hold."""

    def __init__(self, triggers: Sequence[Trigger], view: Mapping[str, Any]) -> None:
        self.opaque = False
        self._view = view
        self._triggers = triggers
        self._root = Group("any", tuple(_wanted(trigger) for trigger in triggers))
        self._rules: dict[int, Any] = {}
        self._hints: dict[str, list[Any]] = {}
        for leaf in _leaves(self._root):
            if (test := _test_of(leaf)) is not None:
                self._hints.setdefault(test.path, []).append(test)

    def run(self) -> _Edits | None:
        """The edits, or None."""
        number = count()
        heap: list[tuple[int, int, int, _Edits]] = [(0, 0, next(number), {})]
        seen = set()
        for _ in range(_MOST_TRIES):
            if not heap:
                return None
            _, _, _, edits = heapq.heappop(heap)
            view = applied(self._view, ((path, value) for path, (value, _) in edits.items()))
            if edits and self._fulfilled(view):
                return self._least(edits)
            for path, value, text in self._ways(self._root, view, want=True):
                further = {**edits, path: (value, text)}
                if (mark := repr([(p, v) for p, (v, _) in further.items()])) in seen:
                    continue
                seen.add(mark)
                needed = self._needed(self._root, applied(view, [(path, value)]), want=True)
                if needed is not None:
                    heapq.heappush(heap, (len(further.keys() | needed), -len(further), next(number), further))
        return None

    def _least(self, edits: _Edits) -> _Edits:
        """Without what turned out not to be needed."""
        for path in list(edits):
            fewer = {other: edit for other, edit in edits.items() if other != path}
            view = applied(self._view, ((path, value) for path, (value, _) in fewer.items()))
            if fewer and self._fulfilled(view):
                edits = fewer
        return edits

    def _fulfilled(self, view: dict[str, Any]) -> bool:
        """Whether this is an event, and one that a trigger takes: the check that counts."""
        try:
            event = from_cloudevent(view).view()
        except Malformed:
            return False
        return any(
            fits(trigger.event, event["type"]) and (trigger.condition is None or trigger.condition.holds(event))
            for trigger in self._triggers
        )

    def _needed(self, node: _Any, view: Mapping[str, Any], *, want: bool) -> frozenset[str] | None:
        """The paths that are to be changed at least, so that the node holds (or doesn't); None: nothing can be done."""
        if not isinstance(node, Group):
            if self._holds(node, view) is want:
                return frozenset()
            test = _test_of(node)
            self.opaque = self.opaque or test is None
            return None if test is None else frozenset([test.path])
        if node.kind == "not":
            return self._needed(node.children[0], view, want=not want)
        below = [self._needed(child, view, want=want) for child in node.children]
        if (node.kind == "all") is want:
            known = [paths for paths in below if paths is not None]
            return frozenset(path for paths in known for path in paths) if len(known) == len(below) else None
        return min((b for b in below if b is not None), key=len, default=None)

    def _ways(self, node: _Any, view: Mapping[str, Any], *, want: bool) -> Iterator[tuple[str, Any, str]]:
        """What could be done next so that the node holds (or doesn't): (path, value, what for)."""
        if not isinstance(node, Group):
            yield from self._values(node, view, want=want)
        elif node.kind == "not":
            yield from self._ways(node.children[0], view, want=not want)
        else:
            wrong = [child for child in node.children if self._needed(child, view, want=want)]
            for child in wrong[:1] if (node.kind == "all") is want else wrong:
                yield from self._ways(child, view, want=want)

    def _values(self, leaf: _Leaf, view: Mapping[str, Any], *, want: bool) -> Iterator[tuple[str, Any, str]]:
        test = _test_of(leaf)
        if test is None:
            return
        actual = logic.resolve(view, test.path)
        text = _text(leaf, test, want=want)
        others = [other for other in self._hints.get(test.path, ()) if other is not test]
        for value in candidates.values(test, actual, others, want=want):
            placed = _placed(view, test.path, value)
            if placed is not None and self._holds(leaf, applied(view, [placed])) is want:
                yield *placed, text

    def _holds(self, node: _Any, view: Mapping[str, Any]) -> bool:
        if isinstance(node, _OfType):
            return fits(node.event, str(view["type"]))
        rule = self._rules.get(id(node))
        if rule is None:
            rule = self._rules[id(node)] = Condition(None, node)
        return bool(rule.holds(view))


def _wanted(trigger: Trigger) -> Any:
    """A trigger as a tree."""
    of_type: Any = _OfType(trigger.event)
    return Group("all", (of_type, trigger.condition.root) if trigger.condition is not None else (of_type,))


def _leaves(node: _Any) -> Iterator[_Leaf]:
    if isinstance(node, Group):
        for child in node.children:
            yield from _leaves(child)
    else:
        yield node


def _test_of(leaf: _Leaf) -> Test | None:
    """The comparison that a leaf makes; None for JSON Logic that makes another one."""
    if isinstance(leaf, _OfType):
        return Test("type", "fits", leaf.event)
    return leaf if isinstance(leaf, Test) else candidates.comparison_in(leaf.expression)


def _text(leaf: _Leaf, test: Test, *, want: bool) -> str:
    if isinstance(leaf, _OfType):
        return str(leaf)
    if test.op == "exists":
        return f"{test.path} {'exists' if test.value is want else 'does not exist'}"
    sign = _SIGNS.get(test.op, test.op) if want else _OPPOSITES.get(test.op, f"not {test.op}")
    return f"{test.path} {sign} {shown(test.value)}"


def _was(actual: Any) -> str:
    return "it is missing" if actual is None else f"was {shown(actual)}"


def _placed(view: Mapping[str, Any], path: str, value: Any) -> tuple[str, Any] | None:
    """Where a value is to be put so that ``path`` leads to it: there, or in place of what is no object on the way."""
    parts = path.split(".")
    place: Any = view
    for depth, part in enumerate(parts):
        if isinstance(place, list) and not (part.isascii() and part.isdigit() and int(part) <= len(place)):
            return None
        place = _child(place, part)
        if place is None:
            return path, value
        if not isinstance(place, Mapping | list):
            for name in reversed(parts[depth + 1 :]):
                value = {name: value}
            return ".".join(parts[: depth + 1]), value
    return path, value


def _child(place: Any, part: str) -> Any:
    if isinstance(place, Mapping):
        return place.get(part)
    return place[int(part)] if int(part) < len(place) else None
