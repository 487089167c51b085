"""What people do to runs while others do something to them: one wins, and what is over stays over."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from appliance.engine.control import Control
from appliance.errors import Conflict, Fenced
from tests.integration.stand import PARKED, PLAIN, SAGA, Stand, called_by, sent, standing
from tests.servers import wait_until


@pytest_asyncio.fixture
async def stand(database_url: str) -> AsyncIterator[Stand]:
    async with standing(database_url) as made:
        yield made


# --- against everybody else ------------------------------------------------------------------------------------------


async def test_a_cancellation_that_waits_for_a_completion_loses(stand: Stand) -> None:
    run_id = await stand.run(status="running", state=None)
    async with stand.writing(run_id, status="succeeded"):
        cancelling = asyncio.create_task(stand.control.cancel_run(run_id, "ann"))
        await wait_until(stand.blocked, "the cancellation to wait")
    with pytest.raises(Conflict, match="over already: succeeded"):
        await cancelling
    assert await stand.status(run_id) == "succeeded"
    assert await stand.one("SELECT count(*) FROM audit_log") == 0


async def test_a_completion_that_comes_after_a_cancellation_loses(stand: Stand) -> None:
    run_id = await stand.run(status="running", state=None)
    await stand.control.cancel_run(run_id, "ann")
    with pytest.raises(Fenced):
        await stand.commit(run_id, "succeeded", version=1)
    assert await stand.status(run_id) == "cancelled"


async def test_a_completion_may_come_before_the_notice_of_a_request(stand: Stand) -> None:
    """Who holds the run goes on with the version that it knows."""
    run_id = await stand.run(SAGA, status="running", state=None, steps={"charge": "succeeded"})
    assert await stand.control.cancel_run(run_id, "ann") == {"status": "cancelling"}
    await stand.commit(run_id, "succeeded", version=1)
    with pytest.raises(Conflict, match="over already: succeeded"):
        await stand.control.cancel_run(run_id, "ann")


async def test_a_pause_that_waits_for_a_wake_is_asked_for(stand: Stand) -> None:
    run_id = await stand.run()
    async with stand.writing(run_id, status="running", state='{"by": "normal-1-1"}'):
        pausing = asyncio.create_task(stand.control.pause_run(run_id, "ann"))
        await wait_until(stand.blocked, "the pause to wait")
    assert await pausing == {"status": "pausing"}
    assert (await stand.status(run_id), await stand.asked(run_id)) == ("running", "pause")


async def test_a_wake_that_comes_after_a_pause_loses(stand: Stand) -> None:
    run_id = await stand.run()
    await stand.control.pause_run(run_id, "ann")
    with pytest.raises(Fenced):
        await stand.commit(run_id, "running", version=1, state={"by": "normal-1-1"})
    assert await stand.status(run_id) == "paused"


Act = Callable[[Control, str], Coroutine[Any, Any, Any]]


@pytest.mark.parametrize(
    ("act", "status", "state"),
    [
        (lambda control, run_id: control.retry_run(run_id, "x"), "failed", {"at": "a"}),
        (lambda control, run_id: control.resume_run(run_id, "x"), "paused", PARKED),
        (lambda control, run_id: control.pause_run(run_id, "x"), "waiting", PARKED),
        (lambda control, run_id: control.cancel_run(run_id, "x"), "waiting", PARKED),
    ],
    ids=["retry", "resume", "pause", "cancel"],
)
async def test_of_several_who_do_the_same_at_once_one_wins(
    stand: Stand, act: Act, status: str, state: dict[str, Any]
) -> None:
    run_id = await stand.run(status=status, state=state, steps={"a": "failed"})
    async with stand.writing(run_id, priority="low"):  # all of them stand behind it when it goes
        acts = [asyncio.create_task(act(stand.control, run_id)) for _ in range(4)]

        async def behind() -> bool:
            return bool(await stand.one("SELECT count(*) >= 4 FROM pg_locks WHERE NOT granted"))

        await wait_until(behind, "all to wait")
    answers = await asyncio.gather(*acts, return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["Conflict"] * 3 + ["dict"]
    assert await stand.one("SELECT version FROM runs") == 3
    assert await stand.one("SELECT count(*) FROM audit_log") == 1


async def test_a_cancellation_and_a_commit_that_lock_each_others_runs_both_come_through(stand: Stand) -> None:
    """They lock caller and called run in opposite orders; PostgreSQL ends one of them, which tries again."""
    parent = await stand.run()
    child = await called_by(stand, parent)
    async with await psycopg.AsyncConnection.connect(stand.url) as other:
        # This one looks for deadlocks late: it is the cancellation that finds it, and gives way.
        await other.execute("SET deadlock_timeout = '30s'")
        await other.execute("UPDATE runs SET priority = 'low' WHERE id = %s", [child])
        cancelling = asyncio.create_task(stand.control.cancel_run(parent, "ann"))
        await wait_until(stand.blocked, "the cancellation to wait")
        await other.execute("UPDATE runs SET priority = 'low' WHERE id = %s", [parent])
    assert await cancelling == {"status": "cancelled"}
    assert [await stand.status(run) for run in (parent, child)] == ["cancelled", "cancelled"]


async def worker(stand: Stand, run_id: str, chance: random.Random) -> None:
    """Whoever holds the run or wakes it: looks at it, and writes what it became, a moment later."""
    version, status, asked = (await stand.rows("SELECT version, status::text, asked FROM runs WHERE id = %s", run_id))[
        0
    ]
    if status in ("succeeded", "cancelled", "failed", "paused"):
        return
    await asyncio.sleep(chance.choice((0, 0.001, 0.003)))
    next_status = "cancelled" if asked == "cancel" else chance.choice(["running", "waiting", "failed", "succeeded"])
    state = {"by": "timer" if next_status == "waiting" else "normal-1-1", "at": "charge"}
    with contextlib.suppress(Fenced):
        await stand.commit(run_id, next_status, version, state if next_status != "succeeded" else None)


@pytest.mark.parametrize("seed", range(6))
async def test_a_run_that_is_over_stays_as_it_is_whoever_does_what_to_it(stand: Stand, seed: int) -> None:
    """Several actors at random; a trigger in the database watches every change of a status."""
    await stand.rows(
        "CREATE TABLE changes (id bigint GENERATED ALWAYS AS IDENTITY, run uuid, before text, after text, versions int)"
    )
    await stand.rows(
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO changes (run, before, after, "
        "versions) VALUES (NEW.id, OLD.status, NEW.status, NEW.version - OLD.version); RETURN NEW; END $$"
    )
    await stand.rows("CREATE TRIGGER watch AFTER UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION watch()")
    chance = random.Random(seed)
    control = stand.control
    runs = [
        await stand.run(definition, state=state, steps={"charge": "succeeded", "send": "waiting"})
        for definition in (PLAIN, SAGA)
        for state in (PARKED, None)
    ]
    actions: list[Act] = [
        lambda c, r: c.cancel_run(r, "x"),
        lambda c, r: c.pause_run(r, "x"),
        lambda c, r: c.resume_run(r, "x"),
        lambda c, r: c.retry_run(r, "x"),
        lambda c, r: c.send_event(r, sent(), "x"),
    ]

    async def actor(own: random.Random) -> None:
        for _ in range(12):
            run_id = own.choice(runs)
            if own.random() < 0.4:
                await worker(stand, run_id, own)
            else:
                with contextlib.suppress(Conflict):
                    await own.choice(actions)(control, run_id)

    await asyncio.gather(*(actor(random.Random(chance.random())) for _ in range(4)))
    changes = await stand.rows("SELECT before, after, versions FROM changes ORDER BY id")
    final = {"succeeded", "cancelled", "failed"}
    assert changes
    for before, after, versions in changes:
        allowed = before not in final or before == after or (before, after) == ("failed", "retrying")
        assert allowed, (before, after)
        assert versions == (1 if before != after else versions)
    assert not [c for c in changes if c[0] in final and c[1] == c[0]]
