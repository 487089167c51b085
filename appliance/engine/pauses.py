"""Pausing runs and letting them go on. Runs that a paused one called are not paused with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from appliance.engine.changes import CANCEL, PAUSE
from appliance.engine.interventions import OnFreed, Standing, described, intervention, let_in, undisturbed
from appliance.engine.state import PAUSED
from appliance.errors import Conflict
from appliance.store.pool import Pool


class Pauses:
    """Two operations. Both raise NotFound, Conflict and StoreUnavailable."""

    def __init__(self, pool: Pool, on_timer: Callable[[float], None], on_freed: OnFreed) -> None:
        self._pool = pool
        self._on_timer = on_timer
        self._on_freed = on_freed

    async def pause_run(self, run_id: str, actor: str) -> dict[str, Any]:
        """Stop a run where it stands: ``{"status": "paused"}``, or ``pausing`` while an attempt is under way.

        What comes in for it meanwhile is kept, and its timers that fall due do nothing. One that waits for places keeps
        its position, and lets the others pass, unless these are to keep their order.
        """
        status = await undisturbed(lambda: self._pause(run_id, actor))
        self._on_timer(time.time())
        return {"status": status}

    async def _pause(self, run_id: str, actor: str) -> str:
        async with intervention(self._pool, actor, "run.pause", run_id) as act:
            run = await act.lock(run_id)
            if run.over or run.status == PAUSED or run.asked == CANCEL:
                raise Conflict(f"run {run_id} is {described(run)}; it can't be paused")
            if not run.parked:
                await act.ask([run.id], PAUSE)
                return "pausing"
            await act.write(run, PAUSED, run.state, _kept(run))
            await act.give_back([run], over=False)
        await let_in(self._on_freed, act)
        return PAUSED

    async def resume_run(self, run_id: str, actor: str) -> dict[str, Any]:
        """Let a paused run go on, or one that is about to be paused; answers ``{"status"}``."""
        status = await undisturbed(lambda: self._resume(run_id, actor))
        self._on_timer(time.time())
        return {"status": status}

    async def _resume(self, run_id: str, actor: str) -> str:
        async with intervention(self._pool, actor, "run.resume", run_id) as act:
            run = await act.lock(run_id)
            if run.status == PAUSED:
                return await act.unpause(run, _kept(run))
            if run.asked == PAUSE and not run.over:
                await act.ask([run_id], None)
                return run.status
            raise Conflict(f"run {run_id} is {described(run)}; only a paused run can be resumed")


def _kept(run: Standing) -> str | None:
    """Of what was asked for, what still counts: another attempt, but no pause."""
    return None if run.asked == PAUSE else run.asked
