"""Replaying: new runs for events that are stored, by the workflows as they are now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from appliance.engine.interventions import Definitions, Intervention, intervention
from appliance.engine.machines import claim
from appliance.errors import Conflict, NotFound
from appliance.events import Event
from appliance.identifiers import is_uuid, milliseconds_of, uuid7
from appliance.observe.metrics import METRICS
from appliance.store.pool import Pool
from appliance.store.runs import Runs
from appliance.workflows.revision import Revision


class Planned(NamedTuple):
    """A run to be added."""

    id: str
    event: Event
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
        two runs; but a state machine is begun only if its key has no live one. Raises NotFound, Conflict (the workflow
        is disabled) and StoreUnavailable.
        """
        named = self._named(workflow) if workflow is not None else None
        plans: list[Planned] = []
        for uid in uids:
            event = await self._event(uid)
            revisions = [named] if named is not None else self._matching(event)
            plans += [_planned(event, revision, priority) for revision in revisions]
        begun = await self._add(plans, uids, actor, workflow)
        METRICS.runs_started.inc(len(begun))
        self._on_timer(time.time())
        runs: dict[str, list[dict[str, str]]] = {uid: [] for uid in uids}
        for plan in begun:
            runs[plan.event.uid].append({"id": plan.id, "workflow": plan.revision.workflow.name})
        return [{"event": uid, "runs": found} for uid, found in runs.items()]

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

    async def _add(
        self, plans: Sequence[Planned], uids: Sequence[str], actor: str, workflow: str | None
    ) -> list[Planned]:
        """Add those of the runs that can be begun."""
        subject = uids[0] if len(uids) == 1 else f"{len(uids)} events"
        async with intervention(self._pool, actor, "event.replay", subject) as act:
            begun = [plan for plan in plans if await self._is_first(act, plan)]
            ids, priorities = [plan.id for plan in begun], [plan.priority for plan in begun]
            events = [plan.event.uid for plan in begun]
            workflows, revisions = [p.revision.workflow_id for p in begun], [p.revision.id for p in begun]
            nothing = [None] * len(begun)
            await act.do("add_runs", "replay", ids, events, workflows, revisions, priorities, nothing)
            await act.do("wake_runs", ids, priorities)
            act.detail |= {"events": list(uids), "workflow": workflow, "runs": len(begun)}
        return begun

    async def _is_first(self, act: Intervention, plan: Planned) -> bool:
        return await claim(act, plan.id, plan.revision, plan.event.view(), milliseconds_of(plan.id)) is None


def _planned(event: Event, revision: Revision, priority: str | None) -> Planned:
    return Planned(uuid7(), event, revision, priority or revision.workflow.priority or "normal")
