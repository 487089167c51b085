"""Cancelling runs: at once, with what they called, or by asking them to undo first what they did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from appliance.engine.changes import CANCEL
from appliance.engine.interventions import Intervention, OnFreed, Standing, described, intervention, let_in, undisturbed
from appliance.engine.lifecycle import Ending
from appliance.engine.state import CANCELLED, PAUSED, step_of
from appliance.errors import Conflict
from appliance.events import Event
from appliance.observe.metrics import METRICS
from appliance.store.pool import Pool
from appliance.store.rows import OutboxRow
from appliance.store.runs import events_of

_DEPTH = 32
"""Levels of called runs that are cancelled in one transaction; those below are asked to end."""


class Announcer(Protocol):
    """Makes events about the ends of runs."""

    def concerns(self, status: str) -> bool:
        """Whether there are events about runs that end so."""
        ...

    def row(self, ending: Ending) -> OutboxRow | None:
        """What is put into the outbox about the end of a run, if anything."""
        ...


class Cancellations:
    """One operation. Raises NotFound, Conflict and StoreUnavailable."""

    def __init__(
        self, pool: Pool, on_timer: Callable[[float], None], on_freed: OnFreed, announcer: Announcer | None = None
    ) -> None:
        self._pool = pool
        self._on_timer = on_timer
        self._on_freed = on_freed
        self._announcer = announcer

    async def cancel_run(self, run_id: str, actor: str, *, force: bool = False) -> dict[str, Any]:
        """End a run that is not over: ``{"status": "cancelled"}``, or ``cancelling`` if it has something to undo.

        An action that is under way is not interrupted; its result is dropped, unless the run undoes. With ``force``
        nothing is undone.
        """
        ended = await undisturbed(lambda: self._cancel(run_id, actor, force))
        METRICS.runs_finished.labels(CANCELLED).inc(ended)
        self._on_timer(time.time())
        return {"status": CANCELLED if ended else "cancelling"}

    async def _cancel(self, run_id: str, actor: str, force: bool) -> int:
        """How many runs are over by it."""
        async with intervention(self._pool, actor, "run.cancel", run_id) as act:
            run = await act.lock(run_id)
            if run.over:
                raise Conflict(f"run {run_id} is over already: {run.status}")
            if not force and await self._leave_to_run(act, run):
                return 0
            act.detail |= {"force": True} if force else {}
            ended = await self._end_tree(act, run, f"cancelled by {actor}")
        await let_in(self._on_freed, act)
        return ended

    async def _leave_to_run(self, act: Intervention, run: Standing) -> bool:
        """Whether the run ends by itself: it is about to be cancelled, or is asked to because it has what to undo."""
        ending = run.state.get("ending")
        if ending is not None and ending != CANCELLED:
            raise Conflict(f"run {run.id} is {described(run)}; with force it is ended at once")
        if ending is None and not await _undoing(act, [run]):
            return False
        await _ask(act, [run])
        return True

    async def _end_tree(self, act: Intervention, run: Standing, why: str) -> int:
        await self._end(act, [run], why)
        await _tell_caller(act, run, why)
        level, ended, asked = [run], 0, 0
        for depth in range(_DEPTH):
            called = await act.lock_called([each.id for each in level])
            undoing = await _undoing(act, called) if depth < _DEPTH - 1 else {each.id for each in called}
            await _ask(act, [each for each in called if each.id in undoing])
            level = [each for each in called if each.id not in undoing]
            ended, asked = ended + len(level), asked + len(undoing)
            if not level:
                break
            await self._end(act, level, "cancelled with the run that called it")
        if ended or asked:
            act.detail |= {"called": ended, "called_undoing": asked}
        return 1 + ended

    async def _end(self, act: Intervention, runs: Sequence[Standing], why: str) -> None:
        """These runs are over, and nothing waits for them or is asked in their name any more."""
        ids = [run.id for run in runs]
        await act.do("end_runs", why, ids)
        await act.do("leave_queue", ids)
        await act.give_back(runs, over=True)
        for statement in _LEFT:
            await act.do(statement, ids)
        if self._announcer is not None and self._announcer.concerns(CANCELLED):
            await self._announce(act, self._announcer, runs, why)

    async def _announce(self, act: Intervention, announcer: Announcer, runs: Sequence[Standing], why: str) -> None:
        events = await events_of(act.connection, {run.event_uid for run in runs if run.event_uid is not None})
        for run in runs:
            event = events.get(run.event_uid or "")
            if event is not None and (row := announcer.row(_ending(run, event, why))) is not None:
                await act.do("announce", *row)


async def _ask(act: Intervention, runs: Sequence[Standing]) -> None:
    """Let these runs end by themselves; paused ones go on for it."""
    for run in runs:
        if run.status == PAUSED:
            await act.unpause(run, CANCEL)
    await act.ask([run.id for run in runs if run.status != PAUSED], CANCEL)


_LEFT = (
    "cancel_steps",
    "delete_timers",
    "delete_waits",
    "delete_machines",
    "cancel_tasks",
    "ignore_signals",
)


def _ending(run: Standing, event: Event, why: str) -> Ending:
    return Ending(
        run_id=run.id,
        workflow=run.workflow,
        revision=run.revision,
        event=event,
        priority=run.priority,
        version=run.version + 1,
        status=CANCELLED,
        finished_at=time.time(),
        error=why,
    )


async def _tell_caller(act: Intervention, run: Standing, why: str) -> None:
    parent = run.details.get("parent")
    if parent is not None:
        payload = {"status": CANCELLED, "outcome": None, "output": None, "error": why}
        await act.signal(parent["run"], parent["key"], "child", payload)


async def _undoing(act: Intervention, runs: Sequence[Standing]) -> set[str]:
    """Which of these runs have something to undo, or may have: the attempt under way, which nobody else knows of."""
    if not runs:
        return set()
    found = await act.rows("definitions", sorted({run.revision_id for run in runs}))
    undone_by = {revision: frozenset(_compensated(definition)) for revision, definition in found}
    suspects = {run.id: steps for run in runs if (steps := undone_by.get(run.revision_id))}
    undoing = {run.id for run in runs if run.id in suspects and not run.parked and run.status != PAUSED}
    if undoing != set(suspects):
        for run_id, key in await act.rows("begun_steps", list(suspects)):
            if step_of(key) in suspects[run_id] or None in suspects[run_id]:
                undoing.add(run_id)
    return undoing


def _compensated(definition: Any) -> Iterable[str | None]:
    """The ids of the steps in a definition that have a ``compensate``, None for one without an id.

    By the definition and not by its compiled form: that may be on a revision which can't be compiled any more, and to
    ask a run that turns out to have nothing to undo costs a moment only.
    """
    if isinstance(definition, Mapping):
        if definition.get("compensate") is not None:
            name = definition.get("id")
            yield name if isinstance(name, str) else None
        for value in definition.values():
            yield from _compensated(value)
    elif isinstance(definition, list):
        for value in definition:
            yield from _compensated(value)
