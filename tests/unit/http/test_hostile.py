"""Whatever is sent, the answer is a refusal or an event that can be stored: never a fault of ours."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.events import contains_nul, decode_entry
from appliance.http.app import create_app
from tests.unit.http.fakes import API_KEY, Fakes

MEDIA_TYPES = st.sampled_from(
    [
        "application/json",
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "multipart/form-data; boundary=",
        "text/plain",
        "application/json; charset=utf-16",
    ]
)
TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from(
    ["template_id", "org_id", "data", "id", "source", "type", "time", "subject", "specversion", "x"]
)
DOCUMENTS = st.dictionaries(NAMES, JSON, max_size=8)
PARTS = st.lists(
    st.sampled_from(
        [b"--b", b"--b--", b"\r\n", b'Content-Disposition: form-data; name="template_id"', b"x", b"\xff", b"\0", b": "]
    ),
    max_size=15,
).map(b"".join)
FORMS = st.lists(st.sampled_from([b"template_id", b"_redirect", b"=", b"&", b"%00", b"%ff", b"//x", b"a"])).map(
    b"".join
)
BODIES = (
    st.binary(max_size=200)
    | PARTS
    | FORMS
    | (DOCUMENTS | st.lists(DOCUMENTS, max_size=3)).map(lambda value: json.dumps(value).encode())
)
HEADER_VALUES = st.sampled_from(
    ["", "1.0", "%00", "%ff", '"', '"a', "2026-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "x"]
)
HEADER_NAMES = [
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-specversion",
    "ce-time",
    "ce-",
    "ce-data",
    "Idempotency-Key",
    "Accept",
]
HEADERS = st.dictionaries(st.sampled_from(HEADER_NAMES), HEADER_VALUES, max_size=8)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["/submit", "/api/v1/events", "/api/v1/explain", "/workflows"]), MEDIA_TYPES, HEADERS, BODIES)
def test_no_request_is_a_fault_of_ours(path: str, media_type: str, headers: dict[str, str], body: bytes) -> None:
    asyncio.run(_send(path, {**headers, "Content-Type": media_type, "X-API-Key": API_KEY}, body))


async def _send(path: str, headers: dict[str, str], body: bytes) -> None:
    fakes = Fakes()
    transport = httpx.ASGITransport(create_app(fakes.services()))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        response = await client.post(path, content=body, headers=headers)
    assert response.status_code < 500, response.text
    for event, _ in fakes.producer.events:
        assert _storable(event.view())
        assert decode_entry("appliance:events:normal", b"1-1", event.to_entry()) == event


def _storable(view: Any) -> bool:
    return not contains_nul(view) and bool(json.dumps(view, allow_nan=False, ensure_ascii=False).encode())
