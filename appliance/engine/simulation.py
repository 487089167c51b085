"""What would happen, or would have happened: a workflow over events, under a virtual clock, with every effect stubbed.

The life of the runs is the engine's own pure core, by way of :mod:`appliance.story`. What the outside gave is taken
from what was recorded of the real run, where there was one: outputs and failures of actions, answers of people, ends of
runs that were called. Nothing here opens a connection.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from appliance.engine.redaction import MASK
from appliance.engine.state import (
    CANCELLED,
    FAILED,
    SUCCEEDED,
    TERMINAL,
    UNKNOWN,
    WAITING,
    Ask,
    Call,
    Input,
    Resumed,
    Signal,
    StepState,
)
from appliance.events import Event, format_time
from appliance.identifiers import uuid7
from appliance.plugin import Reject
from appliance.rules.changes import Remedy, remedy
from appliance.story import Done, Story, StoryRun
from appliance.workflows.revision import Workflow

Recorded = Mapping[str, Any]
"""A run as the API shows it: ``status``, ``outcome``, ``steps``; each with ``id`` (its key), ``status``, ``output``."""

SAME, DIFFERENT, NEW, GONE, OPEN = "same", "different", "new", "gone", "open"
VERDICTS = (SAME, DIFFERENT, NEW, GONE, OPEN)


class _Masks(Mapping[str, str]):
    """Secrets of any name, none of which is known here."""

    def __getitem__(self, name: str) -> str:
        return MASK

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Simulation(Story):
    """One workflow and the events that happen to it. ``outputs`` are by step id, for what nothing is recorded of."""

    def __init__(
        self, workflow: Workflow, *, called: Iterable[Workflow] = (), outputs: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(workflow, called=called, secrets=_Masks(), at="1970-01-01T00:00:00Z")
        self.workflow = workflow
        self._outputs = dict(outputs or {})
        self._recorded: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._calls: dict[tuple[str, str], Done] = {}
        self._later: list[tuple[float, int, StoryRun, Input]] = []
        self._number = count()

    def take(self, event: Event, at: datetime, recorded: Recorded | None = None) -> StoryRun | None:
        """An event comes in at a time, before which everything else that is due happens; returns the run it begins."""
        self.wait_until(format_time(max(at, self.now)))
        if recorded is not None:
            self._recorded[event.uid] = {step["id"]: step for step in recorded["steps"]}
        begun = self.happen(event)
        return begun[0] if begun else None

    def rest(self, until: datetime) -> None:
        """Let time pass until nothing is due any more, or that moment has come."""
        while (due := self._next_due()) is not None and due <= until.timestamp():
            self.wait_until(format_time(datetime.fromtimestamp(due, UTC) + timedelta(milliseconds=1)))

    def verdict(self, event: Event) -> dict[str, Any]:
        """Whether the workflow takes an event; if not, why, and what would have to be different."""
        view = event.view()
        (verdict,) = self._matcher.explain(view)
        found = Remedy() if verdict.matched else remedy(self.workflow.triggers, view)
        return {
            "matched": verdict.matched,
            "reason": verdict.reason,
            "changes": [{"path": c.path, "from": c.before, "to": c.after, "text": c.text} for c in found.changes],
            "note": found.note,
        }

    def call_of(self, run: StoryRun, visit: StepState) -> Done | None:
        """The last attempt of a step's action."""
        return self._calls.get((run.id, visit.key))

    # --- what the outside gives --------------------------------------------------------------------------------------

    def _effect(self, run: StoryRun, key: str, did: Done) -> Any:
        self._calls[run.id, key] = did
        known = self._known(run, key)
        if known.get("status") == SUCCEEDED:
            return known.get("output")
        if did.step in self._outputs:
            return self._outputs[did.step]
        if known.get("status") == FAILED:
            raise Reject(str(known.get("error")))
        if known.get("status") == UNKNOWN:
            raise TimeoutError
        return None

    def _ask(self, run: StoryRun, command: Ask) -> None:
        super()._ask(run, command)
        known = self._known(run, command.key)
        if known.get("status") == SUCCEEDED:
            self._tell_later(
                run, _when(known), "answer", command.key, {"answer": known.get("output"), "by": "recorded"}
            )
        elif command.step in self._outputs:
            given = {"answer": self._outputs[command.step], "by": "given"}
            self._tell_later(run, self.now.timestamp(), "answer", command.key, given)

    def _call(self, run: StoryRun, command: Call) -> None:
        known, now = self._known(run, command.key), self.now.timestamp()
        status = known.get("status")
        if status in (SUCCEEDED, FAILED) and known.get("finished_at"):
            told = {"status": status, "outcome": None, "output": known.get("output"), "error": known.get("error")}
            self._tell_later(run, _when(known), "child", command.key, told)
        elif status == WAITING:
            return
        elif command.step in self._outputs or command.flow not in self.workflows:
            told = {"status": SUCCEEDED, "outcome": None, "output": self._outputs.get(command.step), "error": None}
            self._tell_later(run, now, "child", command.key, told)
        else:
            super()._call(run, command)

    def _known(self, run: StoryRun, key: str) -> Mapping[str, Any]:
        """What is recorded of a step of the real run."""
        return self._recorded.get(run.event_uid, {}).get(key, {}) if run.caller is None else {}

    def _tell_later(self, run: StoryRun, at: float, kind: str, key: str, payload: Any) -> None:
        signal = Resumed((Signal(uuid7(), key, kind, payload),), lost=False)
        heapq.heappush(self._later, (max(at, self.now.timestamp()), next(self._number), run, signal))

    def _next_due(self) -> float | None:
        dues = [due for due in (super()._next_due(), self._later[0][0] if self._later else None) if due is not None]
        return min(dues, default=None)

    def _fall_due(self, due: float) -> None:
        while self._later and self._later[0][0] <= due:
            _, _, run, given = heapq.heappop(self._later)
            self._queue.append((run, given))
        super()._fall_due(due)


@dataclass(frozen=True, slots=True)
class Comparison:
    """An event, what would have become of it, and what did. ``run`` and ``recorded`` are None where there is none."""

    event: Event
    verdict: str
    run: dict[str, Any] | None
    recorded: Recorded | None
    differences: tuple[str, ...] = ()


@dataclass(slots=True)
class Replayed:
    """All comparisons, and how many events neither had a run nor would have."""

    comparisons: list[Comparison] = field(default_factory=list)
    unmatched: int = 0

    def counts(self) -> dict[str, int]:
        """How many there are of each verdict."""
        return {v: sum(c.verdict == v for c in self.comparisons) for v in VERDICTS} | {"unmatched": self.unmatched}


def what_would_happen(
    simulation: Simulation, events: Sequence[tuple[Event, datetime]], lasting: timedelta
) -> dict[str, Any]:
    """Given events happen, and time goes on for so long after the last; JSON data: ``events`` and ``runs``."""
    told = []
    begun: list[StoryRun] = []
    for event, at in events:
        run = simulation.take(event, at)
        begun += [run] if run is not None else []
        told.append({"id": event.id, "type": event.type, **simulation.verdict(event)})
    simulation.rest(max(at for _, at in events) + lasting)
    return {"workflow": simulation.workflow.name, "events": told, "runs": [report(simulation, run) for run in begun]}


def what_would_have_happened(
    simulation: Simulation, events: Iterable[tuple[Event, datetime]], recorded: Mapping[str, Recorded], now: datetime
) -> Replayed:
    """Stored events happen again, in order; ``recorded``: the real runs by their event's uid, as they stand ``now``."""
    told = Replayed()
    begun: list[tuple[Event, StoryRun | None, Recorded | None]] = []
    for event, at in events:
        known = recorded.get(event.uid)
        run = simulation.take(event, at, known)
        told.unmatched += run is None and known is None
        if run is not None or known is not None:
            begun.append((event, run, known))
    simulation.wait_until(format_time(max(now, simulation.now)))
    told.comparisons = [_compared(simulation, *each) for each in begun]
    return told


def report(simulation: Simulation, run: StoryRun) -> dict[str, Any]:
    """A simulated run as JSON data: how it stands, and its steps with the rendered parameters of their actions."""
    state = run.state
    return {
        "workflow": run.workflow.name,
        "status": run.status,
        "outcome": run.outcome,
        "output": run.output,
        "error": state.error,
        "started_at": _text(run.facts.run["started_at"]),
        "finished_at": _text(state.finished_at),
        "steps": [_step(simulation, run, visit) for visit in sorted(state.steps.values(), key=lambda visit: visit.seq)],
        "called": [report(simulation, other) for other in simulation.runs if other.caller and other.caller[0] is run],
    }


def _step(simulation: Simulation, run: StoryRun, visit: StepState) -> dict[str, Any]:
    step = run.workflow.steps[run.workflow.by_id[visit.step]]
    did = simulation.call_of(run, visit)
    return {
        "id": visit.key,
        "kind": step.kind,
        "status": visit.status,
        "started_at": _text(visit.first_at),
        "finished_at": _text(visit.finished_at),
        "due_at": _text(visit.due_at),
        "action": step.action,
        "params": did.params if did is not None else None,
        "output": visit.output,
        "error": visit.error,
    }


def _compared(simulation: Simulation, event: Event, run: StoryRun | None, recorded: Recorded | None) -> Comparison:
    made = report(simulation, run) if run is not None else None
    if made is None or recorded is None:
        return Comparison(event, GONE if made is None else NEW, made, recorded)
    if recorded["status"] not in (*TERMINAL, WAITING):
        return Comparison(event, OPEN, made, recorded)
    differences = tuple(_differences(made, recorded))
    return Comparison(event, DIFFERENT if differences else SAME, made, recorded, differences)


def _differences(made: Mapping[str, Any], recorded: Recorded) -> Iterator[str]:
    for name in ("status", "outcome"):
        if made[name] != recorded[name]:
            yield f"{name}: was {recorded[name]}, would be {made[name]}"
    before = {step["id"]: step["status"] for step in recorded["steps"]}
    after = {step["id"]: step["status"] for step in made["steps"]}
    for key in dict.fromkeys((*before, *after)):
        if key not in after:
            yield f"step {key}: was {before[key]}, would not be reached"
        elif key not in before:
            yield f"step {key}: was not reached, would be {after[key]}"
        elif before[key] != after[key]:
            yield f"step {key}: was {before[key]}, would be {after[key]}"
    calls = [step["id"] for step in made["steps"] if step["params"] is not None]
    called = [key for key in before if key in calls and before[key] not in ("skipped", CANCELLED)]
    common = [key for key in calls if key in called]
    if common != called:
        yield f"order of actions: was {', '.join(called)}; would be {', '.join(common)}"


def _when(known: Mapping[str, Any]) -> float:
    finished = known.get("finished_at")
    return datetime.fromisoformat(finished).timestamp() if isinstance(finished, str) else 0.0


def _text(moment: float | None) -> str | None:
    return format_time(datetime.fromtimestamp(moment, UTC)) if moment is not None else None
