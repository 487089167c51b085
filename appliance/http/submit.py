"""``POST /submit``: a form, as JSON or as a browser sends it, becomes a ``form_submitted`` event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from appliance.errors import Malformed
from appliance.events import Event, dumps, now_text
from appliance.http.admission import Admission
from appliance.http.body import decode_json, header, media_type, read_body
from appliance.http.forms import MULTIPART, URLENCODED, decode_form
from appliance.http.idempotency import checked_key, key_of
from appliance.http.meters import counting_refusals
from appliance.http.operations import Operation
from appliance.http.pages import message_page, problem_page
from appliance.http.problems import HttpProblem, attribute_problem
from appliance.http.redirects import allowed_redirect
from appliance.http.reply import RawHeaders, Reply, see_other
from appliance.http.services import AcceptedEvent
from appliance.identifiers import key_uuid, uuid7
from appliance.settings import HttpSettings
from appliance.workflows.problems import phrase

EVENT_TYPE = "form_submitted"
SOURCE = "/submit"
_HEADERS: RawHeaders = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
_JSON_TYPES = frozenset({"application/json", "text/json"})


class Submission(BaseModel):
    """The body of ``POST /submit`` as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    template_id: str = Field(min_length=1, max_length=1024)
    data: dict[str, Any] = Field(default_factory=dict)
    org_id: str | None = Field(None, max_length=1024)


@dataclass(frozen=True, slots=True)
class _Posted:
    """What was posted, and how the browser wants to go on."""

    submission: Submission
    idempotency_key: str | None = None
    redirect: str | None = None
    html: bool = False


class Submit:
    """The endpoint. Its path is kept short: it is the one that takes the load."""

    def __init__(self, admission: Admission, settings: HttpSettings) -> None:
        self._admission = admission
        self._settings = settings

    def operations(self) -> tuple[Operation, ...]:
        """Its one operation."""
        return (
            Operation(
                method="POST",
                path="/submit",
                handler=self.submit,
                summary="Submit a form",
                open=self._settings.submit_open,
                body="Submission",
                media_types=("application/json", URLENCODED, MULTIPART),
                answer="SubmissionAnswer",
                statuses=(202, 200),
            ),
        )

    async def submit(self, request: Request) -> Reply:
        """202 once the event is in the stream, 200 for a duplicate; browsers get a page, or a redirect."""
        content_type = header(request.scope, b"content-type")
        kind = media_type(content_type)
        if kind in _JSON_TYPES:
            with counting_refusals():
                return await self._submit_json(request)
        if kind not in (URLENCODED, MULTIPART):
            raise HttpProblem("unsupported-media-type", f"Send application/json, {URLENCODED} or {MULTIPART}.")
        html = prefers_html(header(request.scope, b"accept"))
        try:
            with counting_refusals():
                return await self._submit_form(request, kind, content_type or "", html)
        except HttpProblem as problem:
            if not html:
                raise
            return problem_page(problem)

    async def _submit_json(self, request: Request) -> Reply:
        body = await read_body(request.scope, request.receive, self._settings.max_body_bytes)
        submission = _checked(decode_json(body, self._settings.max_depth))
        return _answer(await self._accept(submission, key_of(request.scope)))

    async def _submit_form(self, request: Request, kind: str, content_type: str, html: bool) -> Reply:
        body = await read_body(request.scope, request.receive, self._settings.max_body_bytes)
        form = decode_form(body, kind, content_type)
        reserved = form.reserved
        if "template_id" not in reserved and body[:1] == b"{":
            raise attribute_problem("template_id", "missing; for JSON, send Content-Type: application/json.")
        target = reserved.get("_redirect")
        redirect = allowed_redirect(target, self._settings.redirect_hosts) if target else None
        fields = {name: reserved[name] for name in ("template_id", "org_id") if reserved.get(name)}
        field_key = reserved.get("_idempotency_key")
        key = checked_key(field_key) if field_key else key_of(request.scope)
        accepted = await self._accept(_checked({**fields, "data": form.data}), key)
        if redirect is not None:
            return see_other(redirect)
        return _thanks(accepted) if html else _answer(accepted)

    async def _accept(self, submission: Submission, key: str | None) -> AcceptedEvent:
        self._admission.reserve()
        return await self._admission.submit(_event(submission, key))


def prefers_html(accept: str | None) -> bool:
    """Whether an Accept header ranks text/html above application/json (browsers do, curl and fetch don't)."""
    if not accept or "text/html" not in accept:
        return False
    qualities: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        qualities[name] = next((_quality(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
    others = qualities.get("application/json", qualities.get("application/*", qualities.get("*/*", 0.0)))
    return qualities.get("text/html", 0.0) > others


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _checked(document: Any) -> Submission:
    if not isinstance(document, dict):
        raise Malformed("a submission is a JSON object", code="not-an-object")
    try:
        return Submission.model_validate(document)
    except ValidationError as error:
        errors = [{"attribute": _path(e["loc"]), "detail": phrase(e)} for e in error.errors(include_url=False)]
        first = errors[0]
        members = {"attribute": first["attribute"], "errors": errors}
        raise HttpProblem("attribute", f"{first['attribute']}: {first['detail']}", members) from None


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _event(submission: Submission, idempotency_key: str | None) -> Event:
    uid = uuid7()
    attributes = {"template_id": submission.template_id, "submission_id": uid}
    if submission.org_id is not None:
        attributes["org_id"] = submission.org_id
    key = None
    if idempotency_key is not None:
        # Per form and organisation: a key that a client also uses elsewhere is another submission.
        key = key_uuid("submit", submission.template_id, submission.org_id or "", idempotency_key)
    return Event(
        uid=uid,
        id=uid,
        source=SOURCE,
        type=EVENT_TYPE,
        time=now_text(),
        data=submission.data,
        attributes=attributes,
        key=key,
    )


def _answer(accepted: AcceptedEvent) -> Reply:
    event_id = accepted.event_id
    status, word = (200, "duplicate") if accepted.duplicate else (202, "accepted")
    return Reply(status, dumps({"id": event_id, "submission_id": event_id, "status": word}), _HEADERS)


def _thanks(accepted: AcceptedEvent) -> Reply:
    status = 200 if accepted.duplicate else 202
    text = "We had already received this." if accepted.duplicate else "Your message has been received."
    return message_page(status, "Thank you", text, accepted.event_id)
