"""The ticker against real servers: one entry for a slot, whoever ticks, whenever, and whatever the clock does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.catalog import Catalog
from appliance.engine.schedules import Ticker
from appliance.engine.timetable import Timetable
from appliance.errors import Malformed, Overloaded, StoreUnavailable
from appliance.events import Event, decode_entry
from appliance.rules.matcher import Matcher, Rule
from appliance.settings import IngestSettings, Settings, StoreSettings, StreamSettings
from appliance.store.definitions import DefinitionStore
from appliance.store.pool import Pool, checked_out, open_pool
from appliance.stream import client as stream_client
from appliance.stream.keys import Keys
from appliance.stream.producer import Accepted, Producer
from appliance.workflows.revision import Revision
from appliance.workflows.schedules import Schedule, parse_schedule
from tests.servers import wait_until

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EVERY_15 = parse_schedule("*/15 * * * *")


class Scheduled(Catalog):
    """A catalog whose workflows have the schedules that a test gives them; without any, none of its workflows has."""

    schedules: dict[str, tuple[Schedule, ...]]

    def workflows(self) -> list[Revision]:
        return [
            replace(r, workflow=replace(r.workflow, schedules=self.schedules.get(r.workflow.name, ())))
            for r in super().workflows()
        ]

    async def write(self, name: str, *schedules: Schedule, enabled: bool = True) -> None:
        """Put a workflow; its description stands for the schedules, so that another text is another revision."""
        self.schedules[name] = schedules
        steps = [{"id": "s", "delay": "1s"}]
        document = {"name": name, "description": repr(schedules), "trigger": {"event": "never"}, "steps": steps}
        await self.put({**document, "enabled": enabled})


class Stand:
    """Tickers on one pair of servers under a clock that the test moves."""

    def __init__(self, pool: Pool, producer: Producer, keys: Keys, redis: Any, folder: Path) -> None:
        self.pool, self.producer, self.keys, self.redis, self.folder = pool, producer, keys, redis, folder
        self.now = NOON + MINUTE
        self.catalog = self.another_catalog()
        self.ticker = self.another_ticker()

    def another_catalog(self) -> Scheduled:
        catalog = Scheduled(DefinitionStore(self.pool), {}, self.folder)
        catalog.schedules = {} if not hasattr(self, "catalog") else self.catalog.schedules
        return catalog

    def another_ticker(self, **instead: Any) -> Ticker:
        parts: dict[str, Any] = {"pool": self.pool, "producer": self.producer, "catalog": self.catalog, "poll_s": 0.02}
        return Ticker(**parts | {"clock": lambda: self.now.timestamp()} | instead)

    async def turn(self) -> None:
        await self.ticker.keep()
        await self.ticker.tick()

    async def go(self, to: datetime, step: timedelta = MINUTE) -> None:
        """Let time pass, with a turn at each step."""
        while self.now < to:
            self.now = min(to, self.now + step)
            await self.turn()

    async def events(self) -> list[Event]:
        found = []
        for stream in self.keys.streams.values():
            found += [decode_entry(stream, id, fields) for id, fields in await self.redis.xrange(stream)]
        return found

    async def slots(self) -> list[str]:
        """The day and time of each entry's slot, as its data shows it."""
        return [f"{datetime.fromisoformat(event.data['slot']):%d %H:%M}" for event in await self.events()]

    async def rows(self) -> list[tuple[Any, ...]]:
        async with checked_out(self.pool) as connection:
            cursor = await connection.execute(b"SELECT position, next_at, last_slot FROM schedules ORDER BY 1")
            return list(await cursor.fetchall())


@pytest_asyncio.fixture
async def stand(redis_url: str, database_url: str, tmp_path: Path) -> AsyncIterator[Stand]:
    keys = Keys(Settings().namespace)
    commander = stream_client.commander(redis_url, StreamSettings())
    pool = await open_pool(database_url, StoreSettings())
    yield Stand(pool, Producer(commander, keys, IngestSettings()), keys, commander, tmp_path)
    await pool.close()
    await commander.aclose()


async def test_a_slot_is_an_event_that_starts_its_workflow(stand: Stand) -> None:
    await stand.catalog.write("w", parse_schedule("30 13 * * *", "Europe/Berlin"))
    await stand.turn()
    assert await stand.rows() == [(0, NOON + 30 * MINUTE, None)]
    await stand.go(NOON + 29 * MINUTE)
    assert await stand.events() == []
    await stand.go(NOON + 31 * MINUTE, timedelta(seconds=20))
    (event,) = await stand.events()
    assert (event.type, event.source, event.start) == ("schedule.due", "schedule:w", ("w", "schedule"))
    assert event.data == {"slot": "2026-11-21T13:30:00+01:00", "schedule": "30 13 * * *", "missed": False}
    assert await stand.rows() == [(0, NOON + timedelta(days=1, minutes=30), NOON + 30 * MINUTE)]


async def test_many_tickers_put_one_entry_for_each_slot(stand: Stand) -> None:
    for number in range(30):
        await stand.catalog.write(f"w{number}", EVERY_15)
    tickers = [stand.another_ticker() for _ in range(5)]
    await asyncio.gather(*(ticker.keep() for ticker in tickers))
    for _ in range(4):
        stand.now += 15 * MINUTE
        await asyncio.gather(*(ticker.tick() for ticker in tickers for _ in range(3)))
    events = await stand.events()
    assert len(events) == 30 * 4
    assert len({event.key for event in events}) == 30 * 4


async def test_running_tickers_share_the_work_and_stop(stand: Stand) -> None:
    await stand.catalog.write("w", EVERY_15)
    tickers = [stand.another_ticker() for _ in range(3)]
    loops = [asyncio.create_task(ticker.run_forever()) for ticker in tickers]
    await wait_until(stand.rows, "the schedule's row")
    stand.now = NOON + 15 * MINUTE
    await wait_until(stand.events, "the event")
    stand.now = NOON + 30 * MINUTE
    await wait_until(lambda: _many(stand, 2), "the second event")
    for ticker in tickers:
        ticker.stop()
    await asyncio.wait_for(asyncio.gather(*loops), 5)
    assert await stand.slots() == ["21 12:15", "21 12:30"]


async def _many(stand: Stand, count: int) -> bool:
    return len(await stand.events()) == count


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [
        ("skip", ["21 15:15"]),
        ("once", ["21 15:00", "21 15:15"]),
        ("all", ["21 14:30", "21 14:45", "21 15:00", "21 15:15"]),
    ],
)
async def test_slots_missed_in_a_downtime(stand: Stand, misfire: str, expected: list[str]) -> None:
    await stand.catalog.write("w", parse_schedule("*/15 * * * *", misfire=misfire, limit=3))
    await stand.turn()
    stand.now = NOON + timedelta(hours=3, minutes=7)
    await stand.turn()
    assert {event.data["missed"] for event in await stand.events()} <= {True}
    await stand.go(NOON + timedelta(hours=3, minutes=16))
    events = await stand.events()
    assert await stand.slots() == expected
    assert [event.data["missed"] for event in events] == [True] * (len(events) - 1) + [False]


async def test_a_downtime_of_years_costs_no_more_than_the_limit(stand: Stand) -> None:
    await stand.catalog.write("w", parse_schedule("* * * * *", misfire="all", limit=5))
    await stand.turn()
    stand.now += timedelta(days=1000)
    await stand.turn()
    assert len(await stand.events()) == 5


async def test_a_clock_that_jumps_ahead_and_back_fires_no_slot_twice(stand: Stand) -> None:
    await stand.catalog.write("w", parse_schedule("*/15 * * * *", misfire="all", limit=100))
    await stand.turn()
    await stand.go(NOON + 31 * MINUTE)
    stand.now += timedelta(hours=2)  # as if that time had passed
    await stand.turn()
    await stand.ticker.keep()
    stand.now -= timedelta(hours=2)
    await stand.go(NOON + timedelta(hours=3))
    slots = await stand.slots()
    assert slots == [f"21 {12 + n // 4}:{n % 4 * 15:02}" for n in range(1, 13)]
    stand.now -= timedelta(hours=2)
    await stand.go(NOON + timedelta(hours=3, minutes=15))
    assert await stand.slots() == [*slots, "21 15:15"]


async def test_a_replica_whose_clock_is_behind_fires_nothing_again(stand: Stand) -> None:
    await stand.catalog.write("w", EVERY_15)
    behind = stand.another_ticker(clock=lambda: (stand.now - timedelta(hours=2)).timestamp())
    for _ in range(60):
        await stand.turn()
        await behind.keep()
        await behind.tick()
        stand.now += MINUTE
    assert await stand.slots() == ["21 12:15", "21 12:30", "21 12:45", "21 13:00"]


async def test_a_clock_that_was_years_ahead_does_not_silence_a_schedule(stand: Stand) -> None:
    await stand.catalog.write("w", EVERY_15)
    await stand.turn()
    stand.now += timedelta(days=3000)
    await stand.turn()
    stand.now -= timedelta(days=3000)
    await stand.go(NOON + 16 * MINUTE)
    assert (await stand.slots())[1:] == ["21 12:15"]


@pytest.mark.parametrize(
    ("expression", "day", "expected"),
    [
        ("30 2 * * *", "2026-03-28", ["28 02:30", "29 03:00", "30 02:30"]),
        ("30 2 * * *", "2026-10-24", ["24 02:30", "25 02:30", "26 02:30"]),
        ("0 */12 * * *", "2026-10-24", ["24 12:00", "25 00:00", "25 12:00", "26 00:00", "26 12:00"]),
    ],
)
async def test_a_daily_schedule_fires_once_on_the_days_of_the_change(
    stand: Stand, expression: str, day: str, expected: list[str]
) -> None:
    schedule = parse_schedule(expression, "Europe/Berlin")
    stand.now = datetime.fromisoformat(day).replace(tzinfo=schedule.zone).astimezone(UTC)
    await stand.catalog.write("w", schedule)
    await stand.turn()
    await stand.go(stand.now + timedelta(hours=71), 10 * MINUTE)
    assert await stand.slots() == expected


async def test_an_hourly_schedule_goes_by_elapsed_time_when_the_clocks_change(stand: Stand) -> None:
    stand.now = datetime(2026, 10, 24, 23, 59, tzinfo=UTC)
    await stand.catalog.write("w", parse_schedule("0 * * * *", "Europe/Berlin"))
    await stand.turn()
    await stand.go(datetime(2026, 10, 25, 3, tzinfo=UTC), 10 * MINUTE)
    shown = [event.data["slot"][11:] for event in await stand.events()]
    assert shown == ["02:00:00+02:00", "02:00:00+01:00", "03:00:00+01:00", "04:00:00+01:00"]


class Failing:
    """A producer that adds the event and then fails, so many times: the process died before the commit."""

    def __init__(self, real: Producer, error: Exception, times: int, *, adds: bool) -> None:
        self.real, self.error, self.times, self.adds = real, error, times, adds

    async def submit(self, event: Event, priority: str = "normal") -> Accepted:
        self.times -= 1
        if self.times < 0:
            return await self.real.submit(event, priority)
        if self.adds:
            await self.real.submit(event, priority)
        raise self.error


async def test_a_crash_between_entry_and_commit_gives_one_key(stand: Stand) -> None:
    await stand.catalog.write("w", EVERY_15)
    died = Failing(stand.producer, StoreUnavailable("gone"), 1, adds=True)
    ticker = stand.another_ticker(producer=died)
    await ticker.keep()
    stand.now = NOON + 15 * MINUTE
    with pytest.raises(StoreUnavailable):
        await ticker.tick()
    assert await stand.rows() == [(0, NOON + 15 * MINUTE, None)]
    assert await ticker.tick() == 1
    (event,) = await stand.events()  # Redis knew the key
    await stand.redis.flushall()  # now it doesn't; the consumer claims the key in PostgreSQL
    async with checked_out(stand.pool) as connection:
        await connection.execute(b"UPDATE schedules SET next_at = next_at - interval '15 minutes', last_slot = NULL")
    assert await ticker.tick() == 1
    (again,) = await stand.events()
    assert (again.key, again.id) == (event.key, event.id)
    assert again.uid != event.uid


async def test_when_redis_is_full_a_schedule_waits_and_the_others_go_on(stand: Stand) -> None:
    for name in ("a", "b"):
        await stand.catalog.write(name, EVERY_15)
    full = Failing(stand.producer, Overloaded("full"), 1, adds=False)
    ticker = stand.another_ticker(producer=full)
    await ticker.keep()
    stand.now = NOON + 15 * MINUTE
    with pytest.raises(Overloaded):
        await ticker.tick()
    assert len(await stand.events()) == 1
    assert await ticker.tick() == 1
    assert {event.source for event in await stand.events()} == {"schedule:a", "schedule:b"}


async def test_an_event_that_is_too_large_ends_nothing(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    await stand.catalog.write("w", EVERY_15)
    ticker = stand.another_ticker(producer=Producer(stand.redis, stand.keys, IngestSettings(max_event_bytes=256)))
    await ticker.keep()
    stand.now = NOON + 15 * MINUTE
    assert await ticker.tick() == 1
    assert "'w' isn't started for 2026-11-21T12:15:00.000Z: the event is larger than 256 bytes" in caplog.text


async def test_a_changed_schedule_starts_anew_and_one_that_moved_goes_on(stand: Stand) -> None:
    noon, hourly = parse_schedule("0 13 * * *"), parse_schedule("0 * * * *")
    await stand.catalog.write("w", noon)
    await stand.turn()
    stand.now = NOON + timedelta(hours=1, minutes=5)  # the slot at 13:00 is missed
    await stand.catalog.write("w", hourly, noon)
    await stand.turn()
    assert await stand.slots() == ["21 13:00"]
    assert (await stand.events())[0].data["schedule"] == "0 13 * * *"
    assert await stand.rows() == [
        (0, NOON + timedelta(hours=2), None),
        (1, NOON + timedelta(hours=25), NOON + timedelta(hours=1)),
    ]


async def test_another_misfire_policy_is_the_same_schedule(stand: Stand) -> None:
    await stand.catalog.write("w", parse_schedule("0 13 * * *", misfire="skip"))
    await stand.turn()
    stand.now = NOON + timedelta(hours=1, minutes=5)
    await stand.catalog.write("w", parse_schedule("0 13 * * *", misfire="once"))
    await stand.turn()
    assert await stand.slots() == ["21 13:00"]


async def test_rows_of_what_is_disabled_or_has_no_schedule_any_more_go(stand: Stand) -> None:
    for name in ("a", "b", "c"):
        await stand.catalog.write(name, EVERY_15, parse_schedule("@daily"))
    await stand.turn()
    assert len(await stand.rows()) == 6
    await stand.catalog.write("a", EVERY_15, parse_schedule("@daily"), enabled=False)
    await stand.catalog.write("b")
    await stand.catalog.write("c", EVERY_15)
    await stand.turn()
    assert [row[0] for row in await stand.rows()] == [0]
    stand.now = NOON + timedelta(days=2)
    await stand.catalog.write("a", EVERY_15, parse_schedule("@daily"))
    await stand.turn()
    assert {event.source for event in await stand.events()} == {"schedule:c"}  # of a, nothing was missed


async def test_a_replica_that_lags_behind_undoes_nothing(stand: Stand) -> None:
    await stand.catalog.write("w", EVERY_15)
    stale = stand.another_catalog()
    await stale.load()
    stale.schedules = {"w": (EVERY_15,)}
    old = stand.another_ticker(catalog=stale)
    await old.keep()
    await stand.catalog.write("w", parse_schedule("*/20 * * * *"), parse_schedule("@daily"))
    await stand.catalog.write("new", EVERY_15)
    await stand.ticker.keep()
    before = await stand.rows()
    assert len(before) == 3
    stand.now += 2 * MINUTE  # it looks again, and still doesn't know
    await old.keep()
    assert await stand.rows() == before
    stand.now = NOON + 20 * MINUTE
    assert await old.tick() == 0
    assert await stand.events() == []
    await stand.turn()
    assert sorted(await stand.slots()) == ["21 12:15", "21 12:20"]


async def test_a_catalog_without_workflows(stand: Stand) -> None:
    stand.catalog.matcher = Matcher(list[Rule]())
    await stand.turn()
    assert await stand.rows() == []


async def test_a_loop_survives_servers_that_are_away(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    await stand.catalog.write("w", EVERY_15)
    full = Failing(stand.producer, Overloaded("full"), 3, adds=False)
    ticker = stand.another_ticker(producer=full)
    loop = asyncio.create_task(ticker.run_forever())
    await wait_until(stand.rows, "the schedule's row")
    stand.now = NOON + 15 * MINUTE
    await wait_until(stand.events, "the event")
    ticker.stop()
    await asyncio.wait_for(loop, 5)
    assert caplog.text.count("schedules wait: full") == 3


async def test_the_timetable_lists_what_is_kept(stand: Stand) -> None:
    noon = parse_schedule("30 13 * * *", "Europe/Berlin", "all", 3)
    await stand.catalog.write("b", noon, EVERY_15)
    await stand.catalog.write("a", EVERY_15)
    await stand.catalog.write("none")
    timetable = Timetable(stand.pool, stand.catalog, lambda: stand.now.timestamp())
    (fresh, *_) = (await timetable.list_schedules()).items
    assert (fresh["workflow"], fresh["next_at"], fresh["last_slot"], fresh["upcoming"]) == ("a", None, None, [])
    await stand.turn()
    await stand.go(NOON + 31 * MINUTE)
    page = await timetable.list_schedules(limit=2, preview=2)
    assert [(item["workflow"], item["position"]) for item in page.items] == [("a", 0), ("b", 0)]
    assert page.items[1] == {
        "workflow": "b",
        "position": 0,
        "schedule": "30 13 * * *",
        "timezone": "Europe/Berlin",
        "misfire": "all",
        "misfire_limit": 3,
        "next_at": "2026-11-22T12:30:00.000Z",
        "last_slot": "2026-11-21T12:30:00.000Z",
        "upcoming": ["2026-11-22T13:30:00+01:00", "2026-11-23T13:30:00+01:00"],
    }
    rest = await timetable.list_schedules(limit=2, cursor=page.next_cursor)
    assert [(item["workflow"], item["position"]) for item in rest.items] == [("b", 1)]
    assert rest.next_cursor is None
    assert len((await timetable.list_schedules("b")).items) == 2
    assert (await timetable.list_schedules("none")).items == []
    for wrong in ("b", "b/", "b/x", "b/-1"):
        with pytest.raises(Malformed, match="cursor"):
            await timetable.list_schedules(cursor=wrong)
