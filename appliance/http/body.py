"""Request bodies: reading them within their limits, and JSON that is safe to keep."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.types import Receive, Scope

from appliance.errors import ApplianceError, Malformed
from appliance.events import contains_nul, deeper_than
from appliance.http.problems import HttpProblem, too_large

_UTF8 = frozenset({"utf-8", "utf8", "us-ascii"})


class Disconnected(ApplianceError):
    """The client went away before its request was complete: nobody is left to answer."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name, or None."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body; raises a 413 problem as soon as it is known to be longer than ``max_bytes``.

    A body that is compressed or otherwise coded is a 415 problem.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise _body_too_large(max_bytes)
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            detail = f"Content-Encoding: {str(value, 'latin-1')}: send the body as it is."
            raise HttpProblem("unsupported-media-type", detail, headers={"Accept-Encoding": "identity"})
    chunk, more = await _next_chunk(receive)
    if len(chunk) > max_bytes:
        raise _body_too_large(max_bytes)
    if not more:
        return chunk
    chunks, size = [chunk], len(chunk)
    while more:
        chunk, more = await _next_chunk(receive)
        size += len(chunk)
        if size > max_bytes:
            raise _body_too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def media_type(content_type: str | None) -> str:
    """The media type without parameters, lower-case; a charset other than UTF-8 is a 415 problem."""
    if content_type is None:
        return ""
    bare, _, parameters = content_type.partition(";")
    for parameter in parameters.split(";") if parameters else ():
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in _UTF8:
            raise HttpProblem("unsupported-media-type", f"charset {value.strip()}: send UTF-8.")
    return bare.strip().lower()


def decode_json(raw: bytes, max_depth: int) -> Any:
    """JSON data that can be stored: UTF-8, no NaN, no lone surrogates, no NUL, at most ``max_depth`` levels deep.

    Raises Malformed. Nothing here recurses, except orjson within its own limit (1,024 levels).
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _undecodable(raw, error) from None
    if deeper_than(value, max_depth, raw):
        raise Malformed(f"nested deeper than {max_depth} levels", code="too-deep")
    if b"\\u0000" in raw and contains_nul(value):
        raise Malformed("the text contains NUL (\\u0000), which can't be stored", code="nul-character")
    return value


def _undecodable(raw: bytes, error: orjson.JSONDecodeError) -> Malformed:
    if "depth" in error.msg or "ecursion" in error.msg:  # as versions of orjson have put it
        return Malformed("nested far too deeply", code="too-deep")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return Malformed("the body is not UTF-8", code="not-utf8")
    return Malformed(f"not JSON: {error}", code="not-json")


async def _next_chunk(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] != "http.request":
        raise Disconnected("the client went away")
    return message.get("body", b""), message.get("more_body", False)


def _body_too_large(max_bytes: int) -> HttpProblem:
    return too_large(f"The body is larger than {max_bytes} bytes.")
