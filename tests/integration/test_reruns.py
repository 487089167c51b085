"""Reruns of runs and replays of events, against a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from appliance.engine.listeners import machine_digest
from appliance.errors import Conflict, Malformed, NotFound
from appliance.identifiers import uuid7
from appliance.rules.matcher import Trigger
from tests.integration.stand import PARKED, PLAIN, SAGA, Stand, standing


@pytest_asyncio.fixture
async def stand(database_url: str) -> AsyncIterator[Stand]:
    async with standing(database_url) as made:
        yield made


# --- rerun -----------------------------------------------------------------------------------------------------------

RECORDED = {"charge": "succeeded", "each": "succeeded", "book[0]": "succeeded", "book[1]": "cancelled",
            "send": "failed", "told": "succeeded"}  # fmt: skip


async def test_a_rerun_takes_over_what_is_recorded_before_its_step(stand: Stand) -> None:
    details = {"input": {"n": 1}, "depth": 2, "parent": {"run": uuid7(), "key": "x"}}
    run_id = await stand.run(SAGA, status="failed", state={"at": "send"}, steps=RECORDED, details=details)
    answer = await stand.control.rerun(run_id, "ann", start="send")
    new = answer["run"]
    assert answer == {"run": new, "revision": 1}
    expected = {"input": {"n": 1}, "depth": 2, "rerun_of": run_id, "rerun": {"run": run_id, "from": "send"}}
    assert await stand.rows(
        "SELECT n.status::text, n.origin, n.details, n.state, n.event_uid = o.event_uid, n.revision_id = o.revision_id "
        "FROM runs n, runs o WHERE n.id = %s AND o.id = %s",
        new,
        run_id,
    ) == [("running", "rerun", expected, PARKED, True, True)]
    assert await stand.rows("SELECT key, seq, output FROM steps WHERE run_id = %s ORDER BY seq", new) == [
        ("charge", 0, "of charge"),
        ("each", 1, "of each"),
        ("book[0]", 2, "of book[0]"),
    ]
    assert await stand.due(new) == [""]
    assert await stand.status(run_id) == "failed"
    assert await stand.one("SELECT detail FROM audit_log") == {"run": new, "from": "send", "revision": 1}


async def test_a_rerun_from_the_start_takes_nothing_over(stand: Stand) -> None:
    run_id = await stand.run(SAGA, status="succeeded", state=None, steps=RECORDED)
    new = (await stand.control.rerun(run_id, "ann"))["run"]
    assert await stand.one("SELECT details FROM runs WHERE id = %s", new) == {"rerun_of": run_id}
    assert await stand.one("SELECT count(*) FROM steps WHERE run_id = %s", new) == 0


async def test_a_rerun_may_be_on_the_current_revision(stand: Stand) -> None:
    run_id = await stand.run(SAGA, status="failed", state={"at": "send"}, steps=RECORDED)
    moved = await stand.workflow(SAGA | {"steps": [{"id": "charge"}, {"id": "check"}, {"id": "send"}, {"id": "each"}]})
    new = await stand.control.rerun(run_id, "ann", start="send", current=True)
    assert new["revision"] == 2
    assert await stand.one("SELECT revision_id FROM runs WHERE id = %s", new["run"]) == moved.id
    assert await stand.rows("SELECT key FROM steps WHERE run_id = %s", new["run"]) == [("charge",)]


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ("nothing", "from: there is no such step: 'nothing'; expected one of charge, each, send"),
        ("book", "from: this step is inside another one, or belongs to it: 'book'; expected one of charge, each, send"),
    ],
)
async def test_a_rerun_begins_with_a_step_of_the_runs_own_thread(stand: Stand, start: str, why: str) -> None:
    run_id = await stand.run(SAGA, status="failed", state={}, steps=RECORDED)
    with pytest.raises(Malformed) as refusal:
        await stand.control.rerun(run_id, "ann", start=start)
    assert str(refusal.value) == why


async def test_a_state_machine_is_rerun_from_its_start_only(stand: Stand) -> None:
    await stand.machine()
    run_id = await stand.run(status="failed", state={}, event_uid=await stand.event(key="k"))
    with pytest.raises(Malformed, match="from its start"):
        await stand.control.rerun(run_id, "ann", start="a")
    new = (await stand.control.rerun(run_id, "ann"))["run"]
    assert await stand.rows("SELECT business_key, run_id::text FROM machines") == [("k", new)]
    assert await stand.rows("SELECT run_id::text, key, digest::text FROM waits") == [
        (new, "", machine_digest("plain", "k"))
    ]
    with pytest.raises(Conflict, match=f"'plain' of 'k' is live already: run {new}"):
        await stand.control.rerun(run_id, "ann")


async def test_a_state_machine_that_is_retried_is_live_again(stand: Stand) -> None:
    await stand.machine()
    uid = await stand.event(key=5)
    run_id = await stand.run(status="failed", state={"at": "a"}, event_uid=uid)
    await stand.control.retry_run(run_id, "ann")
    assert await stand.rows("SELECT business_key, run_id::text FROM machines") == [("5", run_id)]
    # Events from its own on: those that it has seen stand in its signals.
    assert await stand.one("SELECT since::text < %s FROM waits", uid)
    other = await stand.run(status="failed", state={"at": "a"}, event_uid=uid)
    with pytest.raises(Conflict, match="can't go on: 'plain' of '5' is live already"):
        await stand.control.retry_run(other, "ann")
    keyless = await stand.run(status="failed", state={"at": "a"})
    with pytest.raises(Conflict, match="no business key"):
        await stand.control.retry_run(keyless, "ann")
    assert [await stand.status(run) for run in (run_id, other, keyless)] == ["retrying", "failed", "failed"]


async def test_a_replay_begins_a_state_machine_unless_one_of_its_key_is_live(stand: Stand) -> None:
    await stand.machine()
    uids = [await stand.event(key=key) for key in ("a", "b", "a")] + [await stand.event()]
    assert [len(item["runs"]) for item in await stand.control.replay(uids, "ann")] == [1, 1, 0, 0]
    assert [len(item["runs"]) for item in await stand.control.replay(uids, "ann", workflow="plain")] == [0] * 4
    assert await stand.rows("SELECT count(*) FROM runs") == await stand.rows("SELECT count(*) FROM timers") == [(2,)]


async def test_what_was_undone_is_not_taken_over(stand: Stand) -> None:
    steps = RECORDED | {"charge.compensate": "succeeded"}
    run_id = await stand.run(SAGA, status="failed", state={}, steps=steps)
    with pytest.raises(Conflict, match="was undone: rerun from it"):
        await stand.control.rerun(run_id, "ann", start="send")
    assert await stand.one("SELECT count(*) FROM runs") == 1
    assert (await stand.control.rerun(run_id, "ann", start="charge"))["run"]


async def test_a_run_that_goes_on_or_whose_event_has_gone_is_not_rerun(stand: Stand) -> None:
    with pytest.raises(Conflict, match="is waiting; only a run that is over"):
        await stand.control.rerun(await stand.run(), "ann")
    run_id = await stand.run(status="failed", state={}, event_uid=uuid7())
    with pytest.raises(Conflict, match="not kept any more"):
        await stand.control.rerun(run_id, "ann")


# --- replay ----------------------------------------------------------------------------------------------------------


async def test_a_replay_begins_a_run_for_each_workflow_that_takes_the_event_now(stand: Stand) -> None:
    plain, _ = await stand.workflow(PLAIN), await stand.workflow(SAGA)
    ((number, other),) = [(n, r) for n, r in stand.catalog.revisions.items() if r is not plain]
    stand.catalog.revisions[number] = replace(other, workflow=replace(other.workflow, triggers=(Trigger("u"),)))
    uids = [await stand.event(), await stand.event()]
    answer = await stand.control.replay(uids, "ann")
    assert [(item["event"], [run["workflow"] for run in item["runs"]]) for item in answer] == [
        (uid, ["plain"]) for uid in uids
    ]
    found = await stand.rows(
        "SELECT r.id::text, event_uid::text, revision_id, r.status::text, origin, state, details, t.key "
        "FROM runs r JOIN timers t ON t.run_id = r.id WHERE t.due_at <= now() ORDER BY r.id"
    )
    ids = [item["runs"][0]["id"] for item in answer]
    expected = ("running", "replay", PARKED, None, "")
    assert found == sorted((run, uid, plain.id, *expected) for run, uid in zip(ids, uids, strict=True))
    assert await stand.rows("SELECT subject, detail ->> 'runs' FROM audit_log") == [("2 events", "2")]


async def test_a_replay_for_a_named_workflow_asks_nobody_whether_it_matches(stand: Stand) -> None:
    revision = await stand.workflow(PLAIN)
    stand.catalog.revisions[revision.id] = replace(
        revision, workflow=replace(revision.workflow, triggers=(Trigger("u"),), priority="high")
    )
    uid = await stand.event()
    assert (await stand.control.replay([uid], "ann"))[0]["runs"] == []
    for _ in range(2):
        assert (await stand.control.replay([uid], "ann", workflow="plain"))[0]["runs"][0]["workflow"] == "plain"
    await stand.control.replay([uid], "ann", workflow="plain", priority="low")
    assert await stand.rows("SELECT priority, count(*) FROM timers GROUP BY 1 ORDER BY 1") == [("high", 2), ("low", 1)]


async def test_a_replay_is_all_or_nothing(stand: Stand) -> None:
    revision = await stand.workflow(PLAIN)
    uid = await stand.event()
    with pytest.raises(NotFound, match="no event"):
        await stand.control.replay([uid, uuid7()], "ann")
    with pytest.raises(NotFound, match="no workflow"):
        await stand.control.replay([uid], "ann", workflow="unknown")
    stand.catalog.revisions[revision.id] = replace(revision, workflow=replace(revision.workflow, enabled=False))
    with pytest.raises(Conflict, match="disabled"):
        await stand.control.replay([uid], "ann", workflow="plain")
    assert await stand.one("SELECT count(*) FROM runs") == 0
