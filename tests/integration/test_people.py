"""People and live workflows: started by name, answered through links, looked at while they wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest_asyncio

from appliance.events import new_event
from appliance.http.app import create_app
from appliance.http.services import Services
from tests.integration.test_heart import Heart, instant
from tests.servers import wait_until

FORM = {
    "type": "object",
    "required": ["amount"],
    "properties": {"amount": {"type": "integer", "minimum": 1}, "note": {"type": "string"}, "ok": {"type": "boolean"}},
}
APPROVAL = {
    "name": "approval",
    "trigger": "manual",
    "inputs": {"type": "object", "required": ["who"], "properties": {"who": {"type": "string"}}},
    "steps": [
        {
            "id": "ask",
            "human_task": {
                "title": "Approve {{ input.who }}",
                "assignee": "{{ input.who }}",
                "form": FORM,
                "notify": {"action": "told", "with": {"how": "{{ task.link }}"}},
            },
            "deadline": {"after": "1d"},
        },
        {"id": "done", "end": {"outcome": "approved", "output": "{{ steps.ask.output }}"}},
    ],
}
REFUND = {
    "name": "refund",
    "trigger": {"event": "asked"},
    "correlate": "{{ event.subject }}",
    "initial": "pending",
    "states": {
        "pending": {
            "on": {"approved": {"next": "paid", "when": {"path": "data.n", "op": "<=", "value": 5}}},
            "deadline": {"after": "2d", "next": "late"},
        },
        "paid": {"on": {"closed": {"next": "over"}}, "deadline": {"after": "2d", "next": "late"}},
        "over": {"final": True},
        "late": {"final": True},
    },
}


class Door:
    """A replica that runs, and a client of its HTTP interface."""

    def __init__(self, heart: Heart, client: httpx.AsyncClient) -> None:
        self.heart = heart
        self.client = client

    async def get(self, path: str) -> Any:
        return (await self.client.get(f"/api/v1{path}")).json()

    async def until(self, run_id: str, status: str) -> dict[str, Any]:
        async def reached() -> Any:
            response = await self.client.get(f"/api/v1/runs/{run_id}")
            return response.json() if response.json().get("status") == status else None

        found: dict[str, Any] = await wait_until(reached, f"run {run_id} to be {status}")
        return found

    async def event(self, type: str, **more: Any) -> None:
        await self.heart.replicas[0].producer.submit(new_event(type, more.pop("data", None), source="/t", **more))


@pytest_asyncio.fixture
async def door(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Door]:
    async with contextlib.AsyncExitStack() as stack:
        heart = Heart(redis_url, database_url, tmp_path, stack)
        heart.behave = defaultdict(lambda: instant)
        replica = await heart.replica(http={"public_url": "https://people.example"})
        unused: Any = MagicMock()
        services = Services(
            settings=replica.settings,
            producer=replica.producer,
            catalog=replica.catalog,
            editor=replica.editor,
            impact=replica.impact,
            history=replica.history,
            control=replica.control,
            tasks=replica.tasks,
            links=replica.links,
            schedules=unused,
            sources=unused,
            queues=unused,
            registry=unused,
            ledger=replica.bookkeeper.ledger,
            recover=unused,
            trace=unused,
            health=unused,
            schema=dict,
            api_key="k",
            metrics=unused,
        )
        transport = httpx.ASGITransport(create_app(services))
        client = httpx.AsyncClient(transport=transport, base_url="https://people.example", headers={"X-API-Key": "k"})
        yield Door(heart, await stack.enter_async_context(client))


async def test_a_run_that_was_started_by_name_is_answered_through_its_link(door: Door) -> None:
    await door.heart.replicas[0].catalog.put(APPROVAL)
    started = await door.client.post("/api/v1/workflows/approval/runs", json={"input": {"who": "ann"}})
    run_id = started.json()["run_id"]
    run = await door.until(run_id, "waiting")
    assert (run["origin"], run["input"], [t["assignee"] for t in run["tasks"]]) == ("manual", {"who": "ann"}, ["ann"])
    (link,) = await wait_until(lambda: list(door.heart.calls), "the notice")

    page = await door.client.get(link)
    assert (page.status_code, "Approve ann" in page.text) == (200, True)
    wrong = await door.client.post(link, data={"amount": "0", "note": "kept"})
    assert (wrong.status_code, "kept" in wrong.text) == (422, True)
    answers = await asyncio.gather(*(door.client.post(link, data={"amount": str(n), "ok": "true"}) for n in (1, 2, 3)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]

    run = await door.until(run_id, "succeeded")
    amount = 1 + [answer.status_code for answer in answers].index(200)
    assert (run["outcome"], run["output"]) == ("approved", {"amount": amount, "ok": True})
    assert [(s["kind"], s["by"], s["taken"], s["taken_by"]) for s in run["signals"]] == [
        ("answer", "ann", "taken", "ask")
    ]
    assert (await door.client.get(link)).status_code == 409
    (task,) = (await door.get("/tasks"))["items"]
    assert (task["status"], task["answered_by"], task["step"]) == ("answered", "ann", "ask")


async def test_a_start_with_a_key_is_one_run(door: Door) -> None:
    await door.heart.replicas[0].catalog.put({**APPROVAL, "steps": [{"id": "e", "end": {"output": "{{ input.who }}"}}]})
    body = {"workflow_id": "approval", "payload": {"who": "bob"}}
    answers = await asyncio.gather(
        *(door.client.post("/api/v1/trigger", json=body, headers={"Idempotency-Key": "k"}) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 202]
    (run_id,) = {answer.json()["run_id"] for answer in answers}
    assert (await door.until(run_id, "succeeded"))["output"] == "bob"
    assert [run["id"] for run in (await door.get("/runs?origin=manual"))["items"]] == [run_id]


async def test_a_task_ends_with_its_run_and_says_so(door: Door) -> None:
    await door.heart.replicas[0].catalog.put(APPROVAL)
    started = await door.client.post("/api/v1/workflows/approval/runs", json={"input": {"who": "ann"}})
    run = await door.until(started.json()["run_id"], "waiting")
    task_id = run["tasks"][0]["id"]
    link = (await door.get(f"/tasks/{task_id}"))["link"]
    await door.client.post(f"/api/v1/runs/{run['id']}/cancel")
    await door.until(run["id"], "cancelled")
    page = await door.client.post(link, data={"amount": "1"})
    assert (page.status_code, "No longer needed" in page.text) == (409, True)
    assert (await door.get(f"/tasks/{task_id}"))["status"] == "cancelled"


async def test_a_machine_tells_where_it_is_and_what_it_ignored(door: Door) -> None:
    await door.heart.replicas[0].catalog.put(REFUND)
    await door.event("asked", subject="o/1")

    async def machine() -> dict[str, Any]:
        found: dict[str, Any] = await door.get("/machines/refund/o%2F1")
        return found

    async def went_through(entries: int) -> bool:
        return len((await machine()).get("history", ())) == entries

    await wait_until(lambda: went_through(1), "the machine to begin")
    shown = await machine()
    assert (shown["state"], shown["key"], bool(shown["since"]), bool(shown["deadline"])) == (
        "pending",
        "o/1",
        True,
        True,
    )
    when = {"path": "data.n", "op": "<=", "value": 5}
    assert shown["events"] == [{"event": "approved", "when": when, "next": "paid"}]
    await door.event("approved", subject="o/1", data={"n": 6})
    await wait_until(lambda: went_through(2), "the event to be ignored")
    await door.event("approved", subject="o/1", data={"n": 5})
    await wait_until(lambda: went_through(4), "the machine to be in the next state")
    shown = await machine()
    assert [(h["kind"], h["state"], h.get("taken")) for h in shown["history"]] == [
        ("state", "pending", None),
        ("event", "pending", "ignored"),
        ("event", "pending", "taken"),
        ("state", "paid", None),
    ]
    assert shown["history"][0]["by"]["to"] == "paid"
    assert [m["state"] for m in (await door.get("/machines?workflow=refund"))["items"]] == ["paid"]
    run = await door.get(f"/runs/{shown['run_id']}")
    assert run["waits"][0] | {"step": "", "event": ["closed"]} == run["waits"][0]
    await door.event("closed", subject="o/1")
    ended = await door.until(shown["run_id"], "succeeded")
    assert (ended["outcome"], ended["machine"]["state"]) == ("over", "over")
    assert (await machine())["status"] == 404
