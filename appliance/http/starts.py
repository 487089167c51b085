"""Starting a workflow by its name: its input is checked, and travels as an event like everything else.

The event is of the type ``workflow.requested``. It starts this workflow whatever its triggers are, and others that
have a trigger for such events.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

from starlette.requests import Request

from appliance.errors import Conflict
from appliance.events import Event, new_event
from appliance.http.admission import Admission
from appliance.http.idempotency import checked_key, key_of
from appliance.http.members import Members
from appliance.http.meters import counting_refusals
from appliance.http.operations import Operation
from appliance.http.problems import attribute_problem
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services
from appliance.identifiers import key_uuid, run_id_for
from appliance.workflows.inputs import check

EVENT_TYPE = "workflow.requested"
_RUNS = "/api/v1/workflows/{name}/runs"


class Starts:
    """The endpoints: our own, and the one that clients of an earlier system call."""

    def __init__(self, services: Services, admission: Admission) -> None:
        self._history = services.history
        self._http = services.settings.http
        self._admission = admission

    def operations(self) -> tuple[Operation, ...]:
        """Both do the same."""
        return (
            Operation(
                method="POST",
                path=_RUNS,
                handler=self.start,
                summary="Start a workflow by name",
                body="Start",
                body_optional=True,
                answer="StartAnswer",
                statuses=(202, 200),
            ),
            Operation(
                method="POST",
                path="/api/v1/trigger",
                handler=self.trigger,
                summary="Start a workflow by name or number",
                body="TriggerRequest",
                answer="StartAnswer",
                statuses=(202, 200),
            ),
        )

    async def start(self, request: Request) -> Reply:
        """202 with the run's id, once the event is in the stream; 200 and the first run's for a key that was used."""
        with counting_refusals():
            body = await Members.of(request, self._http, ("input", "idempotency_key"))
            given = body.any("input") if "input" in body else {}
            return await self._start(request.path_params["name"], given, _key(request, body))

    async def trigger(self, request: Request) -> Reply:
        """The same with ``workflow_id`` (a name or number) and ``payload``."""
        with counting_refusals():
            body = await Members.of(request, self._http, ("workflow_id", "payload", "idempotency_key"))
            wanted = body.any("workflow_id")
            if not isinstance(wanted, str | int) or isinstance(wanted, bool) or wanted == "":
                raise attribute_problem("workflow_id", "expected the name or number of a workflow.")
            given = body.any("payload") if "payload" in body else {}
            return await self._start(str(wanted), given, _key(request, body))

    async def _start(self, wanted: str, given: Any, key: str | None) -> Reply:
        workflow = await self._history.get_workflow(wanted)
        name = workflow["name"]
        if not workflow["enabled"]:
            raise Conflict(f"the workflow {name!r} is disabled")
        definition = workflow["definition"] or {}
        await asyncio.to_thread(check, "input", definition.get("inputs"), given)
        self._admission.reserve()
        accepted = await self._admission.submit(_event(name, given, key), definition.get("priority") or "normal")
        run_id = run_id_for(accepted.uid, name)
        answer = {
            "run_id": run_id,
            "event_id": accepted.event_id,
            "workflow": name,
            "status": "duplicate" if accepted.duplicate else "accepted",
        }
        location = (b"location", f"/api/v1/runs/{quote(run_id)}".encode())
        return json_reply(answer, 200 if accepted.duplicate else 202, (location,))


def _key(request: Request, body: Members) -> str | None:
    """What tells repeats: a member of the body, or else the header."""
    own = body.text("idempotency_key")
    return checked_key(own) if own is not None else key_of(request.scope)


def _event(name: str, given: Any, key: str | None) -> Event:
    return new_event(
        EVENT_TYPE,
        given,
        source=_RUNS.replace("{name}", name),
        subject=name,
        key=key_uuid("start", name, key) if key is not None else None,
        start=(name, "manual"),
    )
