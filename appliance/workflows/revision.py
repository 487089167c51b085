"""The compiled form of a workflow: what the engine runs. Immutable, and free of anything that does I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from appliance.rules.conditions import Condition
from appliance.rules.matcher import Trigger
from appliance.settings import parse_duration
from appliance.templating import Template, TemplateError
from appliance.workflows.hours import BusinessHours

END = "end"
"""As a step's ``next`` or ``on_error``: its thread is over, successfully (the run, if it is the workflow's own)."""
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
    by_error: Mapping[str, RetryPolicy] = field(default_factory=lambda: MappingProxyType({}))
    """Other policies for kinds of failure (``timeout``, ``retry``, ``error``) or names of exception classes."""

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
class Deadline:
    """A time limit of a parked step. ``due`` renders to ``{"for": duration}`` or ``{"until": time}``.

    ``target`` is the index of the step to go on with then; None: the step fails.
    """

    due: Template
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """A way out of a ``choose``: the first whose condition holds (None: always). ``target`` None: the thread's end."""

    condition: Condition | None
    target: int | None


@dataclass(frozen=True, slots=True)
class Thread:
    """A list of steps that run one after the other: the workflow's own (index 0), a branch, an item's, a handler's.

    ``parent`` is the index of the ``parallel`` or ``for_each`` step whose branch it is; None for thread 0, for the
    workflow's ``on_error`` and for the hidden steps that compensate, notify and remind.
    """

    index: int
    name: str
    first: int
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Which events a ``wait`` is for. ``match``: (path in the event, the value that must stand there), all of them.

    ``condition`` is evaluated with the event at the root (as criteria see it) and ``steps``, ``run`` and ``input``.
    """

    events: tuple[str, ...]
    match: tuple[tuple[str, Template], ...]
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What a ``human_task`` asks. ``about`` renders to ``{"title", "description", "assignee", "group"}``, all texts.

    ``form`` is a JSON Schema. ``notify`` is the index of the hidden step that tells people of it; after each of
    ``reminders`` (seconds since it was asked) it runs again.
    """

    about: Template
    form: Mapping[str, Any]
    notify: int | None = None
    reminders: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Transition:
    """What a state does with an event: ``target`` is the first step of its ``do``, or of the next state."""

    events: tuple[str, ...]
    condition: Condition | None
    target: int
    to: str
    """The next state's name; the present one's if it stays."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A workflow written as states. ``correlate`` renders with an ``event`` to the business key (a text)."""

    initial: str
    states: Mapping[str, int]
    """By name: the index of the ``state`` step (of the ``end`` step, if the state is final)."""
    correlate: Template
    events: tuple[str, ...]
    """Every type (or glob) of event that some state takes."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a workflow. ``index`` is its place in ``Workflow.steps``; ``thread`` the index of its thread.

    A thread is never left by a jump, except through its end and by failing. Jumps to an index are forward ones, but for
    the transitions of a state machine.
    """

    id: str
    index: int
    kind: str
    """``action``, ``delay``, ``choose``, ``parallel``, ``for_each``, ``wait``, ``human_task``, ``workflow``,
    ``transform``, ``end``; of state machines ``state``, and ``stay`` (back to the state without entering it anew)."""
    condition: Condition | None = None
    """``if``: without it the step runs, with it only when it holds (else it is skipped)."""
    next: str | None = None
    """As it was written: a step's id, ``end``, or None."""
    on_error: str | None = None
    """A step's id, ``continue`` or ``end`` (of the thread); None: the thread fails, and with it what it belongs to."""
    retry: RetryPolicy = RetryPolicy()
    timeout_s: float | None = None
    action: str | None = None
    params: Template | None = None
    """``action``: its parameters; ``workflow``: the input; ``transform``, ``end``: the output. Any JSON data."""
    delay: Template | None = None
    """Renders to ``{"for": duration}`` or ``{"until": time}``: see :func:`due_at`."""
    thread: int = 0
    after: int | None = None
    """The step that follows when this one is skipped; None: the thread is over."""
    follow: int | None = None
    """The step that follows when this one is done (``next`` counted in); None: the thread is over."""
    hours: Any = None
    """Business hours that a delay counts in: a :class:`~appliance.workflows.hours.BusinessHours`, or None."""
    at_most_once: bool = False
    """The attempt is recorded before it is made, and never repeated."""
    compensate: int | None = None
    """The hidden step that undoes this one."""
    owner: int | None = None
    """Of a hidden step: the one that it belongs to."""
    branches: tuple[Branch, ...] = ()
    threads: tuple[int, ...] = ()
    """``parallel``: its branches; ``for_each``: one, that each item runs through."""
    join: int = 0
    """``parallel``: how many branches must succeed."""
    items: Template | None = None
    concurrency: int = 1
    item_name: str = "item"
    deadline: Deadline | None = None
    wait: Wait | None = None
    task: Task | None = None
    flow: str | None = None
    """``workflow``: the name of the workflow that is called."""
    logic: Any = None
    """``transform``: compiled JSON Logic (a Condition-like object with ``evaluate(scope) -> data``), or None."""
    outcome: str | None = None
    """``end``: the run's outcome, in the workflow's own words."""
    fails: bool = False
    """``end``: the run ends as failed."""
    transitions: tuple[Transition, ...] = ()
    state: str | None = None
    """``state``, ``stay``, and an ``end`` that is a final state: the state's name."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A checked definition. ``definition`` is its canonical JSON form, ``digest`` that form's digest.

    ``steps`` holds the steps of all threads in the order in which they stand in the definition, the hidden ones last.
    The ids of hidden steps hold a dot: ``charge.compensate``, ``approve.notify``, ``pending.APPROVED.0``.
    """

    name: str
    description: str
    priority: str | None
    triggers: tuple[Trigger, ...]
    steps: tuple[Step, ...]
    by_id: Mapping[str, int]
    definition: Mapping[str, Any]
    digest: str
    enabled: bool = True
    threads: tuple[Thread, ...] = (Thread(0, "", 0),)
    first: int = 0
    """Where a run begins: the first step, or the initial state's first entry action."""
    order: int = 0
    """Of the workflows that one event matches, those with the higher ``order`` start first."""
    inputs: Mapping[str, Any] | None = None
    """JSON Schema of what a manual start, a schedule or a calling workflow hands over; None: anything."""
    output: Template | None = None
    on_error: int | None = None
    """The thread that runs when the run fails, after its compensations."""
    machine: Machine | None = None
    schedules: tuple[Any, ...] = ()
    """:class:`~appliance.workflows.schedules.Schedule` of each trigger that is one."""
    compensates: bool = False
    """Whether any step has a ``compensate``."""
    follows: bool = False
    """Whether parked runs go on in this revision once it is in force, if it has the steps at which they stand."""
    control: Any = None
    """Its :class:`~appliance.workflows.flow_control.FlowControl`, or None."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One numbered version of a workflow, as stored. ``id`` and ``workflow_id`` are keys of the database."""

    id: int
    workflow_id: int
    number: int
    workflow: Workflow = field(repr=False)


def due_at(delay: Any, now: datetime, hours: BusinessHours | None = None) -> datetime:
    """When a delay that was rendered at ``now`` (aware) is over, in UTC; may lie in the past.

    With ``hours``, ``for`` counts open time only, and ``until`` (now, if that is later) moves to the next open moment.
    Raises TemplateError for what is neither a duration nor a time with an offset, or lies further than ten years ahead.
    """
    try:
        due = _due(delay, now.astimezone(UTC), hours)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise TemplateError("delay", str(error)) from None
    if due - now > _MAX_DELAY:
        raise TemplateError("delay", f"longer than {_MAX_DELAY.days} days")
    return due


def _due(delay: Any, now: datetime, hours: BusinessHours | None) -> datetime:
    if "until" in delay:
        until = _time(delay["until"])
        return until if hours is None else hours.next_open(max(now, until))
    duration = parse_duration(delay["for"])
    return now + duration if hours is None else hours.add(now, duration)


def _time(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    if moment.tzinfo is None:
        raise ValueError(f"expected a time with an offset, such as 2030-01-31T09:00:00+01:00, got {value!r:.80}")
    return moment.astimezone(UTC)
