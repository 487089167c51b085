"""Ingest over HTTP with the real producer and a real Valkey."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest_asyncio
import redis.asyncio

from appliance.events import decode_entry
from appliance.http.app import create_app
from appliance.settings import IngestSettings, Settings, StreamSettings
from appliance.stream.client import commander
from appliance.stream.keys import Keys
from appliance.stream.producer import Producer
from tests.unit.http.fakes import API_KEY, Fakes

STREAM = "appliance:events:normal"
KEY = {"X-API-Key": API_KEY}


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application with room for 60 entries in the streams."""
    settings = Settings(ingest=IngestSettings(max_backlog=60))
    connections = commander(redis_url, StreamSettings())
    producer = Producer(connections, Keys("appliance"), settings.ingest)
    app = create_app(replace(Fakes().services(settings), producer=producer))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://appliance") as client:
        yield client
    await producer.drain()
    await connections.aclose()
    await connections.connection_pool.disconnect()


async def test_an_accepted_form_is_in_the_stream_as_the_answer_names_it(
    client: httpx.AsyncClient, valkey: redis.asyncio.Redis
) -> None:
    answer = (await client.post("/submit", data={"template_id": "contact", "name": "Ann"})).json()
    entries: Any = await valkey.xrange(STREAM)
    ((entry_id, fields),) = entries
    event = decode_entry(STREAM, entry_id, fields)
    assert (event.uid, event.id, event.type) == (answer["id"], answer["submission_id"], "form_submitted")
    assert (event.data, event.attributes["template_id"]) == ({"name": "Ann"}, "contact")


async def test_of_many_equal_submissions_at_once_one_is_accepted(
    client: httpx.AsyncClient, valkey: redis.asyncio.Redis
) -> None:
    headers = {"Idempotency-Key": "k"}
    posts = [client.post("/submit", json={"template_id": "t"}, headers=headers) for _ in range(50)]
    answers = await asyncio.gather(*posts)
    assert Counter(answer.status_code for answer in answers) == {202: 1, 200: 49}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await valkey.xlen(STREAM) == 1


async def test_a_batch_lands_in_the_stream_of_its_priority(
    client: httpx.AsyncClient, valkey: redis.asyncio.Redis
) -> None:
    batch = [{"specversion": "1.0", "id": str(n), "source": "/s", "type": "t"} for n in range(10)]
    response = await client.post("/api/v1/events?priority=high", json=[*batch, batch[0]], headers=KEY)
    assert Counter(item["status"] for item in response.json()["items"]) == {"accepted": 10, "duplicate": 1}
    assert await valkey.xlen("appliance:events:high") == 10


async def test_a_full_backlog_is_503_until_there_is_room(
    client: httpx.AsyncClient, valkey: redis.asyncio.Redis
) -> None:
    answers = [await client.post("/submit", json={"template_id": "t"}) for _ in range(61)]
    assert [answer.status_code for answer in answers] == [202] * 60 + [503]
    assert answers[-1].json()["type"] == "urn:appliance:problem:overloaded"
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert await valkey.xlen(STREAM) == 60


async def test_a_redis_that_takes_nothing_is_503(client: httpx.AsyncClient, valkey: redis.asyncio.Redis) -> None:
    await valkey.config_set("maxmemory", 1)
    try:
        response = await client.post("/submit", json={"template_id": "t"})
    finally:
        await valkey.config_set("maxmemory", 0)
    assert (response.status_code, response.json()["type"]) == (503, "urn:appliance:problem:stream-unavailable")
    assert "retry-after" in response.headers
    assert (await client.post("/submit", json={"template_id": "t"})).status_code == 202
