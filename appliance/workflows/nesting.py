"""Steps as they are written, before anything is known of them: what is in one, whether it goes on behind itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.workflows.revision import END


def may_end(step: Any) -> bool:
    """Whether a jump of a step of ours leads to the end."""
    if not isinstance(step, dict):
        return False
    places = [step, step.get("deadline"), *branches_of(step)]
    return any(isinstance(place, dict) and END in (place.get("next"), place.get("on_error")) for place in places)


def falls_through(step: dict[str, Any]) -> bool:
    """Whether a step goes on behind itself: a choice that always jumps doesn't."""
    branches = [branch for branch in branches_of(step) if isinstance(branch, dict)]
    return not branches or any("steps" in branch for branch in branches) or all("when" in b for b in branches)


def branches_of(step: dict[str, Any]) -> list[Any]:
    """The branches of a choice, as they are written."""
    branches = step.get("choose")
    return branches if isinstance(branches, list) else []


def nested_lists(step: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """(where, steps) of each list of steps in a step: ``choose[0].steps``, ``parallel.branches.a`` …."""
    for index, branch in enumerate(branches_of(step)):
        if isinstance(branch, dict) and isinstance(branch.get("steps"), list):
            yield f"choose[{index}].steps", branch["steps"]
    parallel = step.get("parallel")
    branches = parallel.get("branches") if isinstance(parallel, dict) else None
    for name, steps in branches.items() if isinstance(branches, dict) else ():
        if isinstance(steps, list):
            yield f"parallel.branches.{name}", steps
    each = step.get("for_each")
    if isinstance(each, dict) and isinstance(each.get("steps"), list):
        yield "for_each.steps", each["steps"]


def nested(step: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(id, step) of each step within a step, however deep."""
    for _, steps in nested_lists(step):
        for inner in steps:
            if isinstance(inner, dict):
                yield str(inner.get("id")), inner
                yield from nested(inner)
