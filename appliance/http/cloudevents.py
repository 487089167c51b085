"""The HTTP binding of CloudEvents 1.0: structured, batched and binary requests, and a short form for people.

=====================================  ===========================================================================
``application/cloudevents+json``        one event, all attributes in the body
``application/cloudevents-batch+json``  a list of events
any type, with a ``ce-id`` header       binary: attributes in ``ce-*`` headers, the body is the data
``application/json``                    one event or a list, as above; an event without ``specversion`` is in the
                                        short form, in which ``id`` and ``source`` may be left out
=====================================  ===========================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

from appliance.errors import Malformed
from appliance.events import Event, event_key, from_cloudevent
from appliance.http.body import decode_json, header, media_type
from appliance.http.idempotency import key_of
from appliance.http.problems import HttpProblem, attribute_problem, problem_of, too_large
from appliance.identifiers import key_uuid, uuid7
from appliance.settings import HttpSettings

SOURCE = "/api/v1/events"
"""The source of an event in the short form that names none."""
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
PLAIN = "application/json"

_HEADER_PREFIX = b"ce-"
_HEADER_NAME = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True)
class Decoded:
    """The events of a request; ``batch`` says that they came as a list, which is how they are answered."""

    events: tuple[Event, ...]
    batch: bool


def decode_events(scope: Scope, body: bytes, settings: HttpSettings) -> Decoded:
    """The events in a request; raises Malformed or a problem. One wrong event of a batch refuses the batch."""
    content_type = header(scope, b"content-type")
    kind = media_type(content_type)
    if header(scope, b"ce-id") is not None or header(scope, b"ce-specversion") is not None:
        return Decoded((_binary(scope, body, kind, content_type, settings),), batch=False)
    if kind not in (STRUCTURED, BATCH, PLAIN):
        raise HttpProblem("unsupported-media-type", f"Send {STRUCTURED}, {BATCH}, {PLAIN}, or ce-* headers.")
    document = decode_json(body, settings.max_depth)
    if kind == BATCH or (kind == PLAIN and isinstance(document, list)):
        return Decoded(_batch(document, settings.max_batch), batch=True)
    idempotency_key = key_of(scope) if kind == PLAIN else None
    return Decoded((event_of(document, short=kind == PLAIN, idempotency_key=idempotency_key),), batch=False)


def event_of(document: Any, *, short: bool = True, idempotency_key: str | None = None) -> Event:
    """The event in a JSON document; ``short`` allows the short form, keyed by ``idempotency_key`` if it has no id."""
    if not short or not isinstance(document, dict) or "specversion" in document:
        return from_cloudevent(document)
    uid = uuid7()
    full = {"source": SOURCE, "id": uid, **document}
    return from_cloudevent(full, uid=uid, key=_short_key(document, full["source"], idempotency_key))


def _short_key(document: dict[str, Any], source: Any, idempotency_key: str | None) -> str | None:
    if document.get("id") is not None:
        return event_key(str(source), str(document["id"]))
    return key_uuid("events", str(source), idempotency_key) if idempotency_key is not None else None


def _batch(document: Any, max_batch: int) -> tuple[Event, ...]:
    if not isinstance(document, list):
        raise HttpProblem("batch", "A batch is a JSON array of events.")
    if len(document) > max_batch:
        raise too_large(f"More than {max_batch} events in one batch.")
    events: list[Event] = []
    errors: list[dict[str, Any]] = []
    for index, item in enumerate(document):
        try:
            events.append(event_of(item))
        except Malformed as error:
            problem = problem_of(error)
            errors.append({"index": index, "code": problem.code, "detail": problem.detail, **problem.members})
    if errors:
        raise HttpProblem(
            "batch", f"{len(errors)} of {len(document)} events are wrong; none was accepted.", {"errors": errors}
        )
    return tuple(events)


def _binary(scope: Scope, body: bytes, kind: str, content_type: str | None, settings: HttpSettings) -> Event:
    document: dict[str, Any] = {}
    for raw_name, raw_value in scope["headers"]:
        if not raw_name.startswith(_HEADER_PREFIX):
            continue
        name = raw_name[len(_HEADER_PREFIX) :].decode("latin-1")
        if not _HEADER_NAME.fullmatch(name) or name in document or name == "data":
            raise attribute_problem(name[:80], "not an attribute name, or sent twice.")
        document[name] = _header_value(name, raw_value)
    document.setdefault("specversion", "")  # it is required here: without it nothing says which binding this is
    if body:
        document["data"] = _binary_data(body, kind, settings.max_depth)
        document["datacontenttype"] = content_type
    return from_cloudevent(document)


def _binary_data(body: bytes, kind: str, max_depth: int) -> Any:
    if kind in ("", PLAIN) or kind.endswith("+json"):
        return decode_json(body, max_depth)
    if not kind.startswith("text/") and kind != "application/xml" and not kind.endswith("+xml"):
        raise HttpProblem("unsupported-media-type", f"{kind}: data is JSON or text.")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise Malformed("the body is not UTF-8", code="not-utf8") from None
    if "\0" in text:
        raise Malformed("the text contains NUL, which can't be stored", code="nul-character")
    return text


def _header_value(name: str, raw: bytes) -> str:
    """CloudEvents HTTP binding 1.0 §3.1.3.2: unquote a double-quoted string, then percent-decode UTF-8."""
    value = raw.strip()
    if len(value) >= 2 and value[:1] == value[-1:] == b'"':
        value = re.sub(rb"\\(.)", rb"\1", value[1:-1])
    try:
        text = unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise Malformed(f"{name}: not UTF-8", code="not-utf8") from None
    if "\0" in text:
        raise Malformed(f"{name}: contains NUL, which can't be stored", code="nul-character")
    return text
