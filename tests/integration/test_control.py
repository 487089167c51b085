"""What people may do to a run, against a real PostgreSQL: cancel, pause, resume, retry, put something in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from appliance.errors import Conflict, DefinitionError, NotFound
from appliance.events import event_key
from appliance.identifiers import uuid7
from appliance.store.runs import Runs
from tests.integration.stand import PARKED, PLAIN, SAGA, Stand, called_by, sent, standing


@pytest_asyncio.fixture
async def stand(database_url: str) -> AsyncIterator[Stand]:
    async with standing(database_url) as made:
        yield made


# --- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [PARKED, None])
async def test_a_run_with_nothing_to_undo_is_cancelled_at_once(stand: Stand, state: dict[str, Any] | None) -> None:
    steps = {"a": "succeeded", "b": "running", "c": "unknown", "d": "failed"}
    run_id = await stand.run(state=state, status="running", steps=steps)
    assert await stand.control.cancel_run(run_id, "ann") == {"status": "cancelled"}
    found = await stand.rows("SELECT status::text, version, error, finished_at IS NULL FROM runs")
    assert found == [("cancelled", 2, "cancelled by ann", False)]
    assert await stand.rows("SELECT status::text FROM steps ORDER BY seq") == [
        ("succeeded",), ("cancelled",), ("unknown",), ("failed",)
    ]  # fmt: skip
    assert await stand.rows("SELECT actor, action, subject FROM audit_log") == [("ann", "run.cancel", run_id)]
    with pytest.raises(Conflict, match="over already: cancelled"):
        await stand.control.cancel_run(run_id, "bob")


async def test_what_a_cancelled_run_waited_for_and_asked_for_goes_with_it(stand: Stand) -> None:
    run_id = await stand.run()
    await stand.rows("INSERT INTO waits VALUES (%s, 'w', %s, %s)", run_id, uuid7(), uuid7())
    await stand.rows("INSERT INTO machines VALUES (1, 'k', %s)", run_id)
    await stand.rows("INSERT INTO signals (run_id, id, key, kind) VALUES (%s, %s, 'w', 'answer')", run_id, uuid7())
    await stand.rows("INSERT INTO timers (run_id, key, due_at, priority) VALUES (%s, '+signal', now(), 'low')", run_id)
    for status in ("open", "answered"):
        await stand.rows(
            "INSERT INTO tasks (id, run_id, key, workflow_id, status, title, form, created_at) "
            "VALUES (%s, %s, %s, 1, %s, 't', '{}', now())",
            uuid7(),
            run_id,
            status,
            status,
        )
    await stand.control.cancel_run(run_id, "ann")
    for table in ("waits", "machines", "timers"):
        assert await stand.one(f"SELECT count(*) FROM {table}") == 0, table  # noqa: S608
    assert await stand.rows("SELECT key, status::text, closed_at IS NULL FROM tasks ORDER BY key") == [
        ("answered", "answered", True),
        ("open", "cancelled", False),
    ]
    assert await stand.rows("SELECT taken FROM signals") == [("ignored",)]


async def test_a_timer_that_took_its_event_out_of_the_dead_ones_is_left_to_close_it(stand: Stand) -> None:
    run_id = await stand.run()
    await stand.rows("UPDATE timers SET reopens = true")
    await stand.control.cancel_run(run_id, "ann")
    assert await stand.one("SELECT count(*) FROM timers") == 1


async def test_the_runs_that_a_run_called_are_cancelled_with_it(stand: Stand) -> None:
    parent = await stand.run()
    child = await called_by(stand, parent)
    done = await called_by(stand, parent, status="succeeded", state=None)
    grandchild = await called_by(stand, child, status="running", state=None)
    saga = await called_by(stand, child, SAGA, steps={"charge": "succeeded", "send": "waiting"})
    paused = await called_by(stand, child, SAGA, status="paused", steps={"charge": "succeeded", "send": "retrying"})
    below = await called_by(stand, saga)
    await stand.control.cancel_run(parent, "ann")
    assert [await stand.status(r) for r in (parent, child, grandchild, done)] == ["cancelled"] * 3 + ["succeeded"]
    assert [await stand.status(r) for r in (saga, paused, below)] == ["waiting", "retrying", "waiting"]
    assert [await stand.asked(r) for r in (saga, paused, below)] == ["cancel", "cancel", None]
    assert [await stand.due(r) for r in (saga, paused, below)] == [["+signal"], [""], []]
    assert await stand.one("SELECT detail FROM audit_log") == {"called": 2, "called_undoing": 2}
    assert await stand.one("SELECT count(*) FROM signals") == 0


async def test_calls_deeper_than_one_transaction_goes_are_asked_to_end(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.engine.cancellations._DEPTH", 2)
    runs = [await stand.run()]
    for _ in range(3):
        runs.append(await called_by(stand, runs[-1]))
    await stand.control.cancel_run(runs[0], "ann")
    assert [await stand.status(run) for run in runs] == ["cancelled", "cancelled", "waiting", "waiting"]
    assert [await stand.asked(run) for run in runs] == [None, None, "cancel", None]


async def test_whoever_called_a_run_is_told_that_it_was_cancelled(stand: Stand) -> None:
    parent = await stand.run()
    await stand.control.cancel_run(await called_by(stand, parent), "ann")
    assert await stand.rows("SELECT run_id::text, key, kind, payload, taken FROM signals") == [
        (parent, "call", "child", {"status": "cancelled", "outcome": None, "output": None, "error": "cancelled by ann"},
         None),
    ]  # fmt: skip
    assert await stand.due(parent) == ["+signal"]


async def test_a_caller_that_is_over_is_not_told(stand: Stand) -> None:
    parent = await stand.run(status="failed", state=None)
    await stand.control.cancel_run(await called_by(stand, parent), "ann")
    assert await stand.one("SELECT count(*) FROM signals") == 0


@pytest.mark.parametrize(
    ("definition", "state", "steps", "status"),
    [
        (SAGA, PARKED, {"charge": "succeeded", "send": "waiting"}, "cancelling"),
        (SAGA, PARKED, {"charge#2": "unknown"}, "cancelling"),
        (SAGA, None, {}, "cancelling"),  # somebody is at work on it, and may have charged already
        (SAGA, {"by": "timer", "ending": "cancelled", "phase": "undoing"}, {"charge": "retrying"}, "cancelling"),
        (SAGA, PARKED, {"charge": "retrying"}, "cancelled"),
        (SAGA, PARKED, {"charge": "failed", "send": "waiting"}, "cancelled"),
        (PLAIN, PARKED, {"a": "succeeded"}, "cancelled"),
        ({"name": "m", "steps": [{"id": "s", "do": [{"action": "x", "compensate": {}}]}]}, PARKED,
         {"s.0": "succeeded"}, "cancelling"),
    ],
)  # fmt: skip
async def test_a_run_that_has_what_to_undo_is_asked_to_end(
    stand: Stand, definition: dict[str, Any], state: dict[str, Any] | None, steps: dict[str, str], status: str
) -> None:
    run_id = await stand.run(definition, state=state, steps=steps, status="retrying")
    for _ in range(2 if status == "cancelling" else 1):
        assert await stand.control.cancel_run(run_id, "ann") == {"status": status}
    if status == "cancelling":
        assert (await stand.status(run_id), await stand.asked(run_id)) == ("retrying", "cancel")
        assert await stand.due(run_id) == ["+signal"]
        assert await stand.one("SELECT version FROM runs") == 1  # whoever holds it can go on
        assert await stand.control.cancel_run(run_id, "ann", force=True) == {"status": "cancelled"}


async def test_a_paused_run_goes_on_to_undo(stand: Stand) -> None:
    run_id = await stand.run(SAGA, status="paused", steps={"charge": "succeeded", "send": "waiting"})
    assert await stand.control.cancel_run(run_id, "ann") == {"status": "cancelling"}
    assert (await stand.status(run_id), await stand.asked(run_id)) == ("waiting", "cancel")
    assert await stand.due(run_id) == [""]


async def test_a_run_that_fails_and_undoes_is_not_cancelled_but_by_force(stand: Stand) -> None:
    state = {"by": "timer", "ending": "failed", "phase": "undoing"}
    run_id = await stand.run(SAGA, state=state, steps={"charge": "succeeded", "charge.compensate": "retrying"})
    with pytest.raises(Conflict, match="about to end as failed; with force"):
        await stand.control.cancel_run(run_id, "ann")
    assert await stand.control.cancel_run(run_id, "ann", force=True) == {"status": "cancelled"}


@pytest.mark.parametrize("run_id", ["x", "0197f000-0000-7000-8000-000000000000"])
async def test_what_is_not_there_is_not_found(stand: Stand, run_id: str) -> None:
    control = stand.control
    for act in (control.cancel_run, control.pause_run, control.resume_run, control.retry_run, control.rerun):
        with pytest.raises(NotFound, match="no run"):
            await act(run_id, "ann")
    with pytest.raises(NotFound, match="no event"):
        await control.replay([run_id], "ann")
    with pytest.raises(NotFound, match="no run"):
        await control.settle_step(run_id, "a", "retry", "ann")
    assert await stand.one("SELECT count(*) FROM audit_log") == 0


# --- pause and resume ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "blocks", "status"),
    [
        ({"a": "succeeded", "b": "waiting"}, {}, "waiting"),
        ({"a": "waiting", "b": "retrying"}, {}, "retrying"),
        ({"p": "running", "b": "unknown"}, {"p": [2, 2, {}]}, "waiting"),
        ({}, {}, "running"),
    ],
)
async def test_a_parked_run_is_paused_and_goes_on_where_it_stood(
    stand: Stand, steps: dict[str, str], blocks: dict[str, Any], status: str
) -> None:
    run_id = await stand.run(state=PARKED | {"blocks": blocks}, steps=steps)
    assert await stand.control.pause_run(run_id, "ann") == {"status": "paused"}
    assert await stand.rows("SELECT status::text, version, asked FROM runs") == [("paused", 2, None)]
    with pytest.raises(Conflict, match="is paused; it can't be paused"):
        await stand.control.pause_run(run_id, "ann")
    assert await stand.control.resume_run(run_id, "bob") == {"status": status}
    assert await stand.rows("SELECT status::text, version, state FROM runs") == [
        (status, 3, PARKED | {"blocks": blocks})
    ]
    assert await stand.due(run_id) == [""]
    with pytest.raises(Conflict, match=f"is {status}; only a paused run"):
        await stand.control.resume_run(run_id, "bob")
    assert await stand.rows("SELECT actor, action FROM audit_log ORDER BY id") == [
        ("ann", "run.pause"),
        ("bob", "run.resume"),
    ]


async def test_a_run_in_somebodys_hands_is_asked_to_pause_and_may_be_resumed_before_it_does(stand: Stand) -> None:
    run_id = await stand.run(status="running", state={"by": "normal-1-1"})
    assert await stand.control.pause_run(run_id, "ann") == {"status": "pausing"}
    assert (await stand.status(run_id), await stand.asked(run_id)) == ("running", "pause")
    assert await stand.due(run_id) == ["+signal"]
    assert await stand.control.resume_run(run_id, "ann") == {"status": "running"}
    assert await stand.asked(run_id) is None
    await stand.commit(run_id, "succeeded", 1)
    with pytest.raises(Conflict, match="over: it is succeeded"):
        await stand.control.pause_run(run_id, "ann")


async def test_a_run_that_is_being_cancelled_is_not_paused(stand: Stand) -> None:
    run_id = await stand.run(SAGA, asked="cancel", steps={"charge": "succeeded"})
    with pytest.raises(Conflict, match="being cancelled"):
        await stand.control.pause_run(run_id, "ann")


async def test_a_pause_does_not_forget_a_retry_that_was_asked_for(stand: Stand) -> None:
    run_id = await stand.run(status="failed", state={"at": "a"}, steps={"a": "failed"})
    await stand.control.retry_run(run_id, "ann")
    await stand.control.pause_run(run_id, "ann")
    assert (await stand.status(run_id), await stand.asked(run_id)) == ("paused", "retry")
    await stand.control.resume_run(run_id, "ann")
    assert (await stand.status(run_id), await stand.asked(run_id)) == ("running", "retry")


# --- retry -----------------------------------------------------------------------------------------------------------


async def test_a_retry_leaves_the_run_to_who_wakes_it(stand: Stand) -> None:
    state = {"at": "b", "by": "normal-1-1", "phase": "handling", "ending": "failed", "outcome": None, "output": None}
    run_id = await stand.run(status="failed", state=state, steps={"a": "succeeded", "b": "failed"})
    assert await stand.control.retry_run(run_id, "ann") == {"status": "retrying"}
    assert await stand.rows("SELECT status::text, asked, state, error, finished_at FROM runs") == [
        ("retrying", "retry", {"at": "b", "by": "timer"}, None, None)
    ]
    assert await stand.due(run_id) == [""]
    with pytest.raises(Conflict, match="is retrying; only a failed run"):
        await stand.control.retry_run(run_id, "ann")


async def test_a_retry_takes_its_event_out_of_the_dead_ones(stand: Stand) -> None:
    uid = await stand.event()
    await stand.rows("UPDATE events SET outcome = 'dead'")
    run_id = await stand.run(status="failed", state={"at": "a"}, steps={"a": "failed"}, event_uid=uid)
    await stand.rows(
        "INSERT INTO dead_letters (id, kind, event_uid, run_id, step, error, attempts, created_at) "
        "VALUES (%s, 'step', %s, %s, 'a', 'no', 1, now())",
        uuid7(),
        uid,
        run_id,
    )
    await stand.control.redrive(await stand.one("SELECT id::text FROM dead_letters"), "ann")
    assert await stand.one("SELECT outcome FROM events") is None
    assert await stand.rows("SELECT key, reopens FROM timers") == [("", True)]
    assert await stand.one("SELECT status::text FROM dead_letters") == "redriven"
    assert (await stand.status(run_id), await stand.asked(run_id)) == ("retrying", "retry")


@pytest.mark.parametrize(
    ("state", "steps", "why"),
    [
        ({"at": "send"}, {"charge": "succeeded", "send": "failed", "charge.compensate": "succeeded"}, "was undone"),
        ({"at": "send"}, {"send": "failed", "book.compensate[0]#2": "failed"}, "was undone"),
        ({}, {"charge": "failed"}, "did not fail at a step"),
    ],
)
async def test_what_was_undone_or_ended_on_purpose_can_not_be_retried(
    stand: Stand, state: dict[str, Any], steps: dict[str, str], why: str
) -> None:
    run_id = await stand.run(SAGA, status="failed", state=state, steps=steps)
    with pytest.raises(Conflict, match=why):
        await stand.control.retry_run(run_id, "ann")
    assert (await stand.status(run_id), await stand.due(run_id)) == ("failed", [])


@pytest.mark.parametrize("broken", [NotFound("there is no revision 1"), DefinitionError("no such key")])
async def test_a_run_whose_revision_is_no_use_is_left_as_it_is(stand: Stand, broken: Exception) -> None:
    run_id = await stand.run(status="failed", state={"at": "a"}, steps={"a": "failed"})
    stand.catalog.broken = broken
    for act in (stand.control.retry_run, stand.control.rerun):
        with pytest.raises(Conflict, match="can't be used"):
            await act(run_id, "ann")
    assert await stand.status(run_id) == "failed"
    assert (await stand.control.rerun(run_id, "ann", current=True))["revision"] == 1


# --- what is put in for a run ----------------------------------------------------------------------------------------


async def test_an_event_that_is_sent_to_a_run_is_stored_and_put_in_for_it(stand: Stand) -> None:
    run_id = await stand.run()
    event = sent(subject="s", attributes={"region": "eu"})
    assert await stand.control.send_event(run_id, event, "ann") == {
        "id": event.id,
        "uid": event.uid,
        "status": "accepted",
    }
    assert await stand.rows("SELECT run_id::text, id::text, key, kind, event_uid::text, payload FROM signals") == [
        (run_id, event.uid, "", "event", event.uid, None)
    ]
    assert await stand.due(run_id) == ["+signal"]
    stored = await Runs(stand.pool).event(event.uid)
    assert stored == (event, "handled")


async def test_the_same_event_sent_again_is_put_in_once(stand: Stand) -> None:
    run_id = await stand.run()
    first = sent(id="7", key=event_key("/api", "7"))
    again = sent(id="7", key=event_key("/api", "7"))
    await stand.control.send_event(run_id, first, "ann")
    answer = await stand.control.send_event(run_id, again, "ann")
    assert (answer["uid"], answer["status"]) == (first.uid, "duplicate")
    other = await stand.run()
    assert (await stand.control.send_event(other, again, "ann"))["status"] == "accepted"
    assert await stand.one("SELECT count(*) FROM events WHERE type = 'order.paid'") == 1


async def test_an_event_that_is_still_in_a_stream_is_not_sent(stand: Stand) -> None:
    run_id = await stand.run()
    await stand.rows("INSERT INTO event_keys (key, uid) VALUES (%s, %s)", event_key("/api", "7"), uuid7())
    with pytest.raises(Conflict, match="on its way"):
        await stand.control.send_event(run_id, sent(id="7", key=event_key("/api", "7")), "ann")


async def test_a_run_that_is_over_takes_nothing(stand: Stand) -> None:
    run_id = await stand.run(status="succeeded", state=None, steps={"a": "unknown"})
    with pytest.raises(Conflict, match="over: it is succeeded; no event"):
        await stand.control.send_event(run_id, sent(), "ann")
    with pytest.raises(Conflict, match="over: it is succeeded; none of its steps"):
        await stand.control.settle_step(run_id, "a", "retry", "ann")
    assert await stand.one("SELECT count(*) FROM events WHERE type = 'order.paid'") == 0


async def test_a_step_whose_outcome_is_unknown_is_settled_once(stand: Stand) -> None:
    run_id = await stand.run(steps={"a": "unknown", "b": "waiting"})
    answers = await asyncio.gather(
        *(stand.control.settle_step(run_id, "a", "succeeded", who, output={"n": who}) for who in "xyz"),
        return_exceptions=True,
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["Conflict", "Conflict", "dict"]
    ((key, kind, payload),) = await stand.rows("SELECT key, kind, payload FROM signals")
    assert (key, kind, payload["status"]) == ("a", "settle", "succeeded")
    assert payload["output"] == {"n": payload["by"]}
    assert await stand.due(run_id) == ["+signal"]
    await stand.rows("UPDATE steps SET attempt = 2 WHERE key = 'a'")  # it was tried again, and is unknown again
    await stand.control.settle_step(run_id, "a", "failed", "x", error="no")
    with pytest.raises(Conflict, match="step b is waiting"):
        await stand.control.settle_step(run_id, "b", "failed", "x")
    with pytest.raises(NotFound, match="no step 'c'"):
        await stand.control.settle_step(run_id, "c", "failed", "x")
