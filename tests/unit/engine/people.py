"""What comes in from outside, as the interventions write it: answers, events, words on what is unknown, cancels."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from appliance.engine.changes import CANCEL, PAUSE, RETRY
from appliance.engine.redrives import _reopened
from appliance.engine.state import (
    ACTIVE,
    CANCELLED,
    FAILED,
    PAUSED,
    RETRYING,
    RUNNING,
    TIMER,
    UNKNOWN,
    WAITING,
    Signal,
    step_of,
)
from tests.unit.engine.made import EVENTS
from tests.unit.engine.simulation import World
from tests.unit.engine.tables import Run


class People:
    """Everybody who is not the appliance."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self._signals = 0
        self._retries = 0
        self.disturbed: set[str] = set()
        """Runs that were cancelled or retried."""

    def disturb(self, times: int, within_s: float) -> None:
        """Do things at random moments."""
        acts: list[Callable[[], None]] = [
            self.answer, self.answer, self.send, self.send, self.settle, self.pause, self.resume, self.resume,
            self.cancel, self.retry, self.copy, self.end,
        ]  # fmt: skip
        for _ in range(times):
            self.world.later(self.rng.uniform(0, within_s), self.rng.choice(acts))

    # --- acts --------------------------------------------------------------------------------------------------------

    def answer(self, which: tuple[str, str] | None = None) -> None:
        tables = self.world.tables
        which = which or self._one([key for key, status in tables.tasks.items() if status == "open"])
        if which is not None and not tables.runs[which[0]].over:
            tables.tasks[which] = "answered"
            self._put(which[0], which[1], "answer", {"answer": {"yes": len(which[1]) % 2 > 0}, "by": "p"})

    def send(self, which: tuple[str, str] | None = None, *, fits: bool = False) -> None:
        """An event that some run listens for; or one for a run, whatever it listens for."""
        run_id, key = which or self._one(sorted(self.world.tables.waits)) or (None, "")
        if run_id is None:
            run_id = self._one(sorted(self.world.tables.runs))
        if run_id is None or self.world.tables.runs[run_id].over:
            return
        if not fits and self.rng.random() < 0.2:
            key = ""
        kind, n = self.rng.choice(EVENTS[:3]), self.rng.randrange(10)
        if fits and key:
            workflow = self.world.workflow(self.world.tables.runs[run_id])
            wait = workflow.steps[workflow.by_id[step_of(key)]].wait
            assert wait is not None
            kind, n = wait.events[0].replace("d*", "done"), 5
        elif fits:
            kind, n = EVENTS[self._signals % 3], self._signals % 10
        self._put(run_id, key, "event", {"type": kind, "id": "i", "data": {"n": n}})

    def settle(self, which: tuple[Run, str] | None = None) -> None:
        """Say what became of a step whose outcome is unknown."""
        found = which or self._one([(run, row.key) for run in self._runs() for row in _of(run, UNKNOWN)])
        if found is None:
            return
        run, key = found
        row = run.steps[key]
        verdict = self.rng.choice(["succeeded", "failed", "retry"])
        signal = f"settle-{key}-{row.attempt}-{row.started_at}"
        if (run.id, signal, key) not in self.world.tables.signals and verdict == "retry":
            self.world.again[run.id, key] += 1
        self._put(run.id, key, "settle", {"status": verdict, "output": {"n": 0}, "error": "no"}, signal)

    def copy(self) -> None:
        """The same thing comes in again."""
        tables = self.world.tables
        found = self._one([key for key, inlet in tables.signals.items() if not tables.runs[key[0]].over])
        if found is not None:
            tables.put_signal(found[0], tables.signals[found].signal, self.world.loop.now)

    def pause(self, run: Run | None = None) -> None:
        run = run or self._one(self._runs())
        if run is None or run.status == PAUSED or run.asked == CANCEL:
            return
        if run.holder == TIMER:
            self._write(run, PAUSED, run.state, None if run.asked == PAUSE else run.asked)
        else:
            self._ask(run, PAUSE)

    def resume(self, run: Run | None = None) -> None:
        run = run or self._one([run for run in self._runs() if run.status == PAUSED or run.asked == PAUSE])
        if run is None:
            return
        if run.status == PAUSED:
            self._unpause(run, None if run.asked == PAUSE else run.asked)
        else:
            self._ask(run, None)

    def cancel(self, run: Run | None = None) -> None:
        run = run or self._one(self._runs())
        if run is None or run.state.get("ending") not in (None, CANCELLED):
            return
        self.disturbed.add(run.id)
        if run.status == PAUSED:
            self._unpause(run, CANCEL)
        else:
            self._ask(run, CANCEL)

    def end(self) -> None:
        """Cancel a run at once: nothing is undone."""
        run = self._one(self._runs())
        if run is None or self.rng.random() < 0.5:
            return
        self.disturbed.add(run.id)
        tables, now = self.world.tables, self.world.loop.now
        run.status, run.version, run.finished_at, run.error, run.asked = CANCELLED, run.version + 1, now, "end", None
        for key, row in run.steps.items():
            if row.status in (RUNNING, RETRYING, WAITING):
                run.steps[key] = row._replace(status=CANCELLED, finished_at=now, due_at=None)
        tables.timers = {key: due for key, due in tables.timers.items() if key[0] != run.id}
        tables.waits = {key for key in tables.waits if key[0] != run.id}
        tables.tasks |= {k: CANCELLED for k, status in tables.tasks.items() if k[0] == run.id and status == "open"}
        for (run_id, _, _), inlet in tables.signals.items():
            if run_id == run.id and inlet.taken is None:
                inlet.taken = "ignored"
        if (parent := run.details.get("parent")) is not None:
            payload = {"status": CANCELLED, "outcome": None, "output": None, "error": "end"}
            self._put(parent["run"], parent["key"], "child", payload)
        for (caller, _), child in tables.children.items():
            if caller == run.id and not tables.runs[child].over:
                self.cancel(tables.runs[child])

    def retry(self) -> None:
        """Let a run that failed try again."""
        found = [run for run in self.world.tables.runs.values() if run.status == FAILED and run.state.get("at")]
        run = self._one([run for run in found if not any(step_of(key).endswith(".compensate") for key in run.steps)])
        if run is None or "parent" in run.details or self._retries == 2:
            return
        self._retries += 1
        self.disturbed.add(run.id)
        for key in run.steps:
            self.world.again[run.id, key] += 1
        self._write(run, RETRYING, {**_reopened(run.state), "by": TIMER}, RETRY)
        run.finished_at, run.error = None, None
        self.world.tables.timers[run.id, ""] = self.world.loop.now
        if self.world.workflow(run).machine is not None:
            self.world.tables.waits.add((run.id, ""))

    # --- how it is written -------------------------------------------------------------------------------------------

    def _put(self, run_id: str, key: str, kind: str, payload: Any, signal: str | None = None) -> None:
        self._signals += 1
        signal = signal or f"p{self._signals}"
        given = Signal(signal, key, kind, payload, signal if kind == "event" else None)
        self.world.tables.put_signal(run_id, given, self.world.loop.now)

    def _write(self, run: Run, status: str, state: dict[str, Any], asked: str | None) -> None:
        run.status, run.version, run.state, run.asked = status, run.version + 1, state, asked

    def _ask(self, run: Run, what: str | None) -> None:
        run.asked = what
        self.world.tables.nudge(run.id, self.world.loop.now)

    def _unpause(self, run: Run, asked: str | None) -> None:
        found = {row.status for row in run.steps.values() if row.status in ACTIVE and row.key not in _blocks(run)}
        status = RUNNING if RUNNING in found or not found else RETRYING if RETRYING in found else WAITING
        self._write(run, status, {**run.state, "by": TIMER}, asked)
        self.world.tables.timers[run.id, ""] = self.world.loop.now

    def _runs(self) -> list[Run]:
        return [run for run in self.world.tables.runs.values() if not run.over]

    def _one(self, found: list[Any]) -> Any:
        return self.rng.choice(found) if found else None


def _blocks(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run.state.get("blocks", {})
    return found


def _of(run: Run, status: str) -> list[Any]:
    return [row for row in run.steps.values() if row.status == status]
