"""Replicas die at random under a mixed load of durable workflows: every run ends as it should, each result stands."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.chaos.mixture import KINDS, Crowd, open_crowd
from tests.chaos.scene import HEAL_S, LONG, Scene, scene
from tests.chaos.storm import Storm
from tests.chaos.tables import Tables

__all__ = ["scene"]
pytestmark = pytest.mark.timeout(900 if LONG else 120)
_ROUNDS = 400 if LONG else 30
_ACTORS = 3


async def _load(crowd: Crowd, storm: Storm, kinds: tuple[str, ...]) -> int:
    """Rounds of one run of each kind while the storm lasts, two at least; returns how many."""
    sent = 0
    while sent < _ROUNDS and not (storm.over.is_set() and sent >= 2):
        order = crowd.dice.sample(kinds, len(kinds))
        await asyncio.gather(*(crowd.run(kind, str(sent)) for kind in order))
        sent += 1
    return sent


async def test_a_storm_of_kills_loses_nothing(scene: Scene) -> None:
    storm = scene.storm(short=5)
    deaths = storm.kills
    async with open_crowd(scene.site, scene.tables, scene.dice) as crowd:
        load = asyncio.create_task(_load(crowd, storm, KINDS))
        await storm.blow()
        rounds = await load
        await scene.tables.all_over(HEAL_S)
    await scene.check(deaths=deaths, blind=storm.blind)
    expected = {kind: {"failed" if kind == "saga" else "succeeded": rounds} for kind in (*KINDS, "inner")}
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for (workflow, status), number in (await scene.tables.statuses()).items():
        found[workflow][status] = number
    del found["once"], expected["once"]  # a person may have said that it failed
    assert found == expected
    await _effects_are_recorded(scene)
    await _sagas_were_undone(scene.tables, rounds)


async def _effects_are_recorded(scene: Scene) -> None:
    """What is recorded as done was done; what was done is recorded."""
    done = {request.key for request in scene.site.sink.requests}
    rows = await scene.tables.rows(
        "SELECT run_id::text || ':' || key, status::text, output ->> 'status' IS NOT NULL FROM steps"
    )
    known = {key for key, _, _ in rows}
    called = {key for key, status, is_call in rows if status == "succeeded" and is_call}
    assert called <= done, f"recorded, and never done: {sorted(called - done)[:5]}"
    assert done <= known, f"done, and never recorded: {sorted(map(str, done - known))[:5]}"


_UNDONE = ["s1", "s2", "s3", "s4", "s3.compensate", "s1.compensate", "s5"]
"""Both steps of a saga are undone, the later one first, and then its failure is told."""


async def _sagas_were_undone(tables: Tables, rounds: int) -> None:
    rows = await tables.rows(
        "SELECT array_agg(s.key ORDER BY s.finished_at, s.seq), count(*) FILTER (WHERE s.status = 'succeeded') "
        "FROM runs r JOIN workflows w ON w.id = r.workflow_id JOIN steps s ON s.run_id = r.id WHERE w.name = 'saga' "
        "GROUP BY r.id"
    )
    assert rows == [(_UNDONE, len(_UNDONE) - 1)] * rounds


# --- people in the middle of it --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Meddler:
    """Somebody who cancels, pauses, resumes and retries runs at random, and notes which were ended by force."""

    crowd: Crowd
    forced: set[str] = field(default_factory=set)
    heard: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How many of the requests were taken, by what they were."""

    async def meddle(self, storm: Storm) -> None:
        """Until the storm is over."""
        while not storm.over.is_set():
            found = await self.crowd.tables.rows(
                "SELECT id::text FROM runs ORDER BY finished_at IS NULL DESC, random() LIMIT 20"
            )
            if found:
                await self._act(self.crowd.dice.choice(found)[0])
            await asyncio.sleep(self.crowd.dice.uniform(0.0, 0.05))

    async def _act(self, run_id: str) -> None:
        what = self.crowd.dice.choices(("cancel", "force", "pause", "resume", "retry"), (2, 1, 4, 3, 3))[0]
        body: Any = None
        if what == "force":
            self.forced.add(run_id)
            body = {"force": True}
        path = f"runs/{run_id}/{'cancel' if what == 'force' else what}"
        answer = await self.crowd.ask("POST", path, body, fine=(202, 409))
        self.heard[what] += answer.status_code == 202

    async def resume_all(self, tables: Tables) -> None:
        """Let every run go on that is paused, or becomes so."""
        while await tables.rows("SELECT FROM runs WHERE finished_at IS NULL LIMIT 1"):
            for (run_id,) in await tables.rows("SELECT id::text FROM runs WHERE status = 'paused'"):
                await self.crowd.ask("POST", f"runs/{run_id}/resume", fine=(202, 409))
            await asyncio.sleep(0.1)


async def test_people_who_meddle_in_a_storm_undo_no_end(scene: Scene) -> None:
    """Terminal states never change (the tables are watched), and once all may go on, everything comes to rest."""
    storm = scene.storm(short=3)
    deaths = storm.kills
    kinds = (*KINDS, "coin")
    async with open_crowd(scene.site, scene.tables, scene.dice) as crowd:
        meddler = Meddler(crowd)
        load = asyncio.create_task(_load(crowd, storm, kinds))
        meddling = [asyncio.create_task(meddler.meddle(storm)) for _ in range(_ACTORS)]
        await storm.blow()
        await asyncio.gather(load, *meddling)
        resuming = asyncio.create_task(meddler.resume_all(scene.tables))
        await scene.tables.all_over(HEAL_S)
        await resuming
    await scene.check(deaths=deaths, blind=storm.blind)
    assert min(meddler.heard[what] for what in ("cancel", "pause", "resume")) > 0, dict(meddler.heard)
    await _cancelled_sagas_were_undone(scene.tables, meddler.forced)


async def _cancelled_sagas_were_undone(tables: Tables, forced: set[str]) -> None:
    """Of each that nobody ended by force, every step that was done was undone."""
    rows = await tables.rows(
        "SELECT r.id::text, s.key FROM runs r JOIN workflows w ON w.id = r.workflow_id JOIN steps s ON s.run_id = r.id "
        "WHERE w.name = 'saga' AND s.key IN ('s1', 's3') AND s.status = 'succeeded' AND NOT EXISTS "
        "(SELECT FROM steps c WHERE c.run_id = r.id AND c.key = s.key || '.compensate' AND c.status = 'succeeded')"
    )
    assert [row for row in rows if row[0] not in forced] == []
