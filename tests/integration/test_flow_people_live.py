"""What people do to runs that flow control holds or lets go on, on real servers, without any sweep that would help."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.plugin import Context, Reject
from appliance.store.pool import Connection
from tests.integration.test_durable import World, told
from tests.integration.test_heart import Heart, db, rows
from tests.integration.test_recovery import crash, recover
from tests.servers import wait_until

__all__ = ["db"]

KEY = "{{ event.data.key }}"


@pytest_asyncio.fixture
async def heart(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Heart]:
    async with contextlib.AsyncExitStack() as stack:
        yield Heart(redis_url, database_url, tmp_path, stack)


class Shop:
    """A workflow ``w`` whose runs note their event's ``n``, and wait until they are let through."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.begun: list[int] = []
        self.fails: set[int] = set()
        self.doors: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        world.heart.behave = defaultdict(lambda: self.work)
        replica = world.heart.replicas[0]
        self.control, self.history, self.queues = replica.control, replica.history, replica.queues

    async def work(self, ctx: Context) -> None:
        data: Any = ctx.event.data
        n = int(data["n"])
        self.begun.append(n)
        await self.doors[n].wait()
        if n in self.fails:
            raise Reject("it is one of those that fail")

    async def put(self, **control: Any) -> None:
        await self.world.put({"name": "w", "steps": [told("a")], **control})

    async def send(self, *numbers: int, key: str = "k") -> None:
        """Events whose runs stand recorded when this returns, one after the other."""
        for n in numbers:
            uid = await self.world.event("t", {"n": n, "key": key})

            async def recorded(uid: str = uid) -> bool:
                found = await rows(
                    self.world.db,
                    f"SELECT 1 FROM runs WHERE event_uid = '{uid}' "  # noqa: S608
                    f"UNION ALL SELECT 1 FROM batched WHERE event_uid = '{uid}'",
                )
                return bool(found)

            await wait_until(recorded, f"the run for event {n}")

    def open(self, *numbers: int) -> None:
        for n in numbers:
            self.doors[n].set()

    async def run(self, n: int) -> str:
        """The id of the run that event ``n`` started."""
        found = await rows(
            self.world.db,
            "SELECT r.id::text FROM runs r JOIN events e ON e.uid = r.event_uid "  # noqa: S608
            f"WHERE r.origin IS NULL AND e.data ->> 'n' = '{n}'",
        )
        return str(found[0][0])

    async def status(self, n: int) -> str:
        run: dict[str, Any] = await self.history.get_run(await self.run(n))
        return str(run["status"])

    async def held(self, n: int) -> Any:
        return (await self.history.get_run(await self.run(n)))["held"]

    async def until(self, n: int, status: str) -> None:
        async def reached() -> bool:
            return await self.status(n) == status

        await wait_until(reached, f"run {n} to be {status}")

    async def has_begun(self, *numbers: int) -> None:
        await wait_until(lambda: self.begun == list(numbers), f"{numbers} to have begun, in this order")

    async def in_order(self) -> None:
        """Nothing is left, and the ledger balances."""
        await self.world.heart.at_rest()
        for table in ("places", "queue", "timers"):
            assert await rows(self.world.db, f"SELECT * FROM {table}") == [], table  # noqa: S608
        assert (await self.world.heart.ledger())["difference"] == 0


@pytest_asyncio.fixture
async def shop(heart: Heart, db: Connection) -> Shop:
    await heart.replica()
    return Shop(World(heart, db))


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_a_cancelled_run_that_waits_never_begins(shop: Shop) -> None:
    await shop.put(concurrency=1)
    await shop.send(1, 2, 3)
    assert await shop.control.cancel_run(await shop.run(2), "ann") == {"status": "cancelled"}
    shop.open(1, 3)
    await shop.until(3, "succeeded")
    assert shop.begun == [1, 3]
    await shop.in_order()


async def test_who_waits_for_the_place_of_a_cancelled_run_goes_on_at_once(shop: Shop) -> None:
    await shop.put(concurrency=1)
    await shop.send(1, 2)
    await shop.control.cancel_run(await shop.run(1), "ann")
    await shop.has_begun(1, 2)  # the first one's action goes on, but its run is over
    shop.open(1, 2)
    await shop.until(2, "succeeded")
    await shop.in_order()


@pytest.mark.parametrize(
    "control",
    [{"debounce": {"period": "1h"}}, {"batch": {"size": 9, "timeout": "1h"}}],
    ids=lambda control: next(iter(control)),
)
async def test_after_a_collecting_run_was_cancelled_another_collects(shop: Shop, control: dict[str, Any]) -> None:
    await shop.put(**control)
    await shop.send(1)
    await shop.control.cancel_run(await shop.run(1), "ann")
    await shop.send(2)
    assert [await shop.status(n) for n in (1, 2)] == ["cancelled", "waiting"]
    assert (await shop.held(2))["for"] in control
    assert await rows(shop.world.db, "SELECT * FROM skipped") == []
    await shop.control.cancel_run(await shop.run(2), "ann")
    assert shop.begun == []
    await shop.in_order()


# --- pause and resume ------------------------------------------------------------------------------------------------


async def test_others_pass_a_paused_run_and_when_resumed_it_waits_again(shop: Shop) -> None:
    await shop.put(concurrency=1)
    await shop.send(1, 2, 3)
    run_id = await shop.run(2)
    assert await shop.control.pause_run(run_id, "ann") == {"status": "paused"}
    shop.open(1)
    await shop.has_begun(1, 3)
    await shop.control.resume_run(run_id, "ann")

    async def waits() -> bool:
        return bool(await shop.held(2) == {"for": "concurrency", "key": "", "until": None, "position": 1})

    await wait_until(waits, "the resumed run to wait")
    assert await shop.status(2) == "waiting"
    shop.open(2, 3)
    await shop.until(2, "succeeded")
    assert shop.begun == [1, 3, 2]
    await shop.in_order()


async def test_runs_that_keep_their_order_wait_for_a_paused_one(shop: Shop) -> None:
    await shop.put(ordering_key=KEY)
    await shop.send(1, 2, 3)
    await shop.control.pause_run(await shop.run(2), "ann")
    shop.open(1, 2, 3)
    await shop.until(1, "succeeded")
    await shop.world.heart.at_rest()
    assert [await shop.status(n) for n in (1, 2, 3)] == ["succeeded", "paused", "waiting"]
    await shop.control.resume_run(await shop.run(2), "ann")
    await shop.until(3, "succeeded")
    assert shop.begun == [1, 2, 3]
    await shop.in_order()


async def test_who_waits_for_the_place_of_a_run_that_is_paused_at_work_goes_on(shop: Shop) -> None:
    await shop.world.put({"name": "w", "concurrency": 1, "steps": [told("a"), told("b")]})
    await shop.send(1, 2)
    assert await shop.control.pause_run(await shop.run(1), "ann") == {"status": "pausing"}
    shop.open(1, 2)
    await shop.until(2, "succeeded")
    assert await shop.status(1) == "paused"
    await shop.control.resume_run(await shop.run(1), "ann")
    await shop.until(1, "succeeded")
    await shop.in_order()


@pytest.mark.parametrize(
    "control",
    [
        {"debounce": {"period": "1h"}},
        {"batch": {"size": 9, "timeout": "1h"}},
        {"throttle": {"limit": 1, "period": "1h"}},
    ],
    ids=lambda control: next(iter(control)),
)
async def test_a_resumed_run_waits_for_what_it_waited_for(shop: Shop, control: dict[str, Any]) -> None:
    await shop.put(**control)
    shop.open(1, 2)
    await shop.send(*([1, 2] if "throttle" in control else [2]))
    before = await shop.held(2)
    assert before["for"] in control
    assert before["until"]
    await shop.control.pause_run(await shop.run(2), "ann")
    assert await shop.held(2) == before
    await shop.control.resume_run(await shop.run(2), "ann")
    await shop.world.heart.at_rest()

    async def waits() -> bool:
        found = await rows(shop.world.db, "SELECT due_at > now() + interval '1 minute' FROM timers")
        return found == [(True,)]

    await wait_until(waits, "the resumed run to have its timer again")
    assert await shop.held(2) == before
    assert await shop.status(2) == "waiting"
    assert 2 not in shop.begun


async def test_a_paused_batch_takes_events_in_and_begins_when_resumed(shop: Shop) -> None:
    await shop.put(batch={"size": 3, "timeout": "1h"})
    shop.open(1)
    await shop.send(1)
    run_id = await shop.run(1)
    await shop.control.pause_run(run_id, "ann")
    await shop.send(2, 3)
    await shop.world.heart.at_rest()
    assert (await shop.status(1), shop.begun) == ("paused", [])
    await shop.control.resume_run(run_id, "ann")
    await shop.until(1, "succeeded")
    run: dict[str, Any] = await shop.history.get_run(run_id)
    assert len(run["events"]) == 3
    for uid in run["events"]:
        (batch,) = (await shop.history.get_event(uid))["batches"]
        assert batch == {"run_id": run_id, "workflow": "w", "status": "succeeded"}
    await shop.in_order()


async def test_a_paused_run_that_collects_is_replaced_by_a_later_event(shop: Shop) -> None:
    await shop.put(debounce={"period": "1h"})
    await shop.send(1)
    await shop.control.pause_run(await shop.run(1), "ann")
    await shop.send(2)
    left: dict[str, Any] = await shop.history.get_run(await shop.run(1))
    assert (left["status"], left["outcome"]) == ("cancelled", "debounced")
    assert await shop.run(2) in left["error"]
    assert await shop.status(2) == "waiting"


# --- again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["retry", "redrive"])
async def test_a_run_that_is_tried_again_waits_at_its_old_position(shop: Shop, by: str) -> None:
    await shop.put(ordering_key=KEY)
    shop.fails = {1}
    shop.open(1)
    await shop.send(1, 2, 3)
    await shop.until(1, "failed")
    await shop.has_begun(1, 2)
    shop.fails.clear()
    run_id = await shop.run(1)
    if by == "retry":
        await shop.control.retry_run(run_id, "ann")
    else:
        (letter,) = (await shop.history.list_dead_letters({"run_id": run_id})).items
        await shop.control.redrive(letter["id"], "ann")

    async def waits() -> bool:
        return bool(await shop.held(1) == {"for": "ordering", "key": "k", "until": None, "position": 1})

    await wait_until(waits, "the run to wait before the third")
    assert (await shop.held(3))["position"] == 2
    shop.open(2, 3)
    await shop.until(3, "succeeded")
    assert shop.begun == [1, 2, 1, 3]
    assert await shop.status(1) == "succeeded"
    await shop.in_order()
    assert (await shop.world.heart.ledger())["dead"] == 0


async def test_a_run_that_is_tried_again_and_waits_may_be_cancelled(shop: Shop) -> None:
    await shop.put(concurrency=1)
    shop.fails = {1}
    shop.open(1)
    await shop.send(1, 2)
    await shop.until(1, "failed")
    await shop.control.retry_run(await shop.run(1), "ann")

    async def waits() -> bool:
        return bool(await shop.held(1))

    await wait_until(waits, "the run to wait")
    await shop.control.cancel_run(await shop.run(1), "ann")
    shop.open(2)
    await shop.until(2, "succeeded")
    assert shop.begun == [1, 2]
    await shop.in_order()


async def test_a_letter_that_is_discarded_moves_nobody(shop: Shop) -> None:
    await shop.put(ordering_key=KEY)
    shop.fails = {1}
    shop.open(1)
    await shop.send(1, 2)
    await shop.until(1, "failed")
    (letter,) = (await shop.history.list_dead_letters()).items
    await shop.control.discard(letter["id"], "ann")
    shop.open(2)
    await shop.until(2, "succeeded")
    assert shop.begun == [1, 2]
    await shop.in_order()


@pytest.mark.parametrize("by", ["rerun", "replay"])
async def test_what_people_begin_waits_for_a_place_too(shop: Shop, by: str) -> None:
    await shop.put(concurrency=1)
    shop.open(1)
    await shop.send(1)
    await shop.until(1, "succeeded")
    await shop.send(2)
    run: dict[str, Any] = await shop.history.get_run(await shop.run(1))
    if by == "rerun":
        again = (await shop.control.rerun(run["id"], "ann"))["run"]
    else:
        again = (await shop.control.replay([run["event_uid"]], "ann"))[0]["runs"][0]["id"]

    async def waits() -> bool:
        held = (await shop.history.get_run(again))["held"]
        return bool(held and held["position"] == 1)

    await wait_until(waits, "the new run to wait")
    shop.open(2)

    async def over() -> bool:
        return bool((await shop.history.get_run(again))["status"] == "succeeded")

    await wait_until(over, "the new run's end")
    assert shop.begun == [1, 2, 1]
    await shop.in_order()


async def test_an_event_that_was_left_out_may_be_replayed(shop: Shop) -> None:
    await shop.put(rate_limit={"limit": 1, "period": "1h"})
    shop.open(1, 2)
    await shop.send(1, 2)
    await shop.until(1, "succeeded")
    left: dict[str, Any] = await shop.history.get_run(await shop.run(2))
    assert (left["status"], left["outcome"], left["held"]) == ("cancelled", "rate_limited", None)
    account = await shop.world.heart.replicas[0].bookkeeper.ledger()
    assert account["skipped"] == [{"workflow": "w", "reason": "rate_limited", "count": 1}]
    assert (account["handled"], account["difference"]) == (2, 0)
    await shop.control.replay([left["event_uid"]], "ann")
    await shop.has_begun(1, 2)


async def test_a_batch_that_is_run_again_sees_all_its_events(shop: Shop) -> None:
    await shop.world.put(
        {
            "name": "w",
            "batch": {"size": 3, "timeout": "1h"},
            "steps": [
                {"id": "a", "transform": {"numbers": "{{ events|map(attribute='data')|map(attribute='n')|list }}"}}
            ],
            "output": "{{ steps.a.output.numbers }}",
        }
    )
    await shop.send(1, 2, 3)
    await shop.until(1, "succeeded")
    run: dict[str, Any] = await shop.history.get_run(await shop.run(1))
    assert run["output"] == [1, 2, 3]
    again = (await shop.control.rerun(run["id"], "ann"))["run"]

    async def over() -> bool:
        return bool((await shop.history.get_run(again))["status"] == "succeeded")

    await wait_until(over, "the rerun's end")
    assert (await shop.history.get_run(again))["output"] == [1, 2, 3]
    await shop.in_order()


# --- recovery --------------------------------------------------------------------------------------------------------


async def test_a_held_run_that_nothing_would_wake_is_woken_and_held_again(shop: Shop) -> None:
    await shop.put(concurrency=1)
    await shop.send(1, 2)
    before = await shop.held(2)
    assert (await recover(shop.world.heart.replicas[0])).parked == 0
    await rows_gone(shop, "queue")
    assert (await recover(shop.world.heart.replicas[0])).parked == 1

    async def waits() -> bool:
        return bool(await shop.held(2) == before)

    await wait_until(waits, "the run to wait as before")
    shop.open(1, 2)
    await shop.until(2, "succeeded")
    assert shop.begun == [1, 2]
    await shop.in_order()


async def test_a_collecting_run_without_its_timer_is_woken_and_collects_on(shop: Shop) -> None:
    await shop.put(debounce={"period": "1h"})
    await shop.send(1)
    before = await shop.held(1)
    await shop.world.heart.at_rest()
    await rows_gone(shop, "timers")
    assert (await recover(shop.world.heart.replicas[0])).parked == 1

    async def waits() -> bool:
        return bool(await rows(shop.world.db, "SELECT 1 FROM timers WHERE due_at > now() + interval '1 minute'"))

    await wait_until(waits, "the run to have its timer again")
    assert await shop.held(1) == before
    assert shop.begun == []


async def test_runs_that_were_let_go_on_and_lost_their_entries_are_completed(shop: Shop) -> None:
    await shop.put(concurrency=1)
    await shop.send(1, 2)
    made = shop.world.heart.replicas[0]
    await made.bookkeeper.save()
    await made.commander.flushall()
    await crash(made)
    shop.open(1, 2)
    assert (await recover(made)).events == 1  # the second one's was handled: it waits
    await shop.until(2, "succeeded")
    assert await shop.status(1) == "succeeded"
    assert shop.begun == [1, 1, 2]
    await shop.in_order()


async def rows_gone(shop: Shop, table: str) -> None:
    await shop.world.db.execute(f"DELETE FROM {table}".encode())  # noqa: S608
