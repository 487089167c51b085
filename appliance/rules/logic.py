"""The one evaluator of conditions: JSON Logic by datalogic, with what it needs to be exact and bounded.

datalogic reads texts such as ``1h`` or ``2030-01-01T00:00:00Z`` as durations and times in every comparison, so that
``"1h" === "60m"``; the equality built here compares such texts letter by letter. Its comparisons take a missing value
for 0; the ones built here never hold for a value of another kind.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson
import re2
from datalogic_py import DataLogicError as DataLogicError
from datalogic_py import Engine

MAX_PATTERN = 1000
"""Longest regular expression, in characters."""
_BUDGET = 100_000
"""Operations that one evaluation may cost: some 10 ms. A rule that would need more doesn't hold."""
# Left out: DateTime (a condition may not ask the clock, or an explanation would differ from the match), Tensor, Flagd.
_FAMILIES = ("Core", "ExtString", "ExtArray", "ExtObject", "ExtControl", "ErrorHandling", "ExtMath")
_TEXTS = ["string", "datetime", "duration"]
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@lru_cache(maxsize=4096)
def pattern(text: str) -> Any:
    """A compiled RE2 pattern (linear time, so no input can stall it); raises ``re2.error``."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(text, options)


def _matches(arguments: str) -> str:
    values = orjson.loads(arguments)
    if len(values) != 2 or not all(isinstance(value, str) for value in values) or len(values[1]) > MAX_PATTERN:
        return "false"
    with contextlib.suppress(re2.error):
        return "true" if pattern(values[1]).search(values[0]) else "false"
    return "false"


engine = Engine(families=_FAMILIES, custom_operators={"matches": _matches}, config={"ops_budget": _BUDGET})
"""Shared by all conditions; thread-safe."""


def resolve(view: Any, path: str) -> Any:
    """The value at a dotted ``path`` (a number indexes a list), or None; what ``{"var": path}`` sees."""
    for part in path.split("."):
        if isinstance(view, Mapping):
            view = view.get(part)
        elif isinstance(view, list) and part.isascii() and part.isdigit() and int(part) < len(view):
            view = view[int(part)]
        else:
            return None
    return view


def number_in(text: str) -> float | None:
    """The number that ``text`` spells (``12``, ``-3.5``, ``1e3``; no blanks), or None: form fields are always texts."""
    return float(text) if _NUMBER.fullmatch(text) else None


def equality(operand: Any, value: Any) -> Any:
    """JSON Logic for ``operand == value``: same kind and same value; a number also equals a text that spells it."""
    if isinstance(value, bool) or value is None:
        return {"===": [operand, value]}
    if isinstance(value, int | float):
        return _numeric("==", operand, value)
    if is_plain(value):
        return {"===": [operand, value]}
    return {"and": [_is(operand, _TEXTS), {"===": [{"cat": ["=", operand]}, "=" + value]}]}


def comparison(op: str, operand: Any, value: Any) -> Any:
    """JSON Logic for an order: among numbers (and texts that spell one), or among texts; times compare as moments."""
    if isinstance(value, str):
        return {"and": [_is(operand, _TEXTS), {"try": [{op: [operand, value]}, False]}]}
    return _numeric(op, operand, value)


def membership(operand: Any, values: list[Any]) -> Any:
    """JSON Logic for ``operand`` being one of ``values``."""
    plain = [value for value in values if isinstance(value, str) and is_plain(value)]
    tests = [equality(operand, value) for value in values if not (isinstance(value, str) and is_plain(value))]
    return {"or": [{"in": [operand, plain]}, *tests]}


def contains(operand: Any, value: Any) -> Any:
    """JSON Logic for a list with an item equal to ``value``, or a text with ``value`` in it."""
    listed = {"and": [_is(operand, ["array"]), {"some": [operand, equality({"var": ""}, value)]}]}
    if not isinstance(value, str):
        return listed
    return {"or": [{"and": [_is(operand, _TEXTS), {"in": [value, operand]}]}, listed]}


def exists(operand: Any, value: bool) -> Any:
    """JSON Logic for a value being there and not null (or, with False, not)."""
    return {"!==" if value else "===": [operand, None]}


def matches(operand: Any, value: str) -> Any:
    """JSON Logic for a text in which the pattern is found."""
    return {"matches": [operand, value]}


@lru_cache(maxsize=65536)
def is_plain(text: str) -> bool:
    """Whether datalogic takes ``text`` for a text, not for a time or a duration."""
    return bool(engine.eval({"type": {"var": "t"}}, {"t": text}) == "string")


def _is(operand: Any, kinds: list[str]) -> Any:
    return {"in": [{"type": operand}, kinds]}


def _numeric(op: str, operand: Any, value: float) -> Any:
    return {
        "and": [
            _is(operand, ["number", "string"]),
            {"!==": [operand, ""]},
            {"try": [{op: [operand, value]}, False]},
        ]
    }
