"""Letting in those who wait for places: lane by lane, one run of each at a time, as long as there is room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from appliance.engine.gates import Place, Waiting, admit
from appliance.store.gates import Head, Scan, Sitting, Writing
from appliance.workflows.flow_control import FlowControl

LANES = 32
"""Of a workflow, looked at in the first round trip; four times as many in each further one."""
_LOOKS = 4
"""Round trips for lanes that have room while others don't, and for more of those who wait in one."""
_OTHERS = 16
"""Places that other replicas may have freed at the same moment."""
_HEADS, _LEAST_HEADS = 512, 16
"""Of those who wait: looked at in one round trip, together and of each lane."""
_UNLIMITED = 2**31 - 1

Limits = Mapping[str, int] | None
"""By part as in force, where a part that is gone limits nobody; None: nothing is in force, and runs have their own."""
Lane = tuple[int, str]
"""Workflow and digest."""


def limits_of(control: FlowControl | None) -> dict[str, int]:
    """The limits of a definition by part."""
    return {} if control is None else {slots.part: slots.limit for slots in control.slots}


@dataclass(slots=True)
class _Turns:
    """Those who wait of one workflow, by lane in the order of turns."""

    start: str
    limits: Limits
    lanes: dict[str, list[Waiting]] = field(default_factory=dict)

    def ordered(self) -> list[list[Waiting]]:
        """One round, from behind ``start``."""
        return [self.lanes[lane] for lane in sorted(self.lanes, key=lambda lane: (lane <= self.start, lane))]

    def limit_of(self, part: str, own: int) -> int:
        return own if self.limits is None else self.limits.get(part, _UNLIMITED)

    def needs(self, waiting: Waiting) -> Iterable[tuple[str, int]]:
        """The digests of the places that one needs, and how many of each there are."""
        for part, digest, own in zip(waiting.parts, waiting.digests, waiting.limits, strict=True):
            yield digest, self.limit_of(part, own)

    def in_force(self) -> dict[str, int]:
        """The limits by part, of those that somebody waits for."""
        if self.limits is None:
            return {}
        parts = {part for lane in self.lanes.values() for waiting in lane for part in waiting.parts}
        return {part: self.limits.get(part, _UNLIMITED) for part in parts}


class Doorway:
    """Lets in, within one sitting. ``limits`` gives those in force of a workflow by its name.

    ``freed``: how many runs have left a workflow just now. Nobody searches for more than those have given back.
    """

    def __init__(self, sitting: Sitting, limits: Callable[[str], Limits], freed: Mapping[int, int], now: float) -> None:
        self._sitting = sitting
        self._limits = limits
        self._freed = freed
        self._now = now
        self._taken: dict[str, int] = {}
        self.admitted: list[Waiting] = []
        self.reached: dict[int, str] = {}
        """By workflow the last lane that was looked at first, if there may be more behind it."""

    async def let_in(self, heads: Sequence[Head], scans: Sequence[Scan]) -> None:
        """Let in those for whom there is room: first of the lanes of ``heads``, which ``scans`` has found."""
        self.reached = self._last_of(heads, scans)
        for _ in range(_LOOKS):
            turns = self._turns(heads)
            await self._count(turns)
            left = await self._admit(turns)
            let_in = Counter(waiting.workflow_id for waiting in self.admitted)
            last = self._last_of(heads, scans)
            scans = [
                Scan(workflow_id, lane, 4 * LANES)
                for workflow_id, lane in last.items()
                if let_in[workflow_id] < (freed := self._freed.get(workflow_id, 0))
                and self._has_room(turns[workflow_id], freed)
            ]
            if not (scans or left):
                return
            heads = await self._sitting.scan(scans, left)

    def _last_of(self, heads: Iterable[Head], scans: Iterable[Scan]) -> dict[int, str]:
        """The last lanes that were found, of workflows that have more."""
        wanted = {scan.workflow_id: scan.wanted for scan in scans}
        last: dict[int, Head] = {}
        for head in heads:
            if head.number and head.number >= getattr(last.get(head.waiting.workflow_id), "number", 0):
                last[head.waiting.workflow_id] = head
        # Half of them: in the last ones it may be that nobody can go on.
        return {id_: head.waiting.lane for id_, head in last.items() if 2 * head.number >= wanted.get(id_, _UNLIMITED)}

    def _turns(self, heads: Iterable[Head]) -> dict[int, _Turns]:
        turns: dict[int, _Turns] = {}
        for head in heads:
            waiting = head.waiting
            of_workflow = turns.setdefault(waiting.workflow_id, _Turns(head.start, self._limits(head.workflow)))
            if not head.paused:
                of_workflow.lanes.setdefault(waiting.lane, []).append(waiting)
        return turns

    async def _count(self, turns: Mapping[int, _Turns]) -> None:
        """Learn how many of the places that somebody waits for are taken."""
        most: dict[str, int] = {}
        for of_workflow in turns.values():
            for waiting in chain.from_iterable(of_workflow.lanes.values()):
                for digest, limit in of_workflow.needs(waiting):
                    if digest not in self._taken:
                        most[digest] = max(limit, most.get(digest, 0))
        unlimited = {digest: 0 for digest, limit in most.items() if limit == _UNLIMITED}
        self._taken |= unlimited
        if len(most) > len(unlimited):
            limited = {digest: limit for digest, limit in most.items() if digest not in unlimited}
            self._taken |= await self._sitting.counts(limited)

    def _room(self, turns: _Turns, waiting: Waiting) -> int:
        """For how many like this one there is room."""
        return min((limit - self._taken[digest] for digest, limit in turns.needs(waiting)), default=_UNLIMITED)

    def _has_room(self, turns: _Turns, freed: int) -> bool:
        """Whether there is room in a place that all lanes share, and was none before it was freed."""
        needs = [set(turns.needs(lane[0])) for lane in turns.lanes.values()]
        shared = set.intersection(*needs) if needs else set()
        return any(0 < limit - self._taken[digest] <= freed + _OTHERS for digest, limit in shared)

    async def _admit(self, turns: Mapping[int, _Turns]) -> list[Lane]:
        """Let in; returns the lanes in which more wait for whom there may be room."""
        room = {
            (workflow_id, lane): self._room(of_workflow, heads[0])
            for workflow_id, of_workflow in turns.items()
            for lane, heads in of_workflow.lanes.items()
        }
        room = {lane: free for lane, free in room.items() if free > 0}
        if not room:
            return []
        most = max(_LEAST_HEADS, _HEADS // len(room))
        wanted = {lane: min(most, free) for lane, free in room.items()}
        if any(number > 1 for number in wanted.values()):
            heads = await self._sitting.heads([(*lane, number) for lane, number in wanted.items()])
            starts = {workflow_id: of_workflow.start for workflow_id, of_workflow in turns.items()}
            turns = self._turns(head._replace(start=starts[head.waiting.workflow_id]) for head in heads)
            await self._count(turns)
        found = self._chosen(turns)
        if not found.no_queue:
            return []
        await self._sitting.write(found)
        let_in = Counter((waiting.workflow_id, waiting.lane) for waiting in self.admitted[-len(found.no_queue) :])
        return [lane for lane, number in let_in.items() if number == wanted[lane] < room[lane]]

    def _chosen(self, turns: Mapping[int, _Turns]) -> Writing:
        """What is to be written of those who are let in."""
        writing = Writing()
        for workflow_id, of_workflow in turns.items():
            admitted, last = admit(of_workflow.ordered(), self._taken, of_workflow.in_force())
            if last is not None:
                writing.put_turns.append((workflow_id, last))
            for waiting in admitted:
                writing.no_queue.append(waiting.run_id)
                writing.wake.append((waiting.run_id, self._now))
                for digest, part in zip(waiting.digests, waiting.parts, strict=True):
                    writing.put_places.append(Place(digest, waiting.run_id, keeps=not part.startswith("concurrency")))
                    self._taken[digest] += 1
            self.admitted += admitted
        return writing
