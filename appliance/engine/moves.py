"""Moving parked runs to another revision of their workflow because a person wants it, whatever the workflow says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from appliance.engine.following import obstacles
from appliance.engine.interventions import Definitions, undisturbed
from appliance.engine.state import TIMER
from appliance.errors import Conflict, DefinitionError, Malformed, NotFound
from appliance.identifiers import is_uuid
from appliance.store.pool import Pool
from appliance.store.runs import StoredRun
from appliance.store.unfinished import Unfinished
from appliance.workflows.revision import Revision

PAGE = 200
"""Runs that one request looks at: their move is one transaction."""


class Wanted(NamedTuple):
    """Which runs are to be moved. ``to`` None: to the revision in force; ``source``, ``runs`` None: of any, all.

    ``after`` is where an earlier page ended.
    """

    to: int | None = None
    source: int | None = None
    runs: Sequence[str] | None = None
    after: str | None = None


class Moves:
    """One operation. Raises NotFound, Conflict, Malformed and StoreUnavailable."""

    def __init__(self, pool: Pool, definitions: Definitions, on_timer: Callable[[float], None]) -> None:
        self._unfinished = Unfinished(pool)
        self._definitions = definitions
        self._on_timer = on_timer

    async def migrate(self, name: str, actor: str, wanted: Wanted, *, dry_run: bool = False) -> dict[str, Any]:
        """Move parked and paused runs, a page of them; with ``dry_run`` only say what would become of each.

        Answers ``{"to", "moved", "stayed", "busy", "next_cursor"}``: the number of the revision; ids; ``{"id",
        "revision", "reasons"}`` of each that can't go on there; ids of those that somebody has in hand, or took up just
        now. Runs that are over, or on that revision already, are left out unless they were named.
        """
        current = self._definitions.current(name)
        target = await self._numbered(current, wanted.to, "to")
        source = None if wanted.source is None else await self._numbered(current, wanted.source, "from")
        found, cursor = await self._found(wanted, target, source)
        page = _Page(target)
        for run in found:
            await self._sort(page, run)
        there = "" if source is None else f" on revision {source.number}"
        for run_id in set(wanted.runs or ()).difference(run.id for run in found):
            page.stay(run_id, None, f"{name!r} has no such run{there} that is not over")
        moved = [run.id for run in page.ready]
        if page.ready and not dry_run:
            done = await undisturbed(lambda: self._unfinished.move(page.ready, target, actor))
            self._on_timer(time.time())
            moved, busy = [i for i in moved if i in done], [i for i in moved if i not in done]
            page.busy += busy
        answer = {"to": target.number, "moved": moved, "stayed": page.stayed, "busy": page.busy}
        return {**answer, "next_cursor": cursor}

    async def _found(
        self, wanted: Wanted, target: Revision, source: Revision | None
    ) -> tuple[list[StoredRun], str | None]:
        """The runs of this page, and where the next one begins."""
        only = None if source is None else source.id
        if wanted.runs is not None:
            if wrong := [run for run in wanted.runs if not is_uuid(run)]:
                raise Malformed(f"runs: {wrong[0]!r:.80} is not the id of a run", code="attribute")
            named = await self._unfinished.named(target.workflow_id, wanted.runs)
            return [run for run in named if only in (None, run.revision_id)], None
        if wanted.after is not None and not is_uuid(wanted.after):
            raise Malformed("cursor: not what an earlier answer gave as next_cursor", code="attribute")
        found = await self._unfinished.page(
            target.workflow_id, after=wanted.after, limit=PAGE, on=only, not_on=target.id
        )
        return found, found[-1].id if len(found) == PAGE else None

    async def _numbered(self, current: Revision, number: int | None, member: str) -> Revision:
        """A revision of the workflow; None: the one in force."""
        if number in (None, current.number):
            return current
        revision_id = await self._unfinished.numbered(current.workflow_id, number or 0)
        if revision_id is None:
            raise NotFound(f"{member}: {current.workflow.name!r} has no revision {number}")
        return await self._usable(revision_id, f"revision {number} of {current.workflow.name!r}")

    async def _usable(self, revision_id: int, what: str) -> Revision:
        try:
            return await self._definitions.revision(revision_id)
        except (NotFound, DefinitionError) as error:
            raise Conflict(f"{what} can't be used any more: {error}") from None

    async def _sort(self, page: _Page, run: StoredRun) -> None:
        try:
            own = await self._usable(run.revision_id, "its own revision")
        except Conflict as error:
            page.stay(run.id, None, str(error))
        else:
            page.sort(run, own)


class _Page:
    """What becomes of each run; ``ready`` are those that can be moved."""

    def __init__(self, target: Revision) -> None:
        self.ready: list[StoredRun] = []
        self.stayed: list[dict[str, Any]] = []
        self.busy: list[str] = []
        self._target = target

    def sort(self, run: StoredRun, own: Revision) -> None:
        """Look at one run."""
        if own.id == self._target.id:
            self.stay(run.id, own.number, "it is on that revision already")
        elif run.holder != TIMER:
            self.busy.append(run.id)
        elif reasons := obstacles(run, own.workflow, self._target.workflow):
            self.stay(run.id, own.number, *reasons)
        else:
            self.ready.append(run)

    def stay(self, run_id: str, revision: int | None, *reasons: str) -> None:
        """Why a run is not moved."""
        self.stayed.append({"id": run_id, "revision": revision, "reasons": list(reasons)})
