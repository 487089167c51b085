"""The gatekeeper against a real PostgreSQL: never more than the limit, nobody forgotten, the same when asked again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from appliance import faultpoints
from appliance.engine.gatekeeper import Gatekeeper
from appliance.engine.gates import ORDER, PLACES, TURN, Decision, Go, Gone, Join, Wait
from appliance.errors import LeaseLost
from appliance.identifiers import uuid7
from appliance.store import gates
from appliance.store.recorder import Refused
from appliance.workflows.flow_control import LANE
from tests.chaos.proxy import Mode, Proxy
from tests.integration.porch import Porch, porch
from tests.servers import wait_until


@pytest_asyncio.fixture
async def site(database_url: str) -> AsyncIterator[Porch]:
    async with porch(database_url) as made:
        yield made


@pytest_asyncio.fixture
async def keeper(site: Porch) -> Gatekeeper:
    return await site.gatekeeper()


def kinds(decisions: list[Any]) -> Counter[str]:
    return Counter(type(decision).__name__ for decision in decisions)


async def arrive(keeper: Gatekeeper, *requests: Any) -> list[Decision]:
    return list(await asyncio.gather(*map(keeper.arrive, requests)))


# --- what is written -------------------------------------------------------------------------------------------------


async def test_a_run_that_goes_on_is_recorded_with_its_event_and_its_places(site: Porch, keeper: Gatekeeper) -> None:
    request = site.request(await site.workflow(concurrency=1))
    assert isinstance(await keeper.arrive(request), Go)
    run_id = request.arrival.run_id
    assert await site.rows("SELECT id::text, status::text, version, state ->> 'by' FROM runs") == [
        (run_id, "running", 1, None)
    ]
    assert await site.rows("SELECT run_id::text, keeps FROM places") == [(run_id, False)]
    assert await site.rows("SELECT uid::text, outcome FROM events") == [(request.arrival.event_uid, None)]
    assert await site.stage(run_id) == PLACES


async def test_who_finds_no_place_is_parked_in_the_queue_and_its_event_is_handled(
    site: Porch, keeper: Gatekeeper
) -> None:
    revision = await site.workflow(concurrency={"key": "{{ event.data.k }}", "limit": 1})
    first, second = site.request(revision, k="a"), site.request(revision, k="a")
    made = await arrive(keeper, first, second)
    assert made[1] == Wait(PLACES, None, "concurrency.0", "a")
    waits = second.arrival
    assert await site.rows("SELECT status::text, state ->> 'by', version FROM runs WHERE id = %s", waits.run_id) == [
        ("waiting", "timer", 1)
    ]
    assert await site.rows("SELECT run_id::text, position, parts, digests::text[], keys, limits FROM queue") == [
        (waits.run_id, waits.position, ["concurrency.0"], [waits.keys["concurrency.0"].digest], ["a"], [1])
    ]
    assert await site.rows("SELECT outcome::text FROM events WHERE uid = %s", waits.event_uid) == [("handled",)]
    assert await site.rows("SELECT 1 FROM timers") == []


async def test_an_event_that_does_more_than_this_is_not_handled_yet(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=1)
    await arrive(keeper, site.request(revision), site.request(revision, sole=False))
    assert await site.rows("SELECT outcome FROM events") == [(None,), (None,)]


async def test_an_event_that_stands_is_handled_when_its_run_waits(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=1)
    first, second = site.request(revision), site.request(revision)
    await arrive(keeper, first)
    row = second.event
    assert row is not None
    await site.rows(
        "INSERT INTO events (uid, source, type, time, received_at) VALUES (%s, '/t', 't', now(), now())", row.uid
    )
    assert isinstance(await keeper.arrive(second._replace(event=None)), Wait)
    assert await site.one("SELECT outcome::text FROM events WHERE uid = %s", row.uid) == "handled"


async def test_who_is_left_out_leaves_a_cancelled_run_that_says_why(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(rate_limit={"limit": 1, "period": "1m"})
    made = await arrive(keeper, site.request(revision), site.request(revision), site.request(revision))
    assert kinds(made) == {"Go": 1, "Leave": 2}
    rows = await site.rows(
        "SELECT result ->> 'outcome', error, finished_at IS NOT NULL FROM runs WHERE status = 'cancelled'"
    )
    assert rows == [("rate_limited", "rate_limit: 1 runs in 1m have begun", True)] * 2
    assert await site.skipped() == {"rate_limited": 2}


async def test_a_throttled_run_has_a_timer_and_takes_its_turn(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(throttle={"limit": 1, "period": "10s"})
    first, second = site.request(revision), site.request(revision)
    made = await arrive(keeper, first, second)
    wait = made[1]
    assert isinstance(wait, Wait)
    assert wait.stage == TURN
    assert wait.due_at == pytest.approx(site.now + 10)
    assert await site.one("SELECT extract(epoch FROM due_at)::float8 FROM timers") == pytest.approx(site.now + 10)
    assert min(site.timers) == wait.due_at
    site.now += 10
    assert isinstance(await site.wake(keeper, second.arrival.run_id), Go)
    assert await site.stage(second.arrival.run_id) == PLACES


async def test_a_debounce_keeps_the_last_event_and_counts_the_others(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(debounce={"period": "5s"})
    first = site.request(revision)
    await keeper.arrive(first)
    later = [site.request(revision) for _ in range(3)]
    assert kinds(await arrive(keeper, *later)) == {"Leave": 2, "Wait": 1}
    statuses = [await site.status(request.arrival.run_id) for request in (first, *later)]
    assert statuses == ["cancelled"] * 3 + ["waiting"]
    assert await site.one("SELECT version FROM runs WHERE id = %s", first.arrival.run_id) == 2
    assert await site.rows("SELECT run_id::text FROM timers") == [(later[-1].arrival.run_id,)]
    assert await site.skipped() == {"debounced": 3}
    site.now += 5
    assert isinstance(await site.wake(keeper, later[-1].arrival.run_id), Go)
    assert await site.rows("SELECT 1 FROM meters") == []


async def test_a_batch_is_one_run_that_sees_its_events_in_order(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(batch={"size": 3, "timeout": "1m"})
    requests = [site.request(revision, n=n) for n in range(4)]
    made = [await keeper.arrive(request) for request in requests]
    batch = requests[0].arrival.run_id
    assert kinds(made) == {"Wait": 2, "Join": 2}
    assert await site.let_in() == [batch]
    assert await site.one("SELECT count(*) FROM runs") == 2
    assert isinstance(await site.wake(keeper, batch), Go)
    assert [event["data"]["n"] for event in await keeper.events(batch)] == [0, 1, 2]
    assert await site.rows("SELECT outcome::text FROM events") == [("handled",)] * 4


async def test_a_replaced_run_that_waits_ends_and_one_at_work_is_asked_to(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(singleton="replace")
    at_work, waits, last = (site.request(revision) for _ in range(3))
    assert kinds([await keeper.arrive(request) for request in (at_work, waits, last)]) == {"Go": 1, "Wait": 2}
    assert await site.rows("SELECT id::text, asked FROM runs WHERE asked IS NOT NULL") == [
        (at_work.arrival.run_id, "cancel")
    ]
    assert await site.rows("SELECT run_id::text, key FROM timers") == [(at_work.arrival.run_id, "+signal")]
    assert await site.status(waits.arrival.run_id) == "cancelled"
    assert await site.rows("SELECT run_id::text FROM queue") == [(last.arrival.run_id,)]
    assert await site.skipped() == {"replaced": 1}


async def test_a_called_run_that_is_replaced_is_asked_to_end_so_that_its_caller_hears_of_it(
    site: Porch, keeper: Gatekeeper
) -> None:
    revision = await site.workflow(singleton="replace")
    at_work, called, last = (site.request(revision) for _ in range(3))
    await arrive(keeper, at_work)
    await arrive(keeper, called)
    await site.rows("UPDATE runs SET origin = 'subflow' WHERE id = %s", called.arrival.run_id)
    await arrive(keeper, last)
    assert await site.rows("SELECT status::text, asked FROM runs WHERE id = %s", called.arrival.run_id) == [
        ("waiting", "cancel")
    ]
    assert await site.skipped() == {}


async def test_a_run_that_is_not_there_is_gone(site: Porch, keeper: Gatekeeper) -> None:
    request = site.request(await site.workflow(concurrency=1))
    assert isinstance(await keeper.arrive(site.woken(request.arrival.run_id)), Gone)
    assert await site.rows("SELECT 1 FROM places") == []


# --- letting in ------------------------------------------------------------------------------------------------------


async def test_who_waits_is_let_in_when_a_place_is_free_and_then_goes_on(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=1)
    first, *others = (site.request(revision) for _ in range(3))
    await arrive(keeper, first, *others)
    await keeper.freed(*await site.end(first.arrival.run_id))
    next_ = others[0].arrival.run_id
    assert await site.let_in() == [next_]
    assert await site.rows("SELECT run_id::text FROM places") == [(next_,)]
    assert isinstance(await site.wake(keeper, next_), Go)
    await keeper.freed(revision.workflow_id, first.arrival.keys[LANE].digest)
    assert await site.let_in() == []


async def test_a_run_that_was_parked_asks_again_and_waits_if_others_have_its_place(
    site: Porch, keeper: Gatekeeper
) -> None:
    revision = await site.workflow(concurrency=1)
    first, second = site.request(revision), site.request(revision)
    await arrive(keeper, first, second)
    await keeper.freed(*await site.park(first.arrival.run_id))
    assert isinstance(await site.wake(keeper, second.arrival.run_id), Go)
    assert isinstance(await site.wake(keeper, first.arrival.run_id), Wait)
    assert await site.rows("SELECT run_id::text FROM queue") == [(first.arrival.run_id,)]
    await keeper.freed(*await site.end(second.arrival.run_id))
    assert isinstance(await site.wake(keeper, first.arrival.run_id), Go)


async def test_runs_of_a_key_keep_their_order_across_a_park(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(ordering_key="{{ event.data.k }}")
    first, second = site.request(revision, k="a"), site.request(revision, k="a")
    made = await arrive(keeper, second, first)
    assert (made[0], type(made[1])) == (Wait(PLACES, None, "ordering", "a"), Go)
    await keeper.freed(*await site.park(first.arrival.run_id))
    assert await site.let_in() == []
    assert isinstance(await site.wake(keeper, first.arrival.run_id), Go)
    await keeper.freed(*await site.end(first.arrival.run_id))
    assert await site.let_in() == [second.arrival.run_id]


async def test_order_comes_before_the_turn(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(ordering_key="{{ event.data.k }}", throttle={"limit": 1, "period": "10s"})
    first, second = site.request(revision, k="a"), site.request(revision, k="a")
    assert [getattr(made, "stage", "") for made in await arrive(keeper, first, second)] == ["", ORDER]
    await keeper.freed(*await site.end(first.arrival.run_id))
    turn = await site.wake(keeper, second.arrival.run_id)
    assert isinstance(turn, Wait)
    assert turn.stage == TURN
    assert await site.stage(second.arrival.run_id) == TURN
    site.now += 10
    assert isinstance(await site.wake(keeper, second.arrival.run_id), Go)


async def test_lanes_take_turns_whoever_frees_a_place(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=[4, {"key": "{{ event.data.k }}", "limit": 4}])
    big = [site.request(revision, k="big") for _ in range(40)]
    small = [site.request(revision, k=k) for k in "abc" for _ in range(2)]
    await arrive(keeper, *big)
    await arrive(keeper, *small)
    order: list[str] = []
    for _ in range(10):
        (at_work,) = await site.rows("SELECT run_id::text FROM places ORDER BY run_id LIMIT 1")
        await keeper.freed(*await site.end(at_work[0]))
        for run_id in await site.let_in():
            assert isinstance(await site.wake(keeper, run_id), Go)
            order.append(site.requests[run_id].arrival.keys[LANE].text)
    assert Counter(order[:8]) == {"big": 2, "a": 2, "b": 2, "c": 2}
    assert order[8:] == ["big", "big"]


async def test_a_place_that_is_free_finds_the_one_lane_that_has_room(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=[150, {"key": "{{ event.data.k }}", "limit": 1}])
    at_work = [site.request(revision, k=f"{n}") for n in range(150)]
    blocked = [site.request(revision, k=f"{n}") for n in range(149)]
    last = site.request(revision, k="last")
    assert kinds(await arrive(keeper, *at_work, *blocked, last)) == {"Go": 150, "Wait": 150}
    await keeper.freed(*await site.end(at_work[-1].arrival.run_id))
    assert await site.let_in() == [last.arrival.run_id]


async def test_many_places_that_are_free_at_once_are_filled_at_once(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=700)
    requests = [site.request(revision) for _ in range(1500)]
    assert kinds(await arrive(keeper, *requests)) == {"Go": 700, "Wait": 800}
    for request in requests[:700]:
        freed = await site.end(request.arrival.run_id)
    await keeper.freed(*freed)
    assert await site.let_in() == sorted(request.arrival.run_id for request in requests[700:1400])


async def test_a_raised_limit_frees_those_who_wait_and_so_does_one_that_is_gone(
    site: Porch, keeper: Gatekeeper
) -> None:
    revision = await site.workflow(concurrency=1)
    requests = [site.request(revision) for _ in range(6)]
    await arrive(keeper, *requests)
    assert await keeper.sweep() == 0
    await site.workflow(concurrency=3)
    assert await keeper.sweep() == 2
    for run_id in await site.let_in():  # although their own revision says 1
        assert isinstance(await site.wake(keeper, run_id), Go)
    await site.workflow(rate_limit={"limit": 5, "period": "1s"})
    assert await keeper.sweep() == 3
    for run_id in await site.let_in():
        assert isinstance(await site.wake(keeper, run_id), Go)


async def test_a_paused_run_is_passed_by_unless_runs_keep_their_order(site: Porch, keeper: Gatekeeper) -> None:
    for said in ({"concurrency": 1}, {"ordering_key": "{{ event.data.k }}"}):
        revision = await site.workflow("ordered" if "ordering_key" in said else "limited", **said)
        first, second, third = requests = [site.request(revision, k="a") for _ in range(3)]
        await arrive(keeper, *requests)
        await site.rows("UPDATE runs SET status = 'paused' WHERE id = %s", second.arrival.run_id)
        await keeper.freed(*await site.end(first.arrival.run_id))
        assert await site.let_in() == ([] if "ordering_key" in said else [third.arrival.run_id])
        await site.rows("DELETE FROM timers")


async def test_a_run_that_is_let_in_while_it_is_paused_takes_nobodys_place(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=1)
    first, second, third, fourth = requests = [site.request(revision) for _ in range(4)]
    await arrive(keeper, *requests)
    await keeper.freed(*await site.end(first.arrival.run_id))
    await site.rows("UPDATE runs SET status = 'paused' WHERE id = %s", second.arrival.run_id)
    await keeper.sweep()
    let_in = {second.arrival.run_id, third.arrival.run_id}
    assert set(await site.let_in()) == let_in
    await site.end(third.arrival.run_id)
    assert isinstance(await keeper.arrive(site.request(revision)), Wait)
    assert set(await site.let_in()) == {*let_in, fourth.arrival.run_id}


async def test_a_run_whose_entry_was_set_aside_is_parked_until_it_has_its_places_again(
    site: Porch, keeper: Gatekeeper
) -> None:
    revision = await site.workflow(concurrency=1)
    first, second = site.request(revision), site.request(revision)
    await keeper.arrive(first)
    await site.rows("DELETE FROM places")
    await keeper.arrive(second)
    run_id = first.arrival.run_id
    again = first._replace(arrival=first.arrival._replace(returns=True), run=None, event=None, sole=False)
    assert isinstance(await keeper.arrive(again), Wait)
    stands = "SELECT status::text, state ->> 'by', version FROM runs WHERE id = %s"
    assert await site.rows(stands, run_id) == [("waiting", "timer", 2)]
    await keeper.freed(*await site.end(second.arrival.run_id))
    assert await site.let_in() == [run_id]
    assert isinstance(await site.wake(keeper, run_id), Go)


# --- what heals ------------------------------------------------------------------------------------------------------


async def test_places_of_runs_that_are_over_or_gone_do_not_count_and_are_swept(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=1)
    first, second, third = (site.request(revision) for _ in range(3))
    await arrive(keeper, first)
    await site.rows("UPDATE runs SET status = 'cancelled' WHERE id = %s", first.arrival.run_id)
    await site.rows("INSERT INTO places SELECT digest, %s, false FROM places", uuid7())
    assert isinstance(await keeper.arrive(second), Go)
    assert isinstance(await keeper.arrive(third), Wait)
    await site.rows("UPDATE runs SET status = 'cancelled' WHERE id = %s", third.arrival.run_id)
    assert await keeper.sweep() == 0
    assert await site.rows("SELECT run_id::text FROM places") == [(second.arrival.run_id,)]
    assert await site.rows("SELECT 1 FROM queue") == []


async def test_a_sweep_lets_in_whom_nobody_told_that_there_is_room(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency={"key": "{{ event.data.k }}", "limit": 1})
    requests = [site.request(revision, k=f"{n}") for n in range(30) for _ in range(2)]
    await arrive(keeper, *requests)
    for request in requests[::2]:
        await site.end(request.arrival.run_id)
    assert await keeper.sweep() == 30
    assert await keeper.sweep() == 0
    assert await site.let_in() == sorted(request.arrival.run_id for request in requests[1::2])


async def test_meters_that_say_nothing_any_more_are_swept(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(rate_limit={"limit": 5, "period": "1s"})
    await keeper.arrive(site.request(revision))
    await keeper.sweep()
    assert await site.one("SELECT count(*) FROM meters") == 1
    await site.rows("UPDATE meters SET expires_at = now() - interval '2 minutes'")
    await keeper.sweep()
    assert await site.one("SELECT count(*) FROM meters") == 0


# --- the same when asked again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ({"concurrency": 2}, {}),
        ({"rate_limit": {"limit": 2, "period": "1m"}}, {"rate_limited": 3}),
        ({"throttle": {"limit": 1, "period": "1m"}}, {}),
        ({"debounce": {"period": "5s"}}, {"debounced": 4}),
        ({"batch": {"size": 2, "timeout": "1m"}}, {}),
        ({"singleton": "skip"}, {"skipped": 4}),
        ({"singleton": "replace"}, {"replaced": 4}),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
async def test_a_reply_that_was_lost_changes_nothing(
    site: Porch, said: dict[str, Any], counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the transaction is durable, and once before it is."""
    keeper = await site.gatekeeper()
    revision = await site.workflow(**said)
    requests = [site.request(revision, f"7-{n}") for n in range(5)]
    monkeypatch.setattr(faultpoints, "hit", faultpoints.armed(faultpoints.parse("fail@after_decision")))
    made = await asyncio.wait_for(arrive(keeper, *requests), 20)
    monkeypatch.setattr(faultpoints, "hit", faultpoints.inert)
    snapshot = await state_of(site)
    monkeypatch.setattr(faultpoints, "hit", faultpoints.armed(faultpoints.parse("fail@before_decision")))
    again = await asyncio.wait_for(arrive(keeper, *requests), 20)
    monkeypatch.setattr(faultpoints, "hit", faultpoints.inert)
    assert await state_of(site) == snapshot
    assert (
        kinds(made)["Go"] == kinds(again)["Go"] == len(await site.rows("SELECT 1 FROM runs WHERE status = 'running'"))
    )
    assert await site.skipped() == counted
    assert keeper.healthy


async def state_of(site: Porch) -> list[Any]:
    tables = {
        "runs": "id, status, version, details::text, error",
        "places": "digest, run_id",
        "queue": "run_id, position, parts",
        "meters": "digest, at, count, run_id, position, expires_at",
        "batched": "run_id, event_uid, position",
        "skipped": "reason, count",
        "timers": "run_id, key, due_at",
        "events": "uid, outcome",
    }
    return [sorted(await site.rows(f"SELECT {columns} FROM {table}"), key=str) for table, columns in tables.items()]  # noqa: S608


async def test_a_reply_that_the_network_swallowed_is_no_second_decision(site: Porch, database_url: str) -> None:
    revision = await site.workflow(concurrency=1)
    async with Proxy.to_url(database_url) as proxy:
        keeper = await site.gatekeeper(proxy.url)
        await keeper.arrive(site.request(revision))
        other = await site.workflow("other", concurrency=1)
        request = site.request(other)
        run_id = request.arrival.run_id
        lock = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s"
        await site.rows("BEGIN")
        await site.rows("SELECT pg_advisory_xact_lock(1718382455, %s)", other.workflow_id)
        arriving = asyncio.create_task(keeper.arrive(request))
        await wait_until(lambda: site.rows(f"{lock} AND NOT granted", other.workflow_id), "the lock")
        proxy.mode = Mode.DROP_REPLY
        await site.rows("COMMIT")
        await wait_until(lambda: proxy.swallowed, "a reply that vanishes")
        proxy.mode = Mode.PASS
        await proxy.cut()
        assert isinstance(await asyncio.wait_for(arriving, 20), Go)
        assert await site.rows("SELECT count(*) FROM places WHERE run_id = %s", run_id) == [(1,)]
        await keeper.close()


@pytest.mark.parametrize("since", [170_000, 990_000])
async def test_a_replica_that_is_cut_off_while_it_decides_holds_nobody_up(
    site: Porch, database_url: str, monkeypatch: pytest.MonkeyPatch, since: int
) -> None:
    """Frozen, or behind a network that swallows everything: PostgreSQL ends its transaction, and with it the lock.

    One that can't limit how long a transaction takes limits how long it is idle.
    """
    monkeypatch.setattr(gates, "_BOUNDS_TRANSACTIONS", since)
    revision = await site.workflow(concurrency=1)
    async with Proxy.to_url(database_url) as proxy:
        gone = await site.gatekeeper(proxy.url, timeout_s=60, hold_s=0.5)
        keeper = await site.gatekeeper()

        def hit(point: faultpoints.Point) -> None:
            proxy.mode = Mode.BLACK_HOLE
            monkeypatch.setattr(faultpoints, "hit", faultpoints.inert)

        monkeypatch.setattr(faultpoints, "hit", hit)
        deciding = asyncio.create_task(gone.arrive(site.request(revision)))
        await wait_until(lambda: proxy.swallowed, "what it has decided vanishes")
        assert isinstance(await asyncio.wait_for(keeper.arrive(site.request(revision)), 20), Go)
        proxy.mode = Mode.PASS
        await proxy.cut()
        assert isinstance(await asyncio.wait_for(deciding, 20), Wait)


async def test_what_somebody_else_wrote_meanwhile_is_seen_the_next_time(
    site: Porch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica has an older definition, without flow control, and records the run of the same event."""
    keeper = await site.gatekeeper()
    request = site.request(await site.workflow(concurrency=1))
    hits: list[str] = []

    def hit(point: faultpoints.Point) -> None:
        hits.append(point)
        if hits == ["before_decision"]:
            with psycopg.connect(site.url) as other:
                other.execute(
                    "INSERT INTO runs (id, workflow_id, revision_id, status, version, started_at, updated_at, priority)"
                    " VALUES (%s, 1, 1, 'succeeded', 3, now(), now(), 'normal')",
                    [request.arrival.run_id],
                )

    monkeypatch.setattr(faultpoints, "hit", hit)
    assert isinstance(await asyncio.wait_for(keeper.arrive(request), 20), Gone)
    assert hits == ["before_decision", "before_decision", "after_decision"]
    assert keeper.healthy
    assert await site.rows("SELECT 1 FROM places") == []


async def test_while_postgresql_is_away_nothing_is_decided_and_nothing_more_is_read(
    site: Porch, database_url: str
) -> None:
    revision = await site.workflow(concurrency=1)
    async with Proxy.to_url(database_url) as proxy:
        keeper = await site.gatekeeper(proxy.url)
        await keeper.arrive(site.request(revision))
        proxy.mode = Mode.REFUSE
        await proxy.cut()
        arriving = asyncio.create_task(keeper.arrive(site.request(revision)))
        await wait_until(lambda: not keeper.healthy, "the gatekeeper to notice")
        assert not arriving.done()
        proxy.mode = Mode.PASS
        assert isinstance(await asyncio.wait_for(arriving, 20), Wait)
        assert keeper.healthy
        await keeper.close()


async def test_what_cannot_be_stored_is_refused_alone(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=100)
    requests = [site.request(revision) for _ in range(9)]
    requests.insert(4, site.request(revision, data="{not json"))
    made = await asyncio.gather(*map(keeper.arrive, requests), return_exceptions=True)
    assert isinstance(made.pop(4), Refused)
    assert kinds(made) == {"Go": 9}
    assert await site.one("SELECT count(*) FROM places") == 9


async def test_an_error_of_ours_concerns_one_run_only(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=100)
    requests = [site.request(revision) for _ in range(9)]
    broken = site.request(revision)
    requests.insert(4, broken._replace(arrival=broken.arrival._replace(keys={})))
    made = await asyncio.gather(*map(keeper.arrive, requests), return_exceptions=True)
    assert isinstance(made.pop(4), KeyError)
    assert kinds(made) == {"Go": 9}


async def test_whose_lease_is_lost_is_left_out(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=1)
    lost, good = site.request(revision, valid=lambda: False), site.request(revision)
    made = await asyncio.gather(keeper.arrive(lost), keeper.arrive(good), return_exceptions=True)
    assert isinstance(made[0], LeaseLost)
    assert isinstance(made[1], Go)
    assert await site.rows("SELECT id::text FROM runs") == [(good.arrival.run_id,)]


async def test_a_lease_that_is_lost_while_others_decide_is_noticed(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(concurrency=1)
    held = True
    await site.rows("BEGIN")
    await site.rows("SELECT pg_advisory_xact_lock(1718382455, %s)", revision.workflow_id)
    arriving = asyncio.create_task(keeper.arrive(site.request(revision, valid=lambda: held)))
    await wait_until(lambda: site.rows("SELECT 1 FROM pg_locks WHERE NOT granted"), "the lock")
    held = False
    await site.rows("COMMIT")
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(arriving, 20)
    assert await site.rows("SELECT 1 FROM runs") == []


async def test_an_event_that_comes_twice_joins_its_batch_once(site: Porch, keeper: Gatekeeper) -> None:
    revision = await site.workflow(batch={"size": 3, "timeout": "1m"})
    first, second = site.request(revision), site.request(revision)
    await arrive(keeper, first, second)
    again = await arrive(keeper, second, first)
    assert again[0] == Join(first.arrival.run_id)
    assert isinstance(again[1], Gone)
    assert await site.one("SELECT count FROM meters") == 2


# --- replicas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_two_replicas_never_give_more_places_than_there_are_and_nobody_is_forgotten(
    site: Porch, seed: int
) -> None:
    dice = random.Random(seed)
    keepers = [await site.gatekeeper(), await site.gatekeeper()]
    revision = await site.workflow(concurrency=[5, {"key": "{{ event.data.k }}", "limit": 2}])
    requests = [site.request(revision, k=dice.choice("aaaabc")) for _ in range(120)]
    most: Counter[str] = Counter()
    done: set[str] = set()

    async def see() -> None:
        for digest, number in await site.rows("SELECT digest::text, count(*) FROM places GROUP BY digest"):
            most[digest] = max(most[digest], number)

    async def work(run_id: str) -> None:
        await see()
        freed = await site.end(run_id)
        done.add(run_id)
        await dice.choice(keepers).freed(*freed)

    async def bring(request: Any) -> None:
        if isinstance(await dice.choice(keepers).arrive(request), Go):
            await work(request.arrival.run_id)

    async def wakes() -> None:
        while len(done) < len(requests):
            for run_id in await site.let_in():
                if isinstance(await site.wake(dice.choice(keepers), run_id), Go):
                    await work(run_id)

    await asyncio.wait_for(asyncio.gather(wakes(), *map(bring, requests)), 60)
    keys = requests[0].arrival.keys
    assert most[keys["concurrency.0"].digest] <= 5
    assert max(number for digest, number in most.items() if digest != keys["concurrency.0"].digest) <= 2
    assert len(done) == 120
    assert await site.rows("SELECT 1 FROM queue") == []


async def test_one_event_at_two_replicas_begins_one_run(site: Porch) -> None:
    keepers = [await site.gatekeeper(), await site.gatekeeper()]
    revision = await site.workflow(rate_limit={"limit": 100, "period": "1m"})
    requests = [site.request(revision) for _ in range(50)]
    await asyncio.gather(*(keeper.arrive(request) for request in requests for keeper in keepers))
    assert await site.one("SELECT count(*) FROM runs") == 50
    assert await site.one("SELECT count FROM meters") == 50


# --- what it costs ---------------------------------------------------------------------------------------------------

_BIG = 100_000


async def read_through(site: Porch) -> int:
    """Rows that were read from end to end, of the tables that grow."""
    await site.rows("SELECT pg_stat_force_next_flush()")
    return int(
        await site.one(
            "SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables "
            "WHERE relname ~ '^(queue|places|runs|timers|meters|batched|events)'"
        )
    )


async def crowd(site: Porch, workflow_id: int, lanes: int, each: int) -> None:
    """Runs that wait, and for each lane one that has a place."""
    await site.rows(
        "CREATE TEMP TABLE crowd AS SELECT uuidv7() AS id, n, md5('lane' || n %% %s)::uuid AS lane "
        "FROM generate_series(1, %s) AS n",
        lanes,
        lanes * each,
    )
    await site.rows(
        "INSERT INTO runs (id, workflow_id, revision_id, status, version, started_at, updated_at, priority, state) "
        """SELECT id, %s, 1, 'waiting', 1, now(), now(), 'normal', '{"by": "timer"}' FROM crowd""",
        workflow_id,
    )
    await site.rows("INSERT INTO places SELECT lane, id, true FROM crowd WHERE n <= %s", lanes)
    await site.rows(
        "INSERT INTO queue (run_id, workflow_id, lane, position, priority, parts, digests, keys, limits) "
        "SELECT id, %s, lane, n, 'normal', ARRAY['ordering'], ARRAY[lane], ARRAY[''], ARRAY[1] FROM crowd WHERE n > %s",
        workflow_id,
        lanes,
    )


@pytest.mark.parametrize("analyzed", [False, True], ids=["new", "analyzed"])
async def test_among_a_hundred_thousand_who_wait_rows_are_found_by_index(site: Porch, analyzed: bool) -> None:
    revision = await site.workflow(ordering_key="{{ event.data.k }}", concurrency=100)
    metered = await site.workflow("metered", batch={"size": 3, "timeout": "1m"}, concurrency=5)
    await crowd(site, revision.workflow_id, lanes=_BIG // 5, each=6)
    if analyzed:
        await site.rows("ANALYZE")
    keeper = await site.gatekeeper()
    lanes = await site.rows("SELECT lane::text, id::text FROM crowd WHERE n <= 12")
    before = await read_through(site)
    for n, (lane, run_id) in enumerate(lanes):  # often enough for plans that are kept
        requests = [site.request(revision, k=f"{n} {k}") for k in range(3)]
        assert kinds(await arrive(keeper, *requests, site.request(metered)))["Go"] == 3
        assert isinstance(await keeper.arrive(site.request(revision, k=f"{n} 0")), Wait)
        await site.end_of(run_id)
        await keeper.freed(revision.workflow_id, lane)
        await site.wake(keeper, requests[0].arrival.run_id)
        await keeper.sweep()
    assert len(await site.let_in()) >= len(lanes)
    await site.close(keeper)  # its backends say what they have read when they end
    assert await read_through(site) - before < _BIG / 10
