"""Live state machines, through the API: where each stands, what it would take now, and what it went through."""

from __future__ import annotations

from starlette.requests import Request

from appliance.http.operations import Operation, Parameter
from appliance.http.query import CURSOR, LIMIT, filters_of, page_of, parameters_of
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services

PATH = "/api/v1/machines"
_FILTERS = (
    Parameter("workflow", "Only machines of the workflow of this name."),
    Parameter("key", "Only machines of this business key."),
)
_PARAMETERS = (*_FILTERS, CURSOR, LIMIT)


class MachineApi:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._history = services.history

    def operations(self) -> tuple[Operation, ...]:
        """Two reads."""
        return (
            Operation(
                method="GET",
                path=PATH,
                handler=self.list_machines,
                summary="List live state machines by workflow and business key",
                parameters=_PARAMETERS,
                answer="Page",
            ),
            Operation(
                method="GET",
                path=f"{PATH}/{{workflow}}/{{key}}",
                handler=self.get_machine,
                summary="Show a state machine with its state, the events it would take now, and its history",
                answer="Machine",
            ),
        )

    async def list_machines(self, request: Request) -> Reply:
        """A page of machines."""
        values = parameters_of(request, _PARAMETERS)
        cursor, limit = page_of(values)
        chosen = filters_of(values, [parameter.name for parameter in _FILTERS])
        page = await self._history.list_machines(chosen, cursor=cursor, limit=limit)
        return json_reply({"items": page.items, "next_cursor": page.next_cursor})

    async def get_machine(self, request: Request) -> Reply:
        """One machine, by its workflow's name and its business key; one that has ended is among the runs only."""
        return json_reply(await self._history.get_machine(request.path_params["workflow"], request.path_params["key"]))
