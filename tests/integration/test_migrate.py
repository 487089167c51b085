"""Migrations against a real PostgreSQL."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from appliance.errors import ConfigurationError, StoreUnavailable
from appliance.store.migrate import Migration, load_migrations, migrate, pending

ONE = Migration(1, "one", "CREATE TABLE one (id integer); INSERT INTO one VALUES (1);")
TWO = Migration(2, "two", "CREATE TABLE two (id integer)")


async def tables(url: str) -> set[str]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name for (name,) in await rows.fetchall()}


async def test_applies_what_is_missing_once(empty_database_url: str) -> None:
    assert await migrate(empty_database_url, [ONE]) == ["0001_one"]
    assert await migrate(empty_database_url, [ONE, TWO]) == ["0002_two"]
    assert await migrate(empty_database_url, [ONE, TWO]) == []
    assert await tables(empty_database_url) == {"one", "two", "schema_migrations"}


async def test_ours_apply_to_an_empty_database(empty_database_url: str) -> None:
    assert await pending(empty_database_url) == [str(migration) for migration in load_migrations()]
    assert await tables(empty_database_url) == set()  # looking changes nothing
    assert await migrate(empty_database_url) == [str(migration) for migration in load_migrations()]
    assert await pending(empty_database_url) == []


async def test_replicas_that_start_together_migrate_once(empty_database_url: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_database_url, [ONE, TWO]) for _ in range(4)))
    assert sorted(applied) == [[], [], [], ["0001_one", "0002_two"]]


async def test_a_failing_migration_leaves_no_trace_and_can_be_repeated(empty_database_url: str) -> None:
    broken = Migration(2, "two", "CREATE TABLE two (id integer); SELECT 1/0")
    with pytest.raises(ConfigurationError, match="0002_two failed and was rolled back: division by zero"):
        await migrate(empty_database_url, [ONE, broken])
    assert await tables(empty_database_url) == {"one", "schema_migrations"}
    assert await migrate(empty_database_url, [ONE, TWO]) == ["0002_two"]


async def test_refuses_a_file_that_changed(empty_database_url: str) -> None:
    await migrate(empty_database_url, [ONE])
    with pytest.raises(ConfigurationError, match="0001_one was changed"):
        await migrate(empty_database_url, [Migration(1, "one", ONE.sql + " "), TWO])
    assert await migrate(empty_database_url, [Migration(1, "one", ONE.sql), TWO]) == ["0002_two"]


async def test_refuses_a_database_of_a_newer_release(empty_database_url: str) -> None:
    await migrate(empty_database_url, [ONE, TWO])
    with pytest.raises(ConfigurationError, match=r"0002_two, which this release doesn't know.*newer release"):
        await migrate(empty_database_url, [ONE])


async def test_an_unreachable_server_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await migrate("postgresql://appliance@/appliance?host=/nowhere")


async def test_a_url_that_is_none_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        await migrate("postgresql://%zz")
