"""Runs in a virtual world: the real core, driver and changes; tables, streams, replicas and people that are made up.

Everything follows from a seed: what the workflows are, how long attempts take and which fail, when replicas die or
lose their leases, what people do.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from appliance.engine import snapshot
from appliance.engine.actions import Failed, Succeeded
from appliance.engine.changes import CANCEL, Backoff, Drive, Parked
from appliance.engine.drive import Driver, idempotency_key
from appliance.engine.executor import _facts, _given
from appliance.engine.state import PAUSED, SUCCEEDED, TERMINAL, TIMER, Input, Resumed, Started
from appliance.errors import Fenced, LeaseLost, NotFound
from appliance.events import Event
from appliance.identifiers import derived_uuid7
from appliance.store.rows import Change
from appliance.workflows.revision import Revision, Workflow
from tests.unit.engine.clock import VirtualLoop
from tests.unit.engine.tables import Run, Tables, Violation

START = 1_900_000_000.0
MAIN = derived_uuid7(int(START * 1000), "main")
EVENT = Event(MAIN, MAIN, "/s", "t", "2030-03-17T17:46:40Z", data={"n": 5, "zero": 0, "lines": [1, 2, 3, 4]})
_LEASE_S = 20.0


@dataclass(slots=True)
class Storm:
    """How bad it gets. Chances are per commit or per timer."""

    replicas: int = 1
    crash: float = 0.0
    steal: float = 0.0
    twice: float = 0.0
    """A timer's work is put into the stream, and the transaction that deletes the timer fails."""
    budget: int = 12
    """How many crashes and thefts there are at most: a storm passes."""


@dataclass(eq=False, slots=True)
class Hand:
    """An entry in a replica's hand."""

    entry: Entry
    replica: int
    valid: bool = True
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Entry:
    """Work in the stream: the event itself (``wake`` false), or the wake of a run."""

    name: str
    run: str
    wake: bool = True


class World:
    """One story. ``play`` lets it go on until nothing happens any more."""

    def __init__(self, family: list[Workflow], seed: int, storm: Storm) -> None:
        self.loop = VirtualLoop(START)
        self.rng = random.Random(seed)
        self.seed = seed
        self.storm = storm
        self.tables = Tables()
        self.revisions = {w.name: Revision(n, n, 1, w) for n, w in enumerate(family)}
        self.begun: Counter[tuple[str, str]] = Counter()
        """Attempts by (run, step key)."""
        self.done: set[tuple[str, str]] = set()
        """Steps whose effect there was, by (run, step key)."""
        self.again: Counter[tuple[str, str]] = Counter()
        """How often a person said that a step is to be tried again."""
        self.finished: dict[str, Any] = {}
        self.wrong: list[BaseException] = []
        self._hands: list[Hand] = []
        self._entries = 0
        self._alarm: asyncio.TimerHandle | None = None
        self._recorders: dict[int, _Recorder] = {}

    # --- time --------------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Until nothing is scheduled: no entry, no timer, no attempt."""
        self.loop.run_forever()
        if self.wrong:
            raise self.wrong[0]

    def close(self) -> None:
        self.loop.drop()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.close()

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        """Do something in a while."""
        self.loop.call_later(after_s, self._guarded, act)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
            self.watch()
        except BaseException as error:
            self._stop(error)

    def _stop(self, error: BaseException) -> None:
        self.wrong.append(error)
        self.loop.stop()

    # --- timers and entries ------------------------------------------------------------------------------------------

    def watch(self, _: float = 0.0) -> None:
        """Set the alarm to the next timer."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self.tables.timers:
            self._alarm = self.loop.call_at(min(self.tables.timers.values()), self._guarded, self._fire)

    def _fire(self) -> None:
        timers = self.tables.timers
        for key in [key for key, due in timers.items() if due <= self.loop.now]:
            if self.rng.random() < self.storm.twice:
                timers[key] = self.loop.now + 1
            else:
                del timers[key]
            self.enqueue(key[0])

    def enqueue(self, run: str, *, wake: bool = True) -> None:
        """Put work for a run into the stream."""
        self._entries += 1
        self._deliver(Entry(f"e{self._entries}", run, wake))

    def _deliver(self, entry: Entry, after_s: float = 0.0) -> None:
        self.loop.call_later(after_s + self.rng.choice([0.0, 0.001, 0.2]), self._take, entry)

    def _take(self, entry: Entry) -> None:
        hand = Hand(entry, self.rng.randrange(self.storm.replicas))
        self._hands.append(hand)
        hand.task = self.loop.create_task(self._handle(hand))

    def crash(self, replica: int) -> None:
        """The process dies: what it had in hand is delivered to another one when its leases are over."""
        for hand in [hand for hand in self._hands if hand.replica == replica]:
            self._drop(hand)
            if hand.task is not None:
                hand.task.cancel()

    def _drop(self, hand: Hand) -> None:
        if hand in self._hands:
            self._hands.remove(hand)
        if hand.valid:
            hand.valid = False
            self._deliver(hand.entry, self.rng.uniform(0, _LEASE_S))

    def weather(self, hand: Hand) -> bool:
        """Whether the process dies at this very point; or its lease may be lost, and it doesn't know it yet."""
        if self.storm.budget <= 0:
            return False
        chance = self.rng.random()
        if chance < self.storm.crash:
            self.storm.budget -= 1
            self.crash(hand.replica)
            return True
        if chance < self.storm.crash + self.storm.steal:
            self.storm.budget -= 1
            self._drop(hand)
        return False

    # --- replicas ----------------------------------------------------------------------------------------------------

    async def _handle(self, hand: Hand) -> None:
        try:
            after_s = await self._work(hand)
        except (Fenced, LeaseLost):
            self._drop(hand)
            return
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._stop(error)
            return
        if hand in self._hands:
            self._hands.remove(hand)
        if after_s is not None and hand.valid:
            self._deliver(hand.entry, after_s)
        self.watch()

    async def _work(self, hand: Hand) -> float | None:
        """As the executor does; seconds until the entry is to be looked at again, or None when it is done."""
        entry, run = hand.entry, self.tables.runs.get(hand.entry.run)
        given: Input
        if run is None:
            drive, given = self._drive(MAIN, "main", None), Started()
        elif run.over or (run.status == PAUSED and run.asked != CANCEL):
            return None
        elif not entry.wake:
            drive, given = self._stored(run, None), Resumed(self.tables.open_signals(run.id))
            if run.holder is not None:
                return None
        else:
            if run.holder not in (TIMER, entry.name):
                return 0.5
            drive = self._stored(run, entry.name)
            given = _given(drive, self.tables.open_signals(run.id))
        await asyncio.sleep(self.rng.choice([0.0, 0.0, 0.1]))
        recorder = _Recorder(self, hand, drive)
        driver = Driver(
            _Actions(self, hand),  # type: ignore[arg-type]
            recorder,  # type: ignore[arg-type]
            self,
            secrets={},
            park_after_s=self.rng.choice([0.0, 10.0]),
            may_hold=lambda: True,
            on_timer=self.watch,
            clock=self.loop.time,
        )
        end = await driver.run(drive, given, lambda *_: None, ("normal", entry.name), lambda: hand.valid)
        if isinstance(end, Parked) and drive.state.status in TERMINAL:
            raise Violation("parked and over")
        return end.delay_s if isinstance(end, Backoff) else None

    def current(self, name: str) -> Revision:
        """The revision in force: what a call runs."""
        if name not in self.revisions:
            raise NotFound(f"there is no workflow {name!r}")
        return self.revisions[name]

    def workflow(self, run: Run) -> Workflow:
        return next(r.workflow for r in self.revisions.values() if r.id == run.revision)

    def _drive(self, run_id: str, name: str, holder: str | None) -> Drive:
        revision = self.revisions[name]
        facts = _facts(run_id, revision, EVENT.view(), EVENT.data, START)
        machine = "k" if revision.workflow.machine is not None else None
        return Drive(
            run_id=run_id,
            revision=revision,
            event=EVENT,
            facts=facts,
            priority="normal",
            started_at=START,
            holder=holder,
            machine_key=machine,
        )

    def _stored(self, run: Run, holder: str | None) -> Drive:
        drive = self._drive(run.id, self.workflow(run).name, holder)
        drive.facts = drive.facts._replace(input=run.details.get("input", EVENT.data))
        drive.details, drive.state, drive.version, drive.asked = dict(run.details), run.loaded(), run.version, run.asked
        drive.stored, drive.claimed = drive.state, run.holder == holder
        return drive

    def fate(self, workflow: str, key: str, attempt: int) -> random.Random:
        """The chance that decides about an attempt: the same however often it is made."""
        return random.Random(zlib.crc32(f"{self.seed}:{workflow}:{key}:{attempt}".encode()))


class _Recorder:
    """Commits, with the weather before and behind."""

    def __init__(self, world: World, hand: Hand, drive: Drive) -> None:
        self._world = world
        self._hand = hand
        self._drive = drive

    async def record(self, change: Change) -> None:
        world = self._world
        await self._pass(world.weather(self._hand))
        if not change.valid():
            raise LeaseLost("the lease was lost")
        self._check()
        world.tables.commit(change, world.loop.now)
        world.watch()
        await self._pass(world.weather(self._hand))

    async def _pass(self, died: bool) -> None:
        await asyncio.sleep(30.0 if died else self._world.rng.choice([0.0, 0.001, 0.05]))

    def _check(self) -> None:
        """What is written down must be read as the same state."""
        state = self._drive.state
        kept = orjson.loads(orjson.dumps(snapshot.pack(state, None) or {}))
        result = snapshot.result(state) if state.finished_at is not None else None
        read = snapshot.unpack(kept, state.status, state.steps, state.error, state.finished_at, result)
        for name in read._fields:
            if name not in ("inbox", "steps") and getattr(read, name) != getattr(state, name):
                if state.status in TERMINAL and name in ("blocks", "phase", "ending", "at"):
                    continue
                raise Violation(f"{name} is read as {getattr(read, name)}, not {getattr(state, name)}")
        for key, visit in state.steps.items():
            if read.steps[key]._replace(first_at=visit.first_at) != visit:
                raise Violation(f"{key} is read as {read.steps[key]}, not {visit}")
        if state.status in TERMINAL and state.active():
            raise Violation(f"a run that is {state.status} stands at {state.active()}")


class _Actions:
    """Attempts: they take a while, and have an effect at its beginning or at its end."""

    def __init__(self, world: World, hand: Hand) -> None:
        self._world = world
        self._hand = hand

    async def run(self, name: str, params: Any, event: Event, info: Any, step: str, attempt: int, *more: Any) -> Any:
        world, hand = self._world, self._hand
        run_id, key = more[0].split(":", 1)
        assert more[0] == idempotency_key(run_id, key)
        row = world.tables.runs.get(run_id)
        recorded = row.steps.get(key) if row is not None else None
        if recorded is not None and recorded.status == SUCCEEDED and hand.valid:
            raise Violation(f"{key} is done again")
        world.begun[run_id, key] += 1
        chance = world.fate(info.workflow, key, attempt)
        await asyncio.sleep(chance.choice([0.0, 0.01, 0.5, 3.0]))
        drawn = chance.random()
        if drawn < 0.7:
            world.done.add((run_id, key))
            return Succeeded({"n": chance.randrange(10)})
        kind, retryable = next(k for limit, *k in _FAILURES if drawn < limit)
        return Failed(f"{kind} {attempt}", bool(retryable), kind)  # type: ignore[arg-type]


_FAILURES: tuple[tuple[float, str, bool], ...] = (
    (0.82, "error", True), (0.86, "timeout", True), (0.92, "retry", True), (1.0, "rejected", False),
)  # fmt: skip
