"""The schedules of the workflows in force as people see them: when each starts its workflow next."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from appliance.catalog import Catalog
from appliance.errors import Malformed
from appliance.events import format_time
from appliance.store.history import Page
from appliance.store.pool import Pool, checked_out
from appliance.store.queries import named
from appliance.workflows.revision import Revision
from appliance.workflows.schedules import Schedule

MAX_PREVIEW = 100
"""Most slots that are told in advance for one schedule; each takes a tenth of a millisecond."""
_SQL = named("schedules")
_Row = tuple[datetime, datetime | None]


class Timetable:
    """Reads; raises StoreUnavailable when PostgreSQL is away."""

    def __init__(self, pool: Pool, catalog: Catalog, clock: Callable[[], float] = time.time) -> None:
        self._pool = pool
        self._catalog = catalog
        self._clock = clock

    async def list_schedules(
        self, workflow: str | None = None, *, preview: int = 0, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """Schedules by the name of their workflow, or those of one workflow.

        Each has ``workflow, position, schedule, timezone, misfire, misfire_limit, next_at, last_slot, upcoming``.
        ``upcoming`` has as many slots as ``preview`` says, as the clocks of its timezone show them; ``next_at`` is null
        while no replica has taken notice of the schedule. Raises Malformed for a cursor that no page gave.
        """
        after = _place(cursor) if cursor is not None else ("", -1)
        found = sorted(
            (
                (r.workflow.name, position, r, schedule)
                for r in self._catalog.workflows()
                if workflow in (None, r.workflow.name)
                for position, schedule in enumerate(r.workflow.schedules)
                if (r.workflow.name, position) > after
            ),
            key=lambda item: item[:2],
        )
        chosen = [(position, r, schedule) for _, position, r, schedule in found[:limit]]
        rows = await self._rows([r.workflow_id for _, r, _ in chosen]) if chosen else {}
        items = [
            self._item(position, r, schedule, rows.get((r.workflow_id, position, schedule.digest)), preview)
            for position, r, schedule in chosen
        ]
        more = len(found) > limit
        return Page(items, f"{items[-1]['workflow']}/{items[-1]['position']}" if more else None)

    async def _rows(self, workflow_ids: list[int]) -> dict[tuple[int, int, str], _Row]:
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["list_schedules"], [workflow_ids])
            found: list[tuple[Any, ...]] = await cursor.fetchall()
        return {(row[0], row[1], row[2]): (row[3], row[4]) for row in found}

    def _item(
        self, position: int, revision: Revision, schedule: Schedule, row: _Row | None, preview: int
    ) -> dict[str, Any]:
        next_at, last_slot = row or (None, None)
        now = datetime.fromtimestamp(self._clock(), UTC)
        return {
            "workflow": revision.workflow.name,
            "position": position,
            "schedule": schedule.expression,
            "timezone": schedule.timezone,
            "misfire": schedule.misfire,
            "misfire_limit": schedule.limit,
            "next_at": format_time(next_at) if next_at else None,
            "last_slot": format_time(last_slot) if last_slot else None,
            "upcoming": [slot.astimezone(schedule.zone).isoformat() for slot in schedule.upcoming(now, preview)],
        }


def _place(cursor: str) -> tuple[str, int]:
    name, slash, position = cursor.rpartition("/")
    if not (slash and position.isascii() and position.isdecimal() and len(position) <= 9):
        raise Malformed("cursor: not one that a page gave", code="cursor")
    return name, int(position)
