"""HTML forms, urlencoded and multipart, decoded into text fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from appliance.errors import Malformed
from appliance.http.problems import HttpProblem, attribute_problem, too_large

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"

RESERVED = ("template_id", "org_id", "_redirect", "_idempotency_key")
"""Fields that mean something to ``/submit``; all others are the form's data."""

_MAX_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class Form:
    """A form's fields: the reserved ones by name, and the data, in which a field sent repeatedly is a list."""

    reserved: dict[str, str]
    data: dict[str, Any]


def decode_form(body: bytes, media_type: str, content_type: str) -> Form:
    """Decode a body of either media type; raises Malformed or a problem.

    Files are refused. An empty file input (no file chosen) is an empty text.
    """
    pairs = _multipart(body, content_type) if media_type == MULTIPART else _urlencoded(body)
    return _form(pairs)


def _form(pairs: Iterable[tuple[str, str]]) -> Form:
    reserved: dict[str, str] = {}
    data: dict[str, Any] = {}
    for name, value in pairs:
        if "\0" in name or "\0" in value:
            raise Malformed(f"{name[:80]!r}: the text contains NUL, which can't be stored", code="nul-character")
        if name not in RESERVED:
            _add(data, name, value)
        elif name in reserved:
            raise attribute_problem(name, "sent more than once.")
        else:
            reserved[name] = value
    return Form(reserved, data)


def _add(data: dict[str, Any], name: str, value: str) -> None:
    if name not in data:
        data[name] = value
    elif isinstance(data[name], list):
        data[name].append(value)
    else:
        data[name] = [data[name], value]


def _urlencoded(body: bytes) -> list[tuple[str, str]]:
    if body.count(b"&") >= _MAX_FIELDS:
        raise _too_many_fields()
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise Malformed("the form is not UTF-8", code="not-utf8") from None


def _multipart(body: bytes, content_type: str) -> list[tuple[str, str]]:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise HttpProblem("bad-form", "The Content-Type has no boundary.")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]  # a TypedDict of optional keys
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise HttpProblem("bad-form", f"The multipart body can't be decoded: {error}") from None
    if not parts.ended:
        raise HttpProblem("bad-form", "The multipart body ends before its last boundary.")
    return parts.pairs


@dataclass(slots=True)
class _Parts:
    """Collects the parts of a multipart body from the parser's callbacks."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    ended: bool = False
    _name: str = ""
    _filename: str | None = None
    _disposition: bytes = b""
    _header_name: bytearray = field(default_factory=bytearray)
    _header_value: bytearray = field(default_factory=bytearray)
    _content: bytearray = field(default_factory=bytearray)

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": lambda data, start, end: self._content.extend(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.pairs) >= _MAX_FIELDS:
            raise _too_many_fields()
        self._disposition = b""
        self._content.clear()

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"name" not in options:
            raise HttpProblem("bad-form", "A part has no name.")
        self._name = _text(options[b"name"], "a field name")
        self._filename = _text(options[b"filename"], self._name) if b"filename" in options else None

    def _end_part(self) -> None:
        if self._filename or (self._filename is not None and self._content):
            raise HttpProblem("file-upload", f"{self._name}: files are not accepted.", {"attribute": self._name})
        self.pairs.append((self._name, _text(bytes(self._content), self._name)))

    def _end(self) -> None:
        self.ended = True


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Malformed(f"{name}: not UTF-8", code="not-utf8") from None


def _too_many_fields() -> HttpProblem:
    return too_large(f"More than {_MAX_FIELDS} form fields.")
