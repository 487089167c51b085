"""Polling sources while the processes that read them are killed: each row is one event of the history, in one run."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from tests.chaos.api import api_of
from tests.chaos.appliance_process import Fleet
from tests.servers import PostgresServer, wait_until

SOURCE = """
name: subscriptions
postgresql: "{{ secrets.shop }}"
query: SELECT id, email, created_at FROM subscriptions
cursor: created_at
key: id
every: 200ms
lag: 10s
batch: 10
start: beginning
event: {type: subscription.created, subject: "{{ row.email }}"}
"""
WORKFLOW = """
name: welcome
trigger: {event: subscription.created}
steps:
  - {id: note, action: log, with: {message: "welcome {{ event.data.email }}"}}
"""
SETTINGS = {
    "APPLIANCE_STREAM__LEASE": "2s",
    "APPLIANCE_ENGINE__TIMER_POLL": "100ms",
    "APPLIANCE_SOURCES__CONNECT_TIMEOUT": "2s",
    "APPLIANCE_SOURCES__STATEMENT_TIMEOUT": "1s",
}


@pytest_asyncio.fixture
async def shop_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    async with postgres_server.fresh_database(migrated=False) as url:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(
                "CREATE TABLE subscriptions (id serial PRIMARY KEY, email text, created_at timestamptz DEFAULT now())"
            )
        yield url


@pytest.mark.chaos
@pytest.mark.parametrize("fault", ["kill@before_rows#2", "kill@after_rows#3", None])
async def test_a_replica_dies_in_the_middle(
    redis_url: str, database_url: str, shop_url: str, fault: str | None
) -> None:
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as folder:
        settings = {**SETTINGS, "APPLIANCE_SECRETS__SHOP": shop_url}
        async with Fleet(Path(folder), redis_url=redis_url, database_url=database_url, settings=settings) as fleet:
            fleet.workflow("welcome", WORKFLOW)
            first = await fleet.start(fault=fault)
            others = await asyncio.gather(fleet.start(), fleet.start()) if fault is None else []
            # Now only, so that the one with the fault is the one that reads.
            (fleet.config_dir / "sources").mkdir()
            (fleet.config_dir / "sources" / "subscriptions.yaml").write_text(SOURCE)
            writing = asyncio.create_task(_write(shop_url, 150))
            if fault is None:
                await wait_until(lambda: _count(database_url, "SELECT count(*) FROM events", 20), "some events", 30)
                await first.kill()
            else:
                await first.ended()
                assert fleet.faults_struck() == 1
            await writing
            last = others[0] if others else await fleet.start()
            everything = "SELECT count(*) FROM events WHERE outcome IS NOT NULL"
            await wait_until(lambda: _count(database_url, everything, 150), "all events", 90)
            async with api_of(last) as api:
                await api.balanced()
                (item,) = (await api.get("sources"))["items"]
                assert (item["events"], item["refused"], item["missed"]) == (150, 0, 0)
            assert await _rows(database_url, "SELECT count(*), count(DISTINCT id) FROM events") == [(150, 150)]
            assert await _rows(database_url, "SELECT status::text, count(*) FROM runs GROUP BY 1") == [
                ("succeeded", 150)
            ]


async def _write(url: str, count: int) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        for number in range(count):
            await connection.execute("INSERT INTO subscriptions (email) VALUES (%s)", [f"p{number}@example.org"])
            await connection.execute("SELECT pg_sleep(0.01)")
            await connection.commit()


async def _rows(url: str, statement: str) -> list[Any]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        return await (await connection.execute(statement.encode())).fetchall()


async def _count(url: str, statement: str, least: int) -> bool:
    ((count,),) = await _rows(url, statement)
    return bool(count >= least)
