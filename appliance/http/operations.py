"""The operations of the HTTP interface: what the routes, the OpenAPI document and the tests of both are made from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from appliance.http.reply import Reply

Handler = Callable[[Request], Awaitable[Reply]]
"""Answers one request; raises ApplianceError for anything that is not its usual answer."""

Method = Literal["GET", "POST", "PUT"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter, or a header (all are optional). ``choices`` is empty where any text goes."""

    name: str
    description: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method on one path (``/runs/{id}``).

    ``body`` and ``answer`` name schemas of the OpenAPI document; ``statuses`` are those of a success, ``media_types``
    those of the body, which may be left out if it is ``body_optional``. ``open`` operations need no API key.
    """

    method: Method
    path: str
    handler: Handler
    summary: str
    open: bool = False
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[Parameter, ...] = ()
    body: str | None = None
    body_optional: bool = False
    media_types: tuple[str, ...] = ("application/json",)
    answer: str = "Object"
    answer_type: str = "application/json"
    statuses: tuple[int, ...] = (200,)
