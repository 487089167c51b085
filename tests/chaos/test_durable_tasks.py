"""Human tasks that several people answer at once, through different replicas, at the moment of their deadline."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx

from tests.chaos.appliance_process import Replica
from tests.chaos.mixture import open_crowd
from tests.chaos.scene import HEAL_S, Scene, scene
from tests.servers import wait_until

__all__ = ["scene"]
_TASKS = 20
_PEOPLE = 4
_AROUND_S = (-0.8, 0.2)
"""How far from the deadline the answers are given. It takes a while until one is looked at."""


async def test_of_answers_and_the_deadline_one_wins(scene: Scene) -> None:
    after = "{{ 2 + (event.data.n|int) / 5 }}"  # one after the other, so that no queue decides
    task = {"id": "ask", "human_task": {"title": "ok?"}, "deadline": {"after": after, "next": "late"}}
    calls = [_call(scene, "taken", next="end"), _call(scene, "late")]
    output = "{{ steps.ask.output }}"
    workflow = {"name": "w", "trigger": {"event": "chaos.w"}, "steps": [task, *calls], "output": output}
    scene.site.fleet.workflow("w", json.dumps(workflow))
    replicas = await asyncio.gather(scene.site.fleet.start(), scene.site.fleet.start())
    async with open_crowd(scene.site, scene.tables, scene.dice, busy=False) as crowd:
        await asyncio.gather(*(crowd.send("chaos.w", str(number)) for number in range(_TASKS)))

    async def asked() -> list[tuple[Any, ...]]:
        rows = await scene.tables.rows("SELECT id::text, run_id::text, due_at FROM tasks ORDER BY id")
        return rows if len(rows) == _TASKS else []

    tasks = await wait_until(asked, "the tasks are there", HEAL_S)
    winners = await asyncio.gather(*(_race(scene, replicas, task_id, due_at) for task_id, _, due_at in tasks))
    await scene.tables.all_over(HEAL_S)
    found = {
        run: (status, by, output, keys)
        for run, status, by, output, keys in await scene.tables.rows(
            "SELECT t.run_id::text, t.status::text, t.answered_by, r.result -> 'output' ->> 'by', "
            "(SELECT array_agg(s.key ORDER BY s.seq) FROM steps s WHERE s.run_id = r.id AND s.status = 'succeeded') "
            "FROM tasks t JOIN runs r ON r.id = t.run_id"
        )
    }
    for (_, run_id, _), winner in zip(tasks, winners, strict=True):
        won = ("answered", winner, winner, ["ask", "taken"])
        assert found[run_id] == (won if winner else ("expired", None, None, ["late"]))
    print(f"{sum(winner is None for winner in winners)} of {_TASKS} expired")  # noqa: T201
    await scene.check()


async def _race(scene: Scene, replicas: Sequence[Replica], task_id: str, due_at: datetime) -> str | None:
    """Several people answer a task about when it is due; returns whose answer was taken, all others hear 409."""

    async def answer(replica: Replica, person: str, at: float) -> tuple[int, str]:
        async with replica.client() as client:
            await asyncio.sleep(max(0.0, at - datetime.now(UTC).timestamp()))
            body = {"answer": {"by": person}, "by": person}
            given: httpx.Response = await client.post(f"/api/v1/tasks/{task_id}/answer", json=body)
            return given.status_code, person

    moments = [due_at.timestamp() + scene.dice.uniform(*_AROUND_S) for _ in range(_PEOPLE // 2)]
    answers = await asyncio.gather(
        *(
            answer(replicas[n % len(replicas)], f"{task_id}-{n}", moments[n // 2])  # two at the very same moment
            for n in range(_PEOPLE)
        )
    )
    assert {status for status, _ in answers} <= {200, 409}, answers
    taken = [person for status, person in answers if status == 200]
    assert len(taken) <= 1, answers
    return taken[0] if taken else None


def _call(scene: Scene, path: str, **more: Any) -> dict[str, Any]:
    return {"id": path, "action": "webhook", "with": {"url": f"{scene.site.sink.url}{path}"}, **more}
