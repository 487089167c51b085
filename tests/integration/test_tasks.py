"""Human tasks against a real PostgreSQL: lists, answers, and who wins when several are after one task."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from appliance.engine.tasks import Tasks
from appliance.errors import Conflict, Malformed, NotFound
from appliance.identifiers import task_id_for, uuid7
from appliance.settings import StoreSettings
from appliance.store.pool import open_pool
from appliance.workflows.inputs import InputRefused
from tests.servers import wait_until

T0 = 1_790_000_000_000
FORM = {"type": "object", "required": ["approved"], "properties": {"approved": {"type": "boolean"}}}


class Desk:
    """Tasks of runs that wait for them, as the engine would have written both."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], tasks: Tasks) -> None:
        self.conn = conn
        self.tasks = tasks
        self.kicks: list[float] = []
        self.workflows: dict[str, tuple[int, int]] = {}

    async def task(self, at_ms: int = T0, *, key: str = "approve", workflow: str = "w", **columns: Any) -> str:
        if workflow not in self.workflows:
            (number,) = await self.one("INSERT INTO workflows (name, origin) VALUES (%s, 'api') RETURNING id", workflow)
            revision = await self.one(
                "INSERT INTO revisions (workflow_id, number, digest, definition) VALUES (%s, 1, 'd', '{}')"
                " RETURNING id",
                number,
            )
            self.workflows[workflow] = number, revision[0]
        run_id = uuid7(at_ms)
        await self.conn.execute(
            "INSERT INTO runs (id, workflow_id, revision_id, status, version, started_at, updated_at, priority, state)"
            " VALUES (%s, %s, %s, 'waiting', 1, now(), now(), 'low', '{\"by\": \"timer\"}')",
            (run_id, *self.workflows[workflow]),
        )
        row = {"title": "Approve", "form": json.dumps(FORM), "status": "open", "assignee": None, "people": None}
        assert columns.keys() <= row.keys()
        row |= columns
        task_id = task_id_for(run_id, key)
        await self.conn.execute(
            "INSERT INTO tasks (id, run_id, key, workflow_id, created_at, title, form, status, assignee, people)"
            " VALUES (%s, %s, %s, %s, now(), %s, %s, %s, %s, %s)",
            (task_id, run_id, key, self.workflows[workflow][0], *row.values()),
        )
        return task_id

    async def one(self, statement: str, *values: Any) -> tuple[Any, ...]:
        found = await (await self.conn.execute(statement, values)).fetchall()
        (row,) = found
        return tuple(row)

    async def count(self, table: str) -> int:
        return int((await self.one(f"SELECT count(*) FROM {table}"))[0])  # noqa: S608 - names of this file


@pytest_asyncio.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    kicks: list[float] = []
    pool = await open_pool(database_url, StoreSettings(pool_size=4))
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        made = Desk(conn, Tasks(pool, kicks.append, max_answer_bytes=1000))
        made.kicks = kicks
        yield made
    await pool.close()


async def test_an_answer_closes_the_task_and_wakes_its_run_in_one_transaction(desk: Desk) -> None:
    task_id = await desk.task()
    answer = await desk.tasks.answer(task_id, {"approved": True}, "ann")
    run_id = answer["run_id"]
    assert answer == {"status": "answered", "run_id": run_id, "step": "approve"}
    task = await desk.tasks.get_task(task_id)
    assert (task["status"], task["answer"], task["answered_by"]) == ("answered", {"approved": True}, "ann")
    assert await desk.one("SELECT run_id::text, key, kind, payload, taken FROM signals") == (
        run_id,
        "approve",
        "answer",
        {"answer": {"approved": True}, "by": "ann"},
        None,
    )
    assert await desk.one("SELECT run_id::text, key, priority, due_at <= now() FROM timers") == (
        run_id,
        "+signal",
        "low",
        True,
    )
    assert await desk.one("SELECT actor, action, subject, detail ->> 'by' FROM audit_log") == (
        "api",
        "task.answer",
        task_id,
        "ann",
    )
    assert len(desk.kicks) == 1


async def test_of_two_answers_at_once_one_wins(desk: Desk) -> None:
    task_id = await desk.task()
    outcomes = await asyncio.gather(
        *(desk.tasks.answer(task_id, {"approved": n % 2 == 0}, f"p{n}") for n in range(8)), return_exceptions=True
    )
    (winner,) = [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert all(isinstance(loser, Conflict) and f"was answered by p{winner} at " in str(loser) for loser in losers)
    assert (await desk.tasks.get_task(task_id))["answer"] == {"approved": winner % 2 == 0}
    assert (await desk.count("signals"), await desk.count("audit_log")) == (1, 1)


async def test_an_answer_against_the_deadline_waits_and_then_loses(desk: Desk, database_url: str) -> None:
    """The engine closes the task in its own commit, with the run's row locked from the beginning of it."""
    task_id = await desk.task()
    async with await psycopg.AsyncConnection.connect(database_url) as engine:
        await engine.execute("UPDATE runs SET version = version + 1")
        answering = asyncio.create_task(desk.tasks.answer(task_id, {"approved": True}, "ann"))
        await _blocked(desk)
        await engine.execute("UPDATE tasks SET status = 'expired', closed_at = now() WHERE status = 'open'")
        await engine.commit()
    with pytest.raises(Conflict, match=r"expired at .*: its deadline came first"):
        await answering
    assert await desk.count("signals") == 0


async def _blocked(desk: Desk) -> None:
    async def blocked() -> bool:
        found = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return bool((await desk.one(found))[0])

    await wait_until(blocked, "the answer to wait for the engine's lock")


@pytest.mark.parametrize(
    ("status", "words"), [("expired", "its deadline came first"), ("cancelled", "no longer waits")]
)
async def test_a_closed_task_takes_no_answer_and_says_why(desk: Desk, status: str, words: str) -> None:
    task_id = await desk.task(status=status)
    with pytest.raises(Conflict, match=words):
        await desk.tasks.answer(task_id, {"approved": True}, "ann")
    with pytest.raises(Conflict, match=words):
        await desk.tasks.assign(task_id, {"assignee": "bob"})


async def test_a_run_that_is_over_takes_no_answer(desk: Desk) -> None:
    task_id = await desk.task()
    await desk.conn.execute("UPDATE runs SET status = 'cancelled'")
    with pytest.raises(Conflict, match="is over: it is cancelled"):
        await desk.tasks.answer(task_id, {"approved": True}, "ann")
    assert (await desk.tasks.get_task(task_id))["status"] == "open"


async def test_an_answer_that_doesnt_fit_changes_nothing(desk: Desk) -> None:
    task_id = await desk.task()
    with pytest.raises(InputRefused, match=r"answer\.approved: expected true or false"):
        await desk.tasks.answer(task_id, {"approved": "yes"}, "ann")
    with pytest.raises(Malformed, match="larger than 1000 bytes"):
        await desk.tasks.answer(task_id, {"approved": True, "note": "x" * 1000}, "ann")
    with pytest.raises(Malformed, match="by: expected at most"):
        await desk.tasks.answer(task_id, {"approved": True}, "a" * 1025)
    assert (await desk.tasks.get_task(task_id))["status"] == "open"
    assert (await desk.count("signals"), await desk.count("timers"), await desk.count("audit_log")) == (0, 0, 0)


@pytest.mark.parametrize("task_id", ["01a0c450-6c00-72b5-8235-939974b539db", "x", ""])
async def test_an_unknown_task_is_not_found(desk: Desk, task_id: str) -> None:
    with pytest.raises(NotFound):
        await desk.tasks.get_task(task_id)
    with pytest.raises(NotFound):
        await desk.tasks.answer(task_id, {"approved": True}, "ann")
    with pytest.raises(NotFound):
        await desk.tasks.assign(task_id, {"assignee": "ann"})


async def test_an_open_task_is_given_to_others(desk: Desk) -> None:
    task_id = await desk.task(assignee="ann", people="sales")
    assert await desk.tasks.assign(task_id, {"assignee": "bob"}) == {"assignee": "bob", "group": "sales"}
    assert await desk.tasks.assign(task_id, {"assignee": None, "group": "ops"}) == {"assignee": None, "group": "ops"}
    assert await desk.one("SELECT detail FROM audit_log ORDER BY id DESC LIMIT 1") == (
        {"assignee": None, "group": "ops"},
    )
    for wrong in ({}, {"owner": "x"}):
        with pytest.raises(Malformed, match="an assignee, a group, or both"):
            await desk.tasks.assign(task_id, wrong)


async def test_tasks_are_listed_newest_first_by_each_filter(desk: Desk) -> None:
    first = await desk.task(T0, assignee="ann")
    second = await desk.task(T0 + 1, people="sales", workflow="other")
    third = await desk.task(T0 + 2, status="answered", assignee="ann")

    async def ids(**filters: str) -> list[str]:
        return [item["id"] for item in (await desk.tasks.list_tasks(filters)).items]

    assert await ids() == [third, second, first]
    assert await ids(status="open") == [second, first]
    assert await ids(status="answered") == [third]
    assert await ids(assignee="ann") == [third, first]
    assert await ids(assignee="ann", status="open") == [first]
    assert await ids(group="sales") == [second]
    assert await ids(workflow="other") == [second]
    run_id = (await desk.tasks.get_task(first))["run_id"]
    assert await ids(run_id=run_id) == [first]
    assert await ids(run_id="none") == []
    (item,) = (await desk.tasks.list_tasks({"group": "sales"})).items
    assert (item["workflow"], item["step"], item["title"], item["group"]) == ("other", "approve", "Approve", "sales")


async def test_pages_of_tasks_have_no_gaps_and_look_at_a_window(desk: Desk) -> None:
    made = [await desk.task(T0 + n, assignee="ann" if n == 0 else None) for n in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        page = await desk.tasks.list_tasks({"status": "open"}, cursor=cursor, limit=2)
        seen += [item["id"] for item in page.items]
        if (cursor := page.next_cursor) is None:
            break
    assert seen == made[::-1]
    page = await desk.tasks.list_tasks({"assignee": "ann"}, limit=1, window=3)
    assert (page.items, page.next_cursor) == ([], made[2])
    page = await desk.tasks.list_tasks({"assignee": "ann"}, limit=2, window=3, cursor=page.next_cursor)
    assert [item["id"] for item in page.items] == [made[0]]
    assert page.next_cursor is None
    with pytest.raises(Malformed, match="cursor"):
        await desk.tasks.list_tasks(cursor="x")
