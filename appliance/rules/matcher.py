"""The matcher: which rules an event fulfils, at a cost that doesn't grow with the number of rules.

Rules are put into buckets by event type (exact, or glob by its literal prefix); within a bucket a rule is filed under
the value of one of its equality tests, the one that the fewest rules share. An event looks up its type's buckets and,
for each path that any rule there is filed by, its own value: what it finds are the candidates, whose conditions are
evaluated.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.rules.conditions import Condition, Mismatch
from appliance.rules.logic import number_in, resolve

_MAX_TYPES = 4096
"""Event types whose buckets are remembered; types come from senders, so there is no end to them."""
_Keys = Counter[tuple[str, str, Any]]


@dataclass(frozen=True, slots=True)
class Trigger:
    """One way to start a workflow: an event type (exact, or a glob of ``*`` and ``?``) and an optional condition."""

    event: str
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What the matcher evaluates for one workflow. ``order`` is its place in the results."""

    workflow: str
    triggers: tuple[Trigger, ...]
    order: int
    payload: Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a rule matched, and if not, why: ``failure`` is the first test that failed."""

    workflow: str
    matched: bool
    reason: str
    failure: Mismatch | None = None


class _Bucket:
    """The triggers for one event type (or glob)."""

    __slots__ = ("_filed", "_rest")

    def __init__(self) -> None:
        self._filed: dict[str, dict[Any, list[tuple[Rule, Condition | None]]]] = {}
        self._rest: list[tuple[Rule, Condition | None]] = []

    def add(self, rule: Rule, trigger: Trigger, popularity: _Keys) -> None:
        condition = trigger.condition
        if condition is None or not condition.equalities:
            self._rest.append((rule, condition))
            return
        path, values = min(
            condition.equalities, key=lambda test: sum(popularity[trigger.event, test[0], _key(v)] for v in test[1])
        )
        remaining = None if condition.is_equality else condition
        for key in {_key(value) for value in values}:
            self._filed.setdefault(path, {}).setdefault(key, []).append((rule, remaining))

    def collect(self, view: Mapping[str, Any], found: list[Rule]) -> None:
        for rule, condition in self._rest:
            if condition is None or condition.holds(view):
                found.append(rule)
        for path, by_value in self._filed.items():
            for key in _keys(resolve(view, path)):
                for rule, condition in by_value.get(key, ()):
                    if condition is None or condition.holds(view):
                        found.append(rule)


class Matcher:
    """An immutable index over rules; to change the rules, make a new one."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(sorted(rules, key=lambda rule: rule.order))
        self._exact: dict[str, _Bucket] = {}
        self._globs: dict[str, list[tuple[re.Pattern[str], _Bucket]]] = {}
        self._types: dict[str, tuple[_Bucket, ...]] = {}
        self._wanted: dict[str, bool] = {}
        popularity: _Keys = Counter(
            (trigger.event, path, _key(value))
            for rule in self.rules
            for trigger in rule.triggers
            if trigger.condition is not None
            for path, values in trigger.condition.equalities
            for value in values
        )
        buckets: dict[str, _Bucket] = {}
        for rule in self.rules:
            for trigger in rule.triggers:
                bucket = buckets.get(trigger.event) or self._new_bucket(trigger.event, buckets)
                bucket.add(rule, trigger, popularity)
        self._prefix_lengths = sorted({len(prefix) for prefix in self._globs})

    def match(self, view: Mapping[str, Any]) -> list[Rule]:
        """The rules that the event fulfils, in order; each at most once."""
        found: list[Rule] = []
        for bucket in self._buckets_of(view["type"]):
            bucket.collect(view, found)
        if len(found) < 2:
            return found
        return sorted({id(rule): rule for rule in found}.values(), key=lambda rule: rule.order)

    def wants(self, event_type: str) -> bool:
        """Whether some trigger is meant for events of this type: it names it, or a pattern with the same beginning.

        A pattern of everything takes such an event, but nobody makes one for its sake.
        """
        known = self._wanted.get(event_type)
        if known is None:
            begins = event_type.partition(".")[0]
            known = self._wanted[event_type] = any(
                trigger.event.startswith(begins) and fits(trigger.event, event_type)
                for rule in self.rules
                for trigger in rule.triggers
            )
        return known

    def explain(self, view: Mapping[str, Any], workflow: str | None = None) -> list[Verdict]:
        """A verdict for each rule (or for the named one), in order; by the same evaluation that :meth:`match` makes."""
        matched = {id(rule) for rule in self.match(view)}
        return [
            _verdict(rule, view, id(rule) in matched)
            for rule in self.rules
            if workflow is None or rule.workflow == workflow
        ]

    def _new_bucket(self, event: str, buckets: dict[str, _Bucket]) -> _Bucket:
        bucket = buckets[event] = _Bucket()
        if is_glob(event):
            prefix = re.split(r"[*?]", event, maxsplit=1)[0]
            self._globs.setdefault(prefix, []).append((_glob(event), bucket))
        else:
            self._exact[event] = bucket
        return bucket

    def _buckets_of(self, event_type: str) -> tuple[_Bucket, ...]:
        known = self._types.get(event_type)
        if known is None:
            if len(self._types) >= _MAX_TYPES:
                self._types.clear()
            known = self._types[event_type] = tuple(self._search(event_type))
        return known

    def _search(self, event_type: str) -> Iterable[_Bucket]:
        if event_type in self._exact:
            yield self._exact[event_type]
        for length in self._prefix_lengths:
            if length > len(event_type):
                break
            for pattern, bucket in self._globs.get(event_type[:length], ()):
                if pattern.match(event_type):
                    yield bucket


def is_glob(event: str) -> bool:
    """Whether a trigger's event is a pattern (``*`` any characters, ``?`` one)."""
    return "*" in event or "?" in event


def fits(event: str, event_type: str) -> bool:
    """Whether an event's type is the trigger's, or fits its pattern."""
    return _glob(event).match(event_type) is not None if is_glob(event) else event == event_type


def _glob(event: str) -> re.Pattern[str]:
    # fnmatch's expressions don't backtrack over more than one *; its [sets] are no part of our globs.
    return re.compile(fnmatch.translate(event.replace("[", "[[]")))


def _key(value: Any) -> Any:
    """Numbers are filed as floats: a superset of what equals them, since the condition is evaluated after all."""
    return float(value) if isinstance(value, int | float) else value


def _keys(actual: Any) -> tuple[Any, ...]:
    """What a value of an event is looked up under: numbers in texts count as numbers too."""
    if isinstance(actual, str):
        number = number_in(actual) if actual[-1:].isdigit() or actual[-1:] == "." else None
        return (actual,) if number is None else (actual, number)
    if isinstance(actual, bool) or not isinstance(actual, int | float):
        return ()
    try:
        return (float(actual),)
    except OverflowError:
        return ()


def _verdict(rule: Rule, view: Mapping[str, Any], matched: bool) -> Verdict:
    if matched:
        return Verdict(rule.workflow, True, "matched")
    event_type = view["type"]
    for trigger in rule.triggers:
        if fits(trigger.event, event_type) and trigger.condition is not None:
            failure = trigger.condition.first_failure(view)
            if failure is not None:
                return Verdict(rule.workflow, False, failure.text, failure)
    wanted = [trigger.event for trigger in rule.triggers]
    op = "matches" if any(map(is_glob, wanted)) else "=="
    text = f"type is {event_type!r}, the trigger wants {' or '.join(map(repr, wanted))}"
    return Verdict(
        rule.workflow, False, text, Mismatch("type", op, wanted[0] if len(wanted) == 1 else wanted, event_type, text)
    )
