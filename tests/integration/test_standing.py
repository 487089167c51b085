"""Where runs stand, as the API tells it: what they wait for, what came in, whom they called; and state machines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg_pool import AsyncConnectionPool

from appliance.errors import Malformed, NotFound
from appliance.identifiers import range_start, task_id_for, uuid7
from appliance.store.history import RUN_FILTERS, History
from appliance.store.reading import query

T0 = 1_790_000_000_000
STEPS = {
    "name": "order",
    "steps": [
        {"id": "first", "action": "log", "with": {"id": "answer", "wait": {"event": "not.this"}}},
        {
            "id": "both",
            "parallel": {
                "branches": {
                    "a": [{"id": "answer", "wait": {"event": "reply.*", "match": {"path": "data.n", "value": 7}}}]
                }
            },
        },
    ],
}
STATES = {
    "name": "refund",
    "correlate": "{{ event.subject }}",
    "initial": "pending",
    "states": {
        "pending": {
            "on": {
                "APPROVED": [
                    {"next": "paid", "when": {"path": "data.amount", "op": "<=", "value": 500}},
                    {"next": "review"},
                ],
                "NOTED": {"do": []},
            },
            "deadline": {"after": "48h", "next": "expired"},
        },
        "review": {"on": {"APPROVED": {"next": "paid"}}},
        "paid": {"final": True},
        "expired": {"final": True},
    },
}


class Writer:
    """Writes rows as the engine would."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.conn = conn

    async def workflow(self, definition: dict[str, Any]) -> tuple[int, int]:
        (number,) = await self.one(
            "INSERT INTO workflows (name, origin) VALUES (%s, 'api') RETURNING id", definition["name"]
        )
        (revision,) = await self.one(
            "INSERT INTO revisions (workflow_id, number, digest, definition) VALUES (%s, 1, 'd', %s) RETURNING id",
            number,
            json.dumps(definition),
        )
        return number, revision

    async def run(self, workflow: tuple[int, int], at_ms: int = T0, **columns: Any) -> str:
        run_id = uuid7(at_ms)
        row: dict[str, Any] = {"event_uid": None, "origin": None, "details": None, "result": None, "state": None}
        assert columns.keys() <= {*row, "status"}
        row |= {k: json.dumps(v) if isinstance(v, dict) else v for k, v in columns.items()}
        await self.conn.execute(
            "INSERT INTO runs (id, workflow_id, revision_id, status, version, started_at, updated_at, priority,"
            " event_uid, origin, details, result, state)"
            " VALUES (%(id)s, %(workflow)s, %(revision)s, %(status)s, 1, now(), now(), 'normal',"
            " %(event_uid)s, %(origin)s, %(details)s, %(result)s, %(state)s)",
            {"status": "waiting", **row, "id": run_id, "workflow": workflow[0], "revision": workflow[1]},
        )
        return run_id

    async def event(self, type: str, at_ms: int = T0, data: Any = None) -> str:
        uid = uuid7(at_ms)
        await self.conn.execute(
            "INSERT INTO events (uid, source, type, time, received_at, data, outcome)"
            " VALUES (%s, '/here', %s, now(), now(), %s, 'handled')",
            (uid, type, json.dumps(data)),
        )
        return uid

    async def step(self, run_id: str, key: str, seq: int, at: float, until: float | None = None, **more: Any) -> None:
        await self.conn.execute(
            "INSERT INTO steps (run_id, key, seq, status, attempt, started_at, finished_at, output)"
            " VALUES (%s, %s, %s, %s, 1, to_timestamp(%s), to_timestamp(%s), %s)",
            (run_id, key, seq, more.get("status", "succeeded"), at, until, json.dumps(more.get("output"))),
        )

    async def signal(self, run_id: str, kind: str, at: float, **more: Any) -> None:
        uid = more.get("event")
        await self.conn.execute(
            "INSERT INTO signals (run_id, id, key, kind, event_uid, payload, at, taken, taken_by, taken_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, to_timestamp(%s), %s, %s, to_timestamp(%s))",
            (
                run_id,
                uid or uuid7(),
                more.get("key", ""),
                kind,
                uid,
                json.dumps(more.get("payload")),
                at,
                more.get("taken"),
                more.get("by"),
                at if more.get("taken") else None,
            ),
        )

    async def one(self, statement: str, *values: Any) -> tuple[Any, ...]:
        (row,) = await (await self.conn.execute(statement, values)).fetchall()
        return tuple(row)


@pytest_asyncio.fixture
async def writer(database_url: str) -> AsyncIterator[Writer]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        yield Writer(conn)


@pytest_asyncio.fixture
async def history(database_url: str) -> AsyncIterator[History]:
    async with AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False) as pool:
        yield History(pool)


async def test_a_run_tells_what_it_waits_for_what_came_in_and_whom_it_called(writer: Writer, history: History) -> None:
    workflow = await writer.workflow(STEPS)
    event = await writer.event("order.paid", data={"n": 1})
    run_id = await writer.run(workflow, event_uid=event)
    child = await writer.run(
        workflow,
        T0 + 5,
        origin="subflow",
        status="succeeded",
        details={"input": None, "parent": {"run": run_id, "key": "call"}, "depth": 1},
        result={"outcome": "done", "output": [1]},
    )
    await writer.conn.execute("INSERT INTO children VALUES (%s, 'call', %s)", (run_id, child))
    task = task_id_for(run_id, "approve")
    await writer.conn.execute(
        "INSERT INTO tasks (id, run_id, key, workflow_id, title, form, created_at)"
        " VALUES (%s, %s, 'approve', 1, 'T', '{}', now())",
        (task, run_id),
    )
    for digest in (uuid7(), uuid7()):
        await writer.conn.execute(
            "INSERT INTO waits VALUES (%s, 'answer#2', %s, %s)", (run_id, digest, range_start(T0))
        )
    reply = await writer.event("reply.late", T0 + 9)
    await writer.signal(run_id, "event", 20, event=reply, key="answer#2", taken="ignored", by="answer#2")
    await writer.signal(run_id, "answer", 30, key="approve", payload={"answer": {"secret": 1}, "by": "ann"})
    await writer.step(run_id, "charge", 0, 10, status="unknown")

    run = await history.get_run(run_id)
    assert (run["input"], run["output"], run["outcome"], run["parent"], run["machine"]) == (
        {"n": 1},
        None,
        None,
        None,
        None,
    )
    assert run["waits"] == [
        {
            "step": "answer#2",
            "since": "2026-09-21T14:13:20.000Z",
            "event": "reply.*",
            "match": {"path": "data.n", "value": 7},
            "when": None,
        }
    ]
    assert [(s["kind"], s["type"], s["by"], s["taken"], s["taken_by"]) for s in run["signals"]] == [
        ("event", "reply.late", None, "ignored", "answer#2"),
        ("answer", None, "ann", None, None),
    ]
    assert [(c["step"], c["run_id"], c["status"], c["outcome"]) for c in run["children"]] == [
        ("call", child, "succeeded", "done")
    ]
    assert [(t["id"], t["step"], t["status"]) for t in run["tasks"]] == [(task, "approve", "open")]
    assert [(s["id"], s["status"]) for s in run["steps"]] == [("charge", "unknown")]
    json.dumps(run)

    called = await history.get_run(child)
    assert (called["origin"], called["parent"]) == ("subflow", {"run_id": run_id, "step": "call"})
    assert (called["input"], called["output"], called["outcome"]) == (None, [1], "done")
    again = await writer.run(
        workflow,
        T0 + 6,
        origin="rerun",
        details={"rerun_of": run_id, "rerun": {"run": run_id, "from": "charge"}},
        event_uid=event,
    )
    rerun = await history.get_run(again)
    assert (rerun["rerun_of"], rerun["input"]) == ({"run_id": run_id, "from": "charge"}, {"n": 1})
    assert run["rerun_of"] is None
    assert {"details", "definition", "place", "event_data"}.isdisjoint(called)


async def test_runs_are_listed_by_their_origin(writer: Writer, history: History) -> None:
    workflow = await writer.workflow(STEPS)
    by_event = await writer.run(workflow, T0)
    manual = await writer.run(workflow, T0 + 1, origin="manual")
    for origin, expected in (("event", by_event), ("manual", manual)):
        assert [item["id"] for item in (await history.list_runs({"origin": origin})).items] == [expected]
    assert (await history.list_runs({"origin": "replay"})).items == []


async def test_runs_of_an_origin_are_read_in_order_from_their_index(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as conn:
        for alternative in ("seqscan", "bitmapscan", "sort"):
            await conn.execute(f"SET enable_{alternative} = off")
        explain = "EXPLAIN " + query("list_runs", filters=RUN_FILTERS["origin"], held=query("held"))
        plan = await (
            await conn.execute(explain, {"origin": "manual", "limit": 10, "ahead": 1}, prepare=False)
        ).fetchall()
    assert "origin_id_idx" in "\n".join(row[0] for row in plan)


async def test_a_machine_tells_its_state_what_it_would_take_and_its_history(writer: Writer, history: History) -> None:
    place = {"state": "pending", "entered_at": 100.0, "due_at": 200.0, "event": {"id": "x"}}
    run_id = await writer.run(await writer.workflow(STATES), state={"by": "timer", "place": place})
    await writer.conn.execute("INSERT INTO machines SELECT workflow_id, 'o 17/ä', id FROM runs")
    await writer.conn.execute("INSERT INTO waits VALUES (%s, '', %s, %s)", (run_id, uuid7(), range_start(T0)))
    await writer.step(run_id, "pending", 0, 10, 50, output={"event": "e", "type": "NOTED", "to": "pending"})
    await writer.step(run_id, "pending.NOTED.0", 1, 50, 51)
    await writer.step(run_id, "pending#2", 2, 100, status="waiting")
    await writer.signal(run_id, "event", 50, event=await writer.event("NOTED"), taken="taken", by="pending")
    await writer.signal(
        run_id, "event", 40, event=await writer.event("REJECTED", T0 + 1), taken="ignored", by="pending"
    )

    machine = await history.get_machine("refund", "o 17/ä")
    assert (machine["workflow"], machine["key"], machine["run_id"], machine["state"]) == (
        "refund",
        "o 17/ä",
        run_id,
        "pending",
    )
    assert (machine["since"], machine["deadline"]) == ("1970-01-01T00:01:40.000Z", "1970-01-01T00:03:20.000Z")
    assert machine["events"] == [
        {"event": "APPROVED", "when": {"path": "data.amount", "op": "<=", "value": 500}, "next": "paid"},
        {"event": "APPROVED", "when": None, "next": "review"},
        {"event": "NOTED", "when": None, "next": "pending"},
    ]
    assert [(entry["kind"], entry["at"][14:19], entry["state"]) for entry in machine["history"]] == [
        ("state", "00:10", "pending"),
        ("event", "00:40", "pending"),
        ("event", "00:50", "pending"),
        ("state", "01:40", "pending"),
    ]
    assert [entry["taken"] for entry in machine["history"] if entry["kind"] == "event"] == ["ignored", "taken"]
    assert machine["history"][0]["by"] == {"event": "e", "type": "NOTED", "to": "pending"}
    run = await history.get_run(run_id)
    assert run["machine"] == {k: machine[k] for k in ("key", "state", "since", "deadline")}
    assert run["waits"][0]["event"] == ["APPROVED", "NOTED"]
    for workflow, key in (("refund", "other"), ("nobody", "o 17/ä")):
        with pytest.raises(NotFound, match="is live"):
            await history.get_machine(workflow, key)


async def test_machines_are_listed_by_workflow_and_key_in_pages(writer: Writer, history: History) -> None:
    first, second = await writer.workflow(STATES), await writer.workflow({**STATES, "name": "other"})
    place = {"place": {"state": "review", "entered_at": 1.0, "due_at": None}}
    for workflow, key in ((first, "b"), (first, "a:1"), (second, "a:1")):
        run_id = await writer.run(workflow, state=place)
        await writer.conn.execute("INSERT INTO machines VALUES (%s, %s, %s)", (workflow[0], key, run_id))

    async def keys(filters: dict[str, str] | None = None) -> list[tuple[str, str]]:
        return [(item["workflow"], item["key"]) for item in (await history.list_machines(filters)).items]

    assert await keys() == [("refund", "a:1"), ("refund", "b"), ("other", "a:1")]
    assert await keys({"workflow": "other"}) == [("other", "a:1")]
    assert await keys({"key": "a:1"}) == [("refund", "a:1"), ("other", "a:1")]
    assert await keys({"key": "b", "workflow": "other"}) == []
    seen, cursor = [], None
    while True:
        page = await history.list_machines(cursor=cursor, limit=1)
        seen += [(item["workflow"], item["key"]) for item in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == await keys()
    (item,) = (await history.list_machines({"key": "b"})).items
    assert (item["state"], item["since"], item["deadline"]) == ("review", "1970-01-01T00:00:01.000Z", None)
    for wrong in ("x", "x:1", "9999999999:1"):
        with pytest.raises(Malformed, match="cursor"):
            await history.list_machines(cursor=wrong)
