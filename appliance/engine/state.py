"""The state of a run, as the pure core sees it: immutable values, no I/O, no clock.

NamedTuples rather than frozen dataclasses: they are made for every step of every event, and cost a third.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

RUNNING, WAITING, RETRYING = "running", "waiting", "retrying"
SUCCEEDED, FAILED, CANCELLED, SKIPPED = "succeeded", "failed", "cancelled", "skipped"
TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})

TIMER = "timer"
"""The holder of a parked run: the entry that its timer puts into a stream takes it up, and no other."""


class StepState(NamedTuple):
    """One visit of one step. ``key`` names it within the run; times are Unix seconds.

    ``first_at`` is when the first attempt began (for ``retry.max_elapsed``); ``started_at`` is the present one's.
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


class RunState(NamedTuple):
    """A run between two inputs. ``at`` is the key of the step that the run stands at (None: not begun, or over)."""

    status: str = RUNNING
    at: str | None = None
    steps: Mapping[str, StepState] = MappingProxyType({})
    error: str | None = None
    finished_at: float | None = None

    def with_step(self, step: StepState, status: str | None = None, at: str | None = None) -> RunState:
        """A copy with ``step`` put in; ``status`` and ``at`` stay as they are where None."""
        steps = {**self.steps, step.key: step}
        return RunState(status or self.status, at or self.at, steps, self.error, self.finished_at)

    def outputs(self) -> dict[str, dict[str, Any]]:
        """``steps`` as templates and conditions see it."""
        return {s.step: {"output": s.output, "status": s.status, "error": s.error} for s in self.steps.values()}


# --- inputs: what happened -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """Somebody takes the run up where it stands: after a crash, or because its timer fell due."""


class ActionSucceeded(NamedTuple):
    """The attempt of step ``key`` succeeded."""

    key: str
    output: Any


class ActionFailed(NamedTuple):
    """The attempt of step ``key`` failed. ``after_s`` is what the other side asked for; ``chance`` is in [0, 1)."""

    key: str
    error: str
    retryable: bool
    after_s: float | None = None
    chance: float = 0.5


@dataclass(frozen=True, slots=True)
class Retried:
    """A person wants the failed step to be tried again, with all its attempts."""


Input = Started | Resumed | ActionSucceeded | ActionFailed | Retried

# --- commands: what the shell is to do -------------------------------------------------------------------------------


class RunAction(NamedTuple):
    """Make an attempt of the action of step ``key``, then come back with its result."""

    key: str
    step: str
    attempt: int


class WaitUntil(NamedTuple):
    """Nothing to do before ``due_at`` (Unix seconds); then come back with Resumed."""

    key: str
    due_at: float


class Finish(NamedTuple):
    """The run is over. ``dead`` is the key of the step that failed for good, if that is why."""

    dead: str | None = None


Command = RunAction | WaitUntil | Finish
