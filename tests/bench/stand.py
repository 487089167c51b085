"""What the benchmarks run on: durable servers of their own, events of 300 bytes, and a replica inside this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis.asyncio

from appliance.events import new_event
from appliance.outbound import make_client
from appliance.plugin import Action, Context, Params
from appliance.registry import Registry
from appliance.replica import Replica
from appliance.settings import Settings
from appliance.store.definitions import DefinitionStore, NewDefinition
from appliance.store.pool import open_pool
from appliance.workflows.compile import compile_workflow
from tests.servers import PostgresServer, start_postgres, start_valkey

EVENT_BYTES = 300


class Nothing(Params):
    """Parameters of the instant action."""

    text: str = ""


async def _nothing(params: Nothing, ctx: Context) -> None:
    """An action that takes no time."""


async def _rest(params: Nothing, ctx: Context) -> None:
    """An action that takes 200 ms."""
    await asyncio.sleep(0.2)


INSTANT = {"instant": Action(params=Nothing, run=_nothing), "rest": Action(params=Nothing, run=_rest)}


@dataclass(frozen=True)
class Servers:
    """The servers' addresses."""

    redis_url: str
    postgres: PostgresServer


@contextlib.asynccontextmanager
async def servers() -> AsyncIterator[Servers]:
    """A Valkey with AOF and a PostgreSQL with fsync, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        async with start_valkey(path / "v") as valkey, start_postgres(path / "p", durable=True) as postgres:
            path.chmod(0o711)  # noqa: ASYNC240
            yield Servers(valkey.url, postgres)


def entries(count: int, *, type: str = "bench.event", email: str = "somebody@example.org") -> list[dict[bytes, bytes]]:
    """``count`` entries as ingest writes them, each with about 300 bytes of data."""
    filler = "x" * (EVENT_BYTES - 60)
    return [
        new_event(type, {"number": n, "email": email, "text": filler}, source="/bench").to_entry() for n in range(count)
    ]


async def fill(redis_url: str, stream: str, rows: list[dict[bytes, bytes]]) -> None:
    """Add entries in pipelines of a thousand."""
    client = redis.asyncio.Redis.from_url(redis_url, protocol=2)
    for start in range(0, len(rows), 1000):
        pipeline = client.pipeline(transaction=False)
        for row in rows[start : start + 1000]:
            pipeline.execute_command("XADD", stream, "*", *(part for pair in row.items() for part in pair))
        await pipeline.execute()
    await client.aclose()


async def flush(redis_url: str) -> None:
    """Empty the Valkey."""
    client = redis.asyncio.Redis.from_url(redis_url, protocol=2)
    await client.flushall()
    await client.aclose()


@contextlib.asynccontextmanager
async def replica(
    stand: Servers, definitions: list[dict[str, Any]], *, actions: Mapping[str, Action] = INSTANT, **engine: Any
) -> AsyncIterator[tuple[Replica, str]]:
    """A replica with these workflows on an empty Valkey and a fresh database; not reading yet."""
    await flush(stand.redis_url)
    async with stand.postgres.fresh_database() as database_url, contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = Settings(config_dir=folder, data_dir=folder, engine=engine)
        pool = await open_pool(database_url, settings.store)
        stack.push_async_callback(pool.close)
        registry = Registry.of(actions)
        http = make_client(settings.outbound)
        stack.push_async_callback(http.aclose)
        resources = await stack.enter_async_context(registry.open(data_dir=folder, config_dir=folder, http=http))

        async def founded(_: Any) -> None:
            """Nothing to report."""

        made = Replica(settings, (stand.redis_url, database_url), pool, registry, resources, http, founded)
        await load(made, definitions)
        await made.consumer.found()
        yield made, database_url
        await made.consumer.stop(5)
        await made.recorder.close()
        await made.reader.aclose()
        await made.commander.aclose()


async def load(made: Replica, definitions: list[dict[str, Any]]) -> None:
    """Put the definitions into the replica's catalog, all in one transaction."""
    compiled = [compile_workflow(definition, actions=None) for definition in definitions]
    rows = [NewDefinition(w.name, "api", None, True, w.digest, json.dumps(w.definition), None) for w in compiled]
    await DefinitionStore(made.pool).put(rows, "bench")
    await made.catalog.load()


async def until(predicate: Callable[[], Any], timeout_s: float = 120.0) -> None:
    """Poll an async predicate."""
    deadline = time.monotonic() + timeout_s
    while not await predicate():
        if time.monotonic() > deadline:
            raise TimeoutError("the benchmark did not finish")
        await asyncio.sleep(0.01)


async def count(database_url: str, table: str) -> int:
    """How many rows a table has."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        cursor = await connection.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - our own table names
        row = await cursor.fetchone()
        return int(row[0]) if row else 0


__all__ = ["INSTANT", "Servers", "count", "entries", "fill", "flush", "replica", "servers", "until"]
