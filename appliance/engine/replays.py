"""Replaying: new runs for events that are stored, by the workflows as they are now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from appliance.engine.interventions import Definitions, intervention
from appliance.errors import Conflict, NotFound
from appliance.events import Event
from appliance.identifiers import is_uuid, uuid7
from appliance.store.pool import Pool
from appliance.store.runs import Runs
from appliance.workflows.revision import Revision


class Planned(NamedTuple):
    """A run to be added."""

    id: str
    event_uid: str
    revision: Revision
    priority: str


class Replays:
    """One operation."""

    def __init__(self, pool: Pool, runs: Runs, definitions: Definitions, on_timer: Callable[[float], None]) -> None:
        self._pool = pool
        self._runs = runs
        self._definitions = definitions
        self._on_timer = on_timer

    async def replay(
        self, uids: Sequence[str], actor: str, *, workflow: str | None = None, priority: str | None = None
    ) -> list[dict[str, Any]]:
        """Begin a run for each workflow in force that matches an event, or for the named one, matching or not.

        All or nothing; ``[{"event", "runs": [{"id", "workflow"}]}]`` in the order of ``uids``. Replaying twice makes
        two runs. Raises NotFound, Conflict (the workflow is disabled) and StoreUnavailable.
        """
        named = self._named(workflow) if workflow is not None else None
        planned: list[list[Planned]] = []
        for uid in uids:
            event = await self._event(uid)
            revisions = [named] if named is not None else self._matching(event)
            planned.append([_planned(uid, revision, priority) for revision in revisions])
        await self._add([plan for plans in planned for plan in plans], uids, actor, workflow)
        self._on_timer(time.time())
        return [
            {"event": uid, "runs": [{"id": plan.id, "workflow": plan.revision.workflow.name} for plan in plans]}
            for uid, plans in zip(uids, planned, strict=True)
        ]

    def _named(self, name: str) -> Revision:
        revision = self._definitions.current(name)
        if not revision.workflow.enabled:
            raise Conflict(f"the workflow {name!r} is disabled")
        return revision

    async def _event(self, uid: str) -> Event:
        found = await self._runs.event(uid) if is_uuid(uid) else None
        if found is None:
            raise NotFound(f"there is no event {uid}")
        return found[0]

    def _matching(self, event: Event) -> list[Revision]:
        return [rule.payload for rule in self._definitions.matcher.match(event.view())]

    async def _add(self, plans: list[Planned], uids: Sequence[str], actor: str, workflow: str | None) -> None:
        ids, priorities = [plan.id for plan in plans], [plan.priority for plan in plans]
        events = [plan.event_uid for plan in plans]
        workflows, revisions = [p.revision.workflow_id for p in plans], [p.revision.id for p in plans]
        subject = uids[0] if len(uids) == 1 else f"{len(uids)} events"
        async with intervention(self._pool, actor, "event.replay", subject) as act:
            nothing = [None] * len(plans)
            await act.do("add_runs", "replay", ids, events, workflows, revisions, priorities, nothing)
            await act.do("wake_runs", ids, priorities)
            act.detail |= {"events": list(uids), "workflow": workflow, "runs": len(plans)}


def _planned(uid: str, revision: Revision, priority: str | None) -> Planned:
    return Planned(uuid7(), uid, revision, priority or revision.workflow.priority or "normal")
