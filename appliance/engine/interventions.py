"""What people's interventions share: one transaction that is audited, in which the run is locked and looked at first.

A lock on the run's row stands behind every decision: whoever else would write the run waits, and then finds another
version than the one it read. Interventions that change many runs lock callers before those they called.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import orjson

from appliance.engine.state import RETRYING, RUNNING, TERMINAL, TIMER, WAITING
from appliance.errors import Conflict, DefinitionError, NotFound, StoreUnavailable
from appliance.events import Event, dumps
from appliance.identifiers import is_uuid, uuid7
from appliance.rules.matcher import Matcher
from appliance.store.pool import Connection, Pool, checked_out
from appliance.store.queries import named
from appliance.store.runs import Runs
from appliance.workflows.revision import Revision, Workflow

SQL = named("control")
_TRIES = 3
_DEADLOCK = "40P01"

T = TypeVar("T")

OnFreed = Callable[[int], Awaitable[None]]
"""Lets in who waits for places, since runs of the workflow with this id have given some back."""


class Definitions(Protocol):
    """What interventions need of the catalog."""

    @property
    def matcher(self) -> Matcher:
        """The rules in force."""
        ...

    async def revision(self, revision_id: int) -> Revision:
        """A revision by its id; NotFound, DefinitionError."""
        ...

    def current(self, name: str) -> Revision:
        """The latest revision of a workflow; NotFound."""
        ...

    def lacking(self, workflow: Workflow) -> list[str]:
        """The actions that a workflow wants and that aren't installed."""
        ...


class Standing(NamedTuple):
    """A run's row. ``state`` and ``details`` are JSON data, empty if there is none.

    ``revision`` is the revision's number; 0 if the revision has gone.
    """

    id: str
    workflow: str
    event_uid: str | None
    workflow_id: int
    revision_id: int
    status: str
    version: int
    priority: str
    asked: str | None
    revision: int
    state: Mapping[str, Any]
    details: Mapping[str, Any]

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    @property
    def parked(self) -> bool:
        """Whether nobody holds it: no attempt is under way, and nobody writes it but who wakes it first."""
        return self.state.get("by") == TIMER

    @property
    def controlled(self) -> bool:
        """Whether flow control has had a say in when it goes on; without any step it waits to begin."""
        return "flow" in self.details


class Intervention:
    """One transaction of one person. What is in ``detail`` at its end goes into the audit log."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.detail: dict[str, Any] = {}
        self.freed: set[int] = set()
        """The workflows whose runs it took places from: others may have them after the commit."""

    async def rows(self, name: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a statement of ``control.sql`` finds."""
        cursor = await self.connection.execute(SQL[name], values)
        return await cursor.fetchall()

    async def do(self, name: str, *values: Any) -> int:
        """How many rows a statement of ``control.sql`` wrote."""
        return (await self.connection.execute(SQL[name], values)).rowcount

    async def lock(self, run_id: str) -> Standing:
        """A run, locked until the end; raises NotFound."""
        found = await self.rows("lock_runs", [run_id]) if is_uuid(run_id) else []
        if not found:
            raise NotFound(f"there is no run {run_id}")
        return standing(found[0])

    async def lock_called(self, callers: Sequence[str]) -> list[Standing]:
        """The runs that these called and that are not over, locked until the end."""
        return [standing(row) for row in await self.rows("lock_called", list(callers))]

    async def write(self, run: Standing, status: str, state: Mapping[str, Any], asked: str | None) -> None:
        """Change an unfinished or failed run, which counts its version up; raises Conflict if it has changed."""
        kept = dumps(state).decode()
        if await self.do("set_run", status, kept, asked, run.id, run.version) != 1:
            raise Conflict(f"run {run.id} has moved on just now; look again")

    async def give_back(self, runs: Sequence[Standing], *, over: bool) -> None:
        """Take from runs the places that flow control gave them: all, or those for while they are at work."""
        of = {run.id: run.workflow_id for run in runs}
        found = await self.rows("delete_places" if over else "park_places", list(of))
        self.freed |= {of[run_id] for (run_id,) in found}

    async def ask(self, run_ids: Sequence[str], what: str | None) -> None:
        """Leave a request for whoever holds each run or takes it up next, and wake them."""
        if run_ids:
            await self.do("ask_runs", what, list(run_ids))
            await self.nudge(run_ids)

    async def nudge(self, run_ids: Sequence[str]) -> None:
        """Let the runs be looked at: something came in."""
        await self.do("nudge_runs", list(run_ids))

    async def wake(self, run: Standing, *, reopens: bool = False) -> None:
        """Let a parked run go on now."""
        await self.do("wake_now", run.id, "", None, reopens, run.priority)

    async def unpause(self, run: Standing, asked: str | None) -> str:
        """Give a paused run the status that its steps say, and let it go on; returns the status."""
        blocks = run.state.get("blocks", {})
        found = {status for key, status in await self.rows("active_steps", run.id) if key not in blocks}
        held = not found and run.controlled and not await self.rows("any_step", run.id)
        running = RUNNING in found or not (found or held)
        status = RUNNING if running else RETRYING if RETRYING in found else WAITING
        await self.write(run, status, {**run.state, "by": TIMER}, asked)
        await self.do("park_places", [run.id])  # what it got while it was being paused; it asks again
        await self.wake(run)
        return status

    async def signal(self, run_id: str, key: str, kind: str, payload: Any, **more: Any) -> bool:
        """Put something in for a run that is not over, and wake it; whether it was new.

        ``id`` and ``event_uid`` are as in the table; without ``id`` the signal is always new.
        """
        text = dumps(payload).decode() if payload is not None else None
        values = [more.get("id") or uuid7(), key, kind, more.get("event_uid"), text]
        new = await self.do("put_signal", *values, run_id) == 1
        await self.nudge([run_id])
        return new


@contextlib.asynccontextmanager
async def intervention(pool: Pool, actor: str, action: str, subject: str) -> AsyncIterator[Intervention]:
    """A transaction that is committed, with its line in the audit log, unless the block raises."""
    async with checked_out(pool) as connection:
        act = Intervention(connection)
        yield act
        detail = dumps(act.detail).decode() if act.detail else None
        await connection.execute(SQL["audit"], [actor, action, subject, detail])


async def undisturbed(act: Callable[[], Awaitable[T]]) -> T:
    """``act``, again if PostgreSQL ended it to resolve a deadlock with somebody who locks runs in another order."""
    for _ in range(_TRIES - 1):
        try:
            return await act()
        except StoreUnavailable as error:
            if getattr(error.__cause__, "sqlstate", None) != _DEADLOCK:
                raise
    return await act()


async def let_in(on_freed: OnFreed, act: Intervention) -> None:
    """Let others have the places that an intervention took from runs, once it is committed."""
    for workflow_id in act.freed:
        with contextlib.suppress(StoreUnavailable):  # what it doesn't get done, a sweep does
            await on_freed(workflow_id)


async def look(pool: Pool, run_id: str) -> Standing:
    """A run as it is now, not locked; raises NotFound."""
    found: list[tuple[Any, ...]] = []
    if is_uuid(run_id):
        async with checked_out(pool) as connection:
            cursor = await connection.execute(SQL["look_at_run"], [run_id])
            found = await cursor.fetchall()
    if not found:
        raise NotFound(f"there is no run {run_id}")
    return standing(found[0])


async def revision_of(definitions: Definitions, run: Standing) -> Revision:
    """The revision that a run is on; raises Conflict if it can't be used any more.

    Not inside an intervention: it may need a connection of its own.
    """
    try:
        return await definitions.revision(run.revision_id)
    except (NotFound, DefinitionError) as error:
        raise Conflict(f"the revision of {run.workflow!r} that run {run.id} is on can't be used: {error}") from None


async def event_of(runs: Runs, run: Standing) -> Event:
    """The event that a run is for; raises Conflict if it is not kept any more. Not inside an intervention."""
    found = await runs.event(run.event_uid) if run.event_uid is not None else None
    if found is None:
        raise Conflict(f"the event of run {run.id} is not kept any more")
    return found[0]


def standing(row: Sequence[Any]) -> Standing:
    """A row of ``lock_runs`` or ``look_at_run``."""
    *_, state, details = row
    run = Standing(*row)
    return run._replace(state=orjson.loads(state or "{}"), details=orjson.loads(details or "{}"))


def described(run: Standing) -> str:
    """Where a run stands, for whoever is told that something can't be done."""
    if run.over:
        return f"over: it is {run.status}"
    if run.asked == "cancel":
        return "being cancelled"
    ending = run.state.get("ending")
    return f"about to end as {ending}" if ending else run.status
