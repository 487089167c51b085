"""What a new definition means for the runs that are not over: where they stand, and which could go on in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from appliance.engine.following import obstacles
from appliance.errors import DefinitionError, NotFound
from appliance.store.pool import Pool
from appliance.store.runs import StoredRun
from appliance.store.unfinished import Unfinished
from appliance.workflows.revision import Revision, Workflow

MAX_RUNS = 10_000
"""Unfinished runs that are looked at: about a second."""
MAX_GROUPS = 100
_PAGE = 500


class Definitions(Protocol):
    """What this needs of the catalog."""

    async def revision(self, revision_id: int) -> Revision:
        """A revision by its id; NotFound, DefinitionError."""
        ...

    def current(self, name: str) -> Revision:
        """The latest revision of a workflow; NotFound."""
        ...


class Touched(NamedTuple):
    """Unfinished runs of one revision that stand alike.

    ``revision`` is the number of theirs, ``at`` the ids of the steps at which they stand, ``example`` the id of the
    oldest, ``gaps`` why they can't go on in the new definition; empty: they can.
    """

    revision: int
    status: str
    at: tuple[str, ...]
    runs: int
    example: str
    gaps: tuple[str, ...]


class Touches(list[Touched]):
    """Groups of runs, by revision, those with most runs first. ``more``: there are runs beside these."""

    more: bool = False


class Impact:
    """One question. Raises StoreUnavailable."""

    def __init__(self, pool: Pool, definitions: Definitions) -> None:
        self._unfinished = Unfinished(pool)
        self._definitions = definitions

    async def of(self, name: str, new: Workflow | None) -> Touches:
        """The unfinished runs of a workflow that would be given this definition, or (None) be disabled.

        The oldest :data:`MAX_RUNS` are looked at.
        """
        try:
            workflow_id = self._definitions.current(name).workflow_id
        except NotFound:
            return Touches()
        groups: dict[tuple[int, str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
        after, looked_at = None, 0
        while looked_at < MAX_RUNS and (runs := await self._unfinished.page(workflow_id, after=after, limit=_PAGE)):
            for run in runs:
                number, gaps = await self._gaps(run, new)
                groups.setdefault((number, run.state.status, at(run), gaps), []).append(run.id)
            after, looked_at = runs[-1].id, looked_at + len(runs)
        more = looked_at >= MAX_RUNS and bool(await self._unfinished.page(workflow_id, after=after, limit=1))
        return _sorted((Touched(*key[:3], len(ids), ids[0], key[3]) for key, ids in groups.items()), more)

    async def _gaps(self, run: StoredRun, new: Workflow | None) -> tuple[int, tuple[str, ...]]:
        """The number of a run's revision, and why the run can't go on in the new definition."""
        try:
            own = await self._definitions.revision(run.revision_id)
        except (NotFound, DefinitionError) as error:
            return 0, (f"its revision can't be used any more: {error}",)
        return own.number, obstacles(run, own.workflow, new) if new is not None else ()


def at(run: StoredRun) -> tuple[str, ...]:
    """The ids of the steps at which a run stands, those of blocks left out."""
    blocks = run.state.blocks
    return tuple(sorted({visit.step for visit in run.state.active() if visit.key not in blocks}))


def _sorted(groups: Iterable[Touched], more: bool) -> Touches:
    ordered = sorted(groups, key=lambda group: -group.runs)
    found = Touches(sorted(ordered[:MAX_GROUPS], key=lambda group: (group.revision, -group.runs)))
    found.more = more or len(ordered) > MAX_GROUPS
    return found
