"""What flow control holds, as people see it: who waits for places, who has them, what is collected and counted.

Counts end at :data:`MOST`, which then means "at least so many": nothing here reads a long queue from end to end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from psycopg_pool import AsyncConnectionPool

from appliance.errors import Malformed, NotFound
from appliance.identifiers import is_uuid, range_start
from appliance.settings import parse_duration
from appliance.store.history import Page
from appliance.store.reading import Item, query, rows, snapshot

MOST = 1000
"""As far as runs are counted: tens of thousands would take longer than people wait."""
_SHOWN = 5
"""Runs named of those that wait next, or have places."""
_METERS = 200
"""Meters shown of one workflow: those that are due first."""
_WINDOW = 20_000
"""Meters of all workflows that are looked at for them: some ten milliseconds."""


class Queues:
    """Reads; each method raises StoreUnavailable when there is no connection to be had."""

    def __init__(self, pool: AsyncConnectionPool[Any], clock: Callable[[], float] = time.time) -> None:
        self._pool = pool
        self._clock = clock

    async def list_queues(self, *, cursor: str | None = None, limit: int = 50) -> Page:
        """The workflows of which runs wait for places: ``workflow``, how many are ``waiting``, ``since`` when.

        Raises Malformed for a cursor that no page gave.
        """
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 10):
            raise Malformed("cursor: not one that a page gave", code="cursor")
        values = {"after": int(cursor or 0), "limit": limit + 1, "most": MOST}
        async with snapshot(self._pool) as conn:
            found = await rows(conn, query("workflows", file="queues"), values)
        items = [{name: value for name, value in row.items() if name != "id"} for row in found[:limit]]
        return Page(items, str(found[limit - 1]["id"]) if len(found) > limit else None)

    async def get_queue(self, workflow: str, *, cursor: str | None = None, limit: int = 50) -> Item:
        """What is held of one workflow: a page of its lanes, and its meters; raises NotFound and Malformed.

        ``items`` are the lanes in which runs wait, each with how many are ``waiting``, the ``next`` of them,
        ``since`` when the first waits, and what it ``needs`` (``part``, ``key``, the ``limit`` in force, how many are
        ``at_work``, their ``runs``). ``meters`` are of the keys that are counted: ``part``, ``key``, ``count``,
        ``since``, ``until``, for a debounce or batch the ``run_id`` that waits, for a throttle how many are
        ``waiting`` for their turn.
        """
        if cursor is not None and not is_uuid(cursor):
            raise Malformed("cursor: not one that a page gave", code="cursor")
        if "\0" in workflow:
            raise NotFound("there is no such workflow")
        async with snapshot(self._pool) as conn:
            found = await rows(conn, query("workflow", file="queues"), {"name": workflow})
            if not found:
                raise NotFound(f"no workflow {workflow!r}")
            values = {"workflow": found[0]["id"], "most": MOST, "shown": _SHOWN, "window": _WINDOW}
            after = {"after": cursor or range_start(0), "limit": limit + 1}
            lanes = await rows(conn, query("lanes", file="queues"), values | after)
            meters = await rows(conn, query("meters", file="queues"), values | {"limit": _METERS})
        throttle, limits = found[0]["throttle"], _limits(found[0]["concurrency"])
        return {
            "workflow": found[0]["name"],
            "items": [_lane(lane, limits) for lane in lanes[:limit]],
            "meters": [_meter(meter, throttle, self._clock()) for meter in meters],
            "next_cursor": lanes[limit - 1]["lane"] if len(lanes) > limit else None,
        }


def _lane(row: Item, limits: Mapping[str, int]) -> Item:
    needs = [{**need, "limit": limits.get(need["part"], need["limit"])} for need in row["needs"]]
    return {**{name: value for name, value in row.items() if name != "lane"}, "needs": needs}


def _limits(concurrency: Any) -> dict[str, int]:
    """The limits in force by part, of what a definition says; runs may wait with those of an earlier revision."""
    listed = concurrency if isinstance(concurrency, list) else [] if concurrency is None else [concurrency]
    limits = (limit["limit"] if isinstance(limit, Mapping) else limit for limit in listed)
    return {f"concurrency.{index}": limit for index, limit in enumerate(limits)}


def _meter(row: Item, throttle: Mapping[str, Any] | None, now: float) -> Item:
    at = row.pop("at")
    if row["part"] == "throttle":
        row |= {"count": None, "since": None, "waiting": _turns(throttle, at - now) if throttle else None}
    return row


def _turns(throttle: Mapping[str, Any], ahead_s: float) -> int:
    """How many runs wait for their turn, where the next one would have its turn in so many seconds.

    A run begins up to ``limit + burst - 1`` turns early.
    """
    limit = int(throttle["limit"])
    interval_s = parse_duration(throttle["period"]).total_seconds() / limit
    early = limit + int(throttle.get("burst") or 0)
    return max(0, math.ceil(round(ahead_s / interval_s, 6)) - early)
