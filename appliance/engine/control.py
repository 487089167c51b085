"""What people may do to runs, events and dead letters. Each is one transaction, written into the audit log.

What follows from it travels through the streams: a timer that is due at once wakes the run. Nothing here takes a run
that is over back, but for failed ones that are retried.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.engine.cancellations import Announcer, Cancellations
from appliance.engine.inbox import Inbox
from appliance.engine.interventions import Definitions, OnFreed
from appliance.engine.moves import Moves
from appliance.engine.pauses import Pauses
from appliance.engine.redrives import Redrives
from appliance.engine.replays import Replays
from appliance.engine.reruns import Reruns
from appliance.store.pool import Pool
from appliance.store.runs import Runs


async def _nobody(_workflow_id: int) -> None:
    """Nobody is let in but by a sweep."""


class Control:
    """All interventions; each is described where it is made. They raise NotFound, Conflict and StoreUnavailable."""

    def __init__(
        self,
        pool: Pool,
        runs: Runs,
        definitions: Definitions,
        on_timer: Callable[[float], None],
        announcer: Announcer | None = None,
        on_freed: OnFreed = _nobody,
    ) -> None:
        cancellations = Cancellations(pool, on_timer, on_freed, announcer)
        pauses = Pauses(pool, on_timer, on_freed)
        redrives = Redrives(pool, runs, definitions, on_timer)
        inbox = Inbox(pool, on_timer)
        self.cancel_run = cancellations.cancel_run
        self.pause_run = pauses.pause_run
        self.resume_run = pauses.resume_run
        self.migrate = Moves(pool, definitions, on_timer).migrate
        self.retry_run = redrives.retry_run
        self.rerun = Reruns(pool, runs, definitions, on_timer).rerun
        self.replay = Replays(pool, runs, definitions, on_timer).replay
        self.send_event = inbox.send_event
        self.settle_step = inbox.settle_step
        self.redrive = redrives.redrive
        self.discard = redrives.discard
