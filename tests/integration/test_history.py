"""The history's reads, against a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from psycopg_pool import AsyncConnectionPool

from appliance.errors import Malformed, NotFound, StoreUnavailable
from appliance.identifiers import range_start, run_id_for, uuid7
from appliance.store.history import RUN_FILTERS, History, Page, Span, stored_event
from appliance.store.reading import query

T0 = 1_790_000_000_000
"""Unix milliseconds at which the tests' events begin."""


class Writer:
    """Writes the rows that the recorder would."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.conn = conn

    async def event(
        self, at_ms: int, *, id: str | None = None, type: str = "t", outcome: str | None = "handled"
    ) -> str:
        uid = uuid7(at_ms)
        await self.conn.execute(
            "INSERT INTO events (uid, id, source, type, time, received_at, attributes, data, stream, entry_id, outcome)"
            " VALUES (%s, %s, '/here', %s, to_timestamp(%s), now(), %s, %s, 'normal', '1-1', %s)",
            (uid, id, type, at_ms / 1000, json.dumps({"template_id": "contact"}), json.dumps({"n": 1}), outcome),
        )
        return uid

    async def workflow(self, name: str, *, revisions: int = 1, enabled: bool = True) -> tuple[int, int]:
        row = await (
            await self.conn.execute(
                "INSERT INTO workflows (name, origin, enabled) VALUES (%s, 'api', %s) RETURNING id", (name, enabled)
            )
        ).fetchone()
        assert row is not None
        revision = 0
        for number in range(1, revisions + 1):
            definition = json.dumps({"name": name, "description": f"r{number}"})
            made = await (
                await self.conn.execute(
                    "INSERT INTO revisions (workflow_id, number, digest, definition) VALUES (%s, %s, %s, %s)"
                    " RETURNING id",
                    (row[0], number, f"d{number}", definition),
                )
            ).fetchone()
            assert made is not None
            revision = made[0]
        await self.conn.execute("UPDATE workflows SET current_revision = %s WHERE id = %s", (revision, row[0]))
        return row[0], revision

    async def run(
        self, run_id: str, uid: str, workflow: tuple[int, int], status: str = "succeeded", origin: str | None = None
    ) -> str:
        await self.conn.execute(
            "INSERT INTO runs (id, event_uid, workflow_id, revision_id, status, version, started_at, updated_at,"
            " priority, origin) VALUES (%s, %s, %s, %s, %s, 1, now(), now(), 'normal', %s)",
            (run_id, uid, *workflow, status, origin),
        )
        return run_id

    async def letter(self, at_ms: int, status: str = "open", uid: str | None = None, run_id: str | None = None) -> str:
        letter_id = uuid7(at_ms)
        await self.conn.execute(
            "INSERT INTO dead_letters (id, kind, status, event_uid, run_id, stream, entry_id, fields, error, attempts,"
            " created_at) VALUES (%s, 'entry', %s, %s, %s, 'normal', '1-1', %s, 'broken', 5, now())",
            (letter_id, status, uid, run_id, json.dumps([["dHlwZQ==", "dA=="]])),
        )
        return letter_id


@pytest_asyncio.fixture
async def writer(database_url: str) -> AsyncIterator[Writer]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        await _partition(conn)
        yield Writer(conn)


async def _partition(conn: psycopg.AsyncConnection[Any]) -> None:
    """A partition that ends amid the tests' events, and the one for all others if there is none yet."""
    for table in ("events", "runs", "steps", "attempts"):
        found = await (
            await conn.execute(
                "SELECT partdefid = 0 FROM pg_partitioned_table WHERE partrelid = %s::regclass", (table,)
            )
        ).fetchone()
        if found == (True,):
            await conn.execute(f"CREATE TABLE {table}_others PARTITION OF {table} DEFAULT")
        await conn.execute(
            f"CREATE TABLE {table}_early PARTITION OF {table}"
            f" FOR VALUES FROM ('{range_start(T0 - 1000)}') TO ('{range_start(T0 + 2)}')"
        )


@pytest_asyncio.fixture
async def history(database_url: str) -> AsyncIterator[History]:
    async with AsyncConnectionPool(database_url, min_size=1, max_size=2, open=False) as pool:
        yield History(pool)


def ids(page: Page, key: str = "id") -> list[str]:
    return [item[key] for item in page.items]


async def test_events_come_newest_first_in_pages_without_gaps_or_repeats(writer: Writer, history: History) -> None:
    uids = [await writer.event(T0 + n) for n in range(7)]
    seen: list[str] = []
    cursor, pages = None, 0
    while True:
        page = await history.list_events(cursor=cursor, limit=3)
        seen += ids(page, "uid")
        pages += 1
        if (cursor := page.next_cursor) is None:
            break
    assert seen == uids[::-1]
    assert pages == 3


async def test_a_filtered_page_looks_at_a_window_and_says_where_to_go_on(writer: Writer, history: History) -> None:
    rare = await writer.event(T0, type="rare")
    for n in range(1, 6):
        await writer.event(T0 + n)
    page = await history.list_events({"type": "rare"}, limit=2, window=4)
    assert page.items == []
    assert page.next_cursor is not None
    page = await history.list_events({"type": "rare"}, limit=2, window=4, cursor=page.next_cursor)
    assert ids(page, "uid") == [rare]
    assert page.next_cursor is None


async def test_events_are_filtered_by_each_filter_and_by_time(writer: Writer, history: History) -> None:
    handled = await writer.event(T0, type="a")
    dead = await writer.event(T0 + 10, type="b", outcome="dead")
    assert ids(await history.list_events({"outcome": "dead"}), "uid") == [dead]
    assert ids(await history.list_events({"type": "a", "source": "/here"}), "uid") == [handled]
    assert ids(await history.list_events({"source": "/there"}), "uid") == []
    assert ids(await history.list_events({"subject": "s"}), "uid") == []
    assert ids(await history.list_events(span=Span(since_ms=T0 + 5)), "uid") == [dead]
    assert ids(await history.list_events(span=Span(until_ms=T0 + 5)), "uid") == [handled]


async def test_an_empty_history_is_an_empty_page(history: History) -> None:
    assert await history.list_events() == Page([], None)
    assert await history.list_events({"type": "x"}) == Page([], None)
    assert await history.list_runs() == Page([], None)


async def test_an_event_is_found_by_uid_and_by_the_senders_id(writer: Writer, history: History) -> None:
    uid = await writer.event(T0, id="order-17")
    own = await writer.event(T0 + 1)
    by_uid = await history.get_event(uid)
    assert by_uid == await history.get_event("order-17")
    assert (by_uid["id"], by_uid["uid"], by_uid["stream"]) == ("order-17", uid, "normal")
    assert by_uid["time"] == "2026-09-21T14:13:20.000Z"
    assert (await history.get_event(own))["id"] == own
    for unknown in ("order-18", uuid7(T0), "nul\0", ""):
        with pytest.raises(NotFound):
            await history.get_event(unknown)


async def test_a_stored_event_is_the_event_that_came_in(writer: Writer, history: History) -> None:
    uid = await writer.event(T0)
    event = stored_event(await history.get_event(uid))
    assert event.view() == {
        "template_id": "contact",
        "id": uid,
        "source": "/here",
        "type": "t",
        "subject": None,
        "time": "2026-09-21T14:13:20.000Z",
        "data": {"n": 1},
    }


async def test_the_runs_of_an_event_are_those_it_started_and_its_replays(writer: Writer, history: History) -> None:
    a, b = await writer.workflow("a"), await writer.workflow("b", revisions=2)
    uid = await writer.event(T0, id="order-17")
    neighbour = await writer.event(T0)
    first = await writer.run(run_id_for(uid, "a"), uid, a)
    second = await writer.run(run_id_for(uid, "b"), uid, b, "failed")
    replay = await writer.run(uuid7(T0 + 9), uid, a, origin="replay")
    await writer.run(run_id_for(neighbour, "a"), neighbour, a)
    for event_id in (uid, "order-17"):
        page = await history.list_runs(event_id=event_id)
        assert ids(page) == [replay, *sorted((first, second), reverse=True)]
    (failed,) = (await history.list_runs({"workflow": "b", "status": "failed"}, event_id=uid)).items
    assert (failed["workflow"], failed["revision"], failed["event_id"], failed["event_uid"]) == (
        "b",
        2,
        "order-17",
        uid,
    )
    assert (await history.list_runs(event_id="unknown")).items == []


async def test_a_run_whose_event_is_not_there_yet_is_found_by_the_events_uid(writer: Writer, history: History) -> None:
    workflow = await writer.workflow("a")
    uid = uuid7(T0)
    run_id = await writer.run(run_id_for(uid, "a"), uid, workflow, "running")
    (run,) = (await history.list_runs(event_id=uid)).items
    assert (run["id"], run["event_id"]) == (run_id, uid)


async def test_runs_are_paged_and_filtered(writer: Writer, history: History) -> None:
    a, b = await writer.workflow("a"), await writer.workflow("b")
    made = []
    for n in range(5):
        uid = await writer.event(T0 + n)
        made.append(await writer.run(run_id_for(uid, "a"), uid, a, "waiting" if n == 2 else "succeeded"))
    await writer.run(run_id_for(uid, "b"), uid, b, "cancelled")
    first = await history.list_runs({"workflow": "a"}, limit=3)
    rest = await history.list_runs({"workflow": "a"}, limit=3, cursor=first.next_cursor)
    assert ids(first) + ids(rest) == made[::-1]
    assert rest.next_cursor is None
    assert ids(await history.list_runs({"status": "waiting"})) == [made[2]]
    assert ids(await history.list_runs({"workflow": "nobody"})) == []
    assert ids(await history.list_runs({"status": "succeeded"}, span=Span(until_ms=T0 + 1))) == [made[0]]


async def test_a_run_in_full_has_steps_in_order_with_attempts_and_deliveries(writer: Writer, history: History) -> None:
    uid = await writer.event(T0)
    run_id = await writer.run(run_id_for(uid, "a"), uid, await writer.workflow("a"), "running")
    for seq, key, status in ((2, "later", "running"), (1, "zuerst", "succeeded")):
        await writer.conn.execute(
            "INSERT INTO steps (run_id, key, seq, status, attempt, started_at, output)"
            " VALUES (%s, %s, %s, %s, 2, now(), %s)",
            (run_id, key, seq, status, json.dumps({"sent": True})),
        )
    await writer.conn.execute("INSERT INTO attempts VALUES (%s, 'zuerst', 1, now(), now(), 'refused')", (run_id,))
    await writer.conn.execute(
        "INSERT INTO deliveries VALUES (%s, 'zuerst', 'email', 'a@example.org', 'sent', 1, 'm-1', null, now())",
        (run_id,),
    )
    run = await history.get_run(run_id)
    assert [(s["id"], s["status"], s["attempt"], s["output"]) for s in run["steps"]] == [
        ("zuerst", "succeeded", 2, {"sent": True}),
        ("later", "running", 2, {"sent": True}),
    ]
    (attempt,) = run["steps"][0]["attempts"]
    assert (attempt["attempt"], attempt["error"], run["steps"][1]["attempts"]) == (1, "refused", [])
    (delivery,) = run["deliveries"]
    assert (delivery["step"], delivery["recipient"], delivery["message_id"]) == ("zuerst", "a@example.org", "m-1")
    json.dumps(run)
    for unknown in (uuid7(T0), "x"):
        with pytest.raises(NotFound):
            await history.get_run(unknown)


async def test_dead_letters_are_listed_and_shown_with_fields_and_event(writer: Writer, history: History) -> None:
    uid = await writer.event(T0, id="order-17", outcome="dead")
    run_id = await writer.run(run_id_for(uid, "a"), uid, await writer.workflow("a"), "failed")
    of_entry = await writer.letter(T0)
    of_event = await writer.letter(T0 + 1, uid=uid, run_id=run_id)
    closed = await writer.letter(T0 + 2, "discarded")
    assert ids(await history.list_dead_letters()) == [closed, of_event, of_entry]
    assert ids(await history.list_dead_letters({"status": "open"}, limit=1)) == [of_event]
    assert ids(await history.list_dead_letters({"event_uid": uid})) == [of_event]
    assert ids(await history.list_dead_letters({"run_id": run_id})) == [of_event]
    assert ids(await history.list_dead_letters({"run_id": "no uuid"})) == []
    letter = await history.get_dead_letter(of_event)
    assert letter["fields"] == [["dHlwZQ==", "dA=="]]
    assert (letter["workflow"], letter["event_id"], letter["event"]["uid"]) == ("a", "order-17", uid)
    assert (await history.get_dead_letter(of_entry))["event"] is None
    with pytest.raises(NotFound):
        await history.get_dead_letter("x")


async def test_workflows_are_listed_by_name_and_found_by_name_or_number(writer: Writer, history: History) -> None:
    number, _ = await writer.workflow("b", revisions=3)
    await writer.workflow("a")
    await writer.workflow("off", enabled=False)
    first = await history.list_workflows(limit=1)
    rest = await history.list_workflows(limit=1, cursor=first.next_cursor)
    assert (ids(first, "name"), ids(rest, "name"), rest.next_cursor) == (["a"], ["b"], None)
    assert ids(await history.list_workflows(every=True), "name") == ["a", "b", "off"]
    workflow = await history.get_workflow("b")
    assert workflow == await history.get_workflow(str(number))
    assert (workflow["revision"], workflow["description"], workflow["definition"]["name"]) == (3, "r3", "b")
    assert [r["revision"] for r in workflow["revisions"]] == [3, 2, 1]
    for unknown in ("nobody", "²", "99999999999999999999"):
        with pytest.raises(NotFound):
            await history.get_workflow(unknown)


async def test_a_cursor_that_no_page_gave_is_refused(history: History) -> None:
    with pytest.raises(Malformed, match="cursor"):
        await history.list_runs(cursor="1; drop table runs")


async def test_reading_writes_nothing_and_leaves_the_connection_as_it_was(database_url: str) -> None:
    async with AsyncConnectionPool(database_url, min_size=1, max_size=1, open=False) as pool:
        await History(pool).list_events()
        async with pool.connection() as conn:
            await conn.execute("INSERT INTO audit_log (actor, action, subject) VALUES ('t', 't', 't')")
            row = await (await conn.execute("SHOW transaction_isolation")).fetchone()
            assert row == ("read committed",)


async def test_a_server_that_is_away_is_unavailable() -> None:
    pool = AsyncConnectionPool("postgresql:///x?host=/nowhere", min_size=1, max_size=1, open=False, timeout=0.1)
    with pytest.raises(StoreUnavailable):
        await History(pool).list_events()


@pytest.mark.parametrize(
    ("name", "value", "index"),
    [("status", "failed", "runs_early_id_idx"), ("workflow", "a", "runs_early_workflow_id_id_idx")],
)
async def test_filtered_runs_are_read_in_order_from_their_index(
    writer: Writer, database_url: str, name: str, value: str, index: str
) -> None:
    """The filters fit the indexes, the partial ones too, so that a page needs no sorting of what it leaves out."""
    await writer.workflow("a")
    async with await psycopg.AsyncConnection.connect(database_url) as conn:
        for alternative in ("seqscan", "bitmapscan", "sort"):
            await conn.execute(f"SET enable_{alternative} = off")
        explain = "EXPLAIN " + query("list_runs", filters=RUN_FILTERS[name], held=query("held"))
        plan = await (await conn.execute(explain, {name: value, "limit": 10, "ahead": 1}, prepare=False)).fetchall()
    assert f" using {index} " in "\n".join(row[0] for row in plan)
