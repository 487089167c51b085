"""The event envelope (CloudEvents 1.0 names) and the entry formats that decode into it.

An entry is one of these, tried in this order (bytes in, :class:`Event` or :class:`~appliance.errors.Malformed` out):

1. ``event`` holds a CloudEvents JSON object (the appliance's own entries; anybody may write them). The appliance adds
   ``uid`` (its own key of the event); when the sender gave a key to deduplicate by, ``key``; and for an event that
   starts a workflow by name ``start``, ``{"workflow": name, "origin": "manual" | "schedule"}``.
2. Exactly one field, of any name, whose value is a JSON object with ``specversion``: a CloudEvents JSON object.
3. Any flat fields (``XADD appliance:events:normal * type order.paid data '{"total": 5}'``):

   ============  ======================================================================================
   type          field ``type``, else ``redis.entry``
   id            field ``id``, else ``<priority>-<entry id>``
   source        field ``source``, else ``redis:<stream>``
   subject       field ``subject``, if there is one
   time          field ``time`` (RFC 3339), else the entry id's milliseconds
   data          field ``data`` as JSON; without it, an object of all fields that have no meaning here
   attributes    beside a ``data`` field: all fields that have no meaning here, as texts
   ============  ======================================================================================

Internal work (timers that fell due, redrives) travels in the same streams in a field ``work``; see ``stream/work.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from appliance.errors import Malformed
from appliance.identifiers import derived_uuid7, is_uuid, key_uuid, uuid7

PRIORITIES = ("high", "normal", "low")
ORIGINS = ("manual", "schedule")
"""What makes an event start a workflow by name."""

FIELD_EVENT = b"event"
FIELD_UID = b"uid"
FIELD_KEY = b"key"
FIELD_START = b"start"
FIELD_WORK = b"work"
FIELD_AGAIN = b"again"
"""In an entry that was put in again, because the first one was lost: its event may be recorded already."""
FIELD_COUNTED = b"counted"
"""In one whose event the ledger counts as accepted by an earlier entry."""

# Attribute names that criteria and templates see at the root, so an extension can't take them.
CORE = frozenset({"id", "source", "type", "subject", "time", "data"})
_START = ("workflow", "origin")
_DROPPED = frozenset({"specversion", "data_base64"})
_MAX_TEXT = 1024
"""Longest id, source, type, subject or attribute value, in characters."""
_MAX_BYTES = 2048
"""The same in bytes of UTF-8: ids stand in an index, whose rows end at 2,700 bytes."""
_MAX_ATTRIBUTES = 64
MAX_DEPTH = 200
"""Levels of nested JSON data in an event. orjson reads 1,024 but writes 254, and an event travels inside other data."""
_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")


class Event(NamedTuple):
    """An immutable fact (a NamedTuple because one is made for every entry).

    ``uid`` is the appliance's own key (a UUIDv7); ``id`` is the sender's, or the ``uid`` when the sender gave none.
    ``time`` is an RFC 3339 text in UTC. ``data`` is JSON data. ``attributes`` are CloudEvents extensions and such
    (``template_id``, ``org_id``, ``submission_id``, ``datacontenttype`` …), all JSON scalars.
    ``key`` is the digest that duplicates share, or None when the sender gave nothing to tell duplicates by.
    ``start`` is the name of a workflow that the event starts whatever its triggers are, and the origin of its run.
    """

    uid: str
    id: str
    source: str
    type: str
    time: str
    subject: str | None = None
    data: Any = None
    attributes: Mapping[str, Any] = MappingProxyType({})
    key: str | None = None
    start: tuple[str, str] | None = None

    def view(self) -> dict[str, Any]:
        """The event as criteria and templates see it: attributes at the root, ``data`` below."""
        return {
            **self.attributes,
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": self.time,
            "data": self.data,
        }

    def to_cloudevent(self) -> dict[str, Any]:
        """The event in the CloudEvents JSON format."""
        document = {"specversion": "1.0", **self.view()}
        if self.subject is None:
            del document["subject"]
        return document

    def to_entry(self) -> dict[bytes, bytes]:
        """The fields of a stream entry that :func:`decode_entry` turns back into this event."""
        entry = {FIELD_UID: self.uid.encode(), FIELD_EVENT: dumps(self.to_cloudevent())}
        if self.key is not None:
            entry[FIELD_KEY] = self.key.encode()
        if self.start is not None:
            entry[FIELD_START] = dumps(dict(zip(_START, self.start, strict=True)))
        return entry


def new_event(
    type: str,
    data: Any,
    *,
    source: str,
    id: str | None = None,
    subject: str | None = None,
    attributes: Mapping[str, Any] | None = None,
    key: str | None = None,
    start: tuple[str, str] | None = None,
) -> Event:
    """A new event of our own making, stamped with the present time."""
    uid = uuid7()
    return Event(
        uid=uid,
        id=id if id is not None else uid,
        source=source,
        type=type,
        time=now_text(),
        subject=subject,
        data=data,
        attributes=attributes or {},
        key=key,
        start=start,
    )


def event_key(source: str, event_id: str) -> str:
    """What two CloudEvents share when they are the same one: a digest of ``source`` and ``id``."""
    return key_uuid("ce", source, event_id)


def from_cloudevent(document: Any, *, uid: str | None = None, key: str | None = None) -> Event:
    """Check a CloudEvents JSON object and turn it into an event; Malformed names the attribute that is wrong.

    With neither ``uid`` nor ``key`` the event is a sender's, and is keyed by its ``source`` and ``id``.
    """
    if not isinstance(document, dict):
        raise Malformed("a CloudEvent is a JSON object", code="not-an-object")
    source = _text(document, "source")
    event_id = _text(document, "id")
    if document.get("specversion", "1.0") != "1.0":
        raise Malformed(f"specversion: expected 1.0, got {document['specversion']!r}", code="specversion")
    if "data_base64" in document:
        raise Malformed("data_base64 is not supported: send JSON data", code="binary-data")
    keyed = key is not None or uid is None
    return Event(
        uid=uid or uuid7(),
        id=event_id,
        source=source,
        type=_text(document, "type"),
        time=_own_time(document.get("time")) if uid is not None else _time(document.get("time")),
        subject=_text(document, "subject") if document.get("subject") is not None else None,
        data=document.get("data"),
        attributes=_attributes(document),
        key=(key or event_key(source, event_id)) if keyed else None,
    )


def decode_entry(stream: str, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """Decode one stream entry; raises Malformed (the entry is then set aside as a dead letter and acknowledged).

    Decoding the same entry again gives the same ``uid``, whoever wrote it.
    """
    raw = fields.get(FIELD_EVENT)
    uid = fields.get(FIELD_UID)
    if raw is not None and uid is not None and is_uuid(own := uid.decode("ascii", "replace")):
        key = fields.get(FIELD_KEY)
        event = from_cloudevent(loads(raw), uid=own, key=_own_key(key) if key else None)
        start = fields.get(FIELD_START)
        return event if start is None else event._replace(start=_started(start))
    foreign = derived_uuid7(entry_ms(entry_id), stream, entry_id, *(part for pair in fields.items() for part in pair))
    document = loads(raw) if raw is not None and raw[:1] == b"{" else _lone_cloudevent(fields)
    if document is not None:
        source, event_id = document.get("source"), document.get("id")
        known = isinstance(source, str) and isinstance(event_id, str)
        return from_cloudevent(document, uid=foreign, key=event_key(str(source), str(event_id)) if known else None)
    return _from_flat(stream, entry_id, fields, foreign)


def _own_key(raw: bytes) -> str:
    """A key as we write them; what another program wrote there becomes one."""
    key = raw.decode("ascii", "replace")
    return key if is_uuid(key) else key_uuid("foreign", raw)


def _started(raw: bytes) -> tuple[str, str]:
    """The field ``start`` of an entry of ours."""
    document = loads(raw)
    if not isinstance(document, dict) or document.keys() != set(_START) or document["origin"] not in ORIGINS:
        raise Malformed(
            f'start: expected {{"workflow": name, "origin": one of {", ".join(ORIGINS)}}}, got {raw!r:.200}',
            code="start",
        )
    return _text(document, "workflow"), document["origin"]


def entry_ms(entry_id: bytes) -> int:
    """The milliseconds of a stream entry id; raises Malformed if it is none."""
    head, dash, tail = entry_id.partition(b"-")
    if not (dash and head.isdigit() and tail.isdigit()):
        raise Malformed(f"not a stream entry id: {entry_id!r}")
    return int(head)


def loads(raw: bytes) -> Any:
    """JSON from bytes; refuses NaN, lone surrogates, bad UTF-8 and NUL characters (PostgreSQL can't store them).

    Data nested deeper than MAX_DEPTH is refused as well.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"not JSON: {error}", code="not-json") from None
    if len(raw) > 2 * MAX_DEPTH and deeper_than(value, MAX_DEPTH, raw):  # a level needs two brackets
        raise Malformed(f"nested deeper than {MAX_DEPTH} levels", code="too-deep")
    if b"\\u0000" in raw and contains_nul(value):
        raise Malformed("the text contains NUL (\\u0000), which can't be stored", code="nul-character")
    return value


def dumps(value: Any) -> bytes:
    """Compact JSON; raises Malformed for what JSON can't hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError) as error:  # orjson.JSONEncodeError is a TypeError
        raise Malformed(f"not JSON data: {error}", code="not-json") from None


def deeper_than(value: Any, levels: int, raw: bytes) -> bool:
    """Whether JSON data nests containers in more than ``levels`` levels; ``raw`` is the text that it was decoded from.

    It does not recurse: it goes down one level at a time.
    """
    if raw.count(b"{") + raw.count(b"[") <= levels:  # each level needs a bracket of its own
        return False
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        below: list[Any] = []
        for container in layer:
            children = container.values() if isinstance(container, dict) else container
            below.extend(child for child in children if isinstance(child, dict | list))
        if not below:
            return False
        layer = below
    return True


def contains_nul(value: Any) -> bool:
    """Whether any text inside JSON data, nested no deeper than MAX_DEPTH, holds a NUL character."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in k or contains_nul(v) for k, v in value.items())
    return isinstance(value, list) and any(contains_nul(v) for v in value)


def now_text() -> str:
    """The present time as RFC 3339 in UTC with milliseconds."""
    return format_time(datetime.now(UTC))


def format_time(when: datetime) -> str:
    """RFC 3339 in UTC with milliseconds and ``Z``."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lone_cloudevent(fields: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    if len(fields) != 1:
        return None
    (value,) = fields.values()
    if value[:1] != b"{" or b'"specversion"' not in value:
        return None
    document = loads(value)
    return document if isinstance(document, dict) and "specversion" in document else None


def _from_flat(stream: str, entry_id: bytes, fields: Mapping[bytes, bytes], uid: str) -> Event:
    texts = {_utf8(name, "a field name"): value for name, value in fields.items()}
    own: dict[str, Any] = {
        name: _utf8(texts.pop(name), name) for name in ("type", "id", "source", "subject", "time") if name in texts
    }
    source = _text(own, "source") if own.get("source") else f"redis:{stream}"
    has_data = "data" in texts
    data = loads(texts.pop("data")) if has_data else None
    others = {name: _utf8(value, name) for name, value in texts.items()}
    return Event(
        uid=uid,
        id=_text(own, "id") if own.get("id") else f"{stream.rsplit(':', 1)[-1]}-{entry_id.decode()}",
        source=source,
        type=_text(own, "type") if "type" in own else "redis.entry",
        time=_time(own["time"]) if "time" in own else _entry_time(entry_id),
        subject=_text(own, "subject") if own.get("subject") else None,
        data=data if has_data else others,
        attributes=_attributes(others) if has_data else {},
        key=event_key(source, own["id"]) if own.get("id") else None,
    )


def _entry_time(entry_id: bytes) -> str:
    try:
        return format_time(datetime.fromtimestamp(entry_ms(entry_id) / 1000, UTC))
    except (ValueError, OverflowError, OSError):
        return now_text()  # somebody chose an id that is no time


def _utf8(raw: bytes, name: str) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Malformed(f"{name}: not UTF-8", code="not-utf8") from None
    if "\0" in text:
        raise Malformed(f"{name}: contains NUL, which can't be stored", code="nul-character")
    return text


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise Malformed(f"{name}: expected a non-empty text, got {value!r:.80}", code="attribute")
    if len(value) > _MAX_TEXT:
        raise Malformed(f"{name}: longer than {_MAX_TEXT} characters", code="attribute")
    if len(value) > _MAX_BYTES // 4 and len(value.encode("utf-8", "surrogatepass")) > _MAX_BYTES:
        raise Malformed(f"{name}: longer than {_MAX_BYTES} bytes", code="attribute")
    return value


def _time(value: Any) -> str:
    if value is None:
        return now_text()
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise Malformed(f"time: expected an RFC 3339 time with an offset, got {value!r:.80}", code="attribute")
    try:
        return format_time(datetime.fromisoformat(value.upper()))
    except (ValueError, OverflowError):
        raise Malformed(f"time: no such time: {value}", code="attribute") from None


def _own_time(value: Any) -> str:
    """As :func:`_time`, with a short way for what :func:`format_time` wrote."""
    if isinstance(value, str) and len(value) == 24 and value[-1] == "Z" and value[10] == "T":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return _time(value)
        return value
    return _time(value)


def _attributes(document: Mapping[str, Any]) -> dict[str, Any]:
    attributes = {k: v for k, v in document.items() if k not in CORE and k not in _DROPPED}
    if len(attributes) > _MAX_ATTRIBUTES:
        raise Malformed(f"more than {_MAX_ATTRIBUTES} attributes", code="attribute")
    for name, value in attributes.items():
        if not isinstance(value, str | int | float | bool | None):
            raise Malformed(f"{name}: an attribute is a text, number or boolean", code="attribute")
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise Malformed(f"{name}: longer than {_MAX_TEXT} characters", code="attribute")
    return attributes
