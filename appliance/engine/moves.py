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
        target, only = await self._ends(name, wanted)
        found, cursor = await self._found(wanted, target, only)
        page = _Page(target)
        for run in found:
            await self._sort(page, run)
        for run_id in set(wanted.runs or ()).difference(run.id for run in found):
            there = "" if only is None else f" on revision {wanted.source}"
            page.stay(run_id, None, f"{name!r} has no such run{there} that is not over")
        if not dry_run:
            await self._move(page, target, actor)
        answer = {"to": target.number, "moved": [run.id for run in page.ready]}
        return {**answer, "stayed": page.stayed, "busy": page.busy, "next_cursor": cursor}

    async def _ends(self, name: str, wanted: Wanted) -> tuple[Revision, int | None]:
        """The revision to move to, and the id of the one that runs are to be on now."""
        in_force = await self._unfinished.in_force(name)
        if in_force is None:
            raise NotFound(f"there is no workflow {name!r}")
        workflow_id, to = in_force
        if wanted.to is not None:
            to = await self._numbered(name, workflow_id, wanted.to, "to")
        what = "its revision in force" if wanted.to is None else f"revision {wanted.to} of {name!r}"
        target = await self._usable(to, what)
        if gone := self._definitions.lacking(target.workflow):
            raise Conflict(f"{what} can't be used any more: no action {', '.join(map(repr, gone))} is installed")
        if wanted.source is None:
            return target, None
        return target, await self._numbered(name, workflow_id, wanted.source, "from")

    async def _numbered(self, name: str, workflow_id: int, number: int, member: str) -> int:
        found = await self._unfinished.numbered(workflow_id, number)
        if found is None:
            raise NotFound(f"{member}: {name!r} has no revision {number}")
        return found

    async def _found(self, wanted: Wanted, target: Revision, only: int | None) -> tuple[list[StoredRun], str | None]:
        """The runs of this page, and where the next one begins."""
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

    async def _move(self, page: _Page, target: Revision, actor: str) -> None:
        """Move what is ready; what has moved on since it was looked at is busy."""
        if not page.ready:
            return
        moved = await undisturbed(lambda: self._unfinished.move(page.ready, target, actor))
        self._on_timer(time.time())
        page.busy += [run.id for run in page.ready if run.id not in moved]
        page.ready = [run for run in page.ready if run.id in moved]

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
