"""The API key: ``Authorization: Bearer <key>`` or ``X-API-Key: <key>``."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from appliance.http.problems import HttpProblem

ACTOR = "api"
"""Who did it, in the audit log: there is one key, so there is one name."""


class Authenticator:
    """Compares what a request brings with the key, in constant time (of digests, so that the length stays hidden)."""

    def __init__(self, api_key: str) -> None:
        if not api_key:
            raise ValueError("an API key can't be empty")
        self._digest = _digest(api_key.encode())

    def require(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The actor's name; raises a 401 problem without the right key. ``headers`` are an ASGI scope's."""
        given = _key_in(headers)
        if given is None:
            raise _unauthorized("Send the key as Authorization: Bearer or as X-API-Key.", "")
        if not hmac.compare_digest(_digest(given), self._digest):
            raise _unauthorized("The API key is wrong.", ', error="invalid_token"')
        return ACTOR


def _key_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
    return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthorized(detail: str, error: str) -> HttpProblem:
    challenge = {"WWW-Authenticate": f'Bearer realm="appliance"{error}'}
    return HttpProblem("unauthorized", detail, headers=challenge)
