"""Events about the ends of runs: ``workflow.completed``, ``workflow.failed`` and ``workflow.cancelled``.

Each is a row of the outbox in the commit that ends the run. So that workflows which watch such events don't feed each
other without end, a chain of them has each workflow once and no more than ``engine.max_hops`` events in all, and the
failure of a run that a failure started is not announced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from appliance.engine.effects import hops_of
from appliance.engine.state import CANCELLED, FAILED, SUCCEEDED
from appliance.errors import Malformed
from appliance.events import Event, dumps, event_key, format_time, from_cloudevent, loads
from appliance.identifiers import derived_uuid7, key_uuid
from appliance.observe.logs import RateLimited
from appliance.observe.metrics import METRICS
from appliance.store.outbox import packed
from appliance.store.rows import OutboxRow

if TYPE_CHECKING:
    from appliance.engine.changes import Drive

TYPES = {SUCCEEDED: "workflow.completed", FAILED: "workflow.failed", CANCELLED: "workflow.cancelled"}
PREFIX = "workflow."
_MAX_OUTPUT_BYTES = 65_536
"""An output that is larger is left out of the event; it stands in the run."""
_COMMIT_S = 0.02
"""After so long the commit is mostly done; where it is not, the outbox's next look finds the row."""
_MAX_CHAIN = 1024
"""Longest list of workflows, in characters: what an attribute may hold."""

log = logging.getLogger("appliance.engine.lifecycle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended. ``version`` is the one that the run has from then on."""

    run_id: str
    workflow: str
    revision: int
    event: Event
    priority: str
    version: int
    status: str
    finished_at: float
    outcome: str | None = None
    output: Any = None
    error: str | None = None


def lifecycle_event(ending: Ending) -> Event | None:
    """The event about the end of a run; None where the chain that led here ends."""
    cause = ending.event
    chain = workflows_of(cause)
    kind, source = TYPES[ending.status], f"workflow:{ending.workflow}"
    if ending.workflow in chain or (chain and kind == cause.type != TYPES[SUCCEEDED]):
        return None
    event_id = key_uuid("lifecycle", ending.run_id, ending.status, str(ending.version))
    document = {
        "type": kind,
        "id": event_id,
        "source": source,
        "subject": ending.run_id,
        "time": format_time(datetime.fromtimestamp(ending.finished_at, UTC)),
        "correlationid": cause.attributes.get("correlationid", cause.id),
        "causationid": ending.run_id,
        "hops": hops_of(cause) + 1,
        "workflow": ending.workflow,
        "chain": ",".join([*chain, ending.workflow]),
        "data": _data(ending),
    }
    uid = derived_uuid7(int(ending.finished_at * 1000), "lifecycle", ending.run_id, ending.status, str(ending.version))
    if len(document["chain"]) > _MAX_CHAIN:
        return None
    # Through JSON: what a reader of the stream will see, and checked as what a reader has to accept.
    return from_cloudevent(loads(dumps(document)), uid=uid, key=event_key(source, event_id))


def workflows_of(event: Event) -> tuple[str, ...]:
    """The workflows whose ends, one upon the other, led to this event, if it is about the end of a run."""
    chain = event.attributes.get("chain")
    about = event.type in TYPES.values() and event.source.startswith("workflow:")
    return tuple(chain.split(",")) if about and isinstance(chain, str) and chain else ()


class Lifecycle:
    """Says for which ends there are events. ``wants`` tells whether anybody could take an event of a type."""

    def __init__(self, mode: str, wants: Callable[[str], bool], max_hops: int, expect: Callable[[], None]) -> None:
        """``expect`` has the outbox looked at."""
        self._mode = mode
        self._expect = expect
        self._wants = wants
        self._max_hops = max_hops
        self._limited = RateLimited(log)

    def __call__(self, drive: Drive, now: float) -> OutboxRow | None:
        """What is committed with the end of the run in hand."""
        state = drive.state
        if not self.concerns(state.status):
            return None
        ending = Ending(
            run_id=drive.run_id,
            workflow=drive.revision.workflow.name,
            revision=drive.revision.number,
            event=drive.event,
            priority=drive.priority,
            version=drive.version + 1,
            status=state.status,
            finished_at=state.finished_at if state.finished_at is not None else now,
            outcome=state.outcome,
            output=state.output,
            error=state.error,
        )
        row = self.row(ending)
        if row is not None:
            asyncio.get_running_loop().call_later(_COMMIT_S, self._expect)
        return row

    def concerns(self, status: str) -> bool:
        """Whether there are events about runs that end so."""
        if self._mode == "auto":
            return status in TYPES and self._wants(TYPES[status])
        return self._mode == "always" and status in TYPES

    def row(self, ending: Ending) -> OutboxRow | None:
        """The outbox row about a run that ended, if there is to be one."""
        if not self.concerns(ending.status):
            return None
        if hops_of(ending.event) >= self._max_hops:
            METRICS.chains_cut.inc()
            self._limited.warning("hops", "run %s: no event about its end (engine.max_hops)", ending.run_id)
            return None
        try:
            event = lifecycle_event(ending)
        except Malformed as error:  # attributes of the cause that an event of ours can't have
            self._limited.warning("malformed", "run %s: no event about its end: %s", ending.run_id, error)
            return None
        return OutboxRow(event.uid, ending.priority, packed(event), False) if event is not None else None


def _data(ending: Ending) -> dict[str, Any]:
    cause = ending.event
    data = {
        "run": ending.run_id,
        "workflow": ending.workflow,
        "revision": ending.revision,
        "status": ending.status,
        "outcome": ending.outcome,
        "output": ending.output,
        "error": ending.error,
        "event": {"id": cause.id, "type": cause.type, "source": cause.source},
    }
    if len(dumps(ending.output)) > _MAX_OUTPUT_BYTES:
        data |= {"output": None, "output_omitted": True}
    return data
