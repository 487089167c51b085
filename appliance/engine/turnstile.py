"""Flow control in memory, for stories and simulations: who begins, who waits, who is left out, by a virtual clock.

Every decision is that of :mod:`appliance.engine.gates`. What the gatekeeper keeps as rows is kept here in dictionaries.
Runs are taken to be at work for no time, so ``concurrency`` makes nobody wait and is left out.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from appliance.engine.gates import Arrival, Decisions, Floor, Go, Leave, Standing, Wait, Waiting, admit, decide
from appliance.engine.state import CANCELLED, RUNNING, SUCCEEDED, WAITING
from appliance.workflows.flow_control import FlowControl


def timeless(control: FlowControl | None, *, keeps: bool = True) -> FlowControl | None:
    """What is left of flow control where runs take no time; None: nothing. ``keeps``: with what is kept to the end.

    Without it, ``ordering_key`` and ``singleton`` are left out as well.
    """
    if control is None:
        return None
    slots = tuple(each for each in control.slots if keeps and each.keeps)
    left = replace(control, slots=slots, singleton=control.singleton if keeps else None, ordered=bool(slots))
    collects = left.debounce is not None or left.batch is not None
    return left if slots or collects or left.rate_limit is not None or left.throttle is not None else None


class Turnstile:
    """The rows of flow control of some workflows, which are told apart by numbers. Times are Unix seconds."""

    def __init__(self) -> None:
        self._floor = Floor()
        self._held: dict[str, Arrival] = {}
        self._due: dict[str, float] = {}
        self._dues: list[tuple[float, int, str]] = []
        """The same as a heap with positions; what is not so any more stays until it comes to the top."""
        self._queue: dict[str, Waiting] = {}
        self._turns: dict[int, str] = {}
        self._last = 0

    def arrive(
        self,
        run_id: str,
        event_uid: str,
        workflow: int,
        control: FlowControl,
        names: Mapping[str, Any],
        now: float,
        *,
        called: bool = False,
    ) -> Decisions:
        """A run would begin; ``called``: not because of an event. ``names`` are what keys see."""
        self._last += 1
        keys = control.keys(workflow, names)
        arrival = Arrival(run_id, event_uid, workflow, control, keys, self._last, woken=called)
        if called:
            self._floor.runs[run_id] = Standing(WAITING)
        return self._decide(arrival, now)

    def wake(self, run_id: str, now: float) -> Decisions:
        """A run that is held asks again: its time has come, or there is room."""
        self._due.pop(run_id, None)
        arrival = self._held.get(run_id)
        return self._decide(arrival._replace(woken=True), now) if arrival is not None else Decisions()

    def over(self, run_id: str) -> list[str]:
        """A run has ended; returns the runs that have got its places, and are to be woken."""
        workflows = {waiting.workflow_id for waiting in self._queue.values()}
        self._forget(run_id, SUCCEEDED)
        return [other for workflow in sorted(workflows) for other in self._admit(workflow)]

    def next_due(self) -> float | None:
        """When a run that is held is to be woken."""
        while self._dues and self._due.get(self._dues[0][2]) != self._dues[0][0]:
            heapq.heappop(self._dues)
        return self._dues[0][0] if self._dues else None

    def due(self, now: float) -> list[str]:
        """The runs that are to be woken, in their order; they are told once."""
        found = []
        while (at := self.next_due()) is not None and at <= now:
            _, _, run_id = heapq.heappop(self._dues)
            del self._due[run_id]
            found.append(run_id)
        return found

    def _decide(self, arrival: Arrival, now: float) -> Decisions:
        decisions = decide([arrival], self._floor, now)
        self._settle(arrival, decisions)
        for run_id in decisions.ended:
            self._forget(run_id, CANCELLED)
        for run_id, due_at in decisions.due.items():
            self._wake_at(run_id, due_at)
        return decisions

    def _wake_at(self, run_id: str, due_at: float) -> None:
        self._due[run_id] = due_at
        heapq.heappush(self._dues, (due_at, self._held[run_id].position, run_id))

    def _settle(self, arrival: Arrival, decisions: Decisions) -> None:
        run_id, decision = arrival.run_id, decisions.made[arrival.run_id]
        if isinstance(decision, Go):
            self._held.pop(run_id, None)
            self._floor.runs[run_id] = Standing(RUNNING, held=False)
        elif isinstance(decision, Wait):
            self._held[run_id] = arrival
            self._floor.runs[run_id] = Standing(WAITING, decision.stage, decision.due_at)
            if decision.due_at is None:
                self._queue[run_id] = decisions.queue[run_id]
            else:
                self._wake_at(run_id, decision.due_at)
        elif isinstance(decision, Leave):
            self._forget(run_id, CANCELLED)

    def _forget(self, run_id: str, status: str) -> None:
        floor = self._floor
        floor.runs[run_id] = Standing(status)
        for kept in (self._held, self._due, self._queue):
            kept.pop(run_id, None)
        for digest in [digest for digest, runs in floor.places.items() if run_id in runs]:
            floor.places[digest].discard(run_id)
            if not floor.places[digest]:
                del floor.places[digest]
        for lane in list(floor.waiting):
            self._unqueue(lane, run_id)

    def _admit(self, workflow: int) -> list[str]:
        lanes: dict[str, list[Waiting]] = {}
        for waiting in sorted(self._queue.values(), key=lambda waiting: (waiting.position, waiting.run_id)):
            if waiting.workflow_id == workflow:
                lanes.setdefault(waiting.lane, []).append(waiting)
        turn = self._turns.get(workflow, "")
        order = sorted(lanes, key=lambda lane: (lane <= turn, lane))
        taken = {digest: len(runs) for digest, runs in self._floor.places.items()}
        admitted, last = admit([lanes[lane] for lane in order], taken, {})
        self._turns[workflow] = last or turn
        for waiting in admitted:
            del self._queue[waiting.run_id]
            self._unqueue(waiting.lane, waiting.run_id)
            for digest in waiting.digests:
                self._floor.places.setdefault(digest, set()).add(waiting.run_id)
        return [waiting.run_id for waiting in admitted]

    def _unqueue(self, lane: str, run_id: str) -> None:
        left = [each for each in self._floor.waiting.pop(lane, ()) if each[1] != run_id]
        if left:
            self._floor.waiting[lane] = left
