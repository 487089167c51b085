"""Answers: a status, headers and a whole body, sent in two ASGI messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from appliance.events import dumps
from appliance.http.problems import HttpProblem

RawHeaders = Sequence[tuple[bytes, bytes]]

_JSON: RawHeaders = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


class Reply:
    """One answer; an ASGI application, so that Starlette's routes can return it like one of its own responses."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: RawHeaders) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; the length is added here, except that of an answer that stands for another one (304)."""
        length = ((b"content-length", b"%d" % len(self.body)),) if self.status != 304 else ()
        await send({"type": "http.response.start", "status": self.status, "headers": [*self.headers, *length]})
        await send({"type": "http.response.body", "body": self.body})


def json_reply(value: Any, status: int = 200, headers: RawHeaders = ()) -> Reply:
    """JSON, never cached: what the API tells changes by itself."""
    return Reply(status, dumps(value), (*_JSON, *headers))


def problem_reply(problem: HttpProblem) -> Reply:
    """An RFC 9457 problem document."""
    return Reply(problem.status, problem.body(), problem.raw_headers())


def see_other(location: str) -> Reply:
    """303: the browser gets ``location``, printable ASCII, next."""
    return Reply(303, b"", ((b"location", location.encode("ascii")), (b"cache-control", b"no-store")))
