"""Rerunning: a new run of what an earlier one was for, from the start or behind steps that are taken over from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

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
from appliance.engine.state import SUCCEEDED, step_of
from appliance.errors import Conflict, Malformed
from appliance.events import dumps
from appliance.identifiers import milliseconds_of, uuid7
from appliance.observe.metrics import METRICS
from appliance.store.pool import Pool
from appliance.store.runs import Runs
from appliance.workflows.revision import Revision, Step, Workflow

_INHERITED = ("input", "depth", "hops")
_UNDO = ".compensate"


class Reruns:
    """One operation."""

    def __init__(self, pool: Pool, runs: Runs, definitions: Definitions, on_timer: Callable[[float], None]) -> None:
        self._pool = pool
        self._runs = runs
        self._definitions = definitions
        self._on_timer = on_timer

    async def rerun(
        self, run_id: str, actor: str, *, start: str | None = None, current: bool = False
    ) -> dict[str, Any]:
        """Run a run that is over again, on its revision or on the ``current`` one; ``{"run", "revision"}``.

        ``start`` is the id of the step to begin with: what is recorded of those before it is taken over. Raises
        NotFound, Conflict, StoreUnavailable, and Malformed for a step that a run can't begin with.
        """
        seen = await look(self._pool, run_id)
        if current:
            revision = self._definitions.current(seen.workflow)
        else:
            revision = await revision_of(self._definitions, seen)
        first = _first(revision.workflow, start)
        event = await event_of(self._runs, seen)
        async with intervention(self._pool, actor, "run.rerun", run_id) as act:
            run = await act.lock(run_id)
            if not run.over:
                raise Conflict(f"run {run_id} is {described(run)}; only a run that is over can be run again")
            new = await self._add(act, run, revision, start)
            await act.do("copy_batch", new, run_id)
            if why := await claim(act, new, revision, event.view(), milliseconds_of(new)):
                raise Conflict(why)
            if first is not None:
                await act.do("copy_steps", new, run_id, await _before(act, run, revision.workflow, first))
            act.detail |= {"run": new, "from": start, "revision": revision.number}
        METRICS.runs_started.inc()
        self._on_timer(time.time())
        return {"run": new, "revision": revision.number}

    async def _add(self, act: Intervention, run: Standing, revision: Revision, start: str | None) -> str:
        new = uuid7()
        details: dict[str, Any] = {name: run.details[name] for name in _INHERITED if name in run.details}
        details["rerun_of"] = run.id
        if start is not None:
            details["rerun"] = {"run": run.id, "from": start}
        columns = [[new], [run.event_uid], [run.workflow_id], [revision.id], [run.priority], [dumps(details).decode()]]
        await act.do("add_runs", "rerun", *columns)
        await act.do("wake_runs", [new], [run.priority])
        return new


def _first(workflow: Workflow, start: str | None) -> Step | None:
    """The step to begin with; None: the workflow's beginning."""
    if start is None:
        return None
    if workflow.machine is not None:
        raise Malformed("from: a state machine can only be run again from its start: leave it out", code="attribute")
    index = workflow.by_id.get(start)
    if index is None or workflow.steps[index].thread != 0:
        possible = ", ".join(step.id for step in workflow.steps if step.thread == 0)
        what = "there is no such step" if index is None else "this step is inside another one, or belongs to it"
        raise Malformed(f"from: {what}: {start!r:.80}; expected one of {possible}", code="attribute")
    return workflow.steps[index]


async def _before(act: Intervention, run: Standing, workflow: Workflow, first: Step) -> list[str]:
    """The keys of the recorded steps before ``first``, those inside of them counted in.

    Raises Conflict if one of them was undone: what it did is not there any more.
    """
    recorded = await act.rows("ended_steps", run.id)
    undone = {step_id.removesuffix(_UNDO) for step_id in _ids(recorded) if step_id.endswith(_UNDO)}
    keys = []
    for (key, status), step_id in zip(recorded, _ids(recorded), strict=True):
        above = _own(workflow, step_id)
        if above is None or above.index >= first.index:
            continue
        if step_id in undone and status == SUCCEEDED:
            raise Conflict(f"step {step_id} of run {run.id} was undone: rerun from it, or from a step before it")
        keys.append(key)
    return keys


def _ids(recorded: Iterable[tuple[Any, ...]]) -> list[str]:
    return [step_of(key) for key, *_ in recorded]


def _own(workflow: Workflow, step_id: str) -> Step | None:
    """The step of the workflow's own thread that this one is, or is inside of; None for handlers and hidden steps."""
    index = workflow.by_id.get(step_id)
    while index is not None:
        step = workflow.steps[index]
        if step.thread == 0:
            return step
        index = workflow.threads[step.thread].parent
    return None
