"""A mixed load of durable workflows: one of every kind of step, those who send what they wait for, and people.

Every effect is a call of the sink under the path of its step's id, with the idempotency key of its run and step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.appliance_process import API_KEY, Fleet, Replica
from tests.chaos.site import Site
from tests.chaos.tables import Tables

Step = dict[str, Any]

_PATIENT = {"max_attempts": 20, "initial": "20ms", "max": "300ms"}
_FEW = {"max_attempts": 2, "initial": "10ms", "max": "20ms"}
_ANSWER_WITHIN_S = 60.0
_MATCH = {"path": "data.n", "value": "{{ event.data.n }}"}


def definitions(url: str) -> list[dict[str, Any]]:
    """The workflows, which call the sink at ``url``. Each is started by events of the type ``chaos.<name>``."""

    def call(step_id: str, **more: Any) -> Step:
        return {"id": step_id, **_calling(url, step_id), **more}

    def undone(step_id: str) -> Step:
        return call(step_id, compensate=_calling(url, f"un{step_id}"))

    return [
        {
            "name": "line",
            "steps": [call("l1"), {"id": "l2", "delay": "30ms"}, call("l3"), {"id": "l4", "transform": 4}, call("l5")],
        },
        {
            "name": "both",
            "steps": [
                {
                    "id": "b0",
                    "parallel": {
                        "branches": {
                            "x": [{"id": "b1", "delay": "20ms"}, call("b2")],
                            "y": [call("b3"), call("b4")],
                            "z": [{"id": "b5", "delay": "60ms"}],
                        },
                        "join": "all",
                    },
                },
                call("b6"),
            ],
        },
        {
            "name": "first",
            "steps": [
                {
                    "id": "f0",
                    "parallel": {
                        "branches": {
                            "fast": [{"id": "f1", "delay": "10ms"}, call("f2")],
                            "never": [{"id": "f3", "wait": {"event": "chaos.never"}, "forever": True}],
                            "late": [{"id": "f4", "delay": "10d"}],
                        },
                        "join": "any",
                    },
                },
                call("f5"),
            ],
        },
        {
            "name": "each",
            "steps": [
                {
                    "id": "e0",
                    "for_each": {
                        "items": [1, 2, 3, 4],
                        "concurrency": 2,
                        "steps": [call("e1"), {"id": "e2", "delay": "10ms"}],
                    },
                },
                call("e3"),
            ],
        },
        {
            "name": "meet",
            "steps": [
                call("m1"),
                {"id": "m2", "wait": {"event": "chaos.met", "match": _MATCH}, "forever": True},
                call("m3"),
            ],
        },
        {
            "name": "ask",
            "steps": [
                {"id": "a1", "human_task": {"title": "ok?", "notify": _calling(url, "a2")}, "forever": True},
                call("a3"),
            ],
        },
        {"name": "inner", "trigger": "manual", "steps": [{"id": "i1", "delay": "20ms"}, call("i2")]},
        {
            "name": "outer",
            "steps": [call("o1"), {"id": "o2", "workflow": {"name": "inner", "input": {"n": 1}}}, call("o3")],
        },
        {
            "name": "door",
            "correlate": "{{ event.data.n }}",
            "initial": "open",
            "states": {
                "open": {
                    "enter": [call("d1")],
                    "on": {
                        "chaos.knock": {"do": [call("d2")]},
                        "chaos.close": {"next": "shut", "do": [call("d3")]},
                    },
                },
                "shut": {"final": True},
            },
        },
        {
            "name": "saga",
            "steps": [
                undone("s1"),
                {"id": "s2", "delay": "20ms"},
                undone("s3"),
                {"id": "s4", "action": "chaos", "with": {"how": "raise"}, "retry": _FEW},
            ],
            "on_error": [call("s5")],
        },
        {"name": "once", "steps": [_once(url, "n1"), {"id": "n2", "delay": "10ms"}, _once(url, "n3")]},
        {
            "name": "coin",
            "steps": [
                call("c1"),
                {"id": "c2", "action": "chaos", "with": {"how": "coin"}, "retry": {"max_attempts": 1}},
                call("c3"),
            ],
        },
    ]


FOLLOWERS = {"meet": ("chaos.met",), "door": ("chaos.knock", "chaos.knock", "chaos.close")}
"""Types of the events that are sent behind the one that starts a run."""
KINDS = ("line", "both", "first", "each", "meet", "ask", "outer", "door", "saga", "once")
"""What ends the same way whatever happens: all succeed but ``saga``, which fails. ``coin`` may end either way."""
ONCE = frozenset({"/n1", "/n3"})
"""Paths that are called at most once for each key."""


def _calling(url: str, path: str) -> Step:
    return {
        "action": "webhook",
        "with": {"url": f"{url}{path}", "json": {"n": "{{ event.data.n }}"}},
        "retry": _PATIENT,
    }


def _once(url: str, step_id: str) -> Step:
    called = {name: value for name, value in _calling(url, step_id).items() if name != "retry"}
    return {"id": step_id, **called, "effects": "at_most_once"}


def install(fleet: Fleet, url: str) -> None:
    """Put the workflows into the configuration folder."""
    for definition in definitions(url):
        name = definition["name"]
        fleet.workflow(name, json.dumps({"trigger": {"event": f"chaos.{name}"}, **definition}))


@dataclass(slots=True)
class Crowd:
    """Those who send events, answer tasks and settle what nobody knows, through whichever replica is there."""

    site: Site
    tables: Tables
    dice: random.Random
    _clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)

    async def close(self) -> None:
        """Close what was opened."""
        for client in self._clients.values():
            await client.aclose()

    async def ask(
        self, method: str, path: str, body: Any = None, *, fine: Sequence[int] = (200, 202)
    ) -> httpx.Response:
        """An answer with a status in ``fine``, from any replica; asked again while they are away or say 5xx."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _ANSWER_WITHIN_S
        answer: httpx.Response | None = None
        while loop.time() < until:
            if alive := [r for r in self.site.fleet.replicas if r.url and r.process.returncode is None]:
                with contextlib.suppress(httpx.TransportError):
                    client = self._client(self.dice.choice(alive))
                    answer = await client.request(method, f"/api/v1/{path}", json=body)
                    if answer.status_code in fine:
                        return answer
                    assert answer.status_code >= 500, answer.text
            await asyncio.sleep(0.05)
        raise AssertionError(f"no answer to {method} {path}: {answer and answer.text}")

    async def run(self, kind: str, number: str) -> None:
        """Start a run of ``kind``, and send the events that it waits for: at once, or a little later."""
        await self.send(f"chaos.{kind}", number)
        for place, follower in enumerate(FOLLOWERS.get(kind, ())):
            if self.dice.random() < 0.5:
                await asyncio.sleep(self.dice.uniform(0.0, 0.5))
            await self.send(follower, number, suffix=f"-{place}")

    async def send(self, type: str, number: str, suffix: str = "") -> str:
        """Have an event accepted; returns its uid."""
        event = {"type": type, "source": "/chaos", "id": f"{type}-{number}{suffix}", "data": {"n": number}}
        uid = str((await self.ask("POST", "events", event)).json()["uid"])
        self.site.accepted.ids.add(uid)
        return uid

    async def answer_tasks(self) -> int:
        """Answer each open task, twice at once; returns how many there were."""
        tasks = await self.tables.rows("SELECT id::text FROM tasks WHERE status = 'open'")
        body = {"answer": {"ok": True}, "by": "crowd"}
        answers = [
            self.ask("POST", f"tasks/{task}/answer", body, fine=(200, 409)) for (task,) in tasks for _ in range(2)
        ]
        await asyncio.gather(*answers)
        return len(tasks)

    async def settle_unknown(self) -> int:
        """Say of each step whose outcome is unknown that it succeeded or failed; returns how many there were."""
        found = await self.tables.rows(
            "SELECT run_id::text, key FROM steps JOIN runs ON runs.id = run_id "
            "WHERE steps.status = 'unknown' AND runs.finished_at IS NULL"
        )
        for run_id, key in found:
            verdict = {"as": self.dice.choice(["succeeded", "failed"])}
            await self.ask("POST", f"runs/{run_id}/steps/{key}/settle", verdict, fine=(202, 409))
        return len(found)

    def _client(self, replica: Replica) -> httpx.AsyncClient:
        if replica.url not in self._clients:
            headers = {"Authorization": f"Bearer {API_KEY}"}
            self._clients[replica.url] = httpx.AsyncClient(
                base_url=replica.url, headers=headers, timeout=5, trust_env=False
            )
        return self._clients[replica.url]


@contextlib.asynccontextmanager
async def open_crowd(site: Site, tables: Tables, dice: random.Random, *, busy: bool = True) -> AsyncIterator[Crowd]:
    """A crowd; if ``busy``, it answers tasks and settles steps by itself until the block ends."""
    crowd = Crowd(site, tables, dice)
    acts = (crowd.answer_tasks, crowd.settle_unknown) if busy else ()
    people = [asyncio.create_task(_again(act)) for act in acts]
    try:
        yield crowd
    finally:
        for person in people:
            person.cancel()
        await asyncio.gather(*people, return_exceptions=True)
        await crowd.close()


async def _again(act: Callable[[], Awaitable[object]]) -> None:
    while True:
        await act()
        await asyncio.sleep(0.1)
