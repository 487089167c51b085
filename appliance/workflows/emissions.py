"""The events that a workflow makes, as far as its definition tells: what it publishes, and what announces its ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.templating import has_expression
from appliance.workflows.revision import Step, Workflow

ENDS = {"workflow.completed": "completes", "workflow.failed": "fails", "workflow.cancelled": "is cancelled"}
"""What announces the ends of runs, and how a workflow comes to it; see ``engine/lifecycle.py``."""
_STATUSES = {"workflow.completed": "succeeded", "workflow.failed": "failed", "workflow.cancelled": "cancelled"}
UNKNOWN: Any = object()
"""A value that depends."""
_EXPRESSION = re.compile(r"\{%.*%\}|\{\{.*?\}\}|\{#.*?#\}", re.DOTALL)
_STAMPED = ("id", "time", "hops", "correlationid", "causationid")


@dataclass(frozen=True, slots=True)
class Emission:
    """An event that a workflow makes: its type (or a glob), and what else is known of it (``UNKNOWN`` where not).

    ``end`` is the type, where it announces the end of a run.
    """

    verb: str
    type: str
    known: Mapping[str, Any]
    others: bool = False
    """Whether it may have attributes besides."""
    end: str = ""


def emissions_of(workflow: Workflow, ends: Iterable[str]) -> Iterator[Emission]:
    """All of them; of the ``ENDS`` those that are announced."""
    for step in workflow.steps:
        if step.action == "publish" and (emission := _published(workflow, step)) is not None:
            yield emission
    for end in ends:
        data = dict.fromkeys(("run", "revision", "outcome", "output", "error", "event"), UNKNOWN)
        known = {
            **dict.fromkeys((*_STAMPED, "subject", "chain"), UNKNOWN),
            "type": end,
            "source": f"workflow:{workflow.name}",
            "workflow": workflow.name,
            "data": {**data, "workflow": workflow.name, "status": _STATUSES[end]},
        }
        yield Emission(ENDS[end], end, known, end=end)


def _published(workflow: Workflow, step: Step) -> Emission | None:
    """What a ``publish`` step publishes; None where nothing at all is known of the type."""
    params = step.params.written if step.params is not None else None
    written = params.get("type") if isinstance(params, Mapping) else None
    if not isinstance(params, Mapping) or not isinstance(written, str):
        return None
    pattern = _EXPRESSION.sub("*", written)
    if not pattern.strip("*?"):
        return None
    attributes = params.get("attributes", {})
    named = attributes if isinstance(attributes, Mapping) else {}
    known = {
        **named,
        **dict.fromkeys(_STAMPED, UNKNOWN),
        "type": written,
        "source": params.get("source") or f"workflow:{workflow.name}",
        "subject": params.get("subject"),
        "data": params.get("data"),
    }
    return Emission(f"publishes {pattern}", pattern, known, others=not isinstance(attributes, Mapping))


def known_at(emission: Emission, path: str) -> Any:
    """What such events have at a path (None: nothing), or ``UNKNOWN``."""
    head, *rest = path.split(".")
    if head not in emission.known:
        return UNKNOWN if emission.others else None
    value = emission.known[head]
    for part in rest:
        if value is UNKNOWN or has_expression(value):
            return UNKNOWN
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return UNKNOWN if _is_open(value) else value


def _is_open(value: Any) -> bool:
    """Whether there is anything in it that isn't known."""
    if isinstance(value, Mapping):
        return any(map(_is_open, value.values()))
    if isinstance(value, list):
        return any(map(_is_open, value))
    return value is UNKNOWN or has_expression(value)
