"""What flow control holds, through the API."""

from __future__ import annotations

import httpx
import pytest

from tests.unit.http.fakes import Fakes
from tests.unit.http.test_tasks import KEY


async def test_workflows_of_which_runs_wait_are_listed(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.get("/api/v1/queues?cursor=3&limit=7", headers=KEY)
    assert response.json() == {"items": [{"workflow": "w", "waiting": 3}], "next_cursor": "4"}
    assert fakes.queues.calls == [("3", 7)]


@pytest.mark.parametrize("name", ["w", "team/w"])
async def test_the_queue_of_a_workflow_is_shown(client: httpx.AsyncClient, fakes: Fakes, name: str) -> None:
    response = await client.get(f"/api/v1/workflows/{name}/queue?cursor=c", headers=KEY)
    assert response.json() == {"workflow": name, "items": [], "meters": [], "next_cursor": None}
    assert fakes.queues.calls == [(name, "c", 50)]


async def test_there_is_no_queue_of_no_workflow(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/workflows/nobody/queue", headers=KEY)).status_code == 404


@pytest.mark.parametrize("path", ["queues", "workflows/w/queue"])
async def test_the_key_and_known_parameters_are_asked_for(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/api/v1/{path}")).status_code == 401
    for query in ("limit=0", "workflow=w"):
        assert (await client.get(f"/api/v1/{path}?{query}", headers=KEY)).status_code == 422
