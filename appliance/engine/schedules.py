"""The ticker: when a slot of a schedule has come, an event that starts the workflow is put into the stream.

Every replica ticks; a row for each schedule, locked with SKIP LOCKED, lets one of them do it. The row moves on in the
transaction whose commit follows the XADD. A crash between the two, or a clock that was wrong for a while, may put in a
slot's event twice: both have the same key, and one key has one run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from appliance import faultpoints
from appliance.catalog import Catalog
from appliance.errors import Malformed, Unavailable
from appliance.events import Event, format_time, new_event
from appliance.identifiers import key_uuid
from appliance.observe.metrics import METRICS
from appliance.store.pool import Pool, checked_out
from appliance.store.queries import named
from appliance.workflows.revision import Revision, Workflow
from appliance.workflows.schedules import GRACE, Schedule

EVENT_TYPE = "schedule.due"
_BATCH = 100
"""Schedules in one transaction; each takes half a millisecond of the event loop."""
_KEEP_EVERY_S = 60.0
"""Seconds after which the rows are compared with the workflows in force although neither seems to have changed."""
_LATER = timedelta(days=3650)
"""When a schedule without a slot in the next ten years is looked at again."""
_SQL = named("schedules")

log = logging.getLogger(__name__)


class Submitter(Protocol):
    """What takes events in: the producer, or whatever stands before it."""

    async def submit(self, event: Event, priority: str = "normal") -> object:
        """Take an event in; raises Unavailable, and Malformed for one that is too large."""


class _Row(NamedTuple):
    workflow_id: int
    position: int
    digest: str
    next_at: datetime
    last_slot: datetime | None
    """The last slot that is over: fired, or left out as its misfire policy wants."""


class Ticker:
    """One loop."""

    def __init__(
        self,
        pool: Pool,
        producer: Submitter,
        catalog: Catalog,
        poll_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._producer = producer
        self._catalog = catalog
        self._poll_s = poll_s
        self._clock = clock
        self._kept: object = None
        """The matcher that the rows were last compared with."""
        self._kept_at = 0.0
        self._known: Mapping[tuple[int, str], tuple[Workflow, Schedule]] = {}
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """End :meth:`run_forever` after the batch in hand."""
        self._stop.set()

    async def run_forever(self) -> None:
        """Keep the rows and fire what is due until :meth:`stop`, looking every ``engine.timer_poll`` at least."""
        while not self._stop.is_set():
            next_at: float | None = None
            try:
                await self.keep()
                while await self.tick() == _BATCH and not self._stop.is_set():
                    pass
                next_at = await self._next()
            except Unavailable as error:
                log.warning("schedules wait: %s", error)
            left = self._poll_s if next_at is None else next_at - self._clock()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if 0 < left < self._poll_s else self._poll_s):
                    await self._stop.wait()

    async def keep(self) -> None:
        """Bring the rows in step with the workflows in force, if those changed; raises StoreUnavailable.

        A new or changed schedule begins with the next slot from now on, one that was switched off and on again too.
        """
        matcher = self._catalog.matcher
        now = self._clock()
        if matcher is self._kept and 0 <= now - self._kept_at < _KEEP_EVERY_S:
            return
        revisions = self._catalog.workflows()
        self._known = {(r.workflow_id, s.digest): (r.workflow, s) for r in revisions for s in r.workflow.schedules}
        async with checked_out(self._pool) as connection:
            counts = [(r.workflow_id, r.id, len(r.workflow.schedules)) for r in revisions]
            await connection.execute(_SQL["drop_schedules"], _columns(counts, 3))
            cursor = await connection.execute(_SQL["kept_schedules"], [now])
            new = _missing(revisions, set(await cursor.fetchall()))
            if rows := await asyncio.to_thread(_first_slots, new, datetime.fromtimestamp(now, UTC)):
                await connection.execute(_SQL["keep_schedules"], [*_columns(rows, 5), now, now])
        self._kept, self._kept_at = matcher, now

    async def tick(self) -> int:
        """Put an event for each slot that is due into the stream; returns how many schedules moved on.

        Raises StoreUnavailable; StreamUnavailable and Overloaded too, for schedules that didn't move and will again be
        due at the next call.
        """
        now = datetime.fromtimestamp(self._clock(), UTC)
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["take_due_schedules"], [now.timestamp(), _BATCH])
            # A schedule that this replica doesn't know was changed a moment ago: whoever knows it will fire it.
            due = [row for row in map(_Row._make, await cursor.fetchall()) if (row[0], row[2]) in self._known]
            results = await asyncio.gather(*(self._fire(row, now) for row in due), return_exceptions=True)
            moved = [result for result in results if not isinstance(result, BaseException)]
            if moved:
                faultpoints.hit("after_slot")
                await connection.execute(_SQL["move_schedules"], _columns(moved, 4))
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return len(moved)

    async def _fire(self, row: _Row, now: datetime) -> tuple[int, int, float, float]:
        """Submit the events of what is due; returns the row as it is to be: next and last slot in Unix seconds."""
        workflow, schedule = self._known[row.workflow_id, row.digest]
        first = row.next_at
        if row.last_slot is not None and row.last_slot >= first:  # never again, whatever the clock says
            first = row.last_slot + timedelta(microseconds=1)
        for slot in schedule.due(first, now):
            event = due_event(workflow, schedule, slot, missed=now - slot > GRACE)
            try:
                await self._producer.submit(event, workflow.priority or "normal")
                METRICS.schedules_fired.inc()
            except Malformed as error:  # ingest.max_event_bytes is tiny
                log.error("workflow %r isn't started for %s: %s", workflow.name, format_time(slot), error)
        last = (schedule.slots(first - timedelta(microseconds=1), now, 1) or [row.next_at])[-1]
        following = schedule.next_after(now) or now + _LATER
        return row.workflow_id, row.position, following.timestamp(), last.timestamp()

    async def _next(self) -> float | None:
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["next_schedule"])
            row = await cursor.fetchone()
        return row[0] if row and isinstance(row[0], float) else None


def due_event(workflow: Workflow, schedule: Schedule, slot: datetime, *, missed: bool) -> Event:
    """The event of a slot (aware); all that are made for one slot have the same ``id`` and ``key``."""
    return new_event(
        EVENT_TYPE,
        {"slot": slot.astimezone(schedule.zone).isoformat(), "schedule": schedule.expression, "missed": missed},
        source=f"schedule:{workflow.name}",
        id=f"{format_time(slot)}/{schedule.digest}",
        key=key_uuid("schedule", workflow.name, schedule.digest, format_time(slot)),
        start=(workflow.name, "schedule"),
    )


def _missing(revisions: Sequence[Revision], kept: Container[Any]) -> list[tuple[int, int, int, Schedule]]:
    """(workflow, revision, position, schedule) of each that has no row, or another schedule's."""
    return [
        (r.workflow_id, r.id, position, schedule)
        for r in revisions
        for position, schedule in enumerate(r.workflow.schedules)
        if (r.workflow_id, position, schedule.digest) not in kept
    ]


def _first_slots(
    new: Sequence[tuple[int, int, int, Schedule]], now: datetime
) -> list[tuple[int, int, int, str, float]]:
    """The rows for :func:`_missing`: digest and next slot instead of the schedule. Takes 0.3 ms for each."""
    return [
        (workflow_id, revision_id, position, s.digest, (s.next_after(now) or now + _LATER).timestamp())
        for workflow_id, revision_id, position, s in new
    ]


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [[row[n] for row in rows] for n in range(width)]
