"""The compiled form of a workflow: what the engine runs. Immutable, and free of anything that does I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.rules.conditions import Condition
from appliance.rules.matcher import Trigger
from appliance.settings import parse_duration
from appliance.templating import Template, TemplateError

END = "end"
"""As a step's ``next`` or ``on_error``: the run is over, successfully."""
CONTINUE = "continue"
"""As a step's ``on_error``: go on as if the step had succeeded."""
_MAX_DELAY = timedelta(days=3660)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a failed attempt is repeated. ``max_attempts`` counts the first one too."""

    max_attempts: int = 5
    initial_s: float = 1.0
    factor: float = 2.0
    max_s: float = 600.0
    jitter: bool = True
    max_elapsed_s: float | None = None
    """No further attempt starts later than this after the first one began."""

    def backoff_s(self, attempt: int, random: Callable[[], float]) -> float:
        """Seconds to wait after the failed ``attempt`` (from 1).

        With ``jitter`` between half and all of ``initial * factor ** (attempt - 1)``, capped at ``max``; ``random``
        gives numbers in [0, 1).
        """
        try:
            wait = min(self.max_s, self.initial_s * self.factor ** (attempt - 1))
        except OverflowError:
            wait = self.max_s
        return wait * (0.5 + random() / 2) if self.jitter else wait


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a workflow. ``index`` is its place in ``Workflow.steps``."""

    id: str
    index: int
    kind: str
    """``action`` or ``delay``."""
    condition: Condition | None = None
    """``if``: without it the step runs, with it only when it holds (else it is skipped)."""
    next: str | None = None
    """A step's id, ``end``, or None for the step that follows."""
    on_error: str | None = None
    """A step's id, ``continue`` or ``end``; None: the run fails."""
    retry: RetryPolicy = RetryPolicy()
    timeout_s: float | None = None
    action: str | None = None
    params: Template | None = None
    delay: Template | None = None
    """Renders to ``{"for": duration}`` or ``{"until": time}``: see :func:`due_at`."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A checked definition. ``definition`` is its canonical JSON form, ``digest`` that form's digest."""

    name: str
    description: str
    priority: str | None
    triggers: tuple[Trigger, ...]
    steps: tuple[Step, ...]
    by_id: Mapping[str, int]
    definition: Mapping[str, Any]
    digest: str
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Revision:
    """One numbered version of a workflow, as stored. ``id`` and ``workflow_id`` are keys of the database."""

    id: int
    workflow_id: int
    number: int
    workflow: Workflow = field(repr=False)


def due_at(delay: Any, now: datetime) -> datetime:
    """When a delay that was rendered at ``now`` (aware) is over, in UTC; may lie in the past.

    Raises TemplateError for what is neither a duration nor a time with an offset, or lies further than ten years ahead.
    """
    try:
        due = _time(delay["until"]) if "until" in delay else now.astimezone(UTC) + parse_duration(delay["for"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise TemplateError("delay", str(error)) from None
    if due - now > _MAX_DELAY:
        raise TemplateError("delay", f"longer than {_MAX_DELAY.days} days")
    return due


def _time(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    if moment.tzinfo is None:
        raise ValueError(f"expected a time with an offset, such as 2030-01-31T09:00:00+01:00, got {value!r:.80}")
    return moment.astimezone(UTC)
