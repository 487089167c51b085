"""Workflows that trigger themselves: named when they are loaded, and ended by ``engine.max_hops`` when they run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from appliance_publish import action as publish_action

from appliance.catalog import Catalog
from appliance.plugin import Context
from appliance.settings import StoreSettings
from appliance.store.definitions import DefinitionStore
from appliance.store.pool import Connection, open_pool
from tests.integration.test_heart import Heart, db, heart, instant, rows

__all__ = ["db", "heart"]


async def again(ctx: Context) -> str:
    return await ctx.publish(type="t", data={})


async def test_a_circle_of_published_events_ends_at_max_hops(heart: Heart, db: Connection) -> None:
    await heart.replica(engine={"max_hops": 5})
    heart.behave["again"] = again
    await heart.workflow("circle", {"id": "again"})
    await heart.send()
    await heart.at_rest()
    runs = await rows(db, "SELECT status::text, count(*) FROM runs GROUP BY 1 ORDER BY 1")
    assert sorted(runs) == [("failed", 1), ("succeeded", 5)]
    ((error,),) = await rows(db, "SELECT error FROM dead_letters")
    assert "longer than 5 (engine.max_hops)" in error
    assert (await heart.ledger())["difference"] == 0


async def test_a_circle_by_the_ends_of_runs_ends_too(heart: Heart, db: Connection) -> None:
    made = await heart.replica(engine={"max_hops": 5})
    heart.behave |= {"note": instant, "again": again}
    await heart.workflow("order", {"id": "note"})
    only = {"path": "data.workflow", "op": "==", "value": "order"}
    await heart.workflow("watch", {"id": "again"}, trigger={"event": "workflow.completed", "when": only})
    await heart.send()

    async def quiet() -> tuple[int, int]:
        await made.outbox.fire()
        await heart.at_rest()
        ((runs, left),) = await rows(db, "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM outbox)")
        return runs, left

    before, now = (0, 1), await quiet()
    while before != now or now[1]:
        before, now = now, await quiet()
    # t, its end (1), t (2), its end (3), t (4), its end (5): the next would be the sixth.
    assert now == (6, 0)
    assert await rows(db, "SELECT count(*) FROM runs WHERE status = 'failed'") == [(1,)]


async def test_circles_are_logged_once_and_told_by_name(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await open_pool(database_url, StoreSettings())
    try:
        catalog = Catalog(DefinitionStore(pool), {"publish": publish_action}, tmp_path)
        tell = {"id": "tell", "action": "publish", "with": {"type": "t", "data": {"n": 1}}}
        for name in ("circle", "other"):
            await catalog.put({"name": name, "trigger": {"event": "t"}, "steps": [tell]})
        with caplog.at_level(logging.WARNING, logger="appliance.catalog"):
            await catalog.look_for_cycles()
            await catalog.look_for_cycles()
        assert catalog.warnings("circle") == ["triggers itself: circle -publishes t-> circle"]
        assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
            "circle -publishes t-> circle",
            "other -publishes t-> other",
        ]
        caplog.clear()
        await catalog.put({"name": "circle", "trigger": {"event": "u"}, "steps": [tell]})
        await catalog.look_for_cycles()
        assert catalog.warnings("circle") == []
        assert caplog.records == []
    finally:
        await pool.close()
