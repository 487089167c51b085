"""Second chances: failed runs are retried, dead letters redriven or discarded.

A retry leaves a request on the run and wakes it: which steps begin anew, and what they wait for, is worked out by who
takes the run up, as everything else that a run does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from appliance.engine.changes import RETRY
from appliance.engine.interventions import (
    Definitions,
    Intervention,
    Standing,
    described,
    event_of,
    intervention,
    look,
    revision_of,
)
from appliance.engine.machines import claim
from appliance.engine.state import FAILED, RETRYING, TIMER
from appliance.errors import Conflict, NotFound
from appliance.events import Event
from appliance.identifiers import is_uuid, milliseconds_of
from appliance.store.pool import Pool
from appliance.store.runs import Letter, Runs
from appliance.workflows.revision import Revision

_OPEN_STATE = ("by", "at", "first_at", "blocks", "place")
"""What is kept of the state of a run that is tried again: not how it was about to end."""
_WORK = '["d29yaw==",'
"""Base64 of the field ``work``, as the fields of an entry of internal work begin."""


class _Again(NamedTuple):
    """A run that is to be tried again."""

    run_id: str
    revision: Revision
    event: Event


class Redrives:
    """Three operations. All raise NotFound, Conflict and StoreUnavailable."""

    def __init__(self, pool: Pool, runs: Runs, definitions: Definitions, on_timer: Callable[[float], None]) -> None:
        self._pool = pool
        self._runs = runs
        self._definitions = definitions
        self._on_timer = on_timer

    async def retry_run(self, run_id: str, actor: str) -> dict[str, Any]:
        """Try the step at which a run failed again; its open dead letters count as redriven."""
        run = await look(self._pool, run_id)
        if run.status != FAILED:
            raise Conflict(f"run {run_id} is {described(run)}; only a failed run can be retried")
        again = await self._prepared(run)
        async with intervention(self._pool, actor, "run.retry", run_id) as act:
            await act.do("lock_event", run.event_uid)
            run = await act.lock(run_id)
            await act.do("close_letters_of_run", run_id)
            await self._put_to_work(act, run, again)
        self._on_timer(time.time())
        return {"status": RETRYING}

    async def redrive(self, letter_id: str, actor: str) -> None:
        """Put a dead letter back to work: its step is tried again, or its entry handled again."""
        letter = await self._letter(letter_id)
        again = None
        if letter.kind == "step" and letter.run_id is not None:
            run = await look(self._pool, letter.run_id)
            if run.status != FAILED:
                raise Conflict(f"run {run.id} of this dead letter is {run.status}")
            again = await self._prepared(run)
        async with intervention(self._pool, actor, "dead-letter.redrive", letter_id) as act:
            await act.do("lock_event", letter.event_uid)
            await self._close(act, letter, "redriven")
            if again is None:
                await self._redo(act, letter)
            else:
                await self._put_to_work(act, await act.lock(again.run_id), again)
        self._on_timer(time.time())

    async def discard(self, letter_id: str, actor: str) -> None:
        """Drop a dead letter for good. Its event stays counted as dead."""
        letter = await self._letter(letter_id)
        async with intervention(self._pool, actor, "dead-letter.discard", letter_id) as act:
            await self._close(act, letter, "discarded")

    async def _prepared(self, run: Standing) -> _Again:
        """What a retry needs, or why there can be none; before anything is locked."""
        revision = await revision_of(self._definitions, run)
        return _Again(run.id, revision, await event_of(self._runs, run))

    async def _letter(self, letter_id: str) -> Letter:
        letter = await self._runs.letter(letter_id) if is_uuid(letter_id) else None
        if letter is None:
            raise NotFound(f"there is no dead letter {letter_id}")
        if letter.status != "open":
            raise Conflict(f"dead letter {letter_id} is {letter.status} already")
        return letter

    async def _put_to_work(self, act: Intervention, run: Standing, again: _Again) -> None:
        """Wake the run at once. The event is locked: who else decides about it comes after us."""
        if run.status != FAILED:
            raise Conflict(f"run {run.id} is {described(run)}; only a failed run can be retried")
        if run.state.get("at") is None:
            raise Conflict(f"run {run.id} did not fail at a step that could be tried again: rerun it instead")
        if await act.rows("undone_steps", run.id):
            raise Conflict(f"what run {run.id} did was undone: rerun it from a step instead")
        if why := await claim(act, run.id, again.revision, again.event.view(), milliseconds_of(again.event.uid)):
            raise Conflict(f"run {run.id} can't go on: {why}")
        await act.write(run, RETRYING, {**_reopened(run.state), "by": TIMER}, RETRY)
        await act.wake(run, reopens=await _reopens(act, run.event_uid))

    async def _redo(self, act: Intervention, letter: Letter) -> None:
        internal = letter.fields is not None and _WORK in letter.fields
        reopens = await _reopens(act, letter.event_uid) if letter.event_uid is not None else not internal
        await act.do("wake_now", None, None, letter.id, reopens, letter.stream or "normal")

    async def _close(self, act: Intervention, letter: Letter, status: str) -> None:
        await act.do("lock_letter", letter.id)
        if await act.do("close_letter", status, letter.id) != 1:
            raise Conflict(f"dead letter {letter.id} was closed by somebody else just now")


async def _reopens(act: Intervention, event_uid: str | None) -> bool:
    """Whether this takes the event out of the ledger's ``dead``."""
    return event_uid is not None and await act.do("reopen_event", event_uid) == 1


def _reopened(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name in _OPEN_STATE}
