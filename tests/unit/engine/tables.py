"""The tables of runs in memory: what a commit does to them, by the rules of ``store/sql``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from appliance.engine.changes import PAUSE
from appliance.engine.snapshot import unpack
from appliance.engine.state import (
    CANCELLED,
    PAUSED,
    SUCCEEDED,
    TERMINAL,
    WAITING,
    RunState,
    Signal,
    StepState,
    step_of,
)
from appliance.errors import Fenced
from appliance.store.rows import Change, RunRow, RunUpdate, StepRow

ALIVE = frozenset({"running", "waiting", "retrying", "paused"})


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass(slots=True)
class Run:
    """A row of ``runs``, with its steps."""

    id: str
    revision: int
    status: str
    version: int
    state: dict[str, Any]
    error: str | None
    finished_at: float | None
    result: dict[str, Any] | None
    details: dict[str, Any]
    started_at: float
    asked: str | None = None
    steps: dict[str, StepRow] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.status in TERMINAL

    @property
    def holder(self) -> str | None:
        found: str | None = self.state.get("by")
        return found

    def loaded(self) -> RunState:
        """As ``store/runs.py`` loads it."""
        rows = sorted(self.steps.values(), key=lambda row: row.seq)
        steps = {row.key: _step(row) for row in rows}
        return unpack(self.state, self.status, steps, self.error, self.finished_at, self.result)


@dataclass(slots=True)
class Inlet:
    """A row of ``signals``."""

    signal: Signal
    taken: str | None = None


class Tables:
    """All rows. ``commit`` raises Fenced where PostgreSQL would refuse, Violation where it would let a mistake pass."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.timers: dict[tuple[str, str], float] = {}
        self.waits: set[tuple[str, str]] = set()
        self.tasks: dict[tuple[str, str], str] = {}
        self.children: dict[tuple[str, str], str] = {}
        self.signals: dict[tuple[str, str, str], Inlet] = {}
        self.letters: list[str] = []

    def open_signals(self, run_id: str) -> tuple[Signal, ...]:
        """What came in for a run and nobody looked at."""
        return tuple(i.signal for (run, _, _), i in self.signals.items() if run == run_id and i.taken is None)

    def put_signal(self, run_id: str, signal: Signal, now: float) -> None:
        """What comes in for a run that is not over wakes it."""
        if (run := self.runs.get(run_id)) is None or run.status not in ALIVE:
            return
        self.signals.setdefault((run_id, signal.id, signal.key), Inlet(signal))
        self.nudge(run_id, now)

    def nudge(self, run_id: str, now: float) -> None:
        self.timers[run_id, "+signal"] = min(now, self.timers.get((run_id, "+signal"), now))

    # --- commits -----------------------------------------------------------------------------------------------------

    def commit(self, change: Change, now: float) -> None:
        """All of a change, or nothing of it."""
        more = change.more or {}
        self._guard(change, more)
        for row in change.runs:
            self._insert(row)
        for update in change.run_updates:
            self._update(update)
        for step in change.steps:
            self._step(step)
        for timer in change.timers:
            self.timers[timer.run_id, timer.key] = timer.due_at
        self.letters += [str(letter.run_id) for letter in change.letters]
        for name in ORDER:
            for rare in more.get(name, ()):
                getattr(self, f"_{name}")(rare, now)
        for update in change.run_updates:
            change.asked = self.runs[update.id].asked

    def _guard(self, change: Change, more: dict[str, list[Any]]) -> None:
        for row in change.runs:
            if row.id in self.runs:
                raise Fenced("the run is there already")
        for update in change.run_updates:
            if self.runs[update.id].version != update.version - 1:
                raise Fenced("the run has moved on")
        for closed in more.get("closed_tasks", ()):
            if self.tasks.get((closed.run_id, closed.key)) == "answered" and closed.status != "dropped":
                raise Fenced("the task was answered")

    def _insert(self, row: RunRow) -> None:
        state = orjson.loads(row.state) if row.state else {}
        result = orjson.loads(row.result) if row.result else None
        details = orjson.loads(row.details) if row.details else {}
        self.runs[row.id] = Run(
            row.id, row.revision_id, row.status, 1, state, row.error, row.finished_at, result, details, row.started_at
        )

    def _update(self, row: RunUpdate) -> None:
        run = self.runs[row.id]
        if run.over:
            raise Violation(f"run {row.id} was {run.status} and is changed")
        taken_back = row.status == PAUSED and row.noticed == PAUSE and run.asked is None
        run.status = WAITING if taken_back else row.status
        run.version, run.error, run.finished_at = row.version, row.error, row.finished_at
        run.state = orjson.loads(row.state) if row.state else {}
        run.result = orjson.loads(row.result) if row.result else None
        if row.finished_at is not None or run.asked == row.noticed:
            run.asked = None

    def _step(self, row: StepRow) -> None:
        steps = self.runs[row.run_id].steps
        before = steps.get(row.key)
        if before is None:
            if any(other.seq == row.seq for other in steps.values()):
                raise Violation(f"two visits have the seq {row.seq}")
        elif before.seq != row.seq:
            raise Violation(f"{row.key} has another seq")
        elif before.status == SUCCEEDED and row != before:
            raise Violation(f"{row.key} succeeded and is changed to {row}")
        steps[row.key] = row

    def _revisions(self, row: Any, _: float) -> None:
        if self.runs[row.id].version != row.version:
            raise Violation(f"run {row.id} is put on another revision by who has not written it")
        self.runs[row.id].revision = row.revision_id

    def _waits(self, row: Any, _: float) -> None:
        self.waits.add((row.run_id, row.key))

    def _machines(self, row: Any, _: float) -> None:
        pass

    def _tasks(self, row: Any, _: float) -> None:
        if (row.run_id, row.key) in self.tasks:
            raise Violation(f"task {row.key} is asked twice")
        self.tasks[row.run_id, row.key] = "open"

    def _children(self, row: Any, _: float) -> None:
        if (row.parent_id, row.key) in self.children:
            raise Violation(f"{row.key} calls twice")
        self.children[row.parent_id, row.key] = row.run_id

    def _signals(self, row: Any, _: float) -> None:
        payload = orjson.loads(row.payload)
        self.signals.setdefault(
            (row.run_id, row.id, row.key), Inlet(Signal(row.id, row.key, row.kind, payload, row.event_uid))
        )

    def _taken(self, row: Any, _: float) -> None:
        inlet = self.signals[row.run_id, row.id, row.key]
        if inlet.taken is not None:
            raise Violation(f"signal {row.id} is taken twice")
        inlet.taken = row.taken

    def _closed_tasks(self, row: Any, _: float) -> None:
        if row.status == "dropped":
            if self.tasks[row.run_id, row.key] == "open":
                self.tasks[row.run_id, row.key] = CANCELLED
            return
        if self.tasks.get((row.run_id, row.key)) != "open":
            raise Violation(f"task {row.key} is {self.tasks.get((row.run_id, row.key))} and is closed")
        self.tasks[row.run_id, row.key] = row.status

    def _closed_waits(self, row: Any, _: float) -> None:
        self.waits.discard((row.run_id, row.key))

    def _cancelled_children(self, row: Any, now: float) -> None:
        called = self.children.get((row.run_id, row.key))  # there is none where the call was refused
        child = self.runs[called] if called is not None else None
        if child is not None and child.status in ALIVE:
            child.asked = "cancel"
            self.nudge(child.id, now)

    def _no_timers(self, row: Any, _: float) -> None:
        self.timers.pop((row.run_id, row.key), None)

    def _ended_timers(self, row: Any, _: float) -> None:
        self.timers = {key: due for key, due in self.timers.items() if key[0] != row.run_id}

    def _ended_waits(self, row: Any, _: float) -> None:
        self.waits = {key for key in self.waits if key[0] != row.run_id}

    def _ended_machines(self, row: Any, _: float) -> None:
        pass

    def _ended_signals(self, row: Any, _: float) -> None:
        for (run_id, _id, _key), inlet in self.signals.items():
            if run_id == row.run_id and inlet.taken is None:
                inlet.taken = "ignored"


ORDER = (
    "revisions", "machines", "waits", "tasks", "children", "signals", "taken", "closed_tasks", "closed_waits",
    "cancelled_children", "no_timers", "ended_timers", "ended_waits", "ended_machines", "ended_signals",
)  # fmt: skip


def _step(row: StepRow) -> StepState:
    output = orjson.loads(row.output) if row.output is not None else None
    return StepState(
        row.key,
        step_of(row.key),
        row.seq,
        row.status,
        row.attempt,
        None,
        row.started_at,
        row.finished_at,
        row.due_at,
        output,
        row.error,
    )
