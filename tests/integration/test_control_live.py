"""What people do to runs that really run: consumer, executor, timers and control together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.errors import Conflict
from appliance.events import new_event
from appliance.plugin import Context, Reject
from appliance.replica import Replica
from appliance.settings import StoreSettings
from appliance.store.pool import Connection, open_connection
from tests.integration.test_heart import QUICK, Heart, failing, instant, rows
from tests.servers import wait_until

ZERO = {"unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


@pytest_asyncio.fixture
async def heart(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Heart]:
    async with contextlib.AsyncExitStack() as stack:
        yield Heart(redis_url, database_url, tmp_path, stack)


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await open_connection(database_url, StoreSettings())
    yield connection
    await connection.close()


def told(step: str, **more: Any) -> dict[str, Any]:
    """A step that does what the test says under its name."""
    return {"id": step, "action": "told", "with": {"how": step}, **more}


async def put(heart: Heart, name: str, *steps: dict[str, Any], **more: Any) -> None:
    await heart.replicas[0].catalog.put({"name": name, "trigger": {"event": "t"}, "steps": list(steps), **more})


async def run_of(db: Connection, workflow: str = "w") -> str:
    """The id of the one run of a workflow, once it is there."""
    of = f"(SELECT id FROM workflows WHERE name = '{workflow}')"  # noqa: S608
    statement = f"SELECT id::text FROM runs WHERE workflow_id = {of} ORDER BY id DESC"  # noqa: S608
    return str((await wait_until(lambda: rows(db, statement), f"a run of {workflow}"))[0][0])


async def until(db: Connection, run_id: str, status: str) -> None:
    async def there() -> bool:
        return await rows(db, f"SELECT status::text FROM runs WHERE id = '{run_id}'") == [(status,)]  # noqa: S608

    await wait_until(there, f"the run to be {status}")


async def steps(db: Connection, run_id: str) -> dict[str, str]:
    return dict(await rows(db, f"SELECT key, status::text FROM steps WHERE run_id = '{run_id}'"))  # noqa: S608


class Gate:
    """An action that says when it has begun, and waits until it may end."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, _: Context) -> str:
        self.begun.set()
        await self.open.wait()
        return "through"


async def test_a_paused_run_sleeps_through_its_timer_and_goes_on_when_it_is_resumed(
    heart: Heart, db: Connection
) -> None:
    made = await heart.replica()
    heart.behave["b"] = instant
    await put(heart, "w", {"id": "a", "delay": "300ms"}, told("b"))
    await heart.send()
    run_id = await run_of(db)
    await until(db, run_id, "waiting")
    assert await made.control.pause_run(run_id, "me") == {"status": "paused"}

    async def fired() -> bool:
        return await rows(db, "SELECT 1 FROM timers") == []

    await wait_until(fired, "the timer to fire")
    await heart.at_rest()
    assert await rows(db, "SELECT status::text FROM runs") == [("paused",)]
    assert await made.control.resume_run(run_id, "me") == {"status": "waiting"}
    await until(db, run_id, "succeeded")
    assert heart.calls["b"] == [1]
    await heart.at_rest()
    assert await heart.ledger() == {"handled": 1, **ZERO}


async def test_a_run_in_hand_is_paused_behind_its_attempt(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    heart.behave |= {"a": instant, "b": (gate := Gate()), "c": instant}
    await put(heart, "w", told("a"), told("b"), told("c"))
    await heart.send()
    await gate.begun.wait()
    run_id = await run_of(db)
    assert await made.control.pause_run(run_id, "me") == {"status": "pausing"}
    gate.open.set()
    await until(db, run_id, "paused")
    await heart.at_rest()
    assert (await steps(db, run_id))["b"] == "succeeded"
    assert (heart.calls["b"], heart.calls["c"]) == ([1], [])
    await made.control.resume_run(run_id, "me")
    await until(db, run_id, "succeeded")
    assert (heart.calls["b"], heart.calls["c"]) == ([1], [1])


async def test_what_comes_in_for_a_paused_run_is_kept(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    await put(heart, "w", {"id": "a", "wait": {"event": "paid"}, "forever": True})
    await heart.send()
    run_id = await run_of(db)
    await until(db, run_id, "waiting")
    await made.control.pause_run(run_id, "me")
    await made.control.send_event(run_id, new_event("paid", {"n": 1}, source="/x"), "me")
    await heart.at_rest()
    await wait_until(lambda: rows(db, "SELECT 1 WHERE NOT EXISTS (SELECT FROM timers)"), "the wake")
    await heart.at_rest()
    assert await rows(db, "SELECT status::text FROM runs") == [("paused",)]
    await made.control.resume_run(run_id, "me")
    await until(db, run_id, "succeeded")


async def test_a_cancelled_run_undoes_what_it_did_once(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    heart.behave |= {"charge": instant, "refund": instant}
    undo = {"action": "told", "with": {"how": "refund"}}
    await put(heart, "w", told("charge", compensate=undo), {"id": "x", "wait": {"event": "paid"}, "forever": True})
    await heart.send()
    run_id = await run_of(db)
    await until(db, run_id, "waiting")
    answers = await asyncio.gather(*(made.control.cancel_run(run_id, "me") for _ in range(3)))
    assert {answer["status"] for answer in answers} == {"cancelling"}
    await until(db, run_id, "cancelled")
    await heart.at_rest()
    assert (heart.calls["charge"], heart.calls["refund"]) == ([1], [1])
    assert await rows(db, "SELECT count(*) FROM waits") == await rows(db, "SELECT count(*) FROM timers") == [(0,)]
    with pytest.raises(Conflict, match="over already: cancelled"):
        await made.control.cancel_run(run_id, "me")


async def test_an_attempt_under_way_is_finished_and_undone(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    heart.behave |= {"a": instant, "charge": (gate := Gate()), "refund": instant, "c": instant}
    undo = {"action": "told", "with": {"how": "refund"}}
    await put(heart, "w", told("a"), told("charge", compensate=undo), told("c"))
    await heart.send()
    await gate.begun.wait()
    run_id = await run_of(db)
    assert await made.control.cancel_run(run_id, "me") == {"status": "cancelling"}
    gate.open.set()
    await until(db, run_id, "cancelled")
    assert (heart.calls["charge"], heart.calls["refund"], heart.calls["c"]) == ([1], [1], [])


async def test_a_paused_run_that_is_cancelled_undoes(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    heart.behave |= {"charge": instant, "refund": instant}
    undo = {"action": "told", "with": {"how": "refund"}}
    await put(heart, "w", told("charge", compensate=undo), {"id": "x", "delay": "1h"})
    await heart.send()
    run_id = await run_of(db)
    await until(db, run_id, "waiting")
    await made.control.pause_run(run_id, "me")
    assert await made.control.cancel_run(run_id, "me") == {"status": "cancelling"}
    await until(db, run_id, "cancelled")
    assert heart.calls["refund"] == [1]


@pytest.mark.parametrize("paused", [False, True])
async def test_cancelling_a_caller_ends_what_it_called(heart: Heart, db: Connection, paused: bool) -> None:
    made = await heart.replica()
    heart.behave |= {"charge": instant, "refund": instant}
    undo = {"action": "told", "with": {"how": "refund"}}
    waits = {"id": "x", "wait": {"event": "paid"}, "forever": True}
    await put(heart, "child", told("charge", compensate=undo), waits, trigger="manual")
    await put(heart, "w", {"id": "call", "workflow": "child"})
    await heart.send()
    child = await run_of(db, "child")
    await until(db, child, "waiting")
    if paused:
        await made.control.pause_run(child, "me")
    parent = await run_of(db)
    assert await made.control.cancel_run(parent, "me") == {"status": "cancelled"}
    await until(db, child, "cancelled")
    assert heart.calls["refund"] == [1]
    await wait_until(lambda: rows(db, "SELECT 1 HAVING NOT EXISTS (SELECT FROM timers)"), "no timer to be left")
    await heart.at_rest()


async def test_a_paused_run_that_nobody_waits_for_any_more_ends(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    await put(heart, "child", {"id": "x", "wait": {"event": "paid"}, "forever": True}, trigger="manual")
    branches = {
        "call": [{"id": "call", "workflow": "child"}],
        "go": [{"id": "g", "wait": {"event": "go"}, "forever": True}],
    }
    await put(heart, "w", {"id": "p", "parallel": {"branches": branches, "join": "any"}})
    await heart.send()
    child, parent = await run_of(db, "child"), await run_of(db)
    await until(db, child, "waiting")
    await made.control.pause_run(child, "me")
    await made.control.send_event(parent, new_event("go", {}, source="/x"), "me")
    await until(db, parent, "succeeded")
    await until(db, child, "cancelled")


async def test_a_caller_goes_on_when_what_it_called_is_cancelled(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    heart.behave["sorry"] = instant
    await put(heart, "child", {"id": "x", "wait": {"event": "paid"}, "forever": True}, trigger="manual")
    await put(heart, "w", {"id": "call", "workflow": "child", "on_error": "sorry"}, told("sorry"))
    await heart.send()
    child = await run_of(db, "child")
    await until(db, child, "waiting")
    await made.control.cancel_run(child, "me")
    await until(db, await run_of(db), "succeeded")
    assert heart.calls["sorry"] == [1]
    assert "cancelled by me" in (await rows(db, "SELECT error FROM steps WHERE key = 'call'"))[0][0]


async def test_a_run_that_is_cancelled_at_once_is_announced(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    await put(heart, "w", {"id": "a", "delay": "1h"})
    uid = await heart.send()
    run_id = await run_of(db)
    await until(db, run_id, "waiting")
    await made.control.cancel_run(run_id, "me")
    assert await rows(db, "SELECT count(*) FROM outbox") == [(0,)]  # no workflow takes such events
    await put(heart, "v", {"id": "b", "delay": "1h"}, trigger={"event": "workflow.*"})
    replayed = await made.control.replay([uid], "me", workflow="w")
    await made.control.cancel_run(replayed[0]["runs"][0]["id"], "me")
    ((entry,),) = await rows(db, "SELECT entry FROM outbox")
    told = json.loads(entry["event"])
    assert (told["type"], told["subject"], told["data"]["error"], told["data"]["revision"]) == (
        "workflow.cancelled",
        replayed[0]["runs"][0]["id"],
        "cancelled by me",
        1,
    )


async def test_a_retry_begins_anew_what_was_cancelled_with_the_step(heart: Heart, db: Connection) -> None:
    """A branch that waited for an event listens again; one that was over stays so."""
    made = await heart.replica()
    done = asyncio.Event()

    async def finish(_: Context) -> None:
        done.set()

    async def fail_once(ctx: Context) -> None:
        await done.wait()
        if len(heart.calls["a"]) == 1:
            raise Reject("no")

    heart.behave |= {"a": fail_once, "done": finish, "behind": instant}
    await put(heart, "w", {"id": "p", "parallel": {"branches": BRANCHES}}, told("behind"))
    await heart.send()
    run_id = await run_of(db)
    await until(db, run_id, "failed")
    await made.control.retry_run(run_id, "me")
    await until(db, run_id, "waiting")
    await made.control.send_event(run_id, new_event("paid", {}, source="/x"), "me")
    await until(db, run_id, "succeeded")
    assert heart.calls == {"a": [1, 1], "done": [1], "behind": [1]}
    await heart.at_rest()
    ledger = await heart.ledger()
    assert (ledger["dead"], ledger["in_flight"], ledger["difference"]) == (0, 0, 0)


BRANCHES = {
    "one": [told("a")],
    "two": [{"id": "x", "wait": {"event": "paid"}, "forever": True}],
    "three": [told("done")],
}


async def test_a_retry_goes_on_behind_what_was_finished_after_the_failure(heart: Heart, db: Connection) -> None:
    """The attempt of another branch was under way when the step failed: it is over, but its branch was not joined."""
    made = await heart.replica()
    heart.behave |= {"a": failing(1), "done": (gate := Gate()), "then": instant}
    branches = {"one": [told("a", retry={"max_attempts": 1})], "two": [told("done"), told("then")]}
    await put(heart, "w", {"id": "p", "parallel": {"branches": branches}})
    await heart.send()
    await gate.begun.wait()
    await wait_until(lambda: heart.calls["a"], "the failure")
    gate.open.set()
    run_id = await run_of(db)
    await until(db, run_id, "failed")
    assert await steps(db, run_id) == {"p": "failed", "a": "failed", "done": "succeeded"}
    await made.control.retry_run(run_id, "me")
    await until(db, run_id, "succeeded")
    assert heart.calls == {"a": [1, 1], "done": [1], "then": [1]}


async def test_a_rerun_begins_with_its_step(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    seen: list[Any] = []

    async def note(ctx: Context) -> None:
        seen.append(ctx.step)
        if len(seen) == 1:
            raise Reject("no")

    heart.behave |= {"a": instant, "b": note, "c": instant}
    await put(heart, "w", told("a"), told("b"), told("c"))
    await heart.send()
    failed = await run_of(db)
    await until(db, failed, "failed")
    new = (await made.control.rerun(failed, "me", start="b"))["run"]
    await until(db, new, "succeeded")
    assert (heart.calls["a"], heart.calls["b"], heart.calls["c"]) == ([1], [1, 1], [1])
    assert await steps(db, new) == {"a": "succeeded", "b": "succeeded", "c": "succeeded"}
    await until(db, failed, "failed")


async def test_a_rerun_may_be_retried(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    heart.behave |= {"a": instant, "b": failing(2)}
    await put(heart, "w", told("a"), told("b", retry={"max_attempts": 1}))
    await heart.send()
    failed = await run_of(db)
    await until(db, failed, "failed")
    new = (await made.control.rerun(failed, "me", start="b"))["run"]
    await until(db, new, "failed")
    await made.control.retry_run(new, "me")
    await until(db, new, "succeeded")
    assert (heart.calls["a"], heart.calls["b"]) == ([1], [1, 1, 1])


async def test_replayed_events_run_again_and_count_once(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    heart.behave["a"] = instant
    await put(heart, "w", told("a"))
    uids = [await heart.send() for _ in range(3)]
    await heart.at_rest()
    await made.control.replay(uids, "me")
    await wait_until(lambda: len(heart.calls["a"]) == 6, "the replays")
    await heart.at_rest()
    assert await rows(db, "SELECT origin, status::text, count(*) FROM runs GROUP BY 1, 2 ORDER BY 1") == [
        ("replay", "succeeded", 3),
        (None, "succeeded", 3),
    ]
    assert await heart.ledger() == {"handled": 3, **ZERO}


@pytest.mark.parametrize(("verdict", "status", "calls"), [
    ("succeeded", "succeeded", [1]), ("failed", "failed", [1]), ("retry", "succeeded", [1, 2])
])  # fmt: skip
async def test_a_step_of_unknown_outcome_waits_for_a_persons_word(
    heart: Heart, db: Connection, verdict: str, status: str, calls: list[int]
) -> None:
    made = await heart.replica()

    async def breaks(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise RuntimeError("the line went dead")

    heart.behave |= {"a": breaks, "b": instant}
    await put(heart, "w", told("a", effects="at_most_once"), told("b"))
    await heart.send()
    run_id = await run_of(db)
    await wait_until(lambda: rows(db, "SELECT 1 FROM steps WHERE status = 'unknown'"), "the unknown step")
    await until(db, run_id, "waiting")
    await heart.at_rest()
    assert heart.calls["a"] == [1]
    await made.control.settle_step(run_id, "a", verdict, "me", output={"ok": 1} if verdict == "succeeded" else None)
    with pytest.raises(Conflict):
        await made.control.settle_step(run_id, "a", "retry", "me")
    await until(db, run_id, status)
    assert heart.calls["a"] == calls
    assert heart.calls["b"] == ([1] if status == "succeeded" else [])


async def test_a_machine_that_failed_and_is_retried_hears_of_events_again(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    heart.behave["a"] = failing(1)
    states = {
        "open": {"enter": [told("a", retry={"max_attempts": 1})], "on": {"PAID": {"next": "paid"}}},
        "paid": {"final": True},
    }
    machine = {"initial": "open", "correlate": "{{ event.data.key }}", "states": states}
    await made.catalog.put({"name": "w", "trigger": {"event": "t"}, **machine})
    await heart.send(key="k")
    run_id = await run_of(db)
    await until(db, run_id, "failed")
    await made.control.retry_run(run_id, "me")
    await until(db, run_id, "waiting")
    await made.producer.submit(new_event("PAID", {"key": "k"}, source="/x"))
    await until(db, run_id, "succeeded")
    assert await rows(db, "SELECT count(*) FROM machines") == [(0,)]
    replayed = await made.control.replay([(await rows(db, "SELECT event_uid::text FROM runs"))[0][0]], "me")
    new = replayed[0]["runs"][0]["id"]
    await until(db, new, "waiting")
    await made.producer.submit(new_event("PAID", {"key": "k"}, source="/x"))
    await until(db, new, "succeeded")


async def watch(db: Connection) -> None:
    """Let the database write down every change of a run's status."""
    await db.execute(b"CREATE TABLE seen (before text, after text)")
    await db.execute(
        b"CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        b"INSERT INTO seen VALUES (OLD.status, NEW.status); RETURN NEW; END $$"
    )
    await db.execute(b"CREATE TRIGGER watch AFTER UPDATE OF version ON runs FOR EACH ROW EXECUTE FUNCTION watch()")


async def meddle(made: Replica, db: Connection, chance: random.Random) -> None:
    """Somebody who does this and that to one run after the other."""
    acts = ["cancel_run", "pause_run", "pause_run", "resume_run", "resume_run", "retry_run"]
    for _ in range(25):
        runs = [row[0] for row in await rows(db, "SELECT id::text FROM runs ORDER BY id")]
        with contextlib.suppress(Conflict):
            if chance.random() < 0.2:
                await made.control.send_event(chance.choice(runs), new_event("paid", {}, source="/x"), "me")
            else:
                await getattr(made.control, chance.choice(acts))(chance.choice(runs), "me")


async def let_go(made: Replica, db: Connection) -> bool:
    """Resume what is paused, and give each run what it waits for; whether all are over."""
    open_runs = await rows(
        db, "SELECT id::text, status::text FROM runs WHERE status IN ('running', 'waiting', 'retrying', 'paused')"
    )
    for run_id, status in open_runs:
        with contextlib.suppress(Conflict):
            if status == "paused":
                await made.control.resume_run(run_id, "me")
            elif status == "waiting":
                await made.control.send_event(run_id, new_event("paid", {}, source="/x"), "me")
    return not open_runs


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_people_do_every_run_ends_and_stays_so(heart: Heart, db: Connection, seed: int) -> None:
    await watch(db)
    made = await heart.replica()
    chance = random.Random(seed)

    async def moody(_: Context) -> None:
        await asyncio.sleep(chance.random() * 0.01)
        if chance.random() < 0.2:
            raise Reject("no")

    heart.behave |= dict.fromkeys(("a", "b", "c"), moody) | {"undo": instant}
    undo = {"action": "told", "with": {"how": "undo"}}
    branches = {"one": [told("b")], "two": [{"id": "x", "wait": {"event": "paid"}, "forever": True}]}
    await put(heart, "w", told("a", compensate=undo), {"id": "p", "parallel": {"branches": branches}}, told("c"))
    await put(heart, "v", told("a", retry=QUICK), {"id": "d", "delay": "50ms"}, told("c"))
    for _ in range(6):
        await heart.send()
    await wait_until(lambda: rows(db, "SELECT FROM runs"), "runs")
    await asyncio.gather(*(meddle(made, db, random.Random(chance.random())) for _ in range(3)))
    await wait_until(lambda: let_go(made, db), "every run to end", timeout=30)
    await wait_until(lambda: rows(db, "SELECT 1 HAVING NOT EXISTS (SELECT FROM timers)"), "no timer to be left")
    await heart.at_rest()
    changes = await rows(db, "SELECT DISTINCT before, after FROM seen")
    final = {"succeeded", "failed", "cancelled"}
    assert {change for change in changes if change[0] in final} <= {("failed", "retrying")}
    ledger = await heart.ledger()
    assert (ledger["in_flight"], ledger["difference"]) == (0, 0)
    assert await rows(db, "SELECT uid FROM events WHERE outcome IS NULL") == []
    assert await rows(db, "SELECT id, status, asked FROM runs WHERE asked IS NOT NULL") == []
    assert await rows(db, "SELECT run_id FROM waits") == []
    undone = await rows(
        db,
        "SELECT DISTINCT r.status::text, u.status::text FROM runs r JOIN steps a ON a.run_id = r.id AND a.key = 'a' "
        "LEFT JOIN steps u ON u.run_id = r.id AND u.key = 'a.compensate' "
        "WHERE a.status = 'succeeded' AND r.workflow_id = (SELECT id FROM workflows WHERE name = 'w')",
    )
    assert set(undone) <= {("succeeded", None), ("failed", "succeeded"), ("cancelled", "succeeded")}
