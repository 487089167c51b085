"""ETags: what a request says that it has seen (RFC 9110, 13.1), and the header that tells it."""

from __future__ import annotations

import re

from starlette.types import Scope

from appliance.http.problems import HttpProblem
from appliance.http.reply import RawHeaders
from appliance.preconditions import ANY, Precondition

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_LIST = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_EACH = re.compile(r'(W/)?"([^"]*)"')


def precondition_of(scope: Scope) -> Precondition:
    """``If-Match`` (ETags, or ``*``) and ``If-None-Match`` (``*``) of a change; a 400 problem for anything else.

    A weak ETag matches nothing here.
    """
    match = _field(scope, b"if-match")
    absent = _field(scope, b"if-none-match")
    if absent is not None and absent.strip() != ANY:
        raise HttpProblem("bad-request", "If-None-Match: expected *, which creates only.")
    if match is None or match.strip() == ANY:
        return Precondition(None if match is None else frozenset({ANY}), absent is not None)
    strong = (tag for tag, weak in _tags("If-Match", match) if not weak)
    return Precondition(frozenset(strong), absent is not None)


def is_known(scope: Scope, etag: str) -> bool:
    """Whether ``If-None-Match`` of a read names this ETag, weak or not; a 400 problem for what is no list of them."""
    text = _field(scope, b"if-none-match")
    if text is None or text.strip() == ANY:
        return text is not None
    return any(tag == etag for tag, _ in _tags("If-None-Match", text))


def tagged(etag: str) -> RawHeaders:
    """The header of an answer."""
    return ((b"etag", f'"{etag}"'.encode()),)


def _field(scope: Scope, name: bytes) -> str | None:
    """A header that is a list, its lines joined; None if it isn't there."""
    lines = [str(value, "latin-1") for key, value in scope["headers"] if key == name]
    return ", ".join(lines) if lines else None


def _tags(name: str, text: str) -> list[tuple[str, bool]]:
    """Each ETag of a list without its quotes, and whether it is weak."""
    if _LIST.fullmatch(text) is None:
        detail = f'{name}: expected *, or an ETag in quotes such as "1f0c…"; got {text:.80}'
        raise HttpProblem("bad-request", detail)
    return [(tag, bool(weak)) for weak, tag in _EACH.findall(text)]
