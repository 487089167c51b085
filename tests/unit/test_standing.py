"""A state machine's history, put in order."""

from __future__ import annotations

from typing import Any

from appliance.store.standing import history_of

DEFINITION: dict[str, Any] = {"states": {"a": {}, "b": {}}}


def visit(key: str, at: str, until: str | None) -> dict[str, Any]:
    return {"id": key, "status": "succeeded", "started_at": at, "finished_at": until, "output": None}


def signal(name: str, at: str, state: str | None, taken: str | None) -> dict[str, Any]:
    of_event = {"kind": "event", "event_id": name, "type": name, "at": "00", "taken_at": at if taken else None}
    return {**of_event, "taken": taken, "taken_by": state}


def test_what_one_commit_recorded_stands_where_it_happened() -> None:
    """At 20 one commit said: a ignored x, y led from a to b (at 15), and b ignored z."""
    steps = [visit("a", "10", "15"), visit("a.y.0", "15", "15"), visit("b", "15", None)]
    signals = [signal("x", "20", "a", "ignored"), signal("y", "20", "a", "taken"), signal("z", "20", "b", "ignored")]
    found = [entry.get("type") or entry["state"] for entry in history_of(DEFINITION, steps, signals)]
    assert found == ["a", "x", "y", "b", "z"]


def test_each_visit_has_its_own_events_also_when_clocks_differ() -> None:
    steps = [visit("a", "10", "20"), visit("b", "20", "30"), visit("a#2", "30", None)]
    signals = [
        signal("early", "09", "a", "ignored"),
        signal("late", "31", "a", "ignored"),
        signal("new", "0", None, None),
    ]
    found = [entry.get("type") or entry["state"] for entry in history_of(DEFINITION, steps, signals)]
    assert found == ["new", "early", "a", "b", "a", "late"]
