"""POST /api/v1/events."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from appliance.errors import StreamUnavailable
from appliance.events import event_key
from appliance.http.app import create_app
from appliance.settings import IngestSettings, Settings
from tests.unit.http.fakes import API_KEY, Fakes

URL = "/api/v1/events"
KEY = {"X-API-Key": API_KEY}
STRUCTURED = {**KEY, "Content-Type": "application/cloudevents+json"}
BATCH = {**KEY, "Content-Type": "application/cloudevents-batch+json"}
PLAIN = {**KEY, "Content-Type": "application/json"}
CE = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
EVENT = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.paid", "data": {"total": 5}}


async def test_a_structured_event_is_taken_and_its_repeat_is_a_duplicate(
    client: httpx.AsyncClient, fakes: Fakes
) -> None:
    first = await client.post(URL, json={**EVENT, "subject": "s", "tenant": "t"}, headers=STRUCTURED)
    again = await client.post(URL, json=EVENT, headers=STRUCTURED)
    event = fakes.producer.last
    assert (first.status_code, first.json()) == (202, {"id": "e-1", "uid": event.uid, "status": "accepted"})
    assert (again.status_code, again.json()) == (200, {"id": "e-1", "uid": event.uid, "status": "duplicate"})
    assert (event.source, event.type, event.subject, event.data) == ("/shop", "order.paid", "s", {"total": 5})
    assert event.attributes == {"tenant": "t"}
    assert event.key == event_key("/shop", "e-1")


async def test_a_binary_event_is_decoded_from_its_headers(client: httpx.AsyncClient, fakes: Fakes) -> None:
    headers = {
        **KEY,
        "Content-Type": "application/json; charset=utf-8",
        "ce-specversion": "1.0",
        "ce-id": "e-2",
        "ce-source": "/shop%20two",
        "ce-type": '"order.\\"paid\\""',
        "ce-subject": "J%C3%BCrgen",
        "ce-tenant": "t",
    }
    response = await client.post(URL, content=b'{"total": 5}', headers=headers)
    event = fakes.producer.last
    assert response.status_code == 202
    assert (event.source, event.type, event.subject) == ("/shop two", 'order."paid"', "Jürgen")
    assert event.data == {"total": 5}
    assert event.attributes == {"tenant": "t", "datacontenttype": "application/json; charset=utf-8"}


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("text/plain", "grüß".encode(), "grüß"),
        ("application/atom+xml", b"<a/>", "<a/>"),
        ("application/hal+json", b"[1]", [1]),
    ],
)
async def test_binary_data_is_json_or_text(
    client: httpx.AsyncClient, fakes: Fakes, content_type: str, body: bytes, data: Any
) -> None:
    headers = {
        **KEY,
        "Content-Type": content_type,
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-source": "s",
        "ce-type": "t",
    }
    response = await client.post(URL, content=body, headers=headers)
    assert (response.status_code, fakes.producer.last.data) == (202, data)


async def test_a_binary_event_needs_no_body(client: httpx.AsyncClient, fakes: Fakes) -> None:
    headers = {**KEY, **CE}
    assert (await client.post(URL, headers=headers)).status_code == 202
    assert (fakes.producer.last.data, fakes.producer.last.attributes) == (None, {})


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"ce-id": "1"}, b"", 422, "attribute"),
        ({"ce-specversion": "1.0", "ce-source": "s", "ce-type": "t"}, b"", 422, "attribute"),
        ({"ce-id": "1", "ce-source": "s", "ce-type": "t"}, b"", 422, "specversion"),
        ({"ce-specversion": "0.3", "ce-id": "1", "ce-source": "s", "ce-type": "t"}, b"", 422, "specversion"),
        ({**CE, "ce-source": "%ff"}, b"", 400, "not-utf8"),
        ({**CE, "ce-source": "%00"}, b"", 422, "nul-character"),
        ({**CE, "ce-data": "x"}, b"", 422, "attribute"),
        ({**CE, "Content-Type": "image/png"}, b"x", 415, "unsupported-media-type"),
        ({**CE, "Content-Type": "text/plain"}, b"\xff", 400, "not-utf8"),
        ({**CE, "Content-Type": "text/plain"}, b"\0", 422, "nul-character"),
        ({"Content-Type": "application/cloudevents+json"}, b"[]", 422, "not-an-object"),
        ({"Content-Type": "application/cloudevents+json"}, b"{", 400, "not-json"),
        ({"Content-Type": "application/cloudevents-batch+json"}, b"{}", 422, "batch"),
        ({"Content-Type": "application/cloudevents-batch+json"}, b"[{},{},{},{}]", 413, "too-large"),
        ({"Content-Type": "text/plain"}, b"x", 415, "unsupported-media-type"),
    ],
)  # fmt: skip
async def test_what_is_no_event_is_a_problem(
    client: httpx.AsyncClient, fakes: Fakes, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    response = await client.post(URL, content=body, headers={**KEY, **headers})
    assert (response.status_code, response.json()["type"]) == (status, f"urn:appliance:problem:{code}")
    assert fakes.producer.events == []


@pytest.mark.parametrize(
    ("change", "attribute"),
    [({"id": ""}, "id"), ({"type": None}, "type"), ({"time": "today"}, "time"), ({"tenant": {}}, "tenant")],
)
async def test_the_wrong_attribute_is_named(client: httpx.AsyncClient, change: dict[str, Any], attribute: str) -> None:
    response = await client.post(URL, json={**EVENT, **change}, headers=STRUCTURED)
    assert (response.status_code, response.json()["attribute"]) == (422, attribute)


@pytest.mark.parametrize("headers", [BATCH, PLAIN])
async def test_a_batch_is_answered_item_by_item(
    client: httpx.AsyncClient, fakes: Fakes, headers: dict[str, str]
) -> None:
    batch = [EVENT, {**EVENT, "id": "e-2"}, EVENT]
    response = await client.post(URL, json=batch, headers=headers)
    assert response.status_code == 202
    assert [(item["id"], item["status"]) for item in response.json()["items"]] == [
        ("e-1", "accepted"),
        ("e-2", "accepted"),
        ("e-1", "duplicate"),
    ]
    again = await client.post(URL, json=batch, headers=headers)
    assert again.status_code == 200
    assert {item["status"] for item in again.json()["items"]} == {"duplicate"}
    assert len(fakes.producer.events) == 2


async def test_one_wrong_event_refuses_the_batch(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.post(URL, json=[EVENT, {**EVENT, "id": 7}, 3], headers=BATCH)
    assert response.status_code == 422
    errors = response.json()["errors"]
    assert [(error["index"], error["code"]) for error in errors] == [(1, "attribute"), (2, "not-an-object")]
    assert errors[0]["attribute"] == "id"
    assert fakes.producer.events == []


async def test_an_oversized_event_refuses_its_batch(fakes: Fakes) -> None:
    settings = Settings(ingest=IngestSettings(max_event_bytes=500))
    transport = httpx.ASGITransport(create_app(fakes.services(settings)))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        batch = [EVENT, {**EVENT, "id": "e-2", "data": "x" * 500}]
        assert (await client.post(URL, json=batch, headers=BATCH)).status_code == 413
    assert fakes.producer.events == []


async def test_a_batch_that_was_taken_in_part_says_which_part(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.producer.refusal = StreamUnavailable("away", retry_after_s=2)
    fakes.producer.refuse_only = "e-2"
    response = await client.post(URL, json=[EVENT, {**EVENT, "id": "e-2"}], headers=BATCH)
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert [item["status"] for item in response.json()["items"]] == ["accepted", "unavailable"]
    fakes.producer.refusal = None
    again = await client.post(URL, json=[EVENT, {**EVENT, "id": "e-2"}], headers=BATCH)
    assert [item["status"] for item in again.json()["items"]] == ["duplicate", "accepted"]


async def test_the_short_form_needs_only_a_type(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.post(URL, json={"type": "order.paid", "data": 1}, headers=PLAIN)
    event = fakes.producer.last
    assert (response.status_code, response.json()["id"]) == (202, event.uid)
    assert (event.source, event.key) == ("/api/v1/events", None)
    response = await client.post(URL, json={"data": 1}, headers=PLAIN)
    assert (response.status_code, response.json()["attribute"]) == (422, "type")


async def test_the_short_form_is_deduplicated_by_its_id_or_a_key(client: httpx.AsyncClient, fakes: Fakes) -> None:
    short = {"type": "t", "id": "e-1", "source": "/shop"}
    await client.post(URL, json=EVENT, headers=STRUCTURED)
    assert (await client.post(URL, json=short, headers=PLAIN)).status_code == 200
    keyed = {**PLAIN, "Idempotency-Key": "k"}
    first = await client.post(URL, json={"type": "t"}, headers=keyed)
    again = await client.post(URL, json={"type": "t"}, headers=keyed)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["id"]


async def test_the_priority_chooses_the_stream(client: httpx.AsyncClient, fakes: Fakes) -> None:
    await client.post(f"{URL}?priority=high", json=EVENT, headers=STRUCTURED)
    assert fakes.producer.events[-1][1] == "high"
    for query, parameter in (("priority=urgent", "priority"), ("priorty=high", "priorty")):
        response = await client.post(f"{URL}?{query}", json=EVENT, headers=STRUCTURED)
        assert (response.status_code, response.json()["parameter"]) == (422, parameter)
    assert len(fakes.producer.events) == 1


async def test_events_need_the_key(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.post(URL, json=EVENT, headers={"Content-Type": "application/cloudevents+json"})
    assert response.status_code == 401
    assert fakes.producer.events == []
