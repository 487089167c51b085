"""Human tasks for programs: lists, answers, and whom a task is for. For people there is :mod:`.answers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from appliance.engine.tasks import STATUSES
from appliance.http.auth import ACTOR
from appliance.http.members import Members
from appliance.http.operations import Operation, Parameter
from appliance.http.problems import attribute_problem
from appliance.http.query import CURSOR, LIMIT, filters_of, page_of, parameters_of, uuid_cursor
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services
from appliance.settings import HttpSettings

PATH = "/api/v1/tasks"
_FILTERS = (
    Parameter("status", "Only tasks in this state.", STATUSES),
    Parameter("assignee", "Only tasks of this person."),
    Parameter("group", "Only tasks of this group."),
    Parameter("workflow", "Only tasks of the workflow of this name."),
    Parameter("run_id", "Only tasks of this run."),
)
_PARAMETERS = (*_FILTERS, CURSOR, LIMIT)


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """The body of an answer: JSON data for the task's form, and who gives it (None: not said)."""

    answer: Any
    by: str | None

    @classmethod
    async def of(cls, request: Request, settings: HttpSettings) -> GivenAnswer:
        """Read it; raises a 422 problem without an ``answer``."""
        body = await Members.of(request, settings, ("answer", "by"))
        if "answer" not in body:
            raise attribute_problem("answer", "missing; expected what fits the task's form.")
        return cls(body.any("answer"), body.text("by"))


class TaskApi:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._tasks = services.tasks
        self._links = services.links
        self._http = services.settings.http

    def operations(self) -> tuple[Operation, ...]:
        """Two reads, two interventions."""
        return (
            Operation(
                method="GET",
                path=PATH,
                handler=self.list_tasks,
                summary="List human tasks, newest first",
                parameters=_PARAMETERS,
                answer="Page",
            ),
            Operation(
                method="GET", path=f"{PATH}/{{id}}", handler=self.get_task, summary="Show a human task", answer="Task"
            ),
            Operation(
                method="POST",
                path=f"{PATH}/{{id}}/answer",
                handler=self.answer,
                summary="Answer a human task",
                body="TaskAnswer",
            ),
            Operation(
                method="POST",
                path=f"{PATH}/{{id}}/assign",
                handler=self.assign,
                summary="Give a human task to somebody else",
                body="Assignment",
            ),
        )

    async def list_tasks(self, request: Request) -> Reply:
        """A page of tasks, without their forms and answers; a filtered page may be short while there is a next one."""
        values = parameters_of(request, _PARAMETERS)
        uuid_cursor(values)
        cursor, limit = page_of(values)
        chosen = filters_of(values, [parameter.name for parameter in _FILTERS])
        page = await self._tasks.list_tasks(chosen, cursor=cursor, limit=limit)
        return json_reply({"items": page.items, "next_cursor": page.next_cursor})

    async def get_task(self, request: Request) -> Reply:
        """One task with its form, its answer, and the link under which a person may answer it."""
        task = await self._tasks.get_task(request.path_params["id"])
        return json_reply({**task, "link": self._links.task(task["id"]) if task["status"] == "open" else None})

    async def answer(self, request: Request) -> Reply:
        """200 once the answer is recorded; 409 if somebody, or the deadline, was faster; 422 if it doesn't fit."""
        given = await GivenAnswer.of(request, self._http)
        task_id = request.path_params["id"]
        return json_reply({"id": task_id, **await self._tasks.answer(task_id, given.answer, given.by or ACTOR, ACTOR)})

    async def assign(self, request: Request) -> Reply:
        """Whom the task is for from now on; what is left out stays, null is nobody."""
        names = ("assignee", "group")
        body = await Members.of(request, self._http, names)
        changes = {name: body.text(name) for name in names if name in body}
        if not changes:
            raise attribute_problem("assignee", "missing; expected an assignee, a group, or both.")
        task_id = request.path_params["id"]
        return json_reply({"id": task_id, **await self._tasks.assign(task_id, changes, ACTOR)})
