"""The unfinished runs of one workflow: page by page, as far as it takes to say where they stand; moving them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from appliance.engine.snapshot import unpack
from appliance.engine.state import StepState, step_of
from appliance.identifiers import range_start
from appliance.store.pool import Connection, Pool, checked_out
from appliance.store.queries import named
from appliance.store.runs import StoredRun
from appliance.workflows.revision import Revision

_SQL = named("unfinished")
_FIRST = range_start(0)


class Unfinished:
    """Statements over the pool. Everything raises StoreUnavailable.

    Runs come without outputs, deliveries, event and start. Of what is over in them there is one visit of each step and
    status; of how they were started, whether by a rerun.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(
        self,
        workflow_id: int,
        *,
        after: str | None = None,
        limit: int,
        on: int | None = None,
        not_on: int | None = None,
    ) -> list[StoredRun]:
        """Runs in the order of their ids, behind the one whose id is ``after``.

        ``on`` and ``not_on`` are ids of revisions: only runs that are on that one, or on another one.
        """
        values = (workflow_id, after or _FIRST, on, on, not_on, not_on, limit)
        async with checked_out(self._pool) as connection:
            return await _runs(connection, "page", *values)

    async def named(self, workflow_id: int, ids: Sequence[str]) -> list[StoredRun]:
        """Those of these runs that are of this workflow, and not over."""
        async with checked_out(self._pool) as connection:
            return await _runs(connection, "named", workflow_id, list(ids))

    async def in_force(self, name: str) -> tuple[int, int] | None:
        """The ids of a workflow and of its revision in force."""
        async with checked_out(self._pool) as connection:
            found = await _rows(connection, "in_force", name)
        return (found[0][0], found[0][1]) if found else None

    async def numbered(self, workflow_id: int, number: int) -> int | None:
        """The id of a revision."""
        async with checked_out(self._pool) as connection:
            found = await _rows(connection, "numbered", workflow_id, number)
        return found[0][0] if found else None

    async def move(self, runs: Sequence[StoredRun], to: Revision, actor: str) -> set[str]:
        """Put runs on another revision, and say so in the audit log; the ids of those that stood as they were read.

        Their versions are counted up. Who is about to write one of the others comes first.
        """
        ids, versions = [run.id for run in runs], [run.version for run in runs]
        async with checked_out(self._pool) as connection:
            moved = [row[0] for row in await _rows(connection, "move", ids, versions, to.id, actor)]
            if moved and to.workflow.control is None:
                await connection.execute(_SQL["leave_flow_control"], (moved, moved))
        return set(moved)


async def _runs(connection: Connection, name: str, *values: Any) -> list[StoredRun]:
    found = await _rows(connection, name, *values)
    steps: dict[str, list[StepState]] = {row[0]: [] for row in found}
    for run_id, key, seq, status, due_at, error in await _rows(connection, "standing", list(steps)) if found else ():
        steps[run_id].append(StepState(key, step_of(key), seq, status, due_at=due_at, error=error))
    return [_run(row, steps[row[0]]) for row in found]


def _run(row: Sequence[Any], steps: Iterable[StepState]) -> StoredRun:
    run_id, workflow_id, revision_id, status, version, priority, state, asked, rerun = row
    kept = orjson.loads(state) if state else {}
    return StoredRun(
        id=run_id,
        event_uid=None,
        workflow_id=workflow_id,
        revision_id=revision_id,
        version=version,
        started_at=0.0,
        priority=priority,
        state=unpack(kept, status, {step.key: step for step in steps}, None, None, None),
        holder=kept.get("by"),
        details={"rerun": True} if rerun else {},
        asked=asked,
    )


async def _rows(connection: Connection, name: str, *values: Any) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(_SQL[name], values)
    return await cursor.fetchall()
