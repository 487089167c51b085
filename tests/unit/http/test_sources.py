"""Polling sources through the API."""

from __future__ import annotations

import httpx
import pytest

from tests.unit.http.fakes import Fakes
from tests.unit.http.test_tasks import KEY


async def test_sources_are_listed(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/v1/sources", headers=KEY)
    assert response.json() == {"items": [{"name": "shop", "state": "ok"}], "next_cursor": None}


async def test_a_preview_and_the_refused_rows(client: httpx.AsyncClient, fakes: Fakes) -> None:
    assert (await client.get("/api/v1/sources/shop/preview", headers=KEY)).json()["error"] is None
    await client.get("/api/v1/sources/shop/preview?limit=3", headers=KEY)
    page = (await client.get("/api/v1/sources/shop/refused?limit=7", headers=KEY)).json()
    assert page == {"items": [{"key": "1", "error": "NaN"}], "next_cursor": "next"}
    assert fakes.sources.calls == [("shop", 10), ("shop", 3), ("shop", {"cursor": None, "limit": 7})]


@pytest.mark.parametrize("path", ["sources", "sources/shop/preview", "sources/shop/refused"])
async def test_they_need_the_key(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/api/v1/{path}")).status_code == 401


@pytest.mark.parametrize("query", ["preview?limit=0", "preview?limit=101", "preview?limit=x", "refused?since=1"])
async def test_parameters_that_are_none(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/api/v1/sources/shop/{query}", headers=KEY)).status_code == 422
