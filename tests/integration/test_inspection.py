"""The facts that real servers tell, and what is said when there is no server."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import redis.asyncio

from appliance.errors import ConfigurationError, StoreUnavailable, StreamUnavailable
from appliance.store.inspection import inspect_store
from appliance.stream.inspection import inspect_stream


async def test_a_valkey_tells_its_facts(redis_url: str, valkey: redis.asyncio.Redis) -> None:
    facts = await inspect_stream(redis_url)
    assert facts.server == "Valkey"
    assert facts.version.split(".")[0].isdigit()
    assert (facts.role, facts.eviction_policy) == ("master", "noeviction")
    assert (facts.append_only, facts.append_sync) == (True, "everysec")
    assert abs(facts.clock_ahead_s) < 1
    await valkey.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert (await inspect_stream(redis_url)).eviction_policy == "allkeys-lru"
    finally:
        await valkey.config_set("maxmemory-policy", "noeviction")


async def test_a_postgresql_tells_its_facts(database_url: str) -> None:
    facts = await inspect_store(database_url)
    assert int(facts.version.split(".")[0]) >= 14
    assert facts.synchronous_commit == "on"
    assert facts.encoding == "UTF8"
    assert not facts.read_only
    assert 0 < facts.connections < facts.max_connections
    assert abs(facts.clock_ahead_s) < 1
    assert facts.long_waiting == 0
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        for minutes in (59, 61, 600):
            await connection.execute(
                "INSERT INTO queue SELECT gen_random_uuid(), 1, gen_random_uuid(), 1, 'low', '{}', '{}', '{}', '{}', "
                "now() - make_interval(mins => %s)",
                [minutes],
            )
        assert (await inspect_store(database_url)).long_waiting == 2
        await connection.execute("DROP TABLE queue")  # as before its migration
        assert (await inspect_store(database_url)).long_waiting == 0
        name = connection.info.dbname
        await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())
        await connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off'.encode())
    changed = await inspect_store(database_url)
    assert changed.read_only
    assert changed.synchronous_commit == "off"


async def test_an_absent_server_is_unavailable_and_a_bad_url_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(StreamUnavailable, match="Redis"):
        await inspect_stream(f"unix://{tmp_path}/none.sock")
    with pytest.raises(ConfigurationError, match="REDIS_URL"):
        await inspect_stream("htp://x")
    with pytest.raises(StoreUnavailable, match="PostgreSQL"):
        await inspect_store(f"postgresql:///x?host={tmp_path}")
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        await inspect_store("postgresql://x?nonsense=1")
