"""What people do to runs that flow control holds or lets go on, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from appliance.identifiers import uuid7
from appliance.store.recovery import STATUSES, Cursor, RecoveryStore, Suspect
from tests.integration.stand import PARKED, SAGA, Stand, called_by, standing
from tests.servers import wait_until

IN_QUEUE = {"flow": {"stage": "places", "until": None, "part": "concurrency.0", "key": "acme"}}
COLLECTED = {"flow": {"stage": "collected", "until": 4e9, "part": "debounce", "key": "acme"}}


@pytest_asyncio.fixture
async def stand(database_url: str) -> AsyncIterator[Stand]:
    async with standing(database_url) as made:
        yield made


async def queued(stand: Stand, **more: Any) -> str:
    """A run that waits for a place: it has no timer."""
    run_id = await stand.run(details=more.pop("details", IN_QUEUE), **more)
    await stand.rows("DELETE FROM timers WHERE run_id = %s", run_id)
    await put_in_queue(stand, run_id)
    return run_id


async def put_in_queue(stand: Stand, run_id: str) -> None:
    await stand.rows(
        "INSERT INTO queue (run_id, workflow_id, lane, position, priority, parts, digests, keys, limits) "
        "VALUES (%s, 1, %s, 1, 'normal', '{concurrency.0}', %s::uuid[], '{acme}', '{1}')",
        run_id,
        uuid7(),
        [uuid7()],
    )


async def give(stand: Stand, run_id: str, *, keeps: bool) -> None:
    await stand.rows("INSERT INTO places VALUES (%s, %s, %s)", uuid7(), run_id, keeps)


async def left(stand: Stand, run_id: str) -> tuple[int, int, int]:
    """How many rows of the queue, places and timers a run has."""
    counts = [
        await stand.one(f"SELECT count(*) FROM {table} WHERE run_id = %s", run_id)  # noqa: S608
        for table in ("queue", "places", "timers")
    ]
    return counts[0], counts[1], counts[2]


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_a_cancelled_run_gives_up_its_places_and_its_place_in_the_queue(stand: Stand) -> None:
    waits = await queued(stand)
    await give(stand, waits, keeps=True)
    works = await stand.run(status="running", state=None)
    await give(stand, works, keeps=True)
    await give(stand, works, keeps=False)
    collected = await stand.run(details=COLLECTED)
    for run_id in (waits, works, collected):
        assert await stand.control.cancel_run(run_id, "ann") == {"status": "cancelled"}
        assert await left(stand, run_id) == (0, 0, 0)
    assert stand.freed == [await stand.one("SELECT id FROM workflows")] * 2  # the third had no place


async def test_called_runs_that_wait_for_places_are_cancelled_with_their_caller(stand: Stand) -> None:
    parent = await stand.run()
    child = await called_by(stand, parent)
    await stand.rows("DELETE FROM timers WHERE run_id = %s", child)
    await put_in_queue(stand, child)
    await stand.control.cancel_run(parent, "ann")
    assert await stand.status(child) == "cancelled"
    assert await left(stand, child) == (0, 0, 0)


async def test_a_run_that_undoes_first_keeps_its_places_until_it_is_over(stand: Stand) -> None:
    run_id = await queued(stand, definition=SAGA, steps={"charge": "succeeded", "send": "retrying"})
    await give(stand, run_id, keeps=True)
    assert await stand.control.cancel_run(run_id, "ann") == {"status": "cancelling"}
    assert await left(stand, run_id) == (1, 1, 1)
    assert await stand.due(run_id) == ["+signal"]


async def test_a_run_that_is_let_in_while_it_is_cancelled_gets_nothing(stand: Stand) -> None:
    """The cancellation waits for whoever takes the run out of the queue, and then sees what that left."""
    run_id = await queued(stand)
    async with await psycopg.AsyncConnection.connect(stand.url) as gatekeeper:
        await gatekeeper.execute("DELETE FROM queue WHERE run_id = %s", [run_id])
        cancelling = asyncio.create_task(stand.control.cancel_run(run_id, "ann"))
        await wait_until(stand.blocked, "the cancellation to wait")
        await gatekeeper.execute("INSERT INTO places VALUES (%s, %s, false)", [uuid7(), run_id])
        await gatekeeper.execute(
            "INSERT INTO timers (run_id, key, due_at, priority) VALUES (%s, '', now(), 'normal')", [run_id]
        )
    await cancelling
    assert await left(stand, run_id) == (0, 0, 0)


# --- pause and resume ------------------------------------------------------------------------------------------------


async def test_a_paused_run_keeps_its_position_and_what_it_has_to_its_end(stand: Stand) -> None:
    run_id = await queued(stand)
    await give(stand, run_id, keeps=True)
    await give(stand, run_id, keeps=False)
    assert await stand.control.pause_run(run_id, "ann") == {"status": "paused"}
    assert await left(stand, run_id) == (1, 1, 0)
    assert await stand.one("SELECT keeps FROM places")
    assert stand.freed == [await stand.one("SELECT id FROM workflows")]


async def test_a_resumed_run_asks_again_for_what_it_was_given_while_it_was_paused(stand: Stand) -> None:
    run_id = await stand.run(status="paused", details=IN_QUEUE)
    await give(stand, run_id, keeps=True)
    await give(stand, run_id, keeps=False)
    await stand.control.resume_run(run_id, "ann")
    assert await left(stand, run_id) == (0, 1, 1)


@pytest.mark.parametrize("details", [IN_QUEUE, COLLECTED])
async def test_a_resumed_run_that_has_not_begun_is_held_again(stand: Stand, details: dict[str, Any]) -> None:
    run_id = await stand.run(status="paused", details=details)
    assert await stand.control.resume_run(run_id, "ann") == {"status": "waiting"}
    assert await stand.due(run_id) == [""]


async def test_a_resumed_run_that_had_begun_goes_on(stand: Stand) -> None:
    run_id = await stand.run(status="paused", details=IN_QUEUE, steps={"a": "succeeded"})
    assert await stand.control.resume_run(run_id, "ann") == {"status": "running"}


# --- again -----------------------------------------------------------------------------------------------------------


async def test_a_rerun_of_a_batch_has_all_its_events(stand: Stand) -> None:
    batch = await stand.run(status="failed", state=None)
    uids = sorted([uuid7(), uuid7(), uuid7()])
    for position, uid in enumerate(uids):
        await stand.rows("INSERT INTO batched VALUES (%s, %s, %s)", batch, uid, position)
    again = (await stand.control.rerun(batch, "ann"))["run"]
    assert await stand.rows(
        "SELECT event_uid::text FROM batched WHERE run_id = %s ORDER BY position", again
    ) == [(uid,) for uid in uids]  # fmt: skip
    assert await stand.one("SELECT details->'flow' IS NULL FROM runs WHERE id = %s", again)


# --- recovery --------------------------------------------------------------------------------------------------------


async def lost(stand: Stand) -> list[str]:
    """The runs that a sweep wakes."""
    store = RecoveryStore(stand.pool)
    found: list[Suspect] = []
    for status in STATUSES:
        found += (await store.suspects(status, Cursor(), 0.0, 100))[1]
    assert await store.wake_parked(found) == len(found)
    return sorted(run.id for run in found)


async def test_runs_that_wait_in_the_queue_are_not_lost(stand: Stand) -> None:
    await queued(stand)
    await queued(stand, steps={"a": "retrying"}, status="retrying")
    await stand.rows("UPDATE steps SET due_at = now()")
    await queued(stand, asked="retry", status="retrying", steps={"a": "failed"})
    assert await lost(stand) == []


@pytest.mark.parametrize("version", [1, 4])
async def test_a_held_run_with_neither_timer_nor_a_place_in_the_queue_is_woken(stand: Stand, version: int) -> None:
    gone = [await queued(stand), await stand.run(details=COLLECTED)]
    await stand.run(details=COLLECTED)  # its timer is there
    await stand.rows("DELETE FROM timers WHERE run_id = %s", gone[1])
    await stand.rows("DELETE FROM queue")
    await stand.rows("UPDATE runs SET version = %s", version)
    assert await lost(stand) == gone
    assert [await stand.due(run_id) for run_id in gone] == [[""], [""]]


async def test_a_run_in_the_queue_that_was_asked_to_end_is_woken(stand: Stand) -> None:
    run_id = await queued(stand, asked="cancel", steps={"a": "retrying"}, status="retrying")
    assert await lost(stand) == [run_id]


async def test_a_run_that_came_into_the_queue_meanwhile_is_not_woken(stand: Stand) -> None:
    run_id = await stand.run(details=IN_QUEUE, state=PARKED)
    await stand.rows("DELETE FROM timers")
    await put_in_queue(stand, run_id)
    assert await RecoveryStore(stand.pool).wake_parked([Suspect(run_id, 1, "timer", 0.0)]) == 0
