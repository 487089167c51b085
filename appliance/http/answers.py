"""Signed links: a page with a task's form for whoever has its link, and the way for the answer. No API key.

Reading changes nothing, whoever reads: mail scanners and browsers that look ahead included. A wrong signature, a task
that never was, and one that went with its history look the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request

from appliance.errors import Conflict, Malformed, NotFound, Unavailable
from appliance.http.body import header, media_type, read_body
from appliance.http.fields import Field, answer_of, fields_of
from appliance.http.forms import MULTIPART, URLENCODED, decode_form
from appliance.http.operations import Operation, Parameter
from appliance.http.pages import message_page, problem_page
from appliance.http.pages.tasks import task_page
from appliance.http.problems import HttpProblem, problem_of
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Services
from appliance.http.tasks import GivenAnswer
from appliance.workflows.inputs import InputRefused, Mistake, mistakes

ACTOR = "link"
"""Who did it, in the audit log; and who answered a task that is for nobody in particular."""
_PATH = "/tasks/{id}"
_SIGNATURE = Parameter("sig", "The link's signature.")
_CLOSED = {
    "answered": ("Already answered", "This was answered already; the first answer counts."),
    "expired": ("Too late", "The time to answer this is over."),
    "cancelled": ("No longer needed", "An answer is not needed any more."),
}


@dataclass(frozen=True, slots=True)
class _Posted:
    """What a browser sent, and the fields that it is for."""

    fields: list[Field]
    values: Mapping[str, Any]


class Answers:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._tasks = services.tasks
        self._links = services.links
        self._http = services.settings.http

    def operations(self) -> tuple[Operation, ...]:
        """The page, and what its form posts."""
        return (
            Operation(
                method="GET",
                path=_PATH,
                handler=self.show,
                summary="The page of a task, by its signed link",
                open=True,
                parameters=(_SIGNATURE,),
                answer="Text",
                answer_type="text/html",
            ),
            Operation(
                method="POST",
                path=_PATH,
                handler=self.take,
                summary="Answer a task by its signed link",
                open=True,
                parameters=(_SIGNATURE,),
                body="TaskAnswer",
                media_types=("application/json", URLENCODED, MULTIPART),
            ),
        )

    async def show(self, request: Request) -> Reply:
        """The form; 409 for a task that is closed."""
        task_id = self._signed(request)
        try:
            task = await self._tasks.get_task(task_id) if task_id is not None else None
        except NotFound:
            task = None
        except Unavailable as error:
            return problem_page(problem_of(error))
        if task is None:
            return _nothing()
        return task_page(task, fields_of(task["form"])) if task["status"] == "open" else _closed(task)

    async def take(self, request: Request) -> Reply:
        """Answer: forms get a page, JSON gets JSON."""
        kind = media_type(header(request.scope, b"content-type"))
        if kind == "application/json":
            return await self._take_json(request)
        if kind not in (URLENCODED, MULTIPART):
            raise HttpProblem("unsupported-media-type", f"Send {URLENCODED}, {MULTIPART} or application/json.")
        try:
            return await self._take_form(request, kind)
        except NotFound:
            return _nothing()
        except (HttpProblem, Malformed, Unavailable) as error:
            return problem_page(problem_of(error))

    async def _take_json(self, request: Request) -> Reply:
        task = await self._task(request)
        given = await GivenAnswer.of(request, self._http)
        by = given.by or _owner(task)
        return json_reply({"id": task["id"], **await self._tasks.answer(task["id"], given.answer, by, ACTOR)})

    async def _take_form(self, request: Request, kind: str) -> Reply:
        task = await self._task(request)
        body = await read_body(request.scope, request.receive, self._http.max_body_bytes)
        form = decode_form(body, kind, header(request.scope, b"content-type") or "")
        if task["status"] != "open":
            return _closed(task)
        posted = _Posted(fields_of(task["form"]), {**form.reserved, **form.data})
        answer, unread = answer_of(posted.fields, posted.values, self._http.max_depth)
        if unread:
            rest = await asyncio.to_thread(mistakes, task["form"], answer)
            return _refused(task, posted, [*unread, *_others(rest, unread)])
        try:
            await self._tasks.answer(task["id"], answer, _owner(task), ACTOR)
        except InputRefused as error:
            return _refused(task, posted, error.mistakes)
        except Conflict:
            return _closed(await self._tasks.get_task(task["id"]))
        return message_page(200, "Thank you", "Your answer has been recorded.")

    async def _task(self, request: Request) -> dict[str, Any]:
        """The task of a link that is followed from our own page, if from any; raises NotFound and a 403 problem."""
        task_id = self._signed(request)
        if task_id is None:
            raise NotFound("there is no such task")
        self._check_origin(request)
        return await self._tasks.get_task(task_id)

    def _signed(self, request: Request) -> str | None:
        """The task's id, if the link is signed for it; before anything is looked up."""
        task_id = str(request.path_params["id"])
        return task_id if self._links.signed(task_id, request.query_params.get("sig", "")) else None

    def _check_origin(self, request: Request) -> None:
        """A browser says which site a form was on. The signature is what counts, but there is no reason for another."""
        origin = header(request.scope, b"origin")
        if origin is None:
            return
        known = {urlsplit(self._links.base).netloc.lower(), (header(request.scope, b"host") or "").lower()}
        if urlsplit(origin).netloc.lower() not in known:
            raise HttpProblem("origin", "The form was sent from another site (or http.public_url is not this one).")


def _owner(task: Mapping[str, Any]) -> str:
    """Who is said to have answered: the one whom the task is for, as nobody else was sent the link."""
    return task["assignee"] or ACTOR


def _others(found: list[Mistake], known: list[Mistake]) -> list[Mistake]:
    """Mistakes in places where none is known yet: what could not be read is missing, too."""
    places = {mistake.path[:1] for mistake in known}
    return [mistake for mistake in found if mistake.path[:1] not in places]


def _refused(task: Mapping[str, Any], posted: _Posted, found: list[Mistake]) -> Reply:
    return task_page(task, posted.fields, posted.values, found)


def _closed(task: Mapping[str, Any]) -> Reply:
    title, text = _CLOSED.get(task["status"], _CLOSED["cancelled"])
    return message_page(409, title, text)


def _nothing() -> Reply:
    return message_page(404, "Nothing here", "The link is wrong or incomplete, or what it led to is gone.")
