"""What flow control holds, through the API: who waits for places, who has them, what is collected and counted."""

from __future__ import annotations

from starlette.requests import Request

from appliance.http.operations import Operation
from appliance.http.query import CURSOR, LIMIT, page_of, parameters_of
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services

PATH = "/api/v1/queues"
OF_WORKFLOW = "/api/v1/workflows/{name}/queue"
_PARAMETERS = (CURSOR, LIMIT)


class QueueApi:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._queues = services.queues

    def operations(self) -> tuple[Operation, ...]:
        """Two reads."""
        return (
            Operation(
                method="GET",
                path=PATH,
                handler=self.list_queues,
                summary="List the workflows of which runs wait for places",
                parameters=_PARAMETERS,
                answer="Page",
            ),
            Operation(
                method="GET",
                path=OF_WORKFLOW,
                handler=self.get_queue,
                summary="Show what flow control holds of a workflow, by key",
                parameters=_PARAMETERS,
                answer="Queue",
            ),
        )

    async def list_queues(self, request: Request) -> Reply:
        """A page of workflows, each with how many of its runs wait and since when."""
        cursor, limit = page_of(parameters_of(request, _PARAMETERS))
        page = await self._queues.list_queues(cursor=cursor, limit=limit)
        return json_reply({"items": page.items, "next_cursor": page.next_cursor})

    async def get_queue(self, request: Request) -> Reply:
        """A page of the lanes in which runs of a workflow wait, and what is counted of its keys."""
        cursor, limit = page_of(parameters_of(request, _PARAMETERS))
        return json_reply(dict(await self._queues.get_queue(request.path_params["name"], cursor=cursor, limit=limit)))
