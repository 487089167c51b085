"""Rows of a table that become events: from the first look at a full table to the last entry in the stream."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import psycopg

from appliance.engine.outbox import OutboxLoop
from appliance.engine.polling import Poller, Sending
from appliance.settings import Settings, StoreSettings
from appliance.store.outbox import Outbox
from appliance.store.pool import open_connection, open_pool
from appliance.store.sources import SourceStore
from appliance.stream import client as stream_client
from appliance.stream.keys import Keys
from appliance.stream.producer import Producer
from tests.bench.stand import EVENT_BYTES, Servers

SOURCE = """
name: rows
postgresql: "{{ secrets.shop }}"
query: SELECT id, email, text, created_at FROM rows
cursor: created_at
key: id
every: 100ms
start: beginning
event: {type: row.created, subject: "{{ row.email }}"}
"""


async def rows_per_second(stand: Servers, count: int) -> float:
    """Rows of some 300 bytes, an hour old, by one replica."""
    async with stand.postgres.fresh_database() as url, stand.postgres.fresh_database(migrated=False) as shop:
        async with await psycopg.AsyncConnection.connect(shop, autocommit=True) as connection:
            await connection.execute(
                "CREATE TABLE rows (id int PRIMARY KEY, email text, text text, created_at timestamptz)"
            )
            await connection.execute(
                "INSERT INTO rows SELECT n, 'p' || n || '@example.org', repeat('x', %s), "
                "now() - interval '1 hour' + n * interval '1 millisecond' FROM generate_series(1, %s) n",
                [EVENT_BYTES - 100, count],
            )
            await connection.execute("CREATE INDEX ON rows (created_at)")
        with tempfile.TemporaryDirectory() as folder:
            return await _read(stand, url, shop, Path(folder), count)


async def _read(stand: Servers, url: str, shop: str, folder: Path, count: int) -> float:
    (folder / "sources").mkdir()
    (folder / "sources" / "rows.yaml").write_text(SOURCE)
    settings = Settings(config_dir=folder, namespace=f"sources-{time.monotonic_ns()}")
    commander = stream_client.commander(stand.redis_url, settings.stream)
    producer = Producer(commander, Keys(settings.namespace), settings.ingest)
    outbox = Outbox(pool := await open_pool(url, StoreSettings()), lambda: open_connection(url, StoreSettings()))
    loop = OutboxLoop(outbox, producer, 1.0)
    poller = Poller(
        SourceStore(pool), Sending(producer.backlog, producer.put, loop.note), settings, {"shop": shop}, "bench"
    )
    stream = Keys(settings.namespace).stream("normal")
    began = time.perf_counter()
    running = asyncio.create_task(poller.run_forever())
    while await commander.xlen(stream) < count:  # noqa: ASYNC110 - Redis has no event for it
        await asyncio.sleep(0.01)
    took = time.perf_counter() - began
    poller.stop()
    await running
    await commander.delete(stream)
    await outbox.close()
    await pool.close()
    await commander.aclose()
    return count / took
