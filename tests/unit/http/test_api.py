"""The API's reads and interventions, its key, its probes and its errors."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from appliance.errors import Conflict, NotFound, StoreUnavailable
from appliance.http.app import create_app
from appliance.http.services import Health
from appliance.store.history import Span
from tests.unit.http.fakes import API_KEY, Fakes

KEY = {"Authorization": f"Bearer {API_KEY}"}
UUID = "0197f000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {API_KEY}"}, {"authorization": f"bearer {API_KEY}"}, {"X-API-Key": API_KEY}],
)
async def test_the_key_opens_in_either_header(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.get("/api/v1/ledger", headers=headers)).json() == {"accepted": 3, "difference": 0}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"X-API-Key": ""},
        {"X-API-Key": API_KEY + "x"},
        {"Authorization": API_KEY},
        {"Authorization": f"Basic {API_KEY}"},
    ],
)
async def test_without_the_key_the_answer_is_401(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.get("/api/v1/ledger", headers=headers)
    assert (response.status_code, response.json()["type"]) == (401, "urn:appliance:problem:unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_all_but_a_few_operations_need_the_key(fakes: Fakes) -> None:
    app = create_app(fakes.services())
    assert {op.path for op in app.operations if op.open} == {
        "/",
        "/submit",
        "/livez",
        "/readyz",
        "/startupz",
        "/health",
        "/tasks/{id}",
        "/api/v1/openapi.json",
    }
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for op in app.operations:
            response = await client.request(op.method, op.path.replace("{id}", UUID).replace("{name}", "a"))
            assert (response.status_code == 401) is not op.open, op.path


async def test_lists_are_pages_with_their_filters(client: httpx.AsyncClient, fakes: Fakes) -> None:
    times = "since=2026-01-01T00:00:00Z&until=2026-01-01T01:00:00.5%2B01:00"
    response = await client.get(f"/api/v1/events?type=t&outcome=dead&limit=3&cursor={UUID}&{times}", headers=KEY)
    assert response.json() == {"items": [{"id": "x"}], "next_cursor": "next"}
    span = Span(1767225600000, 1767225600500)
    paging: dict[str, Any] = {"span": span, "cursor": UUID, "limit": 3}
    assert fakes.history.calls[-1] == ("events", {"type": "t", "outcome": "dead"}, paging)
    await client.get("/api/v1/runs?event_id=e&workflow=w&status=failed", headers=KEY)
    paging = {"event_id": "e", "span": Span(), "cursor": None, "limit": 50}
    assert fakes.history.calls[-1] == ("runs", {"workflow": "w", "status": "failed"}, paging)
    await client.get("/api/v1/runs?origin=manual", headers=KEY)
    assert fakes.history.calls[-1][1] == {"origin": "manual"}
    await client.get("/api/v1/machines?workflow=w&key=k&cursor=7:k&limit=2", headers=KEY)
    assert fakes.history.calls[-1] == ("machines", {"workflow": "w", "key": "k"}, {"cursor": "7:k", "limit": 2})
    fakes.history.items["order-1"] = {"uid": UUID}
    await client.get("/api/v1/dead-letters?status=open&event_id=order-1", headers=KEY)
    assert fakes.history.calls[-1][1] == {"status": "open", "event_uid": UUID}
    await client.get("/workflows?all=true&cursor=b", headers=KEY)
    assert fakes.history.calls[-1][1] == {"cursor": "b", "limit": 50, "every": True}


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("limit=%C2%B2", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("status=broken", "status"),
        ("stat=failed", "stat"),
        ("status=failed&status=failed", "status"),
        ("workflow=", "workflow"),
        ("workflow=%00", "workflow"),
        ("cursor=x", "cursor"),
        ("since=yesterday", "since"),
        ("since=2026-01-01T00:00:00", "since"),
    ],
)
async def test_a_wrong_parameter_is_named(client: httpx.AsyncClient, query: str, parameter: str) -> None:
    response = await client.get(f"/api/v1/runs?{query}", headers=KEY)
    assert (response.status_code, response.json()["parameter"]) == (422, parameter)


@pytest.mark.parametrize("path", ["events", "runs", "dead-letters"])
async def test_one_item_is_shown_or_not_found(client: httpx.AsyncClient, fakes: Fakes, path: str) -> None:
    fakes.history.items["a"] = {"id": "a", "name": "w"}
    assert (await client.get(f"/api/v1/{path}/a", headers=KEY)).json() == {"id": "a", "name": "w"}
    response = await client.get(f"/api/v1/{path}/b", headers=KEY)
    assert (response.status_code, response.json()["type"]) == (404, "urn:appliance:problem:not-found")


async def test_a_senders_id_may_contain_slashes(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.history.items["a/b"] = {"id": "a/b"}
    assert (await client.get("/api/v1/events/a%2Fb", headers=KEY)).json() == {"id": "a/b"}


async def test_a_machine_is_shown_by_its_business_key(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.history.items["refund o/17 ä"] = {"state": "pending"}
    response = await client.get("/api/v1/machines/refund/o%2F17%20%C3%A4", headers=KEY)
    assert response.json() == {"state": "pending"}
    assert (await client.get("/api/v1/machines/refund/other", headers=KEY)).status_code == 404


@pytest.mark.parametrize(
    ("path", "verb"),
    [
        ("/api/v1/runs/r/retry", "retry"),
        ("/api/v1/runs/r/cancel", "cancel"),
        ("/api/v1/dead-letters/r/redrive", "redrive"),
        ("/api/v1/dead-letters/r/discard", "discard"),
    ],
)
async def test_interventions_reach_the_engine_by_post_only(
    client: httpx.AsyncClient, fakes: Fakes, path: str, verb: str
) -> None:
    assert (await client.get(path, headers=KEY)).status_code == 405
    assert fakes.control.calls == []
    response = await client.post(path, headers=KEY)
    assert (response.status_code, response.json()["id"]) == (202, "r")
    assert fakes.control.calls == [(verb, "r", "api")]
    fakes.control.refusal = Conflict("already finished")
    assert (await client.post(path, headers=KEY)).status_code == 409
    fakes.control.refusal = NotFound("no run")
    assert (await client.post(path, headers=KEY)).status_code == 404


async def test_a_stored_event_is_explained(client: httpx.AsyncClient, fakes: Fakes) -> None:
    stored = {
        "uid": UUID,
        "id": "e",
        "source": "/s",
        "type": "t",
        "time": "2026-01-01T00:00:00.000Z",
        "subject": None,
        "data": {"n": 1},
        "attributes": {"template_id": "x"},
    }
    fakes.history.items["e"] = stored
    response = await client.get("/api/v1/events/e/explain", headers=KEY)
    change = {"path": "template_id", "from": "x", "to": "b", "text": "template_id = 'b'; was 'x'"}
    matched = {"workflow": "a", "matched": True, "reason": "matched", "failure": None}
    missed = {"workflow": "b", "matched": False, "reason": "no", "failure": {"path": "template_id", "actual": "x"}}
    assert response.json()["verdicts"] == [
        {**matched, "changes": [], "checked": False, "note": None},
        {**missed, "changes": [change], "checked": True, "note": None},
    ]
    view, workflow = fakes.catalog.matcher.asked[-1]
    assert (view["template_id"], view["data"], workflow) == ("x", {"n": 1}, None)
    assert (await client.get("/api/v1/events/other/explain", headers=KEY)).status_code == 404


async def test_a_pasted_event_is_explained_and_not_submitted(client: httpx.AsyncClient, fakes: Fakes) -> None:
    body = {"type": "t", "template_id": "y"}
    response = await client.post("/api/v1/explain?workflow=b", json=body, headers=KEY)
    assert [verdict["workflow"] for verdict in response.json()["verdicts"]] == ["b"]
    assert response.json()["event"]["template_id"] == "y"
    assert fakes.producer.events == []
    assert (await client.post("/api/v1/explain?workflow=c", json=body, headers=KEY)).status_code == 404
    assert (await client.post("/api/v1/explain", json=[], headers=KEY)).status_code == 422


async def test_actions_and_schema_are_told(client: httpx.AsyncClient) -> None:
    actions = (await client.get("/api/v1/actions", headers=KEY)).json()
    assert actions == {"items": [{"name": "log"}], "broken": {"fax": "ImportError: no fax"}}
    assert (await client.get("/api/v1/schema", headers=KEY)).json() == {"type": "object"}


@pytest.mark.parametrize(
    ("health", "live", "ready", "started", "reasons"),
    [
        (Health(started=True), 200, 200, 200, []),
        (Health(started=False), 200, 503, 503, ["starting"]),
        (Health(started=True, unready=("postgres is away",)), 200, 503, 200, ["postgres is away"]),
        (Health(started=True, dead=("the reader ended",)), 503, 503, 200, ["the reader ended"]),
    ],
)
async def test_probes_tell_state_and_reasons(
    client: httpx.AsyncClient, fakes: Fakes, health: Health, live: int, ready: int, started: int, reasons: list[str]
) -> None:
    fakes.health = health
    codes = [(await client.get(path)).status_code for path in ("/livez", "/readyz", "/startupz", "/health")]
    assert codes == [live, ready, started, ready]
    assert (await client.get("/readyz")).json()["reasons"] == reasons


async def test_health_has_details(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json()["details"] == {"redis": "ok"}


async def test_metrics_are_prometheus_text(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics", headers=KEY)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "appliance_things_total 0.0" in response.text


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    response = await client.get("/nowhere")
    assert (response.status_code, response.json()["type"]) == (404, "urn:appliance:problem:not-found")
    response = await client.get("/submit")
    assert (response.status_code, response.json()["type"]) == (405, "urn:appliance:problem:method-not-allowed")
    assert response.headers["allow"] == "POST"
    assert (await client.post("/submit/", json={"template_id": "t"})).status_code == 404
    assert (await client.head("/readyz")).status_code == 200


async def test_an_unexpected_error_is_logged_and_not_told(
    client: httpx.AsyncClient, fakes: Fakes, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.history.refusal = RuntimeError("password=hunter2")
    with caplog.at_level(logging.ERROR, logger="appliance.http"):
        response = await client.get("/api/v1/runs", headers=KEY)
    assert (response.status_code, response.json()["type"]) == (500, "urn:appliance:problem:internal")
    assert "hunter2" not in response.text
    assert "hunter2" in caplog.text


async def test_a_store_that_is_away_is_503(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.history.refusal = StoreUnavailable("away")
    response = await client.get("/api/v1/runs", headers=KEY)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["type"] == "urn:appliance:problem:store-unavailable"


async def test_a_client_that_leaves_ends_its_request_quietly(fakes: Fakes, caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/submit", "headers": headers, "query_string": b""}
    await create_app(fakes.services())(scope, receive, send)
    assert fakes.producer.events == []
    assert caplog.text == ""
