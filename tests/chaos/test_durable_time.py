"""Clocks that jump, clocks that change, slots that several replicas see or nobody: real processes, whose clocks lie."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.chaos.mixture import open_crowd
from tests.chaos.scene import HEAL_S, Scene, scene
from tests.chaos.wrong_clock import WrongClock
from tests.servers import wait_until

__all__ = ["scene"]
_HOUR, _MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture
def clock(tmp_path: Path) -> WrongClock:
    return WrongClock(tmp_path)


def _scheduled(scene: Scene, name: str, schedule: str, **more: Any) -> None:
    """A workflow for the slots of a schedule, which calls the sink."""
    call = {"id": "c", "action": "webhook", "with": {"url": f"{scene.site.sink.url}slot"}}
    trigger = {"schedule": schedule, **more}
    scene.site.fleet.workflow(name, json.dumps({"name": name, "trigger": trigger, "steps": [call]}))


async def _slots(scene: Scene) -> dict[str, list[datetime]]:
    """The slots that have runs that succeeded, by the workflow's name, in order."""
    found: dict[str, list[datetime]] = {}
    for name, slot in await scene.tables.rows(
        "SELECT w.name, e.data ->> 'slot' FROM runs r JOIN workflows w ON w.id = r.workflow_id "
        "JOIN events e ON e.uid = r.event_uid WHERE r.status = 'succeeded' AND e.type = 'schedule.due' "
        "ORDER BY (e.data ->> 'slot')::timestamptz"
    ):
        found.setdefault(name, []).append(datetime.fromisoformat(slot))
    return found


async def _kept(scene: Scene, count: int) -> None:
    async def kept() -> bool:
        return await scene.tables.rows("SELECT count(*) FROM schedules") == [(count,)]

    await wait_until(kept, "every schedule has its row")


async def _ticked(scene: Scene, clock: WrongClock) -> None:
    """Wait until no schedule is due, and what was due is over."""

    async def ticked() -> bool:
        rows = await scene.tables.rows("SELECT min(next_at) FROM schedules")
        return bool(rows[0][0] > clock.now())

    await wait_until(ticked, "the slots are over", HEAL_S)
    await scene.site.at_rest()
    await scene.tables.all_over(HEAL_S)


async def test_clocks_that_jump_fire_no_timer_twice(scene: Scene, clock: WrongClock) -> None:
    """By two hours, to and fro. The servers' clocks are right all the time."""
    call = {"action": "webhook", "with": {"url": f"{scene.site.sink.url}hour"}}
    steps = [{"id": "h1", **call}, {"id": "h2", "delay": "1h"}, {"id": "h3", **call}]
    scene.site.fleet.workflow("hour", json.dumps({"name": "hour", "trigger": {"event": "chaos.hour"}, "steps": steps}))
    _scheduled(scene, "halves", "*/30 * * * *", misfire="all", misfire_limit=100)
    await asyncio.gather(*(scene.site.fleet.start(settings=clock.settings) for _ in range(2)))
    await _kept(scene, 1)

    async def hours(status: str) -> int:
        return (await scene.tables.statuses()).get(("hour", status), 0)

    async def until_hours(**numbers: int) -> None:
        async def reached() -> bool:
            return all([await hours(status) == number for status, number in numbers.items()])

        await wait_until(reached, f"runs of an hour to be {numbers}", HEAL_S)

    async with open_crowd(scene.site, scene.tables, scene.dice) as crowd:

        async def send(place: str, *kinds: str) -> None:
            await asyncio.gather(*(crowd.run(kind, f"{place}-{n}") for kind in kinds for n in range(3)))

        await send("right", "hour", "line", "meet", "ask", "door")
        await until_hours(waiting=3)
        clock.set_off(2 * _HOUR)  # as if the hour were over
        await send("ahead", "line", "both", "each", "outer", "saga", "meet", "ask")
        await until_hours(succeeded=3, waiting=0)
        await send("ahead", "hour")
        await until_hours(succeeded=3, waiting=3)
        clock.set_off(timedelta())
        await send("back", "line", "both", "meet", "ask", "door", "once")
        clock.set_off(-2 * _HOUR)
        await send("behind", "hour", "line", "both", "each", "outer", "saga")
        await until_hours(succeeded=3, waiting=6)
        clock.set_off(timedelta())  # the last three are due
        await until_hours(succeeded=6, waiting=3)
        clock.set_off(timedelta(hours=3, minutes=5))  # the other three, too
        await until_hours(succeeded=9, waiting=0)
        await _ticked(scene, clock)
    await scene.check()
    paths = [request.path for request in scene.site.sink.requests]
    assert paths.count("/hour") == 2 * 9
    slots = (await _slots(scene))["halves"]
    assert len(slots) == len(set(slots)) >= 6


@pytest.mark.parametrize(
    ("begin", "slot"),
    [
        ("2026-10-24T23:10:00Z", "2026-10-25T02:30:00+02:00"),  # that is shown twice
        ("2027-03-27T23:40:00Z", "2027-03-28T03:00:00+02:00"),  # 02:30 isn't
    ],
)
async def test_a_daily_schedule_fires_once_when_the_clocks_change(
    scene: Scene, clock: WrongClock, begin: str, slot: str
) -> None:
    clock.show(datetime.fromisoformat(begin))
    _scheduled(scene, "daily", "30 2 * * *", timezone="Europe/Berlin")
    await asyncio.gather(*(scene.site.fleet.start(settings=clock.settings) for _ in range(2)))
    await _kept(scene, 1)
    moment = clock.now()
    for _ in range(12):
        moment += 20 * _MINUTE
        clock.show(moment)
        await _ticked(scene, clock)
    assert await _slots(scene) == {"daily": [datetime.fromisoformat(slot)]}
    await scene.check()


async def test_many_replicas_and_one_slot_are_one_run(scene: Scene, database_url: str) -> None:
    """Every workflow has several slots due at the same moment, and one of the three replicas dies while it ticks."""
    names = [f"minutely-{n}" for n in range(10)]
    for name in names:
        _scheduled(scene, name, "* * * * *", misfire="all", misfire_limit=100)
    fleet = scene.site.fleet
    await asyncio.gather(fleet.start(), fleet.start())
    await _kept(scene, len(names))
    victim = await fleet.start(fault="kill@after_slot#1")
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        first = datetime.now(UTC).replace(second=0, microsecond=0) - 60 * _MINUTE

        async def struck() -> bool:
            await connection.execute("UPDATE schedules SET next_at = %s, last_slot = NULL", [first])
            return victim.process.returncode is not None

        await wait_until(struck, "the victim came to tick", HEAL_S)

    async def over() -> bool:
        return not await scene.tables.rows("SELECT FROM schedules WHERE next_at <= now() - interval '3 seconds'")

    await wait_until(over, "the slots are over", HEAL_S)
    await scene.site.at_rest()  # what was ticked may not have been read yet
    await scene.tables.all_over(HEAL_S)
    slots = await _slots(scene)
    expected = [first + n * _MINUTE for n in range(60)]
    assert {name: found[:60] for name, found in slots.items()} == dict.fromkeys(names, expected)
    await scene.check(deaths=1)


async def test_slots_of_a_downtime_are_made_up_for_as_their_policies_say(scene: Scene, clock: WrongClock) -> None:
    for misfire in ("skip", "once", "all"):
        _scheduled(scene, misfire, "*/10 * * * *", misfire=misfire, misfire_limit=3)
    replicas = [await scene.site.fleet.start(settings=clock.settings) for _ in range(2)]
    await _kept(scene, 3)
    assert [await replica.stop() for replica in replicas] == [0, 0]
    before = await _slots(scene)  # one may just have come
    down = clock.now() + _HOUR
    up = down.replace(minute=down.minute // 10 * 10 + 5, second=0, microsecond=0)
    clock.show(up)
    await asyncio.gather(*(scene.site.fleet.start(settings=clock.settings) for _ in range(2)))
    await _ticked(scene, clock)
    latest = [up - 25 * _MINUTE, up - 15 * _MINUTE, up - 5 * _MINUTE]
    made_up = {name: found[len(before.get(name, [])) :] for name, found in (await _slots(scene)).items()}
    assert {name: found for name, found in made_up.items() if found} == {"once": latest[-1:], "all": latest}
    await scene.check()
