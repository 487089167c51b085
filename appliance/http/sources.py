"""Polling sources through the API."""

from __future__ import annotations

from starlette.requests import Request

from appliance.http.operations import Operation, Parameter
from appliance.http.problems import parameter_problem
from appliance.http.query import CURSOR, LIMIT, page_of, parameters_of
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services

PATH = "/api/v1/sources"
_MOST = 100
_EVENTS = Parameter("limit", f"Most events to show: 1 to {_MOST}, 10 if left out.")


class SourceApi:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._sources = services.sources

    def operations(self) -> tuple[Operation, ...]:
        """Three reads."""
        return (
            Operation(
                method="GET",
                path=PATH,
                handler=self.list_sources,
                summary="List polling sources: how far each was read, and how it is",
                answer="Page",
            ),
            Operation(
                method="GET",
                path=f"{PATH}/{{name}}/preview",
                handler=self.preview,
                summary="What the next look at a source would give; nothing is moved",
                parameters=(_EVENTS,),
            ),
            Operation(
                method="GET",
                path=f"{PATH}/{{name}}/refused",
                handler=self.refused,
                summary="List a source's rows that can't be an event, with the reason",
                parameters=(CURSOR, LIMIT),
                answer="Page",
            ),
        )

    async def list_sources(self, request: Request) -> Reply:
        """All of them: there are few."""
        parameters_of(request, ())
        return json_reply({"items": await self._sources.list_sources(), "next_cursor": None})

    async def preview(self, request: Request) -> Reply:
        """The events to come; ``error`` says why there are none to be had."""
        values = parameters_of(request, (_EVENTS,))
        text = values.get("limit", "10")
        if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= _MOST):
            raise parameter_problem("limit", f"expected a number from 1 to {_MOST}.")
        return json_reply(await self._sources.preview(request.path_params["name"], int(text)))

    async def refused(self, request: Request) -> Reply:
        """A page of rows, the latest first."""
        cursor, limit = page_of(parameters_of(request, (CURSOR, LIMIT)))
        page = await self._sources.refused(request.path_params["name"], cursor=cursor, limit=limit)
        return json_reply({"items": page.items, "next_cursor": page.next_cursor})
