"""Moving runs to another revision of their workflow, through the API."""

from __future__ import annotations

from starlette.requests import Request

from appliance.engine.moves import PAGE, Wanted
from appliance.http.auth import ACTOR
from appliance.http.members import Members
from appliance.http.operations import Operation
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services

_MEMBERS = ("to", "from", "runs", "cursor", "dry_run")


class MoveApi:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._control = services.control
        self._http = services.settings.http

    def operations(self) -> tuple[Operation, ...]:
        """One; it answers what was done, a page of runs at a time."""
        return (
            Operation(
                method="POST",
                path="/api/v1/workflows/{name}/migrate",
                handler=self.migrate,
                summary="Move parked runs of a workflow to another revision",
                body="Migration",
                body_optional=True,
                answer="MigrationAnswer",
            ),
        )

    async def migrate(self, request: Request) -> Reply:
        """``to`` and ``from`` are numbers of revisions, ``runs`` ids; ``dry_run`` moves nothing."""
        body = await Members.of(request, self._http, _MEMBERS)
        wanted = Wanted(
            body.number("to"),
            body.number("from"),
            body.texts("runs", PAGE) if body.any("runs") is not None else None,
            body.text("cursor"),
        )
        name = request.path_params["name"]
        return json_reply(await self._control.migrate(name, ACTOR, wanted, dry_run=body.flag("dry_run")))
