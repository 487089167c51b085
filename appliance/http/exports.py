"""The definition of a workflow in force, in the form that somebody wants to have it."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from appliance.http.operations import Operation, Parameter
from appliance.http.problems import HttpProblem
from appliance.http.query import parameters_of
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services
from appliance.workflows.drawing import draw
from appliance.workflows.writing import to_yaml

PATH = "/api/v1/workflows/{name}/export"
FORMS = ("yaml", "json", "react-flow")
_PARAMETERS = (Parameter("as", "Our language as YAML (if left out) or JSON, or a React Flow graph.", FORMS),)
_YAML = ((b"content-type", b"application/yaml"), (b"cache-control", b"no-store"))


class Exports:
    """The endpoint."""

    def __init__(self, services: Services) -> None:
        self._history = services.history

    def operations(self) -> tuple[Operation, ...]:
        """Its one operation."""
        return (
            Operation(
                method="GET",
                path=PATH,
                handler=self.export,
                summary="The definition of a workflow, as YAML, JSON or a React Flow graph",
                parameters=_PARAMETERS,
                answer="Text",
                answer_type="application/yaml",
            ),
        )

    async def export(self, request: Request) -> Reply:
        """The definition in force; importing it makes the same revision (of a graph: one that draws the same)."""
        form = parameters_of(request, _PARAMETERS).get("as", "yaml")
        workflow = await self._history.get_workflow(request.path_params["name"])
        definition = workflow["definition"]
        if definition is None:
            raise HttpProblem("not-found", f"The workflow {workflow['name']!r} has no definition.")
        if form == "yaml":
            return Reply(200, (await asyncio.to_thread(to_yaml, definition)).encode(), _YAML)
        return json_reply(await asyncio.to_thread(draw, definition) if form == "react-flow" else definition)
