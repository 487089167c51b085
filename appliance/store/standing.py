"""Where a run stands, in the words of its definition: what it waits for, and a state machine's state and history."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from appliance.events import format_time
from appliance.identifiers import milliseconds_of
from appliance.store.reading import Item

_VISIT = re.compile(r"[#\[]")
_DATA = frozenset({"with", "input", "form", "output", "transform", "match"})
"""Keys of a step behind which data stands, in which no step is looked for."""
_TIMED = frozenset({"collected", "turn"})
"""What flow control has runs wait for until some time; for the rest they are in a queue."""


def step_of(key: str) -> str:
    """The id of the step that a key is a visit of."""
    return _VISIT.split(key, maxsplit=1)[0]


def waits_of(definition: Mapping[str, Any], found: Sequence[Item], place: Mapping[str, Any] | None) -> list[Item]:
    """What a run listens for, from when on: rows of ``get_waits``, with what the definition says of each.

    ``step`` is empty for a state machine, which listens for what its present state takes.
    """
    steps = {step["id"]: step["wait"] for step in _waiting_steps(definition)}
    items = []
    for row in found:
        since = format_time(datetime.fromtimestamp(milliseconds_of(row["since"]) / 1000, UTC))
        if row["step"]:
            wait = steps.get(step_of(row["step"]), {})
        else:
            wait = {"event": list(dict.fromkeys(taken["event"] for taken in events_of(definition, place)))}
        items.append({"step": row["step"], "since": since, **{k: wait.get(k) for k in ("event", "match", "when")}})
    return items


def held_of(row: Item) -> Item | None:
    """What flow control has a run wait for: ``for``, ``key``, ``until`` and ``position``; None if it doesn't wait.

    Takes ``flow``, ``holder`` and ``ahead`` out of the row. ``ahead`` is how many come before it in its queue, None if
    it is in none, negative if they are too many to be counted.
    """
    flow, holder, ahead = row.pop("flow"), row.pop("holder"), row.pop("ahead")
    if not flow or holder != "timer" or (ahead is None and flow["stage"] not in _TIMED):
        return None
    position = ahead + 1 if ahead is not None and ahead >= 0 else None
    part = flow["part"].partition(".")[0]
    return {"for": part, "key": flow["key"], "until": _time(flow["until"]), "position": position}


def machine_of(definition: Mapping[str, Any], place: Mapping[str, Any] | None, key: str | None) -> Item | None:
    """A state machine's place, as :func:`placed` tells it; None for a run of steps."""
    return placed(place, key) if _states(definition) else None


def placed(place: Mapping[str, Any] | None, key: str | None) -> Item:
    """A state machine's business ``key``, its ``state``, ``since`` when it is in it, and that state's ``deadline``."""
    where = place or {}
    return {
        "key": key,
        "state": where.get("state"),
        "since": _time(where.get("entered_at")),
        "deadline": _time(where.get("due_at")),
    }


def events_of(definition: Mapping[str, Any], place: Mapping[str, Any] | None) -> list[Item]:
    """The events that a state machine would take now, with the conditions as they were written and the next state."""
    name = str((place or {}).get("state"))
    state = _states(definition).get(name) or {}
    return [
        {"event": event, "when": transition.get("when"), "next": transition.get("next") or name}
        for event, transitions in (state.get("on") or {}).items()
        for transition in (transitions if isinstance(transitions, list) else [transitions])
    ]


def history_of(definition: Mapping[str, Any], steps: Sequence[Item], signals: Sequence[Item]) -> list[Item]:
    """What a state machine went through, in order: the states that it was in, and the events that came in.

    ``steps`` and ``signals`` are those of the run. A state says what took it on (``by``): an event, or its deadline.
    """
    names = _states(definition)
    visits = [
        {
            "kind": "state",
            "at": step["started_at"] or step["finished_at"],
            "state": step_of(step["id"]),
            "until": step["finished_at"],
            "by": step["output"] if isinstance(step["output"], Mapping) else None,
        }
        for step in steps
        if step_of(step["id"]) in names and step["status"] != "skipped"
    ]
    events = [
        {
            "kind": "event",
            "at": _within(signal["taken_at"] or signal["at"], signal["taken_by"], visits),
            "event_id": signal["event_id"],
            "type": signal["type"],
            "taken": signal["taken"],
            "state": signal["taken_by"],
        }
        for signal in signals
        if signal["kind"] == "event"
    ]
    # At one moment: what was ignored, what was taken, and the state that it led to.
    return sorted([*visits, *events], key=lambda e: (e["at"] or "", e["kind"], e.get("taken") or ""))


def _within(at: str, state: str | None, visits: Sequence[Item]) -> str:
    """When a state looked at an event: the time of the commit is recorded, and by then the state may be left."""
    mine = [visit for visit in visits if visit["state"] == state]
    if not mine:
        return at
    visit = next((v for v in reversed(mine) if v["at"] <= at), mine[0])
    began, ended = str(visit["at"]), str(visit["until"] or at)
    return max(began, min(at, ended))


def _states(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    states = definition.get("states")
    return states if isinstance(states, Mapping) else {}


def _waiting_steps(part: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(part, Mapping):
        if isinstance(part.get("id"), str) and isinstance(part.get("wait"), Mapping):
            yield part
        for name, inner in part.items():
            if name not in _DATA:
                yield from _waiting_steps(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _waiting_steps(inner)


def _time(seconds: Any) -> str | None:
    return format_time(datetime.fromtimestamp(seconds, UTC)) if isinstance(seconds, int | float) else None
