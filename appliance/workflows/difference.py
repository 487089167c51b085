"""How two definitions differ: a unified diff of their YAML."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import unified_diff
from typing import Any

import orjson

from appliance.workflows.writing import to_yaml

NOTHING = "/dev/null"
"""The label of what isn't there, as diff(1) and its readers have it."""


def diff(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, labels: tuple[str, str]) -> str:
    """The lines to take away and to add, under the two ``labels``; empty if there are none. None: no definition."""
    before, after = (_lines(definition) for definition in (old, new))
    first, second = (
        NOTHING if definition is None else label for definition, label in zip((old, new), labels, strict=True)
    )
    return "".join(unified_diff(before, after, first, second))


def _lines(definition: Mapping[str, Any] | None) -> list[str]:
    if definition is None:
        return []
    # Stored ones have their keys sorted; the order in which an author wrote them makes no difference.
    same_order = orjson.loads(orjson.dumps(definition, option=orjson.OPT_SORT_KEYS))
    return to_yaml(same_order).splitlines(keepends=True)
