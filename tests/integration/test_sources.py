"""Polling sources against real servers: each row is one event, whoever reads, whenever it commits, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest_asyncio

from appliance.engine.outbox import OutboxLoop
from appliance.engine.polling import Poller, Sending
from appliance.events import Event, decode_entry
from appliance.settings import IngestSettings, Settings, StoreSettings, StreamSettings
from appliance.store.outbox import Outbox
from appliance.store.pool import Pool, checked_out, open_connection, open_pool
from appliance.store.sources import SourceState, SourceStore
from appliance.stream import client as stream_client
from appliance.stream.keys import Keys
from appliance.stream.producer import Producer
from tests.servers import PostgresServer, wait_until

START = datetime(2026, 1, 1, tzinfo=UTC)
SUBSCRIPTIONS = """
name: subscriptions
postgresql: "{{ secrets.shop }}"
query: SELECT id, email, plan, created_at FROM subscriptions
cursor: created_at
key: id
every: 100ms
lag: 1h
start: beginning
event:
  type: subscription.created
  subject: "{{ row.email }}"
"""
TABLE = """
CREATE TABLE subscriptions (
    id serial PRIMARY KEY, email text NOT NULL, plan text, created_at timestamptz NOT NULL DEFAULT now()
)
"""


class Stand:
    """A shop's database, ours, and pollers between them."""

    def __init__(self, pool: Pool, producer: Producer, loop: OutboxLoop, keys: Keys, redis: Any, folder: Path) -> None:
        self.pool, self.producer, self.loop, self.keys, self.redis = pool, producer, loop, keys, redis
        self.folder = folder
        self.shop_url = ""
        self.shop: psycopg.AsyncConnection[Any]
        self._stack = contextlib.AsyncExitStack()

    def write(self, text: str, name: str = "subscriptions") -> None:
        (self.folder / "sources").mkdir(exist_ok=True)
        (self.folder / "sources" / f"{name}.yaml").write_text(text)

    def poller(self, holder: str = "one", **sources: str) -> Poller:
        settings = Settings.model_validate(
            {"config_dir": self.folder, "engine": {"timer_poll": "20ms"}, "sources": sources, "ingest": self.ingest}
        )
        sending = Sending(self.producer.backlog, self.producer.put, self.loop.note)
        return Poller(SourceStore(self.pool), sending, settings, {"shop": self.shop_url}, holder)

    ingest: dict[str, Any] = {}  # noqa: RUF012 - a test replaces it

    @contextlib.asynccontextmanager
    async def running(self, *pollers: Poller) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(poller.run_forever()) for poller in pollers]
        try:
            yield
        finally:
            for poller in pollers:
                poller.stop()
            await asyncio.wait_for(asyncio.gather(*tasks), 10)

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        cursor = await self.shop.execute(statement, values)
        return await cursor.fetchall() if cursor.description else []

    async def insert(self, count: int, at: datetime | None = None, plan: str = "basic") -> list[int]:
        found = await self.sql(
            "INSERT INTO subscriptions (email, plan, created_at) SELECT 'p' || n || '@example.org', %s, "
            "coalesce(%s, clock_timestamp()) FROM generate_series(1, %s) n RETURNING id",
            plan,
            at,
            count,
        )
        return [row[0] for row in found]

    async def events(self) -> list[Event]:
        found = []
        for stream in self.keys.streams.values():
            found += [decode_entry(stream, id, fields) for id, fields in await self.redis.xrange(stream)]
        return found

    async def ids(self) -> list[str]:
        return sorted((event.id for event in await self.events()), key=int)

    async def has(self, count: int) -> bool:
        return len(await self.events()) >= count

    async def state(self, name: str = "subscriptions") -> SourceState:
        (state,) = await SourceStore(self.pool).states([name])
        return state

    async def ours(self, statement: str) -> list[Any]:
        async with checked_out(self.pool) as connection:
            return list(await (await connection.execute(statement.encode())).fetchall())

    async def polls(self, count: int = 2, name: str = "subscriptions") -> None:
        """Wait until the source was looked at again, from the beginning of a scan to its end."""
        for _ in range(count):
            ((turn,),) = await self.ours(f"SELECT turn FROM sources WHERE name = '{name}'")

            async def later(turn: int = turn) -> bool:
                ((now, held),) = await self.ours(f"SELECT turn, held_until FROM sources WHERE name = '{name}'")
                return bool(now > turn and held is None)

            await wait_until(later, "another look")


@pytest_asyncio.fixture
async def stand(
    redis_url: str, database_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> AsyncIterator[Stand]:
    keys = Keys(Settings().namespace)
    commander = stream_client.commander(redis_url, StreamSettings())
    pool = await open_pool(database_url, StoreSettings())
    producer = Producer(commander, keys, IngestSettings())
    outbox = Outbox(pool, lambda: open_connection(database_url, StoreSettings()))
    stand = Stand(pool, producer, OutboxLoop(outbox, producer, 0.05), keys, commander, tmp_path)
    async with postgres_server.fresh_database(migrated=False) as stand.shop_url:
        stand.shop = await psycopg.AsyncConnection.connect(stand.shop_url, autocommit=True)
        await stand.sql(TABLE)
        yield stand
        await stand.shop.close()
    await outbox.close()
    await pool.close()
    await commander.aclose()


async def test_a_row_is_an_event(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS)
    await stand.sql("INSERT INTO subscriptions (email, plan, created_at) VALUES ('a@b.c', 'pro', %s)", START)
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(1), "the event")
        await stand.insert(1)
        await wait_until(lambda: stand.has(2), "the second event")
        await stand.polls()
    first, second = await stand.events()
    assert (first.id, first.source, first.type, first.subject) == (
        "1",
        "source:subscriptions",
        "subscription.created",
        "a@b.c",
    )
    assert first.data == {"id": 1, "email": "a@b.c", "plan": "pro", "created_at": "2026-01-01T00:00:00Z"}
    assert (first.time, second.id) == ("2026-01-01T00:00:00.000Z", "2")
    state = await stand.state()
    assert (state.events, state.repeats, state.refused, state.missed, state.error) == (2, 0, 0, 0, None)
