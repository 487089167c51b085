"""Timers: when their time has come, their work is put into a stream.

Every replica may do it: rows are taken with SKIP LOCKED and deleted in the transaction whose commit follows the XADD. A
crash between the two fires a timer twice, and the second firing finds that the run has moved on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from appliance import faultpoints
from appliance.errors import StoreUnavailable, StreamUnavailable
from appliance.observe.metrics import METRICS
from appliance.store.pool import Connection, Pool, checked_out
from appliance.store.queries import named
from appliance.stream.producer import Producer
from appliance.stream.work import REDO, WAKE, Work

_BATCH = 500
SQL = named("control")

log = logging.getLogger("appliance.engine.timers")


class Timers:
    """One loop."""

    def __init__(self, pool: Pool, producer: Producer, poll_s: float, clock: Callable[[], float] = time.time) -> None:
        self._pool = pool
        self._producer = producer
        self._poll_s = poll_s
        self._clock = clock
        self._soonest = 0.0
        self._kick = asyncio.Event()
        self._stopping = False

    def expect(self, due_at: float) -> None:
        """A timer was stored that is due at ``due_at`` (Unix seconds): look then, if not sooner."""
        if due_at < self._soonest:
            self._soonest = due_at
            self._kick.set()

    def stop(self) -> None:
        """End :meth:`run_forever` after the batch in hand."""
        self._stopping = True
        self._kick.set()

    async def run_forever(self) -> None:
        """Fire what is due until :meth:`stop`; other replicas' timers are found within ``engine.timer_poll``."""
        while not self._stopping:
            self._soonest = math.inf  # what is stored from here on is reported by expect()
            try:
                while not self._stopping and await self.fire() == _BATCH:
                    pass
                due_at = await self._next()
            except (StoreUnavailable, StreamUnavailable) as error:
                log.warning("timers wait: %s", error)
                due_at = None
            now = self._clock()
            self._soonest = min(self._soonest, now + self._poll_s, now + self._poll_s if due_at is None else due_at)
            await self._sleep()

    async def fire(self) -> int:
        """Put what is due into the streams; returns how many."""
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(SQL["take_due_timers"], [self._clock(), _BATCH])
            rows: list[tuple[Any, ...]] = await cursor.fetchall()
            for priority in {row[0] for row in rows}:
                mine = [row for row in rows if row[0] == priority]
                works = [_work(*row[2:]) for row in mine]
                reopening = [work.run or work.letter for work in works if work.reopens]
                places = await _places(connection, reopening) if reopening else []
                await self._producer.enqueue(priority, works, reopened=len(reopening), places=places)
                faultpoints.hit("after_fire")
        now = self._clock()
        for row in rows:
            METRICS.timer_delay_seconds.observe(max(0.0, now - row[1]))
        METRICS.timers_fired.inc(len(rows))
        return len(rows)

    async def _next(self) -> float | None:
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(SQL["next_timer"])
            row = await cursor.fetchone()
        return row[0] if row and isinstance(row[0], float) else None

    async def _sleep(self) -> None:
        while not self._stopping:
            left = self._soonest - self._clock()
            if left <= 0:
                return
            self._kick.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._poll_s)):  # the clock may have been set back meanwhile
                    await self._kick.wait()


async def _places(connection: Connection, names: list[str]) -> list[tuple[str, str]]:
    """The (priority, entry id) of the events of these runs and letters: with that they were counted as dead."""
    return list(await (await connection.execute(SQL["places"], [names])).fetchall())  # type: ignore[arg-type]


def _work(run_id: str | None, key: str | None, letter: str | None, reopens: bool) -> Work:
    if letter is not None:
        return Work(REDO, letter=letter, reopens=reopens)
    return Work(WAKE, run=run_id or "", key=key or "", reopens=reopens)
