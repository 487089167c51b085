"""What people may do to runs and dead letters. Each is one transaction; what follows travels through the streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from appliance.engine.core import advance
from appliance.engine.state import CANCELLED, FAILED, TERMINAL, TIMER, Retried, RunState
from appliance.errors import Conflict, NotFound
from appliance.events import dumps
from appliance.identifiers import is_uuid
from appliance.store.pool import Connection, Pool, checked_out
from appliance.store.queries import named
from appliance.store.runs import SQL as RUNS_SQL
from appliance.store.runs import Letter, Runs, StoredRun
from appliance.workflows.revision import Revision

SQL = named("control")


class Revisions(Protocol):
    """What this needs of the catalog."""

    async def revision(self, revision_id: int) -> Revision:
        """A revision by its id; NotFound."""
        ...


class Control:
    """Cancel, retry, redrive, discard. Raises NotFound, Conflict and StoreUnavailable."""

    def __init__(self, pool: Pool, runs: Runs, revisions: Revisions, on_timer: Callable[[float], None]) -> None:
        self._pool = pool
        self._runs = runs
        self._revisions = revisions
        self._on_timer = on_timer

    async def cancel_run(self, run_id: str, actor: str) -> None:
        """End a run that is not over. An action that is under way is not interrupted, but its result is dropped."""
        run = await self._run(run_id)
        if run.state.status in TERMINAL:
            raise Conflict(f"run {run_id} is over already: {run.state.status}")
        async with checked_out(self._pool) as connection:
            await self._set_run(connection, run, CANCELLED, time.time(), None, f"cancelled by {actor}")
            await connection.execute(SQL["cancel_steps"], [run_id])
            await connection.execute(SQL["delete_timers"], [run_id])
            await self._audit(connection, actor, "run.cancel", run_id)

    async def retry_run(self, run_id: str, actor: str) -> None:
        """Try the step at which a run failed again, with all its attempts; its open dead letter counts as redriven."""
        run = await self._run(run_id)
        if run.state.status != FAILED:
            raise Conflict(f"run {run_id} is {run.state.status}; only a failed run can be retried")
        state = await self._retried(run)
        async with checked_out(self._pool) as connection:
            await connection.execute(SQL["lock_event"], [run.event_uid])
            await connection.execute(SQL["close_letters_of_run"], [run_id])
            await self._put_to_work(connection, run, state)
            await self._audit(connection, actor, "run.retry", run_id)
        self._on_timer(time.time())

    async def redrive(self, letter_id: str, actor: str) -> None:
        """Put a dead letter back to work: its step is tried again, or its entry handled again."""
        letter = await self._letter(letter_id)
        run = await self._run(letter.run_id) if letter.kind == "step" and letter.run_id is not None else None
        if run is not None and run.state.status != FAILED:
            raise Conflict(f"run {run.id} of this dead letter is {run.state.status}")
        state = await self._retried(run) if run is not None else None
        async with checked_out(self._pool) as connection:
            await connection.execute(SQL["lock_event"], [letter.event_uid])
            await self._close(connection, letter, "redriven")
            if run is None or state is None:
                await self._redo(connection, letter)
            else:
                await self._put_to_work(connection, run, state)
            await self._audit(connection, actor, "dead-letter.redrive", letter_id)
        self._on_timer(time.time())

    async def discard(self, letter_id: str, actor: str) -> None:
        """Drop a dead letter for good. Its event stays counted as dead."""
        letter = await self._letter(letter_id)
        async with checked_out(self._pool) as connection:
            await self._close(connection, letter, "discarded")
            await self._audit(connection, actor, "dead-letter.discard", letter_id)

    async def _run(self, run_id: str) -> StoredRun:
        run = await self._runs.load(run_id) if is_uuid(run_id) else None
        if run is None:
            raise NotFound(f"there is no run {run_id}")
        return run

    async def _letter(self, letter_id: str) -> Letter:
        letter = await self._runs.letter(letter_id) if is_uuid(letter_id) else None
        if letter is None:
            raise NotFound(f"there is no dead letter {letter_id}")
        if letter.status != "open":
            raise Conflict(f"dead letter {letter_id} is {letter.status} already")
        return letter

    async def _retried(self, run: StoredRun) -> RunState:
        """The run with its failed step to begin anew. Not while a connection is checked out: this needs others."""
        found = await self._runs.event(run.event_uid) if run.event_uid is not None else None
        revision = await self._revisions.revision(run.revision_id)
        view = found[0].view() if found is not None else {}
        state, _ = advance(revision.workflow, view, run.state, Retried(), time.time())
        if state.at is None:
            raise Conflict(f"run {run.id} does not stand at a step")
        return state

    async def _put_to_work(self, connection: Connection, run: StoredRun, state: RunState) -> None:
        """Record it, and wake the run at once. The event is locked: who else decides about it comes after us."""
        step = state.steps[state.at or ""]
        kept = dumps({"at": state.at, "first_at": {step.key: step.first_at}, "by": TIMER}).decode()
        await self._set_run(connection, run, state.status, None, kept, None)
        await connection.execute(
            SQL["set_step"], [step.status, step.attempt, step.started_at, step.due_at, run.id, step.key]
        )
        reopens = await self._reopens(connection, run.event_uid)
        await connection.execute(SQL["wake_now"], [run.id, state.at, None, reopens, run.priority])

    async def _redo(self, connection: Connection, letter: Letter) -> None:
        internal = letter.fields is not None and '["d29yaw==",' in letter.fields  # base64 of the field name "work"
        known = letter.event_uid is not None
        reopens = await self._reopens(connection, letter.event_uid) if known else not internal
        await connection.execute(SQL["wake_now"], [None, None, letter.id, reopens, letter.stream or "normal"])

    async def _reopens(self, connection: Connection, event_uid: str | None) -> bool:
        if event_uid is None:
            return False
        return (await connection.execute(SQL["reopen_event"], [event_uid])).rowcount == 1

    async def _close(self, connection: Connection, letter: Letter, status: str) -> None:
        await connection.execute(RUNS_SQL["lock_letter"], [letter.id])
        if (await connection.execute(SQL["close_letter"], [status, letter.id])).rowcount != 1:
            raise Conflict(f"dead letter {letter.id} was closed by somebody else just now")

    async def _set_run(
        self, connection: Connection, run: StoredRun, status: str, finished_at: float | None, kept: Any, error: Any
    ) -> None:
        values = [status, finished_at, kept, error, run.id, run.version]
        if (await connection.execute(SQL["set_run"], values)).rowcount != 1:
            raise Conflict(f"run {run.id} has moved on just now; look again")

    async def _audit(self, connection: Connection, actor: str, action: str, subject: str) -> None:
        await connection.execute(SQL["audit"], [actor, action, subject, None])
