"""The servers that the ingest benchmark compares, each a process of its own: ``bare``, ``ours`` and ``durable``.

``bare`` is the least that a Starlette handler can do and still be safe: read the body, decode it, add an entry through
a pipeline that concurrent requests share, answer 202 once Redis confirmed. ``ours`` is the appliance's HTTP side with
all its checks, ``durable`` the same with ``ingest.durability = postgres``; none consumes what it takes in.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from unittest.mock import MagicMock

import orjson
import redis.asyncio
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.batching import Batcher
from appliance.engine.intake import Intake
from appliance.engine.outbox import OutboxLoop
from appliance.http.app import create_app
from appliance.http.server import HttpServer
from appliance.http.services import Health, Services, Submitter
from appliance.identifiers import uuid7
from appliance.observe.metrics import METRICS
from appliance.settings import HttpSettings, IngestSettings, Settings
from appliance.store.outbox import Outbox
from appliance.store.pool import open_connection, open_pool
from appliance.stream.client import commander
from appliance.stream.keys import Keys
from appliance.stream.producer import Producer
from appliance.supervisor import tune_collector


def bare(redis_url: str) -> Starlette:
    """A handler with nothing around it."""
    client = redis.asyncio.Redis.from_url(redis_url, protocol=2)

    async def flush(batch: list[bytes]) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for raw in batch:
            pipeline.execute_command("XADD", "bare", "*", "event", raw)
        return await pipeline.execute()

    batcher: Batcher[bytes, Any] = Batcher(flush, limit=512, name="bare")

    async def submit(request: Request) -> Response:
        document = orjson.loads(await request.body())
        event_id = uuid7()
        await batcher.submit(orjson.dumps({"id": event_id, "type": "form_submitted", "data": document["data"]}))
        return Response(orjson.dumps({"id": event_id, "status": "accepted"}), 202, media_type="application/json")

    return Starlette(routes=[Route("/submit", submit, methods=["POST"])])


SETTINGS = Settings(ingest=IngestSettings(max_backlog=1_000_000))


def producer(redis_url: str, namespace: str) -> Producer:
    """What ``ours`` and ``durable`` put into their streams with."""
    return Producer(commander(redis_url, SETTINGS.stream), Keys(namespace), SETTINGS.ingest)


async def intake(redis_url: str, database_url: str) -> Intake:
    """What ``durable`` takes in with, its outbox's loop running."""
    table = Outbox(await open_pool(database_url, SETTINGS.store), lambda: open_connection(database_url, SETTINGS.store))
    redis = producer(redis_url, "durable")
    loop = OutboxLoop(table, redis, 1.0)
    TASKS.add(asyncio.create_task(loop.run_forever()))
    return Intake(table, loop, redis, SETTINGS.ingest)


TASKS: set[asyncio.Task[None]] = set()


def ours(submitter: Submitter) -> Any:
    """The appliance's application; the parts that ``/submit`` doesn't touch are missing."""
    missing = MagicMock()

    async def ledger() -> dict[str, Any]:
        return {}

    return create_app(
        Services(
            settings=SETTINGS,
            producer=submitter,
            catalog=missing,
            editor=missing,
            impact=missing,
            history=missing,
            control=missing,
            tasks=missing,
            links=missing,
            schedules=missing,
            sources=missing,
            queues=missing,
            registry=missing,
            ledger=ledger,
            recover=ledger,
            trace=missing,
            health=lambda: Health(started=True),
            schema=dict,
            api_key="benchmark",
            metrics=METRICS.registry,
        )
    )


async def serve(kind: str, redis_url: str, database_url: str) -> None:
    """Print the port, then serve until standard input ends."""
    if kind != "bare":
        submitter = producer(redis_url, "ours") if kind == "ours" else await intake(redis_url, database_url)
        server = HttpServer(ours(submitter), HttpSettings(port=0))
        await server.start()
        port = server.port
    else:
        config = uvicorn.Config(bare(redis_url), port=0, log_config=None, access_log=False, lifespan="off", ws="none")
        plain = uvicorn.Server(config)
        task = asyncio.create_task(plain.serve())
        while not plain.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = plain.servers[0].sockets[0].getsockname()[1]
        del task
    tune_collector()
    print(json.dumps({"port": port}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1], sys.argv[2], sys.argv[3]))
        sys.stdout.flush()
        import os

        os._exit(0)
