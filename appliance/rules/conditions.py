"""Conditions: what a rule or a step asks of the data before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first test that failed: what was asked, and what was there instead."""

    path: str
    op: str
    expected: Any
    actual: Any
    text: str


class Condition:
    """A compiled condition. Immutable; shared between threads and runs."""

    __slots__ = ("equalities", "spec")

    spec: Any
    """The condition as it was written."""
    equalities: tuple[tuple[str, Any], ...]
    """The ``==`` tests on scalars that must all hold for the condition to hold."""

    def holds(self, view: Mapping[str, Any]) -> bool:
        """Whether ``view`` fulfils the condition; never raises, whatever the data."""
        raise NotImplementedError

    def first_failure(self, view: Mapping[str, Any]) -> Mismatch | None:
        """The first test that fails, or None when the condition holds."""
        raise NotImplementedError


def compile_condition(spec: Any, *, key: str = "when") -> Condition:
    """Compile the short form or JSON Logic; DefinitionError names every problem under ``key``."""
    raise NotImplementedError
