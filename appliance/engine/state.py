"""The state of a run, as the pure core sees it: immutable values, no I/O, no clock.

NamedTuples rather than frozen dataclasses: they are made for every step of every event, and cost a third.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

RUNNING, WAITING, RETRYING, PAUSED = "running", "waiting", "retrying", "paused"
SUCCEEDED, FAILED, CANCELLED, SKIPPED, UNKNOWN = "succeeded", "failed", "cancelled", "skipped", "unknown"
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
ACTIVE = frozenset({RUNNING, WAITING, RETRYING, UNKNOWN})
"""Statuses of steps at which a thread of the run stands. ``unknown`` waits for a person to settle it."""

TIMER = "timer"
"""The holder of a parked run: an entry that wakes it takes it up, and no other."""

UNDOING, HANDLING = "undoing", "handling"
"""Phases of a run that is about to end: compensations run in reverse order, then the workflow's ``on_error``."""

_NONE: Mapping[str, Any] = MappingProxyType({})


Path = tuple[int, ...]
"""Which item of each ``for_each`` around a step, outermost first."""


class Facts(NamedTuple):
    """What a run knows besides its steps: the same for all its life.

    ``view`` is the event as criteria see it, ``input`` what the run was started with (a manual start's inputs, what the
    calling workflow hands over, else the event's data), ``run`` is ``{"id", "workflow", "revision", "started_at"}``.
    ``memo`` is a place to keep what is expensive to compute again; nothing depends on what is in it. ``events`` are the
    views of a batch's events (JSON data), in the order in which they came; None: the run is no batch.
    """

    view: Mapping[str, Any]
    input: Any = None
    run: Mapping[str, Any] = _NONE
    memo: dict[Any, Any] | None = None
    events: list[Any] | None = None


class StepState(NamedTuple):
    """One visit of one step. ``key`` names it within the run; times are Unix seconds.

    ``key`` is the step's id, then ``[i]`` for each ``for_each`` around it, then ``#n`` from the n-th visit on.
    ``first_at`` is when the first attempt began (for ``retry.max_elapsed``); ``started_at`` is the present one's.
    ``due_at`` is when to look at it again: the end of a delay, the next attempt, a deadline.
    """

    key: str
    step: str
    seq: int
    status: str
    attempt: int = 0
    first_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    due_at: float | None = None
    output: Any = None
    error: str | None = None


def base_key(step_id: str, path: Path) -> str:
    """The key of the first visit of a step."""
    return step_id + "".join(f"[{index}]" for index in path) if path else step_id


@lru_cache(maxsize=4096)
def path_of(key: str) -> Path:
    """The path in a key: ``send[3][0]#2`` is in item 0 of item 3."""
    if "[" not in key:
        return ()
    inner = key[key.index("[") + 1 : key.rindex("]")]
    return tuple(int(part) for part in inner.split("]["))


def step_of(key: str) -> str:
    """The step's id in a key."""
    return key.partition("[")[0].partition("#")[0]


class Block(NamedTuple):
    """The progress of a ``parallel`` or ``for_each`` that is open.

    ``ends`` maps a branch (its index; of ``for_each`` the item's) to the key of the step with which it ended, or None
    where it failed. ``begun`` is how many were begun, ``total`` how many there are.
    """

    total: int
    begun: int
    ends: Mapping[int, str | None] = MappingProxyType({})


class Signal(NamedTuple):
    """Something that came in for the run; ``key`` is the step that it is for ("" for whichever takes it).

    ``kind`` and ``payload``: ``event`` (its view), ``answer`` ({"answer", "by"}), ``child`` ({"status", "output",
    "outcome", "error"}), ``settle`` ({"status": succeeded, failed or retry, "output", "error"}).
    """

    id: str
    key: str
    kind: str
    payload: Any
    event_uid: str | None = None


class RunState(NamedTuple):
    """A run between two inputs.

    Where it stands is said by its steps: every one with an active status is a place. ``at`` is the key of the step at
    which it failed. ``ending`` is how it is about to end (None: it goes on): when no attempt is under way any more, and
    ``phase`` has gone through what is to be done before. ``blocks`` is by step key. ``place`` is a state machine's:
    {"state", "entered_at", "due_at", "event"}, the event being the one that it took last. ``inbox`` came in and waits
    for a step that takes it; it is not recorded with the run, but stands in ``signals``.
    """

    status: str = RUNNING
    at: str | None = None
    steps: Mapping[str, StepState] = _NONE
    error: str | None = None
    finished_at: float | None = None
    blocks: Mapping[str, Block] = _NONE
    phase: str = ""
    ending: str | None = None
    outcome: str | None = None
    output: Any = None
    place: Mapping[str, Any] | None = None
    inbox: tuple[Signal, ...] = ()

    def active(self) -> list[StepState]:
        """The steps at which the run stands, in the order in which they were entered."""
        return [s for s in self.steps.values() if s.status in ACTIVE]

    def next_due(self) -> float | None:
        """When the run is to be looked at again if nothing comes in (Unix seconds); None: only then."""
        dues = [s.due_at for s in self.steps.values() if s.due_at is not None and s.status in ACTIVE]
        return min(dues) if dues else None


# --- inputs: what happened -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins: at its first step, or (a rerun, with what was recorded before it) at the step ``at``."""

    at: str | None = None


class Resumed(NamedTuple):
    """Somebody takes the run up where it stands: after a crash, because a timer fell due, because something came in.

    ``lost``: whoever held it before is gone, so attempts that are under way are to be made again. False while the
    holder itself looks at what fell due beside its attempts.
    """

    signals: tuple[Signal, ...] = ()
    lost: bool = True


class ActionSucceeded(NamedTuple):
    """The attempt of step ``key`` succeeded."""

    key: str
    output: Any


class ActionFailed(NamedTuple):
    """The attempt of step ``key`` failed. ``after_s`` is what the other side asked for; ``chance`` is in [0, 1).

    ``kind`` is of :data:`appliance.engine.actions.Kind`, ``classes`` are the names of the exceptions behind it.
    """

    key: str
    error: str
    retryable: bool
    after_s: float | None = None
    chance: float = 0.5
    kind: str = "error"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retried:
    """A person wants the failed step to be tried again, with all its attempts."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A person, or the run that called this one, wants it to end. Compensations run first."""

    reason: str


Input = Started | Resumed | ActionSucceeded | ActionFailed | Retried | Cancelled

# --- commands: what the shell is to do -------------------------------------------------------------------------------
# Beside them the shell looks at the state: a run with active steps and no attempt under way waits until
# ``state.next_due()``, or for a signal.


class RunAction(NamedTuple):
    """Make an attempt of the action of step ``key``, then come back with its result."""

    key: str
    step: str
    attempt: int


class Listen(NamedTuple):
    """Step ``key`` waits for events in whose ``paths`` these ``values`` (JSON data) stand; from ``since`` on."""

    key: str
    step: str
    values: tuple[Any, ...]


class Ask(NamedTuple):
    """Step ``key`` asks people: ``about`` has title, description, assignee and group."""

    key: str
    step: str
    about: Mapping[str, Any]
    due_at: float | None


class Call(NamedTuple):
    """Step ``key`` calls the workflow ``flow`` with ``input``; comes back as a signal ``child``."""

    key: str
    step: str
    flow: str
    input: Any


class Close(NamedTuple):
    """Step ``key`` is no longer parked: nobody listens, its task is ``status``, a child that still runs is cancelled.

    ``status``: answered, expired or cancelled.
    """

    key: str
    kind: str
    status: str


class Take(NamedTuple):
    """A signal was looked at: ``taken`` by the step ``by`` (of a state machine: by this state), or not."""

    signal: str
    key: str
    by: str
    taken: bool


class Finish(NamedTuple):
    """The run is over. ``dead`` is the key of the step that failed for good, if that is why."""

    dead: str | None = None


Command = RunAction | Listen | Ask | Call | Close | Take | Finish
