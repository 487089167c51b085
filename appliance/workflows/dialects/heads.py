"""What definitions of all systems have around their steps: a name, a switch, a priority, what a database added."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from appliance.workflows.dialects.draft import Draft, Object

DROPPED = ("id", "org_id", "version", "created_at", "updated_at", "created_by", "createdAt", "updatedAt", "createdBy")
"""What a database adds; workflows are known by their name here, and have revisions."""
SWITCHES = ("enabled", "is_active", "isActive", "active", "is_enabled")
HEAD = ("name", "description", "priority", "order", "status", *SWITCHES, *DROPPED)
_ON = ("active", "enabled", "published")
_OFF = ("inactive", "disabled", "draft", "paused", "archived")
_PRIORITIES = ("high", "normal", "low")


def body_of(document: Object) -> tuple[Object, str]:
    """The definition in a document, and where it stands: ``definition.``, or nowhere in particular."""
    inner = document.get("definition")
    return (inner, "definition.") if isinstance(inner, dict) else (document, "")


def head(document: Object, draft: Draft, known: Iterable[str]) -> Object:
    """Name, description, ``enabled``, ``priority`` and ``order``; keys that are none of ``known`` are problems."""
    body, prefix = body_of(document)
    if body is not document:
        draft.refuse_unknown(document, "", ("definition", *HEAD))
    draft.refuse_unknown(body, prefix.rstrip("."), (*known, *HEAD))
    native: Object = {}
    for part, place in ((body, prefix), (document, "")):
        for key in HEAD:
            if key not in DROPPED and part.get(key) is not None:
                _take(key, part[key], place + key, native, draft)
    if "name" not in native:
        draft.complain("name is missing", "name", "what the workflow is called")
    return native


def _take(key: str, value: Any, place: str, native: Object, draft: Draft) -> None:
    if key in SWITCHES:
        if not isinstance(value, bool):
            draft.complain(f"{key} is no switch", place, "true or false")
        native["enabled"] = value
    elif key == "status":
        if value not in (*_ON, *_OFF):
            draft.complain(f"unknown status {value!r:.80}", place, f"{', '.join(_ON)}, {', '.join(_OFF)}")
        native.setdefault("enabled", value in _ON)
    elif key == "priority" and isinstance(value, int) and not isinstance(value, bool):
        native["order"] = value
    elif key == "priority" and value not in _PRIORITIES:
        draft.complain(f"unknown priority {value!r:.80}", place, f"{', '.join(_PRIORITIES)}, or a number")
    else:
        native[key] = value
    draft.at(native, "", **{_ours(key, native): place})


def _ours(key: str, native: Object) -> str:
    if key in (*SWITCHES, "status"):
        return "enabled"
    return "order" if key == "priority" and "priority" not in native else key
