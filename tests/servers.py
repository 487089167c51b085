"""Servers for tests: one Valkey and one PostgreSQL per test worker, a fresh database per test."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from appliance.datadir import DataDir
from appliance.embedded.postgres import EmbeddedPostgres
from appliance.embedded.valkey import EmbeddedValkey
from appliance.store.migrate import migrate
from appliance.store.partitions import ensure

_TEMPLATE = "template_migrated"
_POLL_S = 0.005


@dataclass
class PostgresServer:
    """A running PostgreSQL with a migrated template database to clone."""

    embedded: EmbeddedPostgres
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def prepare_template(self) -> None:
        """Make the migrated database that :meth:`fresh_database` clones."""
        await self._execute(f"CREATE DATABASE {_TEMPLATE}")
        await migrate(self.embedded.url_of(_TEMPLATE))
        async with await psycopg.AsyncConnection.connect(self.embedded.url_of(_TEMPLATE)) as connection:
            await ensure(connection, timedelta(days=7), datetime.now(UTC), ahead=0)

    @asynccontextmanager
    async def fresh_database(self, *, migrated: bool = True) -> AsyncIterator[str]:
        """The URL of a database of one's own, dropped afterwards (with whatever is still connected)."""
        name = f"test_{next(self._numbers)}"
        template = _TEMPLATE if migrated else "template0"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.embedded.url_of(name)
        finally:
            await self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def _execute(self, statement: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.embedded.url_of("postgres"), autocommit=True) as conn:
            await conn.execute(statement)


@asynccontextmanager
async def start_valkey(path: Path) -> AsyncIterator[EmbeddedValkey]:
    """A Valkey of one's own, for tests that stop or kill it."""
    with DataDir.open(path) as datadir:
        async with EmbeddedValkey(datadir) as server:
            yield server


@asynccontextmanager
async def start_postgres(path: Path, *, durable: bool = False) -> AsyncIterator[PostgresServer]:
    """A PostgreSQL of one's own, with the migrated template; ``durable`` switches fsync on (benchmarks)."""
    with DataDir.open(path) as datadir:
        async with EmbeddedPostgres(datadir, durable=durable) as embedded:
            server = PostgresServer(embedded)
            await server.prepare_template()
            yield server


async def wait_until(predicate: Callable[[], Any], what: str, timeout: float = 10.0) -> Any:
    """Poll ``predicate`` (plain or async) until it is true; returns its value. AssertionError names ``what``."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        await asyncio.sleep(_POLL_S)
