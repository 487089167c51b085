"""Chains of workflows by the ends of their runs and by published events, and the tree that they make."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.cli.trace import tree_text
from appliance.errors import NotFound
from appliance.events import new_event
from appliance.plugin import Context, Reject
from appliance.replica import Replica
from appliance.store.pool import Connection
from tests.integration.test_heart import Heart, db, heart, instant, rows
from tests.servers import wait_until

__all__ = ["db", "heart"]


async def publish(ctx: Context) -> str:
    return await ctx.publish(type="paid", data={})


async def reject(_: Context) -> None:
    raise Reject("no")


async def chained(heart: Heart, **settings: Any) -> Replica:
    """``order`` publishes ``paid``, which ``invoice`` takes; ``watch`` takes the ends of both."""
    made = await heart.replica(**settings)
    heart.behave |= {"order": publish, "invoice": reject, "watch": instant}
    await heart.workflow("order", {"id": "order"})
    await heart.workflow("invoice", {"id": "invoice"}, trigger={"event": "paid"})
    others = {"path": "data.workflow", "op": "!=", "value": "watch"}
    ends = [{"event": f"workflow.{how}", "when": others} for how in ("completed", "failed")]
    await heart.workflow("watch", {"id": "watch"}, trigger=ends)
    return made


async def over(heart: Heart, db: Connection, runs: int) -> None:
    """Wait until so many runs are over, and the outbox is empty."""
    made = heart.replicas[0]

    async def all_over() -> bool:
        await made.outbox.fire()
        ended = await rows(db, "SELECT count(*) FROM runs WHERE finished_at IS NOT NULL")
        return ended == [(runs,)] and await rows(db, "SELECT 1 FROM outbox") == []

    await wait_until(all_over, f"{runs} runs to be over")
    await heart.at_rest()


async def test_workflows_chain_by_the_ends_of_runs(heart: Heart, db: Connection) -> None:
    made = await chained(heart)
    uid = await heart.send()
    await over(heart, db, 4)
    found = await rows(
        db,
        "SELECT type, attributes ->> 'hops', outcome::text FROM events WHERE source <> 'workflow:watch' ORDER BY 2, 1",
    )
    assert found == [
        ("paid", "1", "dead"), ("workflow.completed", "1", "handled"), ("workflow.failed", "2", "handled"),
        ("t", None, "handled"),
    ]  # fmt: skip
    assert await heart.ledger() == {"handled": 3, "unmatched": 2, "dead": 1, "in_flight": 0, "difference": 0}
    tree = await made.traces.trace(uid)
    assert (tree["event"], tree["correlation_id"], tree["nodes"], tree["cut"]) == (uid, uid, 10, False)
    (first,) = tree["events"]
    (order,) = first["runs"]
    assert (order["workflow"], order["status"]) == ("order", "succeeded")
    paid, completed = sorted(order["events"], key=lambda event: str(event["type"]))
    assert [run["workflow"] for run in completed["runs"]] == ["watch"]
    (invoice,) = paid["runs"]
    assert (invoice["workflow"], invoice["status"]) == ("invoice", "failed")
    assert [event["type"] for event in invoice["events"]] == ["workflow.failed"]


async def test_any_event_of_a_chain_finds_the_whole(heart: Heart, db: Connection) -> None:
    made = await chained(heart)
    uid = await heart.send()
    await heart.send()
    await over(heart, db, 8)
    whole = await made.traces.trace(uid)
    told = await rows(db, "SELECT uid::text, attributes ->> 'correlationid' FROM events")
    members = [member for member, correlation in told if correlation == uid]
    assert len(members) == 5
    for member in members:
        tree = await made.traces.trace(member)
        assert {**tree, "event": uid} == whole
        assert tree_text(tree).count("*") == 1


async def test_a_tree_is_cut_and_says_so(heart: Heart, db: Connection) -> None:
    made = await chained(heart)
    uid = await heart.send()
    await over(heart, db, 4)
    tree = await made.traces.trace(uid, max_nodes=3)
    assert (tree["nodes"], tree["cut"]) == (3, True)
    assert "cut after 3" in tree_text(tree)
    with pytest.raises(NotFound):
        await made.traces.trace("nothing")


async def test_a_shared_correlation_has_several_first_events(heart: Heart, db: Connection) -> None:
    made = await chained(heart)
    for _ in range(2):
        event = new_event("t", {}, source="/t", attributes={"correlationid": "case-7"})
        await made.producer.submit(event)
    await over(heart, db, 8)
    tree = await made.traces.trace(event.uid)
    assert (tree["correlation_id"], len(tree["events"]), tree["nodes"]) == ("case-7", 2, 20)


async def test_without_anybody_to_take_them_there_are_no_such_events(heart: Heart, db: Connection) -> None:
    await heart.replica()
    await heart.workflow("everything", {"id": "only"}, trigger={"event": "*"})
    heart.behave["only"] = instant
    await heart.send()
    await heart.at_rest()
    assert await rows(db, "SELECT type FROM events") == [("t",)]
    assert await rows(db, "SELECT 1 FROM outbox") == []


async def test_failing_watchers_of_failures_end(heart: Heart, db: Connection) -> None:
    """Each would take the other's failure, and its own, for ever."""
    await heart.replica()
    heart.behave |= {"w": reject, "a": reject, "b": reject}
    await heart.workflow("w", {"id": "w"})
    for name in ("a", "b"):
        await heart.workflow(name, {"id": name}, trigger={"event": "workflow.failed"})
    await heart.send()
    await over(heart, db, 3)
    assert heart.calls == {"w": [1], "a": [1], "b": [1]}


async def test_a_crash_after_the_commit_loses_no_announcement(heart: Heart, db: Connection) -> None:
    made = await heart.idle(engine={"lifecycle_events": "always"})
    heart.behave["w"] = instant
    await heart.workflow("w", {"id": "w"})
    reading = asyncio.create_task(made.consumer.read_forever())
    await heart.send()
    await heart.at_rest()
    assert await rows(db, "SELECT durable FROM outbox") == [(False,)]
    await made.consumer.stop(0)
    await reading
    other = await heart.replica()
    assert await other.outbox.fire() == 1
    await heart.at_rest()
    assert await rows(db, "SELECT outcome::text FROM events WHERE type = 'workflow.completed'") == [("unmatched",)]
