"""A gatekeeper without a database: what :mod:`appliance.engine.gates` decides is written to dictionaries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from appliance.engine.gates import (
    PLACES,
    Arrival,
    Decision,
    Decisions,
    Floor,
    Go,
    Gone,
    Leave,
    Meter,
    Standing,
    Wait,
    Waiting,
    admit,
    decide,
)
from appliance.engine.state import CANCELLED, RUNNING, SUCCEEDED, TERMINAL, WAITING
from appliance.workflows.flow_control import FlowControl
from tests.unit.engine.life import act, flow

GO, GONE = "go", "gone"
"""For what has no fields of its own, and so equals every empty tuple."""


@dataclass
class Run:
    """A run's row, and its event."""

    arrival: Arrival
    standing: Standing

    @property
    def over(self) -> bool:
        return self.standing.status in TERMINAL

    @property
    def at_work(self) -> bool:
        return not self.over and not self.standing.held


@dataclass
class Lobby:
    """One workflow, its runs, and the rows of flow control. Times are seconds of a virtual clock."""

    control: FlowControl
    now: float = 1000.0
    runs: dict[str, Run] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)
    places: dict[tuple[str, str], bool] = field(default_factory=dict)
    """(digest, run) -> keeps"""
    queue: dict[str, Waiting] = field(default_factory=dict)
    joined: dict[tuple[str, int], str] = field(default_factory=dict)
    timers: dict[str, float] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    """Runs in the order in which they went on for the first time."""
    cancels: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    turn: str | None = None

    @classmethod
    def of(cls, **said: Any) -> Lobby:
        """With a workflow that says this about flow control."""
        control = flow(act("a"), **said).control
        assert control is not None
        return cls(control)

    # --- what happens ------------------------------------------------------------------------------------------------

    def event(self, name: str, position: int, **data: Any) -> Arrival:
        """What an event brings; its run is called like it."""
        keys = self.control.keys(1, {"event": {"data": data}, "input": data})
        return Arrival(name, f"event {name}", 1, self.control, keys, position)

    def arrive(self, *arrivals: Arrival) -> list[Decision | str]:
        """Events come, all in one transaction."""
        decisions = self._transact(arrivals)
        return [_named(decisions.made[arrival.run_id]) for arrival in arrivals]

    def call(self, arrival: Arrival) -> Decision | str:
        """A run that nobody's event begins: a call, a replay or a rerun. Its row is there, and it is woken."""
        self.runs[arrival.run_id] = Run(arrival, Standing(WAITING))
        return self.wake(arrival.run_id)

    def wake(self, *run_ids: str) -> Decision | str:
        """Entries that wake these runs are taken up, in one transaction; the decision about the first."""
        self.timers = {run: due for run, due in self.timers.items() if run not in run_ids}
        arrivals = [self.runs[run].arrival._replace(woken=True) for run in run_ids]
        return _named(self._transact(arrivals).made[run_ids[0]])

    def wait(self, seconds: float = 0.0) -> None:
        """Time passes; every run whose timer falls due meanwhile is woken then."""
        until = self.now + seconds
        while due := [run for run, at in self.timers.items() if at <= until]:
            first = min(due, key=lambda run: self.timers[run])
            self.now = max(self.now, self.timers[first])
            self.wake(first)
        self.now = until

    def park(self, run_id: str) -> None:
        """A run that is at work begins to wait for something."""
        assert self.runs[run_id].at_work
        self.runs[run_id].standing = Standing(WAITING, PLACES)
        self.places = {at: keeps for at, keeps in self.places.items() if at[1] != run_id or keeps}

    def end(self, run_id: str, status: str = SUCCEEDED) -> None:
        """A run is over; others are let in."""
        self._over(run_id, status)
        self.admit()

    def admit(self) -> list[str]:
        """Let in those who wait and for whom there is room."""
        lanes: dict[str, list[Waiting]] = {}
        for waiting in sorted(self.queue.values(), key=lambda w: (w.position, w.run_id)):
            lanes.setdefault(waiting.lane, []).append(waiting)
        order = sorted(lanes, key=lambda lane: (self.turn is not None and lane <= self.turn, lane))
        admitted, last = admit([lanes[lane] for lane in order], self.taken(), {})
        self.turn = last or self.turn
        keeps = {slots.part: slots.keeps for slots in self.control.slots}
        for waiting in admitted:
            for part, digest in zip(waiting.parts, waiting.digests, strict=True):
                self.places[digest, waiting.run_id] = keeps[part]
            del self.queue[waiting.run_id]
            self.timers[waiting.run_id] = self.now
        return [waiting.run_id for waiting in admitted]

    # --- what stands -------------------------------------------------------------------------------------------------

    @property
    def at_work(self) -> list[str]:
        return [name for name, run in self.runs.items() if run.at_work]

    def taken(self) -> dict[str, int]:
        """By digest, how many live runs have a place."""
        taken: dict[str, int] = {}
        for digest, _ in self.places:
            taken[digest] = taken.get(digest, 0) + 1
        return taken

    def status(self, run_id: str) -> str:
        """``at work``, what it waits for, or what became of it."""
        run = self.runs[run_id]
        if run.over:
            return run.standing.stage or run.standing.status
        return (run.standing.stage or "new") if run.standing.held else "at work"

    # --- transactions ------------------------------------------------------------------------------------------------

    def _transact(self, arrivals: Iterable[Arrival]) -> Decisions:
        self.admit()
        arrivals = list(arrivals)
        collecting = {meter.run_id for meter in self.meters.values()}
        named = {arrival.run_id for arrival in arrivals} | collecting
        waiting: dict[str, list[tuple[int, str]]] = {}
        for row in sorted(self.queue.values(), key=lambda w: (w.position, w.run_id)):
            waiting.setdefault(row.lane, []).append((row.position, row.run_id))
        places: dict[str, set[str]] = {}
        for digest, run in self.places:
            places.setdefault(digest, set()).add(run)
        known = {name: run.standing for name, run in self.runs.items() if name in named}
        floor = Floor(known, dict(self.meters), places, waiting, dict(self.joined))
        decisions = decide(arrivals, floor, self.now)
        self._write(arrivals, decisions)
        return decisions

    def _write(self, arrivals: list[Arrival], decisions: Decisions) -> None:
        for digest, meter in decisions.meters.items():
            self.meters.pop(digest, None)
            if meter is not None:
                self.meters[digest] = meter
        for arrival in arrivals:
            self._settle(arrival, decisions.made[arrival.run_id])
        for place in decisions.places:
            self.places[place.digest, place.run_id] = place.keeps
        self.queue |= decisions.queue
        for run, event_uid, _ in decisions.joins:
            self.joined[event_uid, 1] = run
        self.timers |= decisions.due
        for run, leave in decisions.ended.items():
            self._over(run, CANCELLED, leave.outcome)
        self.cancels += decisions.cancels
        for (_, outcome), number in decisions.skipped.items():
            self.skipped[outcome] = self.skipped.get(outcome, 0) + number

    def _settle(self, arrival: Arrival, decision: Decision) -> None:
        run_id = arrival.run_id
        if isinstance(decision, Go | Wait):
            self.queue.pop(run_id, None)
            self.timers.pop(run_id, None)
        if isinstance(decision, Go):
            if run_id not in self.begun:
                self.begun.append(run_id)
            self.runs[run_id] = Run(arrival, Standing(RUNNING, PLACES, held=False))
        elif isinstance(decision, Wait):
            self.runs[run_id] = Run(arrival, Standing(WAITING, decision.stage, decision.due_at))
            if decision.due_at is not None:
                self.timers[run_id] = decision.due_at
        elif isinstance(decision, Leave):
            self.runs[run_id] = Run(arrival, Standing(CANCELLED))
            self._over(run_id, CANCELLED, decision.outcome)

    def _over(self, run_id: str, status: str, outcome: str | None = None) -> None:
        self.runs[run_id].standing = Standing(status, outcome)
        self.places = {at: keeps for at, keeps in self.places.items() if at[1] != run_id}
        self.queue.pop(run_id, None)
        self.timers.pop(run_id, None)


def _named(decision: Decision) -> Decision | str:
    if isinstance(decision, Go):
        return GO
    return GONE if isinstance(decision, Gone) else decision
