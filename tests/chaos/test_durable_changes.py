"""What changes under parked runs: their workflow's file, and the plugin that their next step needs."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from tests.chaos.api import Api, api_of
from tests.chaos.mixture import Crowd, open_crowd
from tests.chaos.scene import HEAL_S, Scene, scene
from tests.chaos.site import SETTINGS
from tests.servers import wait_until

__all__ = ["scene"]
_WAIT = {
    "id": "go",
    "wait": {"event": "chaos.go", "match": {"path": "data.n", "value": "{{ event.data.n }}"}},
    "forever": True,
}
_HAUNTED = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "ghost"), SETTINGS["PYTHONPATH"]])}


def _put(scene: Scene, name: str, first: str, *then: dict[str, Any]) -> None:
    """A workflow that calls the sink at ``first``, waits for its event, and goes on with ``then``."""
    steps = [_call(scene, first), _WAIT, *then]
    scene.site.fleet.workflow(name, json.dumps({"name": name, "trigger": {"event": f"chaos.{name}"}, "steps": steps}))


def _call(scene: Scene, path: str) -> dict[str, Any]:
    return {"id": path, "action": "webhook", "with": {"url": f"{scene.site.sink.url}{path}"}}


async def _parked(scene: Scene, number: int) -> None:
    async def parked() -> bool:
        return await scene.tables.rows("SELECT count(*) FROM waits") == [(number,)]

    await wait_until(parked, f"{number} runs to wait", HEAL_S)


async def _send(crowd: Crowd, kind: str, *numbers: str) -> None:
    await asyncio.gather(*(crowd.send(f"chaos.{kind}", number) for number in numbers))


def _called(scene: Scene) -> dict[str, int]:
    paths = [request.path.strip("/") for request in scene.site.sink.requests]
    return {path: paths.count(path) for path in sorted(set(paths))}


async def test_parked_runs_stay_on_their_revision(scene: Scene) -> None:
    """Although their workflow's file is changed, then removed, and all replicas are killed in between."""
    _put(scene, "w", "a1", _call(scene, "a2"))
    fleet = scene.site.fleet
    first, second = await asyncio.gather(fleet.start(), fleet.start())
    async with open_crowd(scene.site, scene.tables, scene.dice) as crowd:
        await _send(crowd, "w", "1", "2", "3")
        await _parked(scene, 3)
        _put(scene, "w", "b1", _call(scene, "b2"))
        await wait_until(lambda: _in_force(scene, revision=2), "the new revision is in force", HEAL_S)
        await asyncio.gather(first.kill(), second.kill())
        await asyncio.gather(fleet.start(), fleet.start())
        await _send(crowd, "w", "4", "5")
        await _parked(scene, 5)
        (fleet.config_dir / "workflows" / "w.yaml").unlink()
        await wait_until(lambda: _in_force(scene, enabled=False), "the workflow is disabled", HEAL_S)
        await _send(crowd, "go", "1", "2", "3", "4", "5")
        await scene.tables.all_over(HEAL_S)
    assert await scene.tables.statuses() == {("w", "succeeded"): 5}
    assert _called(scene) == {"a1": 3, "a2": 3, "b1": 2, "b2": 2}
    await scene.check()


async def _in_force(scene: Scene, **expected: Any) -> bool:
    rows = await scene.tables.rows(
        "SELECT w.enabled, v.number FROM workflows w JOIN revisions v ON v.id = w.current_revision WHERE w.name = 'w'"
    )
    now = dict(zip(("enabled", "revision"), rows[0], strict=True))
    return now | expected == now


async def test_a_plugin_that_vanished_is_a_clear_failure(scene: Scene) -> None:
    """Its parked runs wait on; one that needs it fails and says why; once it is back the run can be retried."""
    _put(scene, "haunted", "h1", {"id": "h2", "action": "ghost"}, _call(scene, "h3"))
    fleet = scene.site.fleet
    async with open_crowd(scene.site, scene.tables, scene.dice) as crowd:
        replica = await fleet.start(settings=_HAUNTED)
        await _send(crowd, "haunted", "1", "2")
        await _parked(scene, 2)
        assert await replica.stop() == 0
        replica = await fleet.start()
        assert "ghost" in replica.log, "that the file can't be used any more is said at the start"
        await _send(crowd, "go", "1")
        await _until(scene, failed=1, waiting=1)
        async with api_of(replica) as api:
            run_id = await _failed(api)
            await api.post(f"runs/{run_id}/retry", status=202)
            await scene.site.at_rest()
            await _until(scene, failed=1, waiting=1)
            assert await _failed(api) == run_id, "as long as it is away"
        assert await replica.stop() == 0
        replica = await fleet.start(settings=_HAUNTED)
        async with api_of(replica) as api:
            await api.post(f"runs/{run_id}/retry", status=202)
        await _send(crowd, "go", "2")
        await scene.tables.all_over(HEAL_S)
    assert await scene.tables.statuses() == {("haunted", "succeeded"): 2}
    assert _called(scene) == {"h1": 2, "h3": 2}
    await scene.check()


async def _until(scene: Scene, **numbers: int) -> None:
    async def reached() -> bool:
        return await scene.tables.statuses() == {("haunted", status): number for status, number in numbers.items()}

    await wait_until(reached, f"the runs to be {numbers}", HEAL_S)
    await scene.site.at_rest()


async def _failed(api: Api) -> str:
    """The id of the only run that failed, for want of the action and saying so."""
    (found,) = (await api.get("runs", status="failed"))["items"]
    assert "no action is named ghost" in found["error"]
    (letter,) = (await api.get("dead-letters", run_id=found["id"], status="open"))["items"]
    assert "no action is named ghost" in letter["error"]
    return str(found["id"])
