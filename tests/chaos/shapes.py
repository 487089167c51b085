"""A mixed load of workflows with flow control, and by what they are limited. Each is started by ``flow.<name>``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.chaos.appliance_process import Fleet
from tests.chaos.mixture import Crowd

Step = dict[str, Any]

KEY, LOT = "{{ event.data.key }}", "{{ event.data.lot }}"
KEYS = 3
RATE, BATCH, TURNS, PACE = 4, 5, 40, 4
_RETRY = {"max_attempts": 8, "initial": "10ms", "max": "40ms"}
_FAILING = frozenset({"ordered", "lined", "total"})
MOST: dict[str, int] = {"total": 3, "tenant": 5, "lined": 4, "rated": 3, "lots": 2, "limited": 2, "shifted": 4}
"""How many runs of a workflow may be at work at once."""
MOST_OF_KEY: dict[str, int] = dict.fromkeys(("ordered", "lined", "single", "latest"), 1) | {"tenant": 2, "quiet": 1}
"""The same for each key."""
ORDERED = ("ordered", "lined")


def fails(workflow: str) -> bool:
    """Whether the sink refuses some of a workflow's calls."""
    return workflow in _FAILING


def visit(url: str, step_id: str, **more: Any) -> Step:
    """A step that calls the sink."""
    said = {"url": f"{url}{step_id}", "key": KEY, "n": "{{ event.data.n }}"}
    return {"id": step_id, "action": "visit", "with": said, "retry": _RETRY, **more}


def definitions(url: str) -> list[dict[str, Any]]:
    """The workflows, which call the sink at ``url``."""
    a, b, pause = visit(url, "a"), visit(url, "b"), {"id": "pause", "delay": "20ms"}
    both = {"id": "both", "parallel": {"branches": {"x": [visit(url, "x")], "y": [visit(url, "y")]}, "join": "all"}}
    undone = visit(url, "a", compensate={key: value for key, value in visit(url, "una").items() if key != "id"})
    call = {"id": "call", "workflow": {"name": "limited", "input": {"n": "{{ item }}"}}}
    each = {"id": "each", "for_each": {"items": list(range(5)), "concurrency": 5, "steps": [call]}}
    return [
        {"name": "total", "concurrency": MOST["total"], "steps": [a, pause, b]},
        {
            "name": "tenant",
            "concurrency": [MOST["tenant"], {"key": KEY, "limit": MOST_OF_KEY["tenant"]}],
            "steps": [both, pause, b],
        },
        {"name": "ordered", "ordering_key": KEY, "steps": [a, pause, b]},
        {
            "name": "lined",
            "ordering_key": KEY,
            "throttle": {"limit": TURNS, "period": "1s", "burst": 10},
            "concurrency": MOST["lined"],
            "steps": [a, b],
        },
        {"name": "paced", "throttle": {"limit": PACE, "period": "1s", "key": KEY}, "steps": [a]},
        {
            "name": "rated",
            "rate_limit": {"limit": RATE, "period": "1h", "key": LOT},
            "concurrency": MOST["rated"],
            "steps": [a, pause, b],
        },
        {"name": "calm", "debounce": {"period": "150ms", "timeout": "600ms", "key": KEY}, "steps": [a]},
        {
            "name": "quiet",
            "debounce": {"period": "100ms", "key": KEY},
            "throttle": {"limit": TURNS, "period": "1s"},
            "singleton": {"mode": "replace", "key": KEY},
            "steps": [a, b],
        },
        {
            "name": "lots",
            "batch": {"size": BATCH, "timeout": "300ms", "key": KEY},
            "concurrency": MOST["lots"],
            "steps": [a, b],
            "output": {"all": "{{ events | map(attribute='id') | list }}"},
        },
        {"name": "single", "singleton": {"mode": "skip", "key": KEY}, "steps": [a, pause, b]},
        {"name": "latest", "singleton": {"mode": "replace", "key": KEY}, "steps": [undone, pause, b]},
        {"name": "limited", "trigger": "manual", "concurrency": MOST["limited"], "steps": [a, pause, b]},
        {"name": "caller", "steps": [each]},
        shifted(url, 3),
        adopting(url, {"concurrency": 2}),
    ]


def shifted(url: str, limit: int) -> dict[str, Any]:
    """One whose limit changes, at most up to what :data:`MOST` says."""
    steps = [visit(url, "a"), {"id": "pause", "delay": "20ms"}, visit(url, "b")]
    return {"name": "shifted", "concurrency": limit, "steps": steps}


def adopting(url: str, control: dict[str, Any]) -> dict[str, Any]:
    """One that gets flow control, or loses it."""
    return {
        "name": "adopting",
        **control,
        "steps": [visit(url, "a"), {"id": "pause", "delay": "20ms"}, visit(url, "b")],
    }


CONTROLS: tuple[dict[str, Any], ...] = (
    {},
    {"ordering_key": KEY},
    {"concurrency": 1},
    {"throttle": {"limit": TURNS, "period": "1s"}},
    {"singleton": {"mode": "skip", "key": KEY}},
    {"concurrency": [3, {"key": KEY, "limit": 1}], "ordering_key": KEY},
    {"debounce": {"period": "100ms", "key": KEY}},
    {"batch": {"size": BATCH, "timeout": "200ms"}},
)
"""What ``adopting`` may have."""
KINDS = (
    *("total", "tenant", "ordered", "lined", "paced", "rated", "calm", "quiet", "lots", "single", "latest"),
    *("caller", "shifted", "adopting"),
)


def put(fleet: Fleet, *changed: dict[str, Any]) -> None:
    """Put workflows into the configuration folder."""
    for definition in changed:
        name = definition["name"]
        fleet.workflow(name, json.dumps({"trigger": {"event": f"flow.{name}"}, **definition}))


async def send(crowd: Crowd, kind: str, n: int) -> None:
    """Have an event accepted that starts a run of ``kind``."""
    type_, data = f"flow.{kind}", {"n": n, "key": f"k{crowd.dice.randrange(KEYS)}", "lot": f"l{n // 10}"}
    event = {"type": type_, "source": "/chaos", "id": f"{type_}-{n}", "data": data}
    uid = str((await crowd.ask("POST", "events", event)).json()["uid"])
    crowd.site.accepted.ids.add(uid)


async def send_round(crowd: Crowd, number: int, burst: int) -> None:
    """``burst`` events of each kind, at once and in any order; of calls only one."""
    sends = [(kind, number * burst + k) for kind in KINDS for k in range(burst if kind != "caller" else 1)]
    crowd.dice.shuffle(sends)
    await asyncio.gather(*(send(crowd, kind, n) for kind, n in sends))
