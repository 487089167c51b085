"""What the HTTP side counts."""

from __future__ import annotations

import httpx
import pytest

from appliance.errors import Overloaded, StreamUnavailable
from appliance.observe.metrics import METRICS
from tests.unit.http.fakes import API_KEY, Fakes

JSON = {"Content-Type": "application/json"}
KEY = {"X-API-Key": API_KEY}


def value(name: str, **labels: str) -> float:
    return METRICS.registry.get_sample_value(f"appliance_{name}", labels) or 0.0


async def test_answers_are_counted_by_route_and_status_not_by_path(client: httpx.AsyncClient) -> None:
    route = {"route": "/api/v1/runs/{id}", "method": "GET", "status": "404"}
    before = value("http_requests_total", **route), value("http_request_seconds_count", route=route["route"])
    for run_id in ("a", "b"):
        await client.get(f"/api/v1/runs/{run_id}", headers=KEY)
    after = value("http_requests_total", **route), value("http_request_seconds_count", route=route["route"])
    assert (after[0] - before[0], after[1] - before[1]) == (2, 2)


async def test_strangers_can_not_make_labels(client: httpx.AsyncClient) -> None:
    labels = {"route": "(none)", "method": "other", "status": "405"}
    before = value("http_requests_total", **labels)
    await client.request("BREW", "/submit")
    assert value("http_requests_total", **labels) - before == 1


async def test_events_are_counted_as_accepted_or_duplicate(client: httpx.AsyncClient) -> None:
    before = value("events_accepted_total", priority="normal"), value("events_duplicate_total")
    for _ in range(3):
        await client.post("/submit", json={"template_id": "t"}, headers={"Idempotency-Key": "k"})
    after = value("events_accepted_total", priority="normal"), value("events_duplicate_total")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 2)


@pytest.mark.parametrize(
    ("refusal", "body", "reason"),
    [
        (Overloaded("full"), b'{"template_id": "t"}', "overload"),
        (StreamUnavailable("away"), b'{"template_id": "t"}', "unavailable"),
        (None, b"{", "malformed"),
        (None, b" " * 20_001, "too-large"),
    ],
)
async def test_refusals_are_counted_by_reason(
    client: httpx.AsyncClient, fakes: Fakes, refusal: Exception | None, body: bytes, reason: str
) -> None:
    fakes.producer.refusal = refusal
    before = value("ingest_refused_total", reason=reason)
    await client.post("/submit", content=body, headers=JSON)
    assert value("ingest_refused_total", reason=reason) - before == 1
