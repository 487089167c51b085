"""Where runs of workflows with flow control pass: what the executor asks the gatekeeper, and hears from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from appliance.engine.changes import BEGUN_BY_OTHERS, Drive, run_row
from appliance.engine.gates import PLACES, Arrival, Decision, Go, position_of
from appliance.engine.order import ORDERING
from appliance.engine.rulings import Request
from appliance.errors import NotFound
from appliance.identifiers import milliseconds_of
from appliance.store.rows import EventRow
from appliance.stream.entry import Entry
from appliance.workflows.flow_control import LANE, FlowControl, Key
from appliance.workflows.revision import Revision

log = logging.getLogger(__name__)


class Gatekeeper(Protocol):
    """What this needs of the gatekeeper."""

    async def arrive(self, request: Request) -> Decision:
        """What becomes of a run; durable."""
        ...

    async def events(self, run_id: str) -> list[dict[str, Any]]:
        """The events of a batch run, as criteria see them."""
        ...

    async def freed(self, workflow_id: int, lane: str) -> None:
        """A run of this lane has given places back."""
        ...


class Definitions(Protocol):
    """What this needs of the catalog."""

    def current(self, name: str) -> Revision:
        """The revision in force of a workflow, disabled or not; NotFound."""
        ...


class Entrance:
    """One per process."""

    def __init__(self, gatekeeper: Gatekeeper, definitions: Definitions) -> None:
        self._gatekeeper = gatekeeper
        self._definitions = definitions
        self._letting_in: set[asyncio.Future[None]] = set()
        """Nobody waits for these: what they don't get done, a sweep does."""

    async def begin(
        self, entry: Entry, drive: Drive, event: EventRow | None, valid: Callable[[], bool], *, sole: bool
    ) -> bool:
        """Whether a run goes on for its event; if not, it is recorded what became of it.

        ``event``: its row, if that doesn't stand yet. ``sole``: where the run doesn't go on, the event is handled.
        """
        arrival = self._arrival(drive, position_of(entry.id.decode()), woken=False)._replace(returns=drive.version > 0)
        row = run_row(drive, time.time(), drive.holder) if drive.version == 0 else None
        decision = await self._gatekeeper.arrive(Request(arrival, row, event, sole, valid))
        if not isinstance(decision, Go):
            return False
        if drive.version == 0:
            drive.version, drive.begins = 1, True
        return True

    async def go_on(
        self, drive: Drive, places: frozenset[str], valid: Callable[[], bool], *, returns: bool = False
    ) -> bool:
        """Whether a parked run goes on; if not, it stays parked, or is over. ``places``: what it has already.

        ``returns``: the entry that had it in hand was set aside.
        """
        if _was_let_in(drive, places):
            return True
        arrival = self._arrival(drive, _came_at(drive), woken=True)
        begun = bool(drive.state.steps) and drive.origin != "rerun"  # which has the steps of the run that it repeats
        arrival = arrival._replace(returns=returns, begun=begun)
        return isinstance(await self._gatekeeper.arrive(Request(arrival, None, None, False, valid)), Go)

    async def events(self, drive: Drive) -> None:
        """Let a batch see its events; one that a step called has the one event that its caller sees."""
        control = drive.revision.workflow.control
        if control is not None and control.batch is not None:
            events = await self._gatekeeper.events(drive.run_id)
            drive.facts = drive.facts._replace(events=events or [dict(drive.facts.view)])

    def left(self, drive: Drive) -> None:
        """A run was parked or is over: others may have its places."""
        control = drive.revision.workflow.control
        if control is not None and control.slots:
            letting_in = asyncio.ensure_future(
                self._gatekeeper.freed(drive.revision.workflow_id, _keys(drive)[LANE].digest)
            )
            self._letting_in.add(letting_in)
            letting_in.add_done_callback(self._let_in)

    def _arrival(self, drive: Drive, position: int, *, woken: bool) -> Arrival:
        revision, keys = drive.revision, _keys(drive)
        return Arrival(
            drive.run_id,
            drive.event.uid,
            revision.workflow_id,
            self._control(revision),
            keys,
            position,
            drive.priority,
            woken=woken,
        )

    def _control(self, revision: Revision) -> FlowControl:
        """Flow control of a run's own revision, with the limits in force."""
        control: FlowControl = revision.workflow.control
        with contextlib.suppress(NotFound):
            current = self._definitions.current(revision.workflow.name)
            if current.id != revision.id:
                return control.limited_by(current.workflow.control)
        return control

    def _let_in(self, done: asyncio.Future[None]) -> None:
        self._letting_in.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.warning("those who wait are let in by the next sweep: %s", error)


def ordered_keys(drives: Iterable[Drive]) -> dict[str, str]:
    """By the digest of its ordering key each run that is not recorded yet and keeps an order."""
    found = {}
    for drive in drives:
        control = drive.revision.workflow.control
        if drive.version == 0 and control is not None and control.ordered:
            found[_keys(drive)[ORDERING].digest] = drive.run_id
    return found


def _was_let_in(drive: Drive, places: frozenset[str]) -> bool:
    """Whether the gatekeeper has nothing to decide any more: the run waited for its places, and has them."""
    stage = ((drive.details or {}).get("flow") or {}).get("stage")
    control: FlowControl = drive.revision.workflow.control
    return stage == PLACES and places.issuperset(_keys(drive)[slots.part].digest for slots in control.slots)


def _keys(drive: Drive) -> dict[str, Key]:
    if drive.keys is None:
        names = {"event": drive.facts.view, "input": drive.facts.input}
        control: FlowControl = drive.revision.workflow.control
        drive.keys = control.keys(drive.revision.workflow_id, names)
    return drive.keys


def _came_at(drive: Drive) -> int:
    """Where a parked run stands among others: by its event, or when it was begun by somebody else."""
    if drive.origin in BEGUN_BY_OTHERS:
        return position_of(f"{int(drive.started_at * 1000)}-0")
    return position_of(f"{milliseconds_of(drive.event.uid)}-0")
