"""The gatekeeper: who of those that come, or wait, goes on now; written down before anybody is told.

Everything that is asked at the same time is decided in one transaction, under a lock on the workflows concerned, so that
no two replicas decide about one workflow at once. What is decided is :mod:`appliance.engine.gates`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from appliance.engine.gates import Arrival, Decision
from appliance.store.gates import Gates
from appliance.store.rows import EventRow, RunRow
from appliance.workflows.revision import Revision


class Definitions(Protocol):
    """What the gatekeeper needs of the catalog."""

    def current(self, name: str) -> Revision:
        """The revision in force of a workflow, disabled or not; NotFound."""
        ...


class Request(NamedTuple):
    """A run that asks whether it may go on."""

    arrival: Arrival
    run: RunRow | None
    """As it is inserted if it goes on (``running``, version 1, state ``{"by": null}``); None: it is there already."""
    event: EventRow | None
    """To be inserted if it isn't there, without an outcome; None: it stands recorded."""
    sole: bool
    """Nothing else is done for this event: where the decision is not Go, its outcome is ``handled``."""
    valid: Callable[[], bool]
    """Whether the entry's lease is still ours; asked right before each try."""


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

    async def arrive(self, request: Request) -> Decision:
        """Decide; what follows is durable when this returns. Asking again, after a crash too, changes nothing.

        Raises LeaseLost when the entry isn't ours any more, Refused when PostgreSQL can't store what the request holds,
        StoreUnavailable only while stopping.
        """
        raise NotImplementedError

    async def freed(self, workflow_id: int, lane: str) -> None:
        """A run of this lane was parked or is over: let in who waits for its places. Cheap when nobody does."""
        raise NotImplementedError

    async def sweep(self) -> int:
        """Forget what says nothing any more, and let in who could go on and was missed; returns how many those were."""
        raise NotImplementedError

    async def events(self, run_id: str) -> list[dict[str, Any]]:
        """The events of a batch run, as templates see them, in the order in which they came."""
        raise NotImplementedError

    async def run_forever(self) -> None:
        """Sweep every few seconds until :meth:`stop`."""
        raise NotImplementedError

    def stop(self) -> None:
        """End :meth:`run_forever`."""

    async def close(self) -> None:
        """Decide about what was handed in, then close. Does not wait for a PostgreSQL that is away."""
