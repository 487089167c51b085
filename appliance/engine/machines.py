"""State machines that people begin, or let go on: of each business key there is one live machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.engine.interventions import Intervention
from appliance.engine.listeners import business_key, machine_digest
from appliance.identifiers import range_start
from appliance.workflows.revision import Revision


async def claim(
    act: Intervention, run_id: str, revision: Revision, view: Mapping[str, Any], since_ms: int
) -> str | None:
    """Make a run the live machine of its event's key, which hears of events from ``since_ms`` on (Unix milliseconds).

    Returns why that can't be, or None; runs of other workflows need nothing.
    """
    workflow = revision.workflow
    if workflow.machine is None:
        return None
    key = business_key(workflow.machine.correlate, view)
    if key is None:
        return f"the event has no business key for {workflow.name!r}"
    if await act.do("claim_machine", revision.workflow_id, key, run_id) != 1:
        ((live,),) = await act.rows("live_machine", revision.workflow_id, key)
        return f"{workflow.name!r} of {key!r} is live already: run {live}"
    await act.do("listen", run_id, machine_digest(workflow.name, key), range_start(since_ms))
    return None
