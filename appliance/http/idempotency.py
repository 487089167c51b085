"""The ``Idempotency-Key`` header: what a sender calls the same request by."""

from __future__ import annotations

from starlette.types import Scope

from appliance.http.problems import HttpProblem

_MAX_LENGTH = 256


def key_of(scope: Scope) -> str | None:
    """The request's key, or None; raises a 422 problem for one that can't be used."""
    for name, value in scope["headers"]:
        if name == b"idempotency-key":
            return checked_key(str(value, "latin-1"))
    return None


def checked_key(text: str) -> str:
    """A usable key, without the quotes that the IETF draft's structured string has around it."""
    key = text.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > _MAX_LENGTH:
        name = "Idempotency-Key"
        raise HttpProblem("attribute", f"{name}: expected 1 to {_MAX_LENGTH} characters.", {"attribute": name})
    return key
