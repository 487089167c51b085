"""The parameters of ``webhook``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, ConfigDict, Field, SecretStr, model_validator

from appliance.plugin import Duration, Params

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"[\t\x20-\x7e]{0,4000}")
_FRAMING = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "accept-encoding",
        "expect",
    }
)
"""Headers that say how the request travels: the client's own business."""
_LONGEST = timedelta(seconds=100)


def _http_url(text: str) -> str:
    parts: SplitResult = urlsplit(text)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError("expected an address that begins with http:// or https:// and has a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user name or password belongs into a header, not into the address")
    if any(character.isspace() or ord(character) < 0x20 for character in text):
        raise ValueError("an address has no white space")
    return text


def _header(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r:.100} is no name of a header")
        if name.lower() in _FRAMING:
            raise ValueError(f"{name} can't be set")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"{name}: expected at most 4000 printable ASCII characters")
    return headers


Status = Annotated[int, Field(ge=200, le=599)]


class Webhook(Params):
    """The request; at most one of ``json`` and ``body``.

    ``expect`` is the status, or statuses, that mean success (any 2xx without it). ``timeout`` bounds the whole
    exchange. ``secret`` signs the body as https://www.standardwebhooks.com describes (``whsec_…``, or any text).
    """

    # "json" would hide a method of pydantic's, so the field has another name inside.
    model_config = ConfigDict(populate_by_name=True)

    url: Annotated[str, AfterValidator(_http_url)]
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    headers: Annotated[dict[str, str], AfterValidator(_header)] = Field({})
    json_: Any = Field(None, alias="json")
    body: str | None = None
    timeout: Annotated[Duration, Field(gt=timedelta(0), le=_LONGEST)] | None = None
    expect: Status | tuple[Status, ...] | None = None
    secret: SecretStr | None = None

    @model_validator(mode="after")
    def _one_body(self) -> Self:
        if self.has_json and self.body is not None:
            raise ValueError("json and body exclude each other")
        return self

    @property
    def has_json(self) -> bool:
        """Whether ``json`` was given; null is JSON, too."""
        return "json_" in self.model_fields_set

    def expects(self, status: int) -> bool:
        """Whether ``status`` means success."""
        if self.expect is None:
            return 200 <= status <= 299
        return status == self.expect if isinstance(self.expect, int) else status in self.expect

    def recipient(self) -> str:
        """The address without its query, which often holds a token."""
        parts = urlsplit(self.url)
        return f"{parts.scheme.lower()}://{parts.netloc}{parts.path}"
