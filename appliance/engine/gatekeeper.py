"""The gatekeeper: who of those that come, or wait, goes on now; written down before anybody is told.

Everything that is asked at the same time is decided in one transaction, under a lock on the workflows concerned, so
that no two replicas decide about one workflow at once. What is decided is :mod:`appliance.engine.gates`, what is
written :mod:`appliance.engine.rulings`. A batch that PostgreSQL refuses is halved until what is at fault stands alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from appliance.batching import Batcher
from appliance.engine.gates import Decision, Gone
from appliance.engine.lanes import LANES, Doorway, Limits, limits_of
from appliance.engine.rulings import Request, Ruling, asked_of, rule
from appliance.engine.state import CANCELLED
from appliance.errors import LeaseLost, NotFound, StoreUnavailable
from appliance.observe.metrics import METRICS
from appliance.store.gates import Gates, Scan, Undone
from appliance.store.recorder import Refused
from appliance.workflows.revision import Revision

_BATCH = 500
_MOST_UNDONE = 20
_MAX_WAIT_S = 5.0
_SWEEP_S = 5.0
_SWEEP_LANES = 1000
"""Lanes of a workflow that one sweep looks at; the next one goes on there."""

log = logging.getLogger("appliance.engine.gatekeeper")


class Definitions(Protocol):
    """What the gatekeeper needs of the catalog."""

    def current(self, name: str) -> Revision:
        """The revision in force of a workflow, disabled or not; NotFound."""
        ...


class _Freed(NamedTuple):
    """Places may be free: of a lane, or (a sweep) of any one behind ``after``."""

    workflow_id: int
    lane: str | None
    after: str | None = None


_Item = Request | _Freed
_Answer = Decision | int
_Outcome = tuple[list[Decision | BaseException], dict[int, int] | Exception]
"""An answer for each request, and how many were let in, by workflow."""


class Gatekeeper:
    """Decides for this replica. ``on_timer`` is told of timers that were stored (Unix seconds)."""

    def __init__(
        self,
        gates: Gates,
        definitions: Definitions,
        on_timer: Callable[[float], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.healthy = True
        """False while PostgreSQL takes no decisions: nothing more is to be read then."""
        self._gates = gates
        self._definitions = definitions
        self._on_timer = on_timer
        self._clock = clock
        self._batcher: Batcher[_Item, _Answer] = Batcher(self._flush, limit=_BATCH, name="gatekeeper")
        self._shared: dict[int, bool] = {}
        """By workflow, of those that somebody waited for: whether lanes share places."""
        self._reached: dict[int, str] = {}
        """By workflow: how far the sweeps have come."""
        self._stopped = asyncio.Event()
        self._closing = False

    async def arrive(self, request: Request) -> Decision:
        """Decide; what follows is durable when this returns. Asking again, after a crash too, changes nothing.

        Raises LeaseLost when the entry isn't ours any more, Refused when PostgreSQL can't store what the request holds,
        StoreUnavailable only while stopping.
        """
        decision = await self._batcher.submit(request)
        assert not isinstance(decision, int)  # noqa: S101 - that is for those who have freed places
        return decision

    async def freed(self, workflow_id: int, lane: str | None = None) -> None:
        """A run of this lane (None: of any) was parked or is over: let in who waits for its places.

        Cheap when nobody does. Raises StoreUnavailable; the next sweep does it then.
        """
        await self._batcher.submit(_Freed(workflow_id, lane))

    async def sweep(self) -> int:
        """Forget what says nothing any more, and let in who could go on and was missed; returns how many those were.

        Another replica may be at it: then nothing is done. Raises StoreUnavailable.
        """
        waited_for = await self._gates.tidy()
        asked = [_Freed(id_, None, self._reached.get(id_)) for id_ in waited_for or ()]
        answers = await asyncio.gather(*map(self._batcher.submit, asked))
        return sum(answer for answer in answers if isinstance(answer, int))

    async def events(self, run_id: str) -> list[dict[str, Any]]:
        """The events of a batch run, as templates see them, in the order in which they came."""
        return [event.view() for event in await self._gates.batch(run_id)]

    async def run_forever(self) -> None:
        """Sweep every few seconds until :meth:`stop`."""
        while not self._stopped.is_set():
            try:
                if missed := await self.sweep():
                    log.info("let in: %d", missed)
            except (StoreUnavailable, Refused) as error:
                log.warning("the sweep of flow control waits: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_S * random.uniform(0.8, 1.2)):
                    await self._stopped.wait()

    def stop(self) -> None:
        """End :meth:`run_forever`."""
        self._stopped.set()

    async def close(self) -> None:
        """Decide about what was handed in, then close. Does not wait for a PostgreSQL that is away."""
        self._closing = True
        await self._batcher.drain()
        await self._gates.close()

    # --- one batch ---------------------------------------------------------------------------------------------------

    async def _flush(self, items: list[_Item]) -> list[_Answer | BaseException]:
        requests = [item for item in items if isinstance(item, Request)]
        freed = Counter(item for item in items if isinstance(item, _Freed))
        with METRICS.flow_seconds.time():
            decided, let_in = await self._settle(requests, freed)
        answers = iter(decided)
        return [next(answers) if isinstance(item, Request) else _number(let_in, item) for item in items]

    async def _settle(self, requests: list[Request], freed: Counter[_Freed]) -> _Outcome:
        """Decide, whatever it takes: a decision or an exception for each, and how many were let in by workflow."""
        failures = 0
        while True:
            invalid = [not request.valid() for request in requests]
            if any(invalid):
                return await self._without(requests, invalid, freed)
            try:
                made, let_in = await self._sit(requests, freed)
            except Exception as error:
                failures += 1
                if isinstance(error, Undone) and failures < _MOST_UNDONE:
                    continue  # what somebody else wrote is seen this time
                if isinstance(error, Undone) or not isinstance(error, StoreUnavailable):
                    return await self._halved(requests, freed, error)
                if self._closing or not requests:
                    return [error] * len(requests), error
                await self._wait(error, failures)
                continue
            self._recovered()
            return made, let_in

    async def _without(self, requests: list[Request], invalid: list[bool], freed: Counter[_Freed]) -> _Outcome:
        rest = [request for request, bad in zip(requests, invalid, strict=True) if not bad]
        decided, let_in = await self._settle(rest, freed) if rest or freed else ([], {})
        answers = iter(decided)
        self._recovered()  # nobody is left to find out otherwise
        return [LeaseLost("the lease was lost") if bad else next(answers) for bad in invalid], let_in

    async def _halved(self, requests: list[Request], freed: Counter[_Freed], error: Exception) -> _Outcome:
        """It failed for good: find what is at fault."""
        let_in: dict[int, int] | Exception = error
        if requests and freed:
            _, let_in = await self._settle([], freed)
        if len(requests) < 2:
            log.error("flow control can't decide: %s", error, exc_info=None if isinstance(error, Refused) else error)
            return [error] * len(requests), let_in
        middle = len(requests) // 2
        first, _ = await self._settle(requests[:middle], Counter())
        second, _ = await self._settle(requests[middle:], Counter())
        return [*first, *second], let_in

    async def _sit(
        self, requests: list[Request], freed: Counter[_Freed]
    ) -> tuple[list[Decision | BaseException], dict[int, int]]:
        """One transaction. LeaseLost for those whose leases were lost while it waited for the lock."""
        workflow_ids = {request.arrival.workflow_id for request in requests} | {item.workflow_id for item in freed}
        scans, asked = self._scans(freed), asked_of(requests)
        lanes = {(item.workflow_id, item.lane) for item in freed if item.lane is not None}
        lanes |= {(workflow_id, lane) for lane, (workflow_id, _) in asked.lanes.items()}
        async with self._gates.sitting() as sitting:
            heads, found = await sitting.begin(workflow_ids, scans, lanes, asked)
            now = self._clock()
            doorway = Doorway(sitting, self._limits, _left(freed), now)
            if heads:
                self._shared |= {head.waiting.workflow_id: self._shares(head.workflow) for head in heads}
                await doorway.let_in(heads, scans)
                if doorway.admitted and requests:
                    found = await sitting.look(asked)
            valid = [request.valid() for request in requests]
            ruling = rule([request for request, good in zip(requests, valid, strict=True) if good], found, now)
            await sitting.write(ruling.writing, commit=True)
        self._reached |= {scan.workflow_id: doorway.reached.get(scan.workflow_id, "") for scan in scans}
        self._tell(ruling, sitting.left, len(doorway.admitted), now)
        let_in = Counter(waiting.workflow_id for waiting in doorway.admitted)
        lost, gone = LeaseLost("the lease was lost"), Gone()
        made = (ruling.made.get(request.arrival.run_id, gone) for request in requests)
        return [decision if good else lost for decision, good in zip(made, valid, strict=True)], let_in

    def _scans(self, freed: Counter[_Freed]) -> list[Scan]:
        """Where lanes share places, one that was freed may be for another lane; a sweep looks everywhere."""
        sweeps = {item.workflow_id: item.after for item in freed if item.lane is None}
        shared = {item.workflow_id for item in freed if self._shared.get(item.workflow_id, True)}
        scans = [Scan(workflow_id, after or None, _SWEEP_LANES) for workflow_id, after in sweeps.items()]
        return scans + [Scan(workflow_id, None, LANES) for workflow_id in shared if workflow_id not in sweeps]

    def _shares(self, workflow: str) -> bool:
        limits = self._limits(workflow)
        return limits is None or len(limits) > 1

    def _limits(self, workflow: str) -> Limits:
        try:
            return limits_of(self._definitions.current(workflow).workflow.control)
        except NotFound:
            return None

    def _tell(self, ruling: Ruling, ended: Mapping[str, int], let_in: int, now: float) -> None:
        """What is durable by now."""
        writing = ruling.writing
        due = [*(timer.due_at for timer in writing.timers), *(due_at for _, due_at in writing.wake)]
        if writing.cancel or let_in:
            due.append(now)
        if due:
            self._on_timer(min(due))
        left = ruling.leaves + Counter(ended)
        METRICS.runs_started.inc(len(writing.runs))
        METRICS.flow_let_in.inc(let_in)
        for part, number in ruling.held.items():
            METRICS.flow_held.labels(part).inc(number)
        for reason, number in left.items():
            METRICS.flow_skipped.labels(reason).inc(number)
        if left:
            METRICS.runs_finished.labels(CANCELLED).inc(left.total())

    async def _wait(self, away: Exception, failures: int) -> None:
        if self.healthy:
            log.error("flow control can't decide, reading pauses: %s", away)
        self.healthy = False
        METRICS.store_errors.inc()
        await asyncio.sleep(min(_MAX_WAIT_S, 0.05 * 2 ** min(failures, 8)) * random.uniform(0.5, 1.0))

    def _recovered(self) -> None:
        if not self.healthy:
            log.info("flow control can decide again")
        self.healthy = True


def _left(freed: Counter[_Freed]) -> Counter[int]:
    """How many runs have left, by workflow."""
    left: Counter[int] = Counter()
    for item, number in freed.items():
        left[item.workflow_id] += number if item.lane is not None else 0
    return left


def _number(let_in: dict[int, int] | Exception, item: _Freed) -> int | BaseException:
    return let_in if isinstance(let_in, Exception) else let_in.get(item.workflow_id, 0)
