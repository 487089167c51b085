"""Flow control as a pure function: which runs go on now, which wait and for what, which events start none.

A run passes, in this order: ``debounce`` or ``batch`` (it is collected); ``singleton`` and ``rate_limit`` (it may be
left out); the places that it keeps to its end (``ordering``, ``singleton``); ``throttle`` (its turn); the places that
it has while it is at work (``concurrency``). Where it has to wait it is parked, with a timer or with a row in the
queue, and its stage says what it waits for. Who calls this holds a lock on the workflow, so that nobody else decides
meanwhile, and has let in those who wait and for whom there is room.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from appliance.engine.state import TERMINAL
from appliance.settings import format_duration
from appliance.workflows.flow_control import LANE, FlowControl, Key, Slots

COLLECTED, ORDER, TURN, PLACES = "collected", "order", "turn", "places"
"""What a held run waits for: the end of a debounce or batch, the places that it keeps, its turn, its other places."""
RATE_LIMITED, DEBOUNCED, SKIPPED, REPLACED = "rate_limited", "debounced", "skipped", "replaced"
"""Why an event started no run: the outcome of its cancelled run."""
_EARLY_S = 0.05
"""A timer may fire this much early: clocks differ."""
_FIRST = 0
"""Position of those that keep the place for which all others of their lane wait: only they can ever give it back."""


class Arrival(NamedTuple):
    """A run that would begin, or go on. ``keys`` by part; ``position`` orders runs: see :func:`position_of`."""

    run_id: str
    event_uid: str
    workflow_id: int
    control: FlowControl
    keys: Mapping[str, Key]
    position: int
    priority: str = "normal"
    woken: bool = False
    """It was parked. Otherwise its event's entry brings it."""
    returns: bool = False
    """The entry that had it in hand was set aside, which gave its places back, and is handled again."""
    begun: bool = False
    """It has been at work before, maybe in a revision without flow control: it needs no turn."""


class Standing(NamedTuple):
    """A run's row: ``stage`` and ``until`` are what flow control noted; None: nothing yet (a call, replay or rerun)."""

    status: str
    stage: str | None = None
    until: float | None = None
    held: bool = True
    """Whether it is parked. Otherwise it has been let go on, and its event's entry moves it."""


class Meter(NamedTuple):
    """A row of ``meters``. Times are Unix seconds."""

    digest: str
    workflow_id: int
    part: str
    key: str
    at: float
    number: int
    run_id: str | None
    position: int | None
    expires_at: float


class Waiting(NamedTuple):
    """A row of ``queue``: a run that waits for places. The four tuples go together."""

    run_id: str
    workflow_id: int
    lane: str
    position: int
    priority: str
    parts: tuple[str, ...]
    digests: tuple[str, ...]
    keys: tuple[str, ...]
    limits: tuple[int, ...]


class Place(NamedTuple):
    """A row of ``places``."""

    digest: str
    run_id: str
    keeps: bool


@dataclass(slots=True)
class Floor:
    """What stands recorded of the keys and runs in question; changed by :func:`decide` as it goes."""

    runs: dict[str, Standing] = field(default_factory=dict)
    """Of the arrivals, and of the runs in ``meters``."""
    meters: dict[str, Meter] = field(default_factory=dict)
    places: dict[str, set[str]] = field(default_factory=dict)
    """By digest: the live runs that have one."""
    waiting: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By lane: (position, run) of those that wait, lowest first: the arrivals, of singletons all, of others a few."""
    joined: dict[tuple[str, int], str] = field(default_factory=dict)
    """By (event, workflow): the batch run that an event belongs to already."""


class Go(NamedTuple):
    """The run goes on now: it has all its places."""


class Wait(NamedTuple):
    """The run is parked. ``due_at`` None: in the queue. ``part`` and ``key`` say what it waits for."""

    stage: str
    due_at: float | None
    part: str
    key: str


class Leave(NamedTuple):
    """The event starts no run, or the run that was held ends: cancelled with this outcome and error."""

    outcome: str
    error: str


class Join(NamedTuple):
    """The event belongs to the batch of this run."""

    run_id: str


class Gone(NamedTuple):
    """The run is over, or was set aside meanwhile: nothing is to be done."""


Decision = Go | Wait | Leave | Join | Gone


@dataclass(slots=True)
class Decisions:
    """What is to be written, in one transaction. ``made`` by run id of the arrivals."""

    made: dict[str, Decision] = field(default_factory=dict)
    meters: dict[str, Meter | None] = field(default_factory=dict)
    """By digest: the row as it is to be; None: it goes."""
    places: list[Place] = field(default_factory=list)
    queue: dict[str, Waiting] = field(default_factory=dict)
    ended: dict[str, Leave] = field(default_factory=dict)
    """Held runs, no arrivals, that end: their timers and their places, also that in the queue, go with them."""
    cancels: list[str] = field(default_factory=list)
    """Runs at work that are asked to end."""
    joins: list[tuple[str, str, int]] = field(default_factory=list)
    """(run, event, position): the events of batches, the run's own among them."""
    due: dict[str, float] = field(default_factory=dict)
    """Timers of runs that are no arrivals: a batch that is full."""
    skipped: dict[tuple[int, str], int] = field(default_factory=dict)
    """By (workflow, outcome): how many more events started no run."""


def position_of(entry_id: str) -> int:
    """The place of a stream entry among all: its id as one number (41 bits of milliseconds, 20 of the sequence)."""
    ms, _, seq = entry_id.partition("-")
    return (int(ms) << 20) | min(int(seq or 0), 0xFFFFF)


def decide(arrivals: Iterable[Arrival], floor: Floor, now: float) -> Decisions:
    """Decide about ``arrivals``, those of lower positions first, at ``now`` (Unix seconds)."""
    decisions = Decisions()
    for arrival in sorted(arrivals, key=lambda a: (a.position, a.run_id)):
        if arrival.run_id not in decisions.made:
            decisions.made[arrival.run_id] = _Gate(arrival, floor, decisions, now).decision()
    return decisions


class _Gate:
    """One arrival."""

    def __init__(self, arrival: Arrival, floor: Floor, decisions: Decisions, now: float) -> None:
        self._arrival = arrival
        self._control = arrival.control
        self._floor = floor
        self._out = decisions
        self._now = now
        self._run = arrival.run_id
        self._standing = floor.runs.get(arrival.run_id)
        self._lane = arrival.keys[LANE].digest
        self._position = arrival.position
        if self._standing is not None:
            waits = (position for position, run in floor.waiting.get(self._lane, ()) if run == arrival.run_id)
            self._position = next(waits, arrival.position)

    def decision(self) -> Decision:
        standing = self._standing
        if standing is None:
            return self._of_event()
        if standing.status in TERMINAL or self._run in self._out.ended:
            return Gone()
        if not standing.held and self._arrival.returns:
            return self._places()
        if not standing.held:  # it was let go on before
            self._put_places(self._needed())
            return Go()
        if not self._arrival.woken:
            return Gone()
        if standing.stage == COLLECTED:
            return self._wait_on(self._collecting()) or self._begin()
        if standing.stage == TURN and standing.until is not None and standing.until > self._now + _EARLY_S:
            return Wait(TURN, standing.until, "throttle", self._key("throttle").text)
        if standing.stage in (TURN, PLACES) or (standing.stage is None and self._arrival.begun):
            return self._places()
        return self._turn()

    # --- what is collected -------------------------------------------------------------------------------------------

    def _of_event(self) -> Decision:
        if self._control.debounce is not None:
            return self._debounce()
        if self._control.batch is not None:
            return self._batch()
        return self._begin()

    def _collecting(self) -> Meter | None:
        """The meter of the debounce or batch that still collects for this run."""
        part = "debounce" if self._control.debounce is not None else "batch"
        if self._control.debounce is None and self._control.batch is None:
            return None
        meter = self._meter(part)
        return meter if meter is not None and meter.run_id == self._run else None

    def _wait_on(self, meter: Meter | None) -> Decision | None:
        """Wait on, if the time isn't up: somebody woke the run early. Otherwise collecting is over."""
        if meter is None:
            return None
        if meter.expires_at > self._now + _EARLY_S:
            return Wait(COLLECTED, meter.expires_at, meter.part, meter.key)
        self._put_meter(meter.digest, None)
        return None

    def _debounce(self) -> Decision:
        debounce, key, meter = self._control.debounce, self._key("debounce"), self._meter("debounce")
        assert debounce is not None  # noqa: S101 - asked by the caller
        first_at = self._now
        # A run whose time is up begins, even if nobody got round to it: or a flood could put it off for ever.
        if meter is not None and meter.run_id and meter.expires_at > self._now and self._is_held(meter.run_id):
            if meter.position is not None and meter.position > self._arrival.position:
                return self._leave(
                    DEBOUNCED, f"debounce: a later event came before, for which run {meter.run_id} begins"
                )
            self._end(meter.run_id, DEBOUNCED, f"debounce: a later event came, for which run {self._run} begins")
            first_at = meter.at
        due_at = self._now + debounce.period_s
        if debounce.timeout_s is not None:
            due_at = min(due_at, first_at + debounce.timeout_s)
        self._note("debounce", key, first_at, 1, self._run, due_at)
        return Wait(COLLECTED, due_at, "debounce", key.text)

    def _batch(self) -> Decision:
        batch, key, meter = self._control.batch, self._key("batch"), self._meter("batch")
        assert batch is not None  # noqa: S101 - asked by the caller
        arrival = self._arrival
        known = self._floor.joined.get((arrival.event_uid, arrival.workflow_id))
        if known is not None:
            return Join(known)
        run, first_at, count = self._run, self._now, 1
        if meter is not None and meter.run_id is not None and self._is_held(meter.run_id):
            run, first_at, count = meter.run_id, meter.at, meter.number + 1
        due_at = first_at + batch.timeout_s
        if count >= batch.size:
            due_at = self._now
            self._put_meter(key.digest, None)
        else:
            self._note("batch", key, first_at, count, run, due_at)
        self._floor.joined[arrival.event_uid, arrival.workflow_id] = run
        self._out.joins.append((run, arrival.event_uid, arrival.position))
        if run == self._run:
            return Wait(COLLECTED, due_at, "batch", key.text)
        if count >= batch.size:
            made = self._out.made.get(run)  # it may have come with this very batch of arrivals
            if isinstance(made, Wait):
                self._out.made[run] = made._replace(due_at=due_at)
            else:
                self._out.due[run] = due_at
        return Join(run)

    # --- who is left out ---------------------------------------------------------------------------------------------

    def _begin(self) -> Decision:
        """Of an event, or of what was collected: it may be left out."""
        singleton = self._control.singleton
        if singleton is None:
            return self._rated() or self._turn()
        if singleton.mode == "skip":
            return self._skipped() or self._rated() or self._turn()
        if (left := self._rated()) is not None:  # or neither of the two would go on
            return left
        self._replace()
        return self._turn()

    def _skipped(self) -> Decision | None:
        key = self._key("singleton")
        at_work, queued = self._others(key)
        other = next(iter(at_work or queued), None)
        return None if other is None else self._leave(SKIPPED, f"singleton: run {other} goes on{_of(key)}")

    def _replace(self) -> None:
        """End the others of this key: those that have begun are asked to."""
        key = self._key("singleton")
        at_work, queued = self._others(key)
        fresh = [run for run in at_work if run in self._out.made and run not in self._floor.runs]
        for run in [*fresh, *queued]:
            self._end(run, REPLACED, f"singleton: run {self._run} took its place{_of(key)}")
        self._out.cancels += [run for run in at_work if run not in fresh and run not in self._out.cancels]

    def _others(self, key: Key) -> tuple[list[str], list[str]]:
        """The other runs of a singleton: those that have its place, and those that wait and don't."""
        at_work = sorted(run for run in self._floor.places.get(key.digest, ()) if run != self._run)
        waiting = self._floor.waiting.get(key.digest, ())
        return at_work, [run for _, run in waiting if run != self._run and run not in at_work]

    def _rated(self) -> Decision | None:
        rate = self._control.rate_limit
        if rate is None:
            return None
        key, meter = self._key("rate_limit"), self._meter("rate_limit")
        at, count = (
            (meter.at, meter.number) if meter is not None and self._now < meter.at + rate.period_s else (self._now, 0)
        )
        if count >= rate.limit:
            period = format_duration(timedelta(seconds=rate.period_s))
            return self._leave(RATE_LIMITED, f"rate_limit: {rate.limit} runs in {period} have begun{_of(key)}")
        self._note("rate_limit", key, at, count + 1, None, at + rate.period_s)
        return None

    # --- turns and places --------------------------------------------------------------------------------------------

    def _turn(self) -> Decision:
        throttle = self._control.throttle
        if throttle is None:
            return self._places()
        kept = self._needed(keeps=True)
        if kept and not self._take(kept):
            return self._queue(kept, ORDER)
        key, meter = self._key("throttle"), self._meter("throttle")
        interval_s = throttle.period_s / throttle.limit
        turn = max(self._now, meter.at if meter is not None else 0.0)
        begins_at = max(self._now, turn - (throttle.limit + throttle.burst - 1) * interval_s)
        self._note("throttle", key, turn + interval_s, 0, None, turn + interval_s)
        if begins_at > self._now:
            return Wait(TURN, begins_at, "throttle", key.text)
        return self._places()

    def _places(self) -> Decision:
        needed = self._needed()
        return Go() if self._take(needed) else self._queue(needed, PLACES)

    def _needed(self, *, keeps: bool = False) -> list[Slots]:
        """The places that the run has not; with ``keeps`` only those that it would keep."""
        return [
            slots
            for slots in self._control.slots
            if (slots.keeps or not keeps) and self._run not in self._floor.places.get(self._key(slots.part).digest, ())
        ]

    def _take(self, needed: Sequence[Slots]) -> bool:
        """Take all of these places, or none; who waits in the same lane and comes before is let in before."""
        mine = (self._rank(), self._run)
        ahead = self._floor.waiting.get(self._lane, [])
        if needed and any(other < mine for other in ahead if other[1] != self._run):
            return False
        if any(self._is_full(slots) for slots in needed):
            return False
        self._put_places(needed)
        _drop(ahead, self._run)
        return True

    def _rank(self) -> int:
        """The run's position in its lane."""
        lane = self._control.lane
        keeps = lane is not None and lane.keeps and self._run in self._floor.places.get(self._lane, ())
        return _FIRST if keeps else self._position

    def _put_places(self, needed: Iterable[Slots]) -> None:
        for slots in needed:
            digest = self._key(slots.part).digest
            self._floor.places.setdefault(digest, set()).add(self._run)
            self._out.places.append(Place(digest, self._run, slots.keeps))

    def _queue(self, needed: Sequence[Slots], stage: str) -> Decision:
        keys = [self._key(slots.part) for slots in needed]
        arrival, position = self._arrival, self._rank()
        lane = self._floor.waiting.setdefault(self._lane, [])
        if self._standing is not None:
            _drop(lane, self._run)
        insort(lane, (position, self._run))
        self._out.queue[self._run] = Waiting(
            self._run,
            arrival.workflow_id,
            self._lane,
            position,
            arrival.priority,
            tuple(slots.part for slots in needed),
            tuple(key.digest for key in keys),
            tuple(key.text for key in keys),
            tuple(slots.limit for slots in needed),
        )
        lacking = self._lacking(needed)
        return Wait(stage, None, lacking.part, self._key(lacking.part).text)

    def _lacking(self, needed: Sequence[Slots]) -> Slots:
        """Which of these places a run is said to wait for: the first that are all taken, else those of its lane."""
        full = (slots for slots in needed if self._is_full(slots))
        of_lane = (slots for slots in needed if self._key(slots.part).digest == self._lane)
        return next(full, next(of_lane, needed[0]))

    def _is_full(self, slots: Slots) -> bool:
        return len(self._floor.places.get(self._key(slots.part).digest, ())) >= slots.limit

    # --- what they share ---------------------------------------------------------------------------------------------

    def _key(self, part: str) -> Key:
        return self._arrival.keys[part]

    def _meter(self, part: str) -> Meter | None:
        return self._floor.meters.get(self._key(part).digest)

    def _note(self, part: str, key: Key, at: float, count: int, run_id: str | None, expires_at: float) -> None:
        arrival = self._arrival
        position = arrival.position if part == "debounce" else None
        meter = Meter(key.digest, arrival.workflow_id, part, key.text, at, count, run_id, position, expires_at)
        self._put_meter(key.digest, meter)

    def _put_meter(self, digest: str, meter: Meter | None) -> None:
        self._out.meters[digest] = meter
        if meter is None:
            self._floor.meters.pop(digest, None)
        else:
            self._floor.meters[digest] = meter

    def _is_held(self, run_id: str) -> bool:
        """Whether a run is still collected for."""
        if run_id in self._out.made:
            return isinstance(self._out.made[run_id], Wait)
        standing = self._floor.runs.get(run_id)
        return standing is not None and standing.stage == COLLECTED and standing.status not in TERMINAL

    def _leave(self, outcome: str, error: str) -> Leave:
        self._count(outcome)
        return Leave(outcome, error)

    def _end(self, run_id: str, outcome: str, error: str) -> None:
        """End another run, which has not begun."""
        self._count(outcome)
        leave = Leave(outcome, error)
        if run_id in self._out.made:
            self._out.made[run_id] = leave
        else:
            self._out.ended[run_id] = leave
        self._out.queue.pop(run_id, None)
        self._out.places = [place for place in self._out.places if place.run_id != run_id]
        for runs in self._floor.places.values():
            runs.discard(run_id)
        _drop(self._floor.waiting.get(self._lane, []), run_id)

    def _count(self, outcome: str) -> None:
        at = (self._arrival.workflow_id, outcome)
        self._out.skipped[at] = self._out.skipped.get(at, 0) + 1


def admit(
    lanes: Sequence[Sequence[Waiting]], taken: Mapping[str, int], limits: Mapping[str, int]
) -> tuple[list[Waiting], str | None]:
    """Who of those that wait gets places now, and the lane whose turn was last (None: nobody's).

    ``lanes`` in the order of their turns, each in the order of positions; ``taken``: places by digest; ``limits`` by
    part as in force, where a part is left out as its run has it. Lanes take turns, one run at a time.
    """
    used = dict(taken)
    rest = [list(lane) for lane in lanes]
    admitted: list[Waiting] = []
    last: str | None = None
    progress = True
    while progress:
        progress = False
        for lane in rest:
            if lane and _has_room(lane[0], used, limits):
                waiting = lane.pop(0)
                for digest in waiting.digests:
                    used[digest] = used.get(digest, 0) + 1
                admitted.append(waiting)
                last = waiting.lane
                progress = True
    return admitted, last


def _has_room(waiting: Waiting, used: Mapping[str, int], limits: Mapping[str, int]) -> bool:
    needs = zip(waiting.parts, waiting.digests, waiting.limits, strict=True)
    return all(used.get(digest, 0) < limits.get(part, limit) for part, digest, limit in needs)


def _drop(waiting: list[tuple[int, str]], run_id: str) -> None:
    waiting[:] = [(position, run) for position, run in waiting if run != run_id]


def _of(key: Key) -> str:
    return f" for {key.text!r}" if key.text else ""
