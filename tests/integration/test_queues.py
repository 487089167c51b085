"""What people see of runs that flow control holds, against a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from appliance.bookkeeping import Bookkeeper
from appliance.errors import Malformed, NotFound
from appliance.events import format_time
from appliance.identifiers import run_id_for, uuid7
from appliance.observe.metrics import METRICS
from appliance.store.history import History
from appliance.store.queues import MOST, Queues
from appliance.store.trace import Traces
from tests.integration.stand import PLAIN, Stand, standing

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LANES = ("00000000-0000-7000-8000-00000000000a", "00000000-0000-7000-8000-00000000000b")
THROTTLED = {"name": "slow", "steps": [], "throttle": {"limit": 10, "period": "1m", "burst": 5}}


@pytest_asyncio.fixture
async def stand(database_url: str) -> AsyncIterator[Stand]:
    async with standing(database_url) as made:
        yield made


@pytest.fixture
def queues(stand: Stand) -> Queues:
    return Queues(stand.pool, lambda: NOW.timestamp())


@pytest.fixture
def history(stand: Stand) -> History:
    return History(stand.pool)


def flow(stage: str, part: str, until: float | None = None, key: str = "acme") -> dict[str, Any]:
    return {"flow": {"stage": stage, "until": until, "part": part, "key": key}}


async def put_in_queue(
    stand: Stand, run_id: str, position: int = 1, lane: str = LANES[0], digests: tuple[str, ...] = LANES[:1]
) -> None:
    """``digests`` are of the places that the run needs, each of a key of its own."""
    await stand.rows(
        "INSERT INTO queue SELECT id, workflow_id, %s, %s, 'normal', %s, %s::uuid[], %s, %s, '2030-01-01Z' "
        "FROM runs WHERE id = %s",
        lane,
        position,
        [f"concurrency.{number}" for number, _ in enumerate(digests)],
        list(digests),
        [f"key {digest[-1]}" for digest in digests],
        [5 for _ in digests],
        run_id,
    )


async def put_meter(stand: Stand, part: str, at: datetime, until: datetime, **more: Any) -> None:
    await stand.rows(
        "INSERT INTO meters VALUES (%s, %s, %s, %s, %s, %s, %s, NULL, %s)",
        uuid7(),
        more["workflow_id"],
        part,
        more.get("key", "acme"),
        at,
        more.get("count", 1),
        more.get("run_id"),
        until,
    )


# --- one run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "part", "word"),
    [("collected", "debounce", "debounce"), ("collected", "batch", "batch"), ("turn", "throttle", "throttle")],
)
async def test_a_run_that_waits_for_a_time_says_for_what_and_until_when(
    stand: Stand, history: History, stage: str, part: str, word: str
) -> None:
    run_id = await stand.run(details=flow(stage, part, NOW.timestamp()))
    expected = {"for": word, "key": "acme", "until": format_time(NOW), "position": None}
    assert (await history.get_run(run_id))["held"] == expected
    assert (await history.list_runs()).items[0]["held"] == expected


async def test_a_run_in_a_queue_says_how_many_come_before_it(
    stand: Stand, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [await stand.run(details=flow("order", "ordering")) for _ in range(3)]
    for position, run_id in enumerate(reversed(runs)):
        await put_in_queue(stand, run_id, position)
    await put_in_queue(stand, other := await stand.run(details=flow("places", "concurrency.1")), lane=LANES[1])
    held = [(await history.get_run(run_id))["held"] for run_id in [*runs, other]]
    assert [(h["for"], h["position"]) for h in held if h] == [
        ("ordering", 3), ("ordering", 2), ("ordering", 1), ("concurrency", 1)
    ]  # fmt: skip
    assert {h["until"] for h in held if h} == {None}
    monkeypatch.setattr("appliance.store.history._AHEAD_IN_LISTS", 2)
    listed = {item["id"]: item["held"]["position"] for item in (await history.list_runs()).items}
    assert [listed[run_id] for run_id in [*runs, other]] == [None, 2, 1, 1]


async def test_a_run_that_goes_on_or_is_over_is_not_held(stand: Stand, history: History) -> None:
    runs = [
        await stand.run(details=flow("places", "concurrency.0")),  # parked at one of its steps
        await stand.run(details=flow("turn", "throttle", 1.0), state={"by": "normal-1-1"}, status="running"),
        await stand.run(details=flow("collected", "debounce", 1.0), state=None, status="cancelled"),
        await stand.run(),
    ]
    assert [(await history.get_run(run_id))["held"] for run_id in runs] == [None] * 4


async def test_a_paused_run_still_says_what_it_waited_for(stand: Stand, history: History) -> None:
    run_id = await stand.run(details=flow("places", "singleton"), status="paused")
    await put_in_queue(stand, run_id)
    held = (await history.get_run(run_id))["held"]
    assert held == {"for": "singleton", "key": "acme", "until": None, "position": 1}


async def test_a_batch_and_its_events_know_each_other(stand: Stand, history: History) -> None:
    uids = sorted([await stand.event(n=n) for n in range(3)])
    batch = await stand.run(event_uid=uids[0], status="running", id=run_id_for(uids[0], "plain"))
    alone = await stand.run()
    for position, uid in enumerate(uids):
        await stand.rows("INSERT INTO batched VALUES (%s, %s, %s)", batch, uid, position)
    assert (await history.get_run(batch))["events"] == uids
    assert (await history.get_run(alone))["events"] == []
    for uid in uids:
        expected = {"run_id": batch, "workflow": "plain", "status": "running"}
        assert (await history.get_event(uid))["batches"] == [expected]
        assert [item["id"] for item in (await history.list_runs(event_id=uid)).items] == [batch]


async def test_a_trace_shows_a_batch_with_each_of_its_events_and_in_full_once(stand: Stand, history: History) -> None:
    first, other = sorted([await stand.event(), await stand.event()])
    batch = await stand.run(event_uid=first, id=run_id_for(first, "plain"))
    for uid in (first, other):
        await stand.rows("INSERT INTO batched VALUES (%s, %s, 1)", batch, uid)
    await stand.rows('UPDATE events SET attributes = \'{"correlationid": "c"}\'')
    traced = await Traces(stand.pool, history).trace(other)
    assert [[(run["id"], run.get("joined")) for run in event["runs"]] for event in traced["events"]] == [
        [(batch, None)],
        [(batch, first)],
    ]


# --- queues ----------------------------------------------------------------------------------------------------------


async def test_workflows_of_which_runs_wait_are_listed_page_by_page(stand: Stand, queues: Queues) -> None:
    assert (await queues.list_queues()).items == []
    for name in "abcd":
        run_id = await stand.run({**PLAIN, "name": name})
        if name != "b":
            await put_in_queue(stand, run_id)
    page = await queues.list_queues(limit=2)
    assert page.items == [
        {"workflow": name, "waiting": 1, "since": format_time(NOW)} for name in ("a", "c")
    ]  # fmt: skip
    page = await queues.list_queues(limit=2, cursor=page.next_cursor)
    assert ([item["workflow"] for item in page.items], page.next_cursor) == (["d"], None)


async def test_a_queue_says_who_waits_in_each_lane_for_what_and_who_has_it(stand: Stand, queues: Queues) -> None:
    everybody, mine = "00000000-0000-7000-8000-0000000000e0", LANES[0]
    waiting = [await stand.run() for _ in range(7)]
    for position, run_id in enumerate(waiting):
        await put_in_queue(stand, run_id, position, digests=(everybody, mine))
    await put_in_queue(stand, alone := await stand.run(), lane=LANES[1])
    works = [await stand.run(status="running", state=None) for _ in range(2)]
    await stand.rows("INSERT INTO places VALUES (%s, %s, false)", everybody, works[0])
    for run_id in works:
        await stand.rows("INSERT INTO places VALUES (%s, %s, false)", mine, run_id)
    await stand.run({**PLAIN, "name": "other"})
    answer = await queues.get_queue("plain", limit=1)
    assert answer["items"] == [
        {
            "waiting": 7,
            "next": waiting[:5],
            "since": format_time(NOW),
            "needs": [
                {"part": "concurrency.0", "key": "key 0", "limit": 5, "at_work": 1, "runs": works[:1]},
                {"part": "concurrency.1", "key": "key a", "limit": 5, "at_work": 2, "runs": sorted(works)},
            ],
        }
    ]
    rest = await queues.get_queue("plain", limit=1, cursor=answer["next_cursor"])
    assert ([lane["next"] for lane in rest["items"]], rest["next_cursor"]) == ([[alone]], None)
    assert (await queues.get_queue("other"))["items"] == []


@pytest.mark.parametrize(("concurrency", "limits"), [(7, [7, 5]), ([{"limit": 8, "key": "x"}, 9], [8, 9])])
async def test_the_limits_in_force_are_shown_not_those_that_runs_came_with(
    stand: Stand, queues: Queues, concurrency: Any, limits: list[int]
) -> None:
    await put_in_queue(stand, await stand.run({**PLAIN, "concurrency": concurrency}), digests=LANES)
    (lane,) = (await queues.get_queue("plain"))["items"]
    assert [need["limit"] for need in lane["needs"]] == limits


async def test_counts_end_where_it_would_take_long(
    stand: Stand, queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST == 1000
    monkeypatch.setattr("appliance.store.queues.MOST", 2)
    for position in range(3):
        await put_in_queue(stand, await stand.run(), position)
        await stand.rows("INSERT INTO places VALUES (%s, %s, false)", LANES[0], uuid7())
    (lane,) = (await queues.get_queue("plain"))["items"]
    assert (lane["waiting"], lane["needs"][0]["at_work"]) == (2, 2)
    assert (await queues.list_queues()).items[0]["waiting"] == 2


async def test_a_queue_says_what_is_collected_and_counted(stand: Stand, queues: Queues) -> None:
    workflow = (await stand.workflow(PLAIN)).workflow_id
    run_id, later = uuid7(), NOW + timedelta(minutes=1)
    await put_meter(stand, "rate_limit", NOW, later, workflow_id=workflow, count=7, key="b")
    await put_meter(stand, "batch", NOW, NOW, workflow_id=workflow, count=3, run_id=run_id, key="a")
    await put_meter(stand, "batch", NOW, datetime(2020, 1, 1, tzinfo=UTC), workflow_id=workflow)
    await put_meter(stand, "batch", NOW, NOW, workflow_id=workflow + 1)
    since, until = format_time(NOW), format_time(later)
    assert (await queues.get_queue("plain"))["meters"] == [
        {"part": "batch", "key": "a", "count": 3, "since": since, "until": since, "run_id": run_id},
        {"part": "rate_limit", "key": "b", "count": 7, "since": since, "until": until, "run_id": None},
    ]


@pytest.mark.parametrize(("ahead_s", "waiting"), [(6, 0), (90, 0), (90.1, 1), (96, 1), (97, 2), (6000, 985)])
async def test_a_throttle_says_how_many_wait_for_their_turn(
    stand: Stand, queues: Queues, ahead_s: float, waiting: int
) -> None:
    """10 a minute is one in 6 s; 15 may begin at once, so 90 s of turns are taken before anybody waits."""
    revision = await stand.workflow(THROTTLED)
    await stand.rows("UPDATE workflows SET current_revision = %s", revision.id)
    at = NOW + timedelta(seconds=ahead_s)
    await put_meter(stand, "throttle", at, at, workflow_id=revision.workflow_id)
    (meter,) = (await queues.get_queue("slow"))["meters"]
    assert (meter["waiting"], meter["until"]) == (waiting, format_time(at))


async def test_who_waits_is_counted_for_the_metrics(stand: Stand) -> None:
    ledger: Any = None
    bookkeeper = Bookkeeper(ledger, stand.pool)
    for number in range(3):
        await put_in_queue(stand, await stand.run(), number)
    await bookkeeper.count()
    assert METRICS.registry.get_sample_value("appliance_queue_runs") == 3
    await stand.rows("DELETE FROM queue")
    await bookkeeper.count()
    assert METRICS.registry.get_sample_value("appliance_queue_runs") == 0


async def test_what_is_no_workflow_or_cursor_is_refused(stand: Stand, queues: Queues) -> None:
    await stand.workflow(PLAIN)
    for name in ("nobody", "\0"):
        with pytest.raises(NotFound):
            await queues.get_queue(name)
    with pytest.raises(Malformed, match="cursor"):
        await queues.get_queue("plain", cursor="7")
    for cursor in ("x", "1234567890", "-1"):
        with pytest.raises(Malformed, match="cursor"):
            await queues.list_queues(cursor=cursor)
