"""How two definitions differ: a unified diff of their YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import unified_diff
from itertools import takewhile
from typing import Any

import orjson

from appliance.workflows.writing import to_yaml

NOTHING = "/dev/null"
"""The label of what isn't there, as diff(1) and its readers have it."""
MAX_LINES = 4000
"""Lines between the first and the last that differ within which single changes are told: time grows with the square."""
_CONTEXT = 3


def diff(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, labels: tuple[str, str]) -> str:
    """The lines to take away and to add, under the two ``labels``; empty if there are none. None: no definition.

    A second at most. Of very large definitions that differ in many places it is coarse: one change from the first
    line that differs to the last.
    """
    some, others = _sorted(old), _sorted(new)
    if some == others:
        return ""
    first, second = (NOTHING if side is None else label for side, label in zip((some, others), labels, strict=True))
    before, after = _lines(some), _lines(others)
    head = _alike(before, after)
    tail = _alike(before[head:][::-1], after[head:][::-1])
    if min(len(before), len(after)) - head - tail > MAX_LINES:
        return "".join(_coarse(before, after, head, tail, (first, second)))
    return "".join(unified_diff(before, after, first, second, n=_CONTEXT))


def _sorted(definition: Mapping[str, Any] | None) -> bytes | None:
    """Stored ones have their keys sorted; the order in which an author wrote them makes no difference."""
    return None if definition is None else orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)


def _lines(definition: bytes | None) -> list[str]:
    return [] if definition is None else to_yaml(orjson.loads(definition)).splitlines(keepends=True)


def _alike(some: Sequence[str], others: Sequence[str]) -> int:
    """How many lines are the same at the beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


def _coarse(before: list[str], after: list[str], head: int, tail: int, labels: tuple[str, str]) -> Iterator[str]:
    """One hunk, which replaces everything but the first ``head`` and the last ``tail`` lines."""
    start, rest = max(head - _CONTEXT, 0), max(tail - _CONTEXT, 0)
    ends = len(before) - tail, len(after) - tail
    yield f"--- {labels[0]}\n+++ {labels[1]}\n"
    yield f"@@ -{start + 1},{len(before) - rest - start} +{start + 1},{len(after) - rest - start} @@\n"
    yield from (f" {line}" for line in before[start:head])
    yield from (f"-{line}" for line in before[head : ends[0]])
    yield from (f"+{line}" for line in after[head : ends[1]])
    yield from (f" {line}" for line in before[ends[0] : len(before) - rest])
