"""What would happen, or would have happened: a workflow over events, under a virtual clock, with every effect stubbed.

The life of the runs is the engine's own pure core, by way of :mod:`appliance.story`. What the outside gave is taken
from what was recorded of the real run, where there was one: outputs and failures of actions, answers of people, ends of
runs that were called. Nothing here opens a connection.
"""

from __future__ import annotations

import heapq
import re
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
from appliance.engine.turnstile import timeless
from appliance.events import Event, format_time
from appliance.identifiers import uuid7
from appliance.plugin import Reject
from appliance.rules.changes import Remedy, remedy
from appliance.story import Done, Story, StoryRun
from appliance.workflows.flow_control import FlowControl
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
        self._entered: dict[str, tuple[float, StoryRun]] = {}
        """By an event's uid: when it came, and the run that it belongs to."""

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

    def fate(self, event: Event) -> dict[str, Any] | None:
        """What flow control did with an event by now, as JSON data; None: there is none, or the event began no run.

        ``did`` is ``began``, ``held`` (it has not begun yet), ``joined`` (it belongs to the batch of the event ``of``)
        or ``left out`` (with ``outcome``, and why as ``error``); ``by`` is the part that held it, for ``waited_s``.
        """
        entered = self._entered.get(event.uid)
        if entered is None:
            return None
        came, run = entered
        until = run.begun_at or run.state.finished_at
        told: dict[str, Any] = {"did": "held" if until is None else "began", "by": run.held, "at": _text(until)}
        if until is not None:
            told["waited_s"] = round(max(0.0, until - came), 3)
        if run.event_uid != event.uid:
            return told | {"did": "joined", "of": run.event_uid}
        if run.begun_at is None and run.status == CANCELLED:
            return told | {"did": "left out", "outcome": run.outcome, "error": self._named(run.state.error or "")}
        return told

    def _named(self, error: str) -> str:
        """An error with the ids of its events instead of runs', which are made up here."""

        def event_of(found: re.Match[str]) -> str:
            run = self._by_id.get(found[1])
            return f"the run of event {run.facts.view['id']}" if run is not None else found[0]

        return re.sub(r"run ([0-9a-f-]{36})", event_of, error)

    @property
    def ignores(self) -> list[str]:
        """The parts of flow control that it takes no account of: they depend on how long runs are at work."""
        return [name for name in ("concurrency", "ordering_key", "singleton") if name in self.workflow.definition]

    def is_recorded(self, event_uid: str | None) -> bool:
        """Whether there is a real run of this event."""
        return event_uid in self._recorded

    def call_of(self, run: StoryRun, visit: StepState) -> Done | None:
        """The last attempt of a step's action."""
        return self._calls.get((run.id, visit.key))

    # --- flow control ------------------------------------------------------------------------------------------------

    def _control(self, workflow: Workflow) -> FlowControl | None:
        return timeless(workflow.control, keeps=False)

    def _enter(self, run: StoryRun) -> StoryRun:
        entered = super()._enter(run)
        if run.caller is None and run.workflow.control is not None:
            self._entered[run.event_uid] = self.now.timestamp(), entered
        return entered

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
    """An event, what would have become of it, and what did. ``run`` and ``recorded`` are None where there is none.

    ``fate``: what flow control would have done, see :meth:`Simulation.fate`.
    """

    event: Event
    verdict: str
    run: dict[str, Any] | None
    recorded: Recorded | None
    differences: tuple[str, ...] = ()
    fate: dict[str, Any] | None = None


@dataclass(slots=True)
class Replayed:
    """All comparisons, and how many events neither had a run nor would have. ``flow``: see :func:`tally`."""

    comparisons: list[Comparison] = field(default_factory=list)
    unmatched: int = 0
    flow: dict[str, Any] | None = None

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
    ids = {event.uid: event.id for event, _ in events}
    for (event, _), verdict in zip(events, told, strict=True):
        fate = simulation.fate(event)
        verdict["flow"] = fate | {"of": ids[fate["of"]]} if fate is not None and "of" in fate else fate
    return {
        "workflow": simulation.workflow.name,
        "events": told,
        "flow": tally(simulation, [verdict["flow"] for verdict in told]),
        "runs": [report(simulation, run) for run in begun if run.begun_at is not None],
    }


def what_would_have_happened(
    simulation: Simulation, events: Iterable[tuple[Event, datetime]], recorded: Mapping[str, Recorded], now: datetime
) -> Replayed:
    """Stored events happen again, in order; ``recorded``: the real runs by their event's uid, as they stand ``now``."""
    told = Replayed()
    begun: list[tuple[Event, StoryRun | None, Recorded | None]] = []
    for event, at in events:
        known = recorded.get(event.uid)
        run = simulation.take(event, at, known)
        joined = run is None and simulation.fate(event) is not None
        told.unmatched += run is None and known is None and not joined
        if run is not None or known is not None or joined:
            begun.append((event, run, known))
    simulation.wait_until(format_time(max(now, simulation.now)))
    told.comparisons = [_compared(simulation, *each) for each in begun]
    told.flow = tally(simulation, [compared.fate for compared in told.comparisons])
    return told


def tally(simulation: Simulation, fates: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """What flow control did in all, as JSON data; None: the workflow has none.

    ``began`` (at once), ``waited`` (began later; ``longest_s``: the longest of these waits), ``held``, ``joined``,
    ``left_out`` by outcome; ``ignored``: the parts that are taken no account of.
    """
    if simulation.workflow.control is None:
        return None
    told: dict[str, Any] = {"began": 0, "waited": 0, "longest_s": 0.0, "held": 0, "joined": 0, "left_out": {}}
    for fate in fates:
        if fate is None:
            continue
        if fate["did"] == "left out":
            told["left_out"][fate["outcome"]] = told["left_out"].get(fate["outcome"], 0) + 1
        elif fate["did"] == "began" and fate["by"] is not None:
            told["waited"] += 1
            told["longest_s"] = max(told["longest_s"], fate["waited_s"])
        else:
            told[fate["did"]] += 1
    return told | {"ignored": simulation.ignores}


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
    fate = simulation.fate(event)
    if fate is not None and recorded is None and simulation.is_recorded(fate.get("of")):  # as it did
        return Comparison(event, SAME, made, None, fate=fate)
    if recorded is None:
        return Comparison(event, NEW, made, None, fate=fate)
    if made is None:
        return Comparison(event, GONE, None, recorded, fate=fate)
    if recorded["status"] not in (*TERMINAL, WAITING):
        return Comparison(event, OPEN, made, recorded, fate=fate)
    differences = tuple(_differences(made, recorded))
    return Comparison(event, DIFFERENT if differences else SAME, made, recorded, differences, fate)


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
