"""Workflows: what is in force, what it was before, and changes of it, which can be tried first."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request

from appliance.editor import Change, Outcome, Plan
from appliance.engine.impact import Touches
from appliance.http.auth import ACTOR
from appliance.http.body import decode_json, header, media_type, read_body
from appliance.http.etags import is_known, precondition_of, tagged
from appliance.http.members import Members
from appliance.http.operations import Handler, Method, Operation, Parameter
from appliance.http.problems import HttpProblem, parameter_problem
from appliance.http.query import CURSOR, LIMIT, page_of, parameters_of
from appliance.http.reply import RawHeaders, Reply, json_reply
from appliance.http.services import Services
from appliance.preconditions import ANY

PREFIX = "/api/v1"
_EVERY = Parameter("all", "Whether to list disabled workflows as well.", ("true", "false"))
_DRY_RUN = Parameter("dry_run", "Change nothing, and answer what would happen.", ("true", "false"))
_SEEN = (
    Parameter("If-Match", "The ETag of what is to be changed, or *."),
    Parameter("If-None-Match", "*: only create.", (ANY,)),
)
_KNOWN = (Parameter("If-None-Match", "ETags that the client has: 304 if one of them is the present one."),)
_DIFF = (
    Parameter("from", "Number of a revision. Required."),
    Parameter("to", "Number of another revision; the one in force if left out."),
)
WORKFLOWS = (_EVERY, CURSOR, LIMIT)
_MAX_NUMBER = 2**31 - 1
_TEXT: RawHeaders = ((b"content-type", b"text/x-diff; charset=utf-8"), (b"cache-control", b"no-store"))


class DefinitionApi:
    """The endpoints."""

    def __init__(self, services: Services) -> None:
        self._editor = services.editor
        self._impact = services.impact
        self._catalog = services.catalog
        self._history = services.history
        self._http = services.settings.http

    def operations(self) -> tuple[Operation, ...]:
        """All of them."""
        # A name may hold slashes, so longer paths come before what would take them for one.
        return (*self._revisions(), *self._changes(), *self._reads(PREFIX), *self._reads(""))

    def _changes(self) -> tuple[Operation, ...]:
        def change(method: Method, path: str, handler: Handler, summary: str, **more: Any) -> Operation:
            return Operation(
                method=method,
                path=f"{PREFIX}/workflows/{{name}}{path}",
                handler=handler,
                summary=summary,
                parameters=(_DRY_RUN,),
                headers=_SEEN,
                answer="WorkflowAnswer",
                **more,
            )

        return (
            change("POST", "/enable", self.enable, "Let events and schedules start runs of a workflow"),
            change("POST", "/disable", self.disable, "Keep events and schedules from starting runs of a workflow"),
            change(
                "POST",
                "/rollback",
                self.rollback,
                "Put an earlier revision in force again",
                body="Rollback",
                body_optional=True,
            ),
            change(
                "PUT",
                "",
                self.put_named,
                "Create a workflow, or a new revision of it",
                body="Object",
                statuses=(200, 201),
            ),
        )

    def _revisions(self) -> tuple[Operation, ...]:
        return (
            Operation(
                method="GET",
                path=f"{PREFIX}/workflows/{{name}}/revisions/{{number}}",
                handler=self.get_revision,
                summary="Show a revision with its definition",
                answer="Revision",
            ),
            Operation(
                method="GET",
                path=f"{PREFIX}/workflows/{{name}}/diff",
                handler=self.diff,
                summary="How two revisions differ",
                parameters=_DIFF,
                answer="Text",
                answer_type="text/x-diff",
            ),
        )

    def _reads(self, prefix: str) -> tuple[Operation, ...]:
        """And ``POST``. Under two prefixes: the second is what earlier systems' clients call."""
        return (
            Operation(
                method="GET",
                path=f"{prefix}/workflows",
                handler=self.list_workflows,
                summary="List workflows by name",
                parameters=WORKFLOWS,
                answer="Page",
            ),
            Operation(
                method="POST",
                path=f"{prefix}/workflows",
                handler=self.put,
                summary="Create a workflow, or a new revision of it",
                parameters=(_DRY_RUN,),
                headers=_SEEN,
                body="Object",
                answer="WorkflowAnswer",
                statuses=(201, 200),
            ),
            Operation(
                method="GET",
                path=f"{prefix}/workflows/{{name}}",
                handler=self.get_workflow,
                summary="Show a workflow with its definition",
                headers=_KNOWN,
                answer="Workflow",
                statuses=(200, 304),
            ),
        )

    async def list_workflows(self, request: Request) -> Reply:
        """A page of workflows."""
        values = parameters_of(request, WORKFLOWS)
        cursor, limit = page_of(values)
        page = await self._history.list_workflows(cursor=cursor, limit=limit, every=values.get("all") == "true")
        return json_reply({"items": page.items, "next_cursor": page.next_cursor})

    async def get_workflow(self, request: Request) -> Reply:
        """One workflow, by name or number, with the ETag that a change of it wants."""
        found = await self._history.get_workflow(_name(request))
        if is_known(request.scope, found["etag"]):
            return Reply(304, b"", (*tagged(found["etag"]), (b"cache-control", b"no-store")))
        answer = {**found, "warnings": self._catalog.warnings(found["name"])}
        return json_reply(answer, headers=tagged(found["etag"]))

    async def put(self, request: Request) -> Reply:
        """201 with the revision that the definition became; 422 with every problem found."""
        return await self._answer(request, self._editor.put(await self._document(request)), created=201, changed=201)

    async def put_named(self, request: Request) -> Reply:
        """The same for the workflow that the path names: 201 if it is new, else 200."""
        change = self._editor.put(await self._document(request), _name(request))
        return await self._answer(request, change, created=201)

    async def enable(self, request: Request) -> Reply:
        """Its definition stays as it is."""
        return await self._answer(request, self._editor.switch(_name(request), True))

    async def disable(self, request: Request) -> Reply:
        """Its definition stays as it is, and the runs that it has go on."""
        return await self._answer(request, self._editor.switch(_name(request), False))

    async def rollback(self, request: Request) -> Reply:
        """``revision``: its number; the one before the present one, if left out."""
        number = (await Members.of(request, self._http, ("revision",))).number("revision")
        return await self._answer(request, self._editor.rollback(_name(request), number))

    async def get_revision(self, request: Request) -> Reply:
        """One revision, whether it is in force or not."""
        standing, stored = await self._editor.revision(_name(request), _number("number", request.path_params["number"]))
        created = stored.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json_reply(
            {
                "name": standing.name,
                "revision": stored.number,
                "digest": stored.digest,
                "created_at": created,
                "in_force": stored.id == standing.revision_id,
                "definition": orjson.loads(stored.definition),
            }
        )

    async def diff(self, request: Request) -> Reply:
        """A unified diff of the YAML of two revisions; empty if they are the same."""
        values = parameters_of(request, _DIFF)
        if "from" not in values:
            raise parameter_problem("from", "missing; expected the number of a revision.")
        first = _number("from", values["from"])
        second = _number("to", values["to"]) if "to" in values else None
        return Reply(200, (await self._editor.difference(_name(request), first, second)).encode(), _TEXT)

    async def _document(self, request: Request) -> Any:
        if media_type(header(request.scope, b"content-type")) not in ("", "application/json"):
            raise HttpProblem("unsupported-media-type", "Send the definition as application/json.")
        return decode_json(
            await read_body(request.scope, request.receive, self._http.max_body_bytes), self._http.max_depth
        )

    async def _answer(self, request: Request, change: Change, *, created: int = 200, changed: int = 200) -> Reply:
        condition = precondition_of(request.scope)
        if parameters_of(request, (_DRY_RUN,)).get("dry_run") == "true":
            plan = await self._editor.plan(change, condition)
            return json_reply(await self._planned(plan))
        outcome = await self._editor.make(change, ACTOR, condition)
        status = created if outcome.kind == "create" else changed
        place = f"{PREFIX}/workflows/{quote(outcome.standing.name, safe='')}".encode()
        made = ((b"location", place),) if status == 201 else ()
        return json_reply(_made(outcome), status, (*tagged(outcome.standing.etag), *made))

    async def _planned(self, plan: Plan) -> Mapping[str, Any]:
        """What would happen, with the parked runs that it touches."""
        draft, current = plan.draft, plan.current
        touches = draft.kind in ("change", "rollback", "disable")
        new = None if draft.kind == "disable" else draft.workflow
        touched = await self._impact.of(plan.name, new) if touches else Touches()
        return {
            "name": plan.name,
            "change": draft.kind,
            "revision": None if current is None else current.number,
            "becomes": None if draft.revision is None else draft.revision.number,
            "enabled": draft.enabled,
            "etag": None if current is None else current.etag,
            "diff": plan.diff,
            "warnings": plan.warnings,
            "missing": plan.missing,
            "follows": plan.follows,
            "touches": [each._asdict() for each in touched],
            "more": touched.more,
        }


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 10 and 1 <= int(text) <= _MAX_NUMBER):
        raise parameter_problem(name, "expected the number of a revision.")
    return int(text)


def _made(outcome: Outcome) -> Mapping[str, Any]:
    standing = outcome.standing
    return {
        "id": standing.workflow_id,
        "name": standing.name,
        "revision": standing.number,
        "enabled": standing.enabled,
        "change": outcome.kind,
        "etag": standing.etag,
    }
