"""A client of the application over fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from appliance.http.app import create_app
from appliance.settings import HttpSettings, Settings
from tests.unit.http.fakes import Fakes


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def settings() -> Settings:
    """Limits small enough to meet in a test."""
    http = HttpSettings(max_body_bytes=20_000, max_depth=5, max_batch=3, redirect_hosts=("forms.example.com",))
    return Settings(http=http)


@pytest_asyncio.fixture
async def client(fakes: Fakes, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(fakes.services(settings)))
    async with httpx.AsyncClient(transport=transport, base_url="http://appliance") as client:
        yield client
