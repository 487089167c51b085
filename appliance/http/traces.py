"""What an event led to, over all runs and the events that these published."""

from __future__ import annotations

from starlette.requests import Request

from appliance.http.operations import Operation
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services


class Traces:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._trace = services.trace

    def operations(self) -> tuple[Operation, ...]:
        """Its one operation."""
        return (
            Operation(
                method="GET",
                path="/api/v1/events/{id}/trace",
                handler=self.trace,
                summary="Show all that an event led to, and what led to it",
                answer="Trace",
            ),
        )

    async def trace(self, request: Request) -> Reply:
        """The tree of events and runs, by any event of it."""
        return json_reply(dict(await self._trace(request.path_params["id"])))
