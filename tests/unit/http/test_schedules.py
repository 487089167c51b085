"""Schedules through the API."""

from __future__ import annotations

import httpx
import pytest

from tests.unit.http.fakes import Fakes
from tests.unit.http.test_tasks import KEY


async def test_schedules_are_listed(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.get("/api/v1/schedules", headers=KEY)
    assert response.json() == {"items": [{"workflow": "digest", "schedule": "0 9 * * 1"}], "next_cursor": "digest/0"}
    await client.get("/api/v1/schedules?workflow=digest&preview=5&cursor=digest/0&limit=3", headers=KEY)
    assert fakes.schedules.calls == [
        (None, {"preview": 0, "cursor": None, "limit": 50}),
        ("digest", {"preview": 5, "cursor": "digest/0", "limit": 3}),
    ]


async def test_without_the_key_nothing_is_told(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/schedules")).status_code == 401


@pytest.mark.parametrize("query", ["preview=-1", "preview=101", "preview=x", "preview=", "limit=0", "status=due"])
async def test_wrong_parameters_are_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/api/v1/schedules?{query}", headers=KEY)).status_code == 422
