"""The schedules of the workflows in force, through the API."""

from __future__ import annotations

from starlette.requests import Request

from appliance.engine.timetable import MAX_PREVIEW
from appliance.http.operations import Operation, Parameter
from appliance.http.problems import parameter_problem
from appliance.http.query import CURSOR, LIMIT, page_of, parameters_of
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services

PATH = "/api/v1/schedules"
_PARAMETERS = (
    Parameter("workflow", "Only schedules of the workflow of this name."),
    Parameter("preview", f"How many of the coming slots to tell for each: 0 to {MAX_PREVIEW}, 0 if left out."),
    CURSOR,
    LIMIT,
)


class ScheduleApi:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._schedules = services.schedules

    def operations(self) -> tuple[Operation, ...]:
        """One read."""
        return (
            Operation(
                method="GET",
                path=PATH,
                handler=self.list_schedules,
                summary="List schedules by their workflow",
                parameters=_PARAMETERS,
                answer="Page",
            ),
        )

    async def list_schedules(self, request: Request) -> Reply:
        """A page of schedules: what is written, the next slot, the last one, and some to come."""
        values = parameters_of(request, _PARAMETERS)
        cursor, limit = page_of(values)
        page = await self._schedules.list_schedules(
            values.get("workflow"), preview=_preview(values.get("preview", "0")), cursor=cursor, limit=limit
        )
        return json_reply({"items": page.items, "next_cursor": page.next_cursor})


def _preview(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and int(text) <= MAX_PREVIEW):
        raise parameter_problem("preview", f"expected a number from 0 to {MAX_PREVIEW}.")
    return int(text)
