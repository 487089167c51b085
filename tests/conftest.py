"""Fixtures: real servers, started once per test worker when a test first asks for them, clean for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
import redis.asyncio

from appliance.embedded.valkey import EmbeddedValkey
from tests.servers import PostgresServer, start_postgres, start_valkey
from tests.servers import wait_until as _wait_until

# Machines are busy at times: how long an example takes says nothing about whether it is right.
_PATIENT = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=_PATIENT)
hypothesis.settings.load_profile("patient")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedValkey]:
    """The worker's Valkey. Don't stop it: :func:`tests.servers.start_valkey` makes one of your own."""
    async with start_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    """The worker's PostgreSQL. Don't stop it: :func:`tests.servers.start_postgres` makes one of your own."""
    async with start_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest_asyncio.fixture
async def valkey(valkey_server: EmbeddedValkey) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of an empty Valkey; replies are bytes."""
    client = redis.asyncio.Redis.from_url(valkey_server.url, protocol=2)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def redis_url(valkey_server: EmbeddedValkey, valkey: redis.asyncio.Redis) -> str:
    """The URL of an empty Valkey."""
    return valkey_server.url


@pytest_asyncio.fixture
async def database_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The URL of a fresh, migrated database."""
    async with postgres_server.fresh_database() as url:
        yield url


@pytest_asyncio.fixture
async def empty_database_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The URL of a fresh database without any table."""
    async with postgres_server.fresh_database(migrated=False) as url:
        yield url


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[Any]]:
    """``await wait_until(predicate, "what")``: see :func:`tests.servers.wait_until`."""
    return _wait_until
