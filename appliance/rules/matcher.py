"""The matcher: which rules an event fulfils, at a cost that doesn't grow with the number of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.rules.conditions import Condition, Mismatch


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
    """Why a rule did or did not match."""

    workflow: str
    matched: bool
    reason: str
    failure: Mismatch | None = None


class Matcher:
    """An immutable index over rules."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(sorted(rules, key=lambda rule: rule.order))

    def match(self, view: Mapping[str, Any]) -> list[Rule]:
        """The rules that the event fulfils, in order; each at most once."""
        raise NotImplementedError

    def explain(self, view: Mapping[str, Any], workflow: str | None = None) -> list[Verdict]:
        """A verdict for each rule (or for the named one), in order."""
        raise NotImplementedError
