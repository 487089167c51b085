"""The members of a JSON object in a request's body. Every refusal is a 422 that names the member."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from starlette.requests import Request

from appliance.http.body import decode_json, header, media_type, read_body
from appliance.http.problems import HttpProblem, attribute_problem
from appliance.settings import HttpSettings

_MAX_NUMBER = 2**31 - 1


class Members:
    """A body: a JSON object with known members, or nothing at all, which is an empty one."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    @classmethod
    async def of(cls, request: Request, settings: HttpSettings, known: Collection[str]) -> Members:
        """Read the body of a request; refuses other media types, what is no object, and unknown members."""
        raw = await read_body(request.scope, request.receive, settings.max_body_bytes)
        if not raw.strip():
            return cls({})
        if media_type(header(request.scope, b"content-type")) not in ("", "application/json"):
            raise HttpProblem("unsupported-media-type", "Send application/json.")
        values = decode_json(raw, settings.max_depth)
        if not isinstance(values, dict):
            raise HttpProblem("not-an-object", f"Send a JSON object; there is {', '.join(known)}.")
        for name in values:
            if name not in known:
                raise attribute_problem(name[:80], f"unknown; there is {', '.join(known)}.")
        return cls(values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def any(self, name: str) -> Any:
        """The member as it is; None if it was left out."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """A text that is not empty; None if it was left out, or null."""
        value = self._values.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            raise attribute_problem(name, f"expected a text, got {value!r:.80}.")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """One of some texts; None if it was left out, or null."""
        value = self._values.get(name)
        if value is not None and value not in choices:
            raise attribute_problem(name, f"expected one of {', '.join(choices)}, got {value!r:.80}.")
        return None if value is None else str(value)

    def flag(self, name: str) -> bool:
        """true or false; false if it was left out."""
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise attribute_problem(name, f"expected true or false, got {value!r:.80}.")
        return value

    def number(self, name: str) -> int | None:
        """A whole number of at least 1; None if it was left out, or null."""
        value = self._values.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= _MAX_NUMBER):
            raise attribute_problem(name, f"expected a whole number from 1 to {_MAX_NUMBER}, got {value!r:.80}.")
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """A list of 1 to ``most`` texts, none twice."""
        value = self._values.get(name)
        if not isinstance(value, list) or not 1 <= len(value) <= most or not all(isinstance(v, str) for v in value):
            raise attribute_problem(name, f"expected a list of 1 to {most} texts.")
        if len(set(value)) < len(value):
            raise attribute_problem(name, "one of them stands there twice.")
        return value
