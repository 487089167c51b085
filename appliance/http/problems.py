"""RFC 9457 problems: every way in which a request is refused, with its status and title, declared once.

A problem's ``type`` is ``urn:appliance:problem:<code>``; the codes are stable and listed in ``docs/api.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from appliance.errors import (
    ApplianceError,
    ConfigurationError,
    Conflict,
    Malformed,
    NotFound,
    Overloaded,
    Problem,
    StoreUnavailable,
    StreamUnavailable,
    Unavailable,
)
from appliance.events import dumps
from appliance.preconditions import Outdated, OwnedByFile, Unseen
from appliance.workflows.inputs import InputRefused

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:appliance:problem:"

KINDS: Mapping[str, tuple[int, str]] = {
    "bad-request": (400, "The request can't be understood"),
    "not-json": (400, "The body is not JSON"),
    "not-utf8": (400, "The text is not UTF-8"),
    "bad-form": (400, "The form can't be decoded"),
    "unauthorized": (401, "An API key is needed"),
    "origin": (403, "The request comes from another site"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "The method does not work here"),
    "timeout": (408, "The request took too long to arrive"),
    "conflict": (409, "The state forbids it"),
    "precondition-failed": (412, "Something else is in force than the request was made for"),
    "too-large": (413, "The body or the event is too large"),
    "unsupported-media-type": (415, "The media type is not supported"),
    "not-an-object": (422, "A JSON object is expected"),
    "attribute": (422, "An attribute is missing or wrong"),
    "specversion": (422, "The CloudEvents version is not supported"),
    "binary-data": (422, "Binary data is not supported"),
    "too-deep": (422, "The JSON data is nested too deeply"),
    "nul-character": (422, "The text contains NUL"),
    "batch": (422, "Events of the batch are wrong"),
    "file-upload": (422, "Files are not accepted"),
    "redirect": (422, "The redirect is not allowed"),
    "parameter": (422, "A query parameter is wrong"),
    "input": (422, "What was handed in does not fit its schema"),
    "definition": (422, "The workflow definition is wrong"),
    "malformed": (422, "The input can't be understood"),
    "precondition-required": (428, "The request must say what it was made for"),
    "rate-limit": (429, "Too many requests"),
    "headers-too-large": (431, "The headers are too large"),
    "internal": (500, "Something went wrong here"),
    "overloaded": (503, "The backlog is full"),
    "stream-unavailable": (503, "Redis is not available"),
    "store-unavailable": (503, "PostgreSQL is not available"),
    "unavailable": (503, "The service is not available"),
}
"""Code -> (status, title)."""

_STATUS_CODES = {400: "bad-request", 401: "unauthorized", 404: "not-found", 405: "method-not-allowed", 413: "too-large"}


class HttpProblem(ApplianceError):
    """A refusal: raise it anywhere below the application, and it becomes the answer.

    ``members`` are further members of the problem document (``attribute``, ``errors`` …), JSON data.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        members: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.code = code
        self.detail = detail
        self.members = members or {}
        self.headers = headers or {}
        super().__init__(detail)

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return KINDS[self.code][0]

    def document(self) -> dict[str, Any]:
        """The problem as RFC 9457 has it."""
        status, title = KINDS[self.code]
        own = {"type": TYPE_PREFIX + self.code, "title": title, "status": status, "detail": self.detail}
        return {**own, **self.members}

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the answer, besides its length."""
        own = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        return [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *own,
        ]

    def body(self) -> bytes:
        """The problem document, encoded."""
        return dumps(self.document())


def attribute_problem(name: str, detail: str) -> HttpProblem:
    """A 422 that names the attribute that is wrong."""
    return HttpProblem("attribute", f"{name}: {detail}", {"attribute": name})


def parameter_problem(name: str, detail: str) -> HttpProblem:
    """A 422 that names the query parameter that is wrong."""
    return HttpProblem("parameter", f"{name}: {detail}", {"parameter": name})


def too_large(detail: str) -> HttpProblem:
    """A 413."""
    return HttpProblem("too-large", detail)


def unavailable(code: str, detail: str, retry_after_s: float) -> HttpProblem:
    """A refusal for now: ``Retry-After`` in whole seconds, at least 1."""
    seconds = max(1, math.ceil(min(retry_after_s, 86_400)))
    return HttpProblem(code, detail, headers={"Retry-After": str(seconds)})


def problem_of(error: ApplianceError) -> HttpProblem:
    """What an error of the appliance is to an HTTP client."""
    if isinstance(error, HttpProblem):
        return error
    if isinstance(error, Unavailable):
        return unavailable(_unavailable_code(error), str(error), error.retry_after_s)
    if isinstance(error, Malformed):
        return _malformed(error)
    if isinstance(error, ConfigurationError):
        problems = [_definition_problem(problem) for problem in error.problems]
        return HttpProblem("definition", str(error), {"problems": problems})
    if isinstance(error, InputRefused):
        errors = [{"path": m._replace(path=(error.what, *m.path)).place, "detail": m.expected} for m in error.mistakes]
        return HttpProblem("input", str(error), {"errors": errors})
    if isinstance(error, NotFound):
        return HttpProblem("not-found", str(error))
    if isinstance(error, Conflict):
        return _conflict(error)
    return HttpProblem("internal", "The request failed; the log says why.")


def problem_of_status(status: int, detail: str, headers: Mapping[str, str]) -> HttpProblem:
    """What a bare HTTP error of the framework (404, 405 …) is as a problem."""
    return HttpProblem(_STATUS_CODES.get(status, "internal"), detail, headers=headers)


def _unavailable_code(error: Unavailable) -> str:
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, StreamUnavailable):
        return "stream-unavailable"
    return "store-unavailable" if isinstance(error, StoreUnavailable) else "unavailable"


def _conflict(error: Conflict) -> HttpProblem:
    if isinstance(error, Outdated):
        code = "precondition-required" if isinstance(error, Unseen) else "precondition-failed"
        headers = {} if error.etag is None else {"ETag": f'"{error.etag}"'}
        return HttpProblem(code, str(error), {"etag": error.etag, "revision": error.revision}, headers=headers)
    return HttpProblem("conflict", str(error), {"file": error.file} if isinstance(error, OwnedByFile) else {})


def _malformed(error: Malformed) -> HttpProblem:
    code = error.code if error.code in KINDS else "malformed"
    # The envelope's messages about attributes start with "<name>: " (events.py).
    members = {"attribute": str(error).partition(":")[0]} if code == "attribute" else {}
    return HttpProblem(code, str(error), members)


def _definition_problem(problem: Problem) -> dict[str, Any]:
    members = {
        "message": problem.message,
        "key": problem.key or None,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "expected": problem.expected,
    }
    return {name: value for name, value in members.items() if value is not None}
