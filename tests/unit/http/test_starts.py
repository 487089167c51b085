"""Starting workflows by name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from appliance.errors import Overloaded, StreamUnavailable
from appliance.http.app import create_app
from appliance.identifiers import run_id_for
from appliance.settings import IngestSettings, Settings
from tests.unit.http.fakes import API_KEY, Fakes

KEY = {"X-API-Key": API_KEY}
INPUTS = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
RUNS = "/api/v1/workflows/w/runs"
TRIGGER = "/api/v1/trigger"


@pytest.fixture(autouse=True)
def workflow(fakes: Fakes) -> dict[str, Any]:
    made = {"id": 7, "name": "w", "enabled": True, "definition": {"name": "w", "inputs": INPUTS, "priority": "high"}}
    fakes.history.items |= {"w": made, "7": made}
    return made


def body(path: str, given: Any) -> dict[str, Any]:
    return {"input": given} if path == RUNS else {"workflow_id": "w", "payload": given}


@pytest.mark.parametrize("path", [RUNS, TRIGGER])
async def test_a_start_is_an_event_that_names_its_workflow(client: httpx.AsyncClient, fakes: Fakes, path: str) -> None:
    response = await client.post(path, json=body(path, {"n": 1}), headers=KEY)
    (event, priority) = fakes.producer.events[0]
    run_id = run_id_for(event.uid, "w")
    assert response.status_code == 202
    assert response.json() == {"run_id": run_id, "event_id": event.id, "workflow": "w", "status": "accepted"}
    assert response.headers["location"] == f"/api/v1/runs/{run_id}"
    assert (event.type, event.source, event.subject) == ("workflow.requested", RUNS, "w")
    assert (event.data, event.start, event.key, priority) == ({"n": 1}, ("w", "manual"), None, "high")


@pytest.mark.parametrize("number", [7, "7"])
async def test_a_trigger_takes_a_workflows_number(client: httpx.AsyncClient, fakes: Fakes, number: Any) -> None:
    response = await client.post(TRIGGER, json={"workflow_id": number, "payload": {"n": 1}}, headers=KEY)
    assert response.json()["workflow"] == "w"
    assert fakes.producer.last.start == ("w", "manual")


@pytest.mark.parametrize("path", [RUNS, TRIGGER])
async def test_input_that_doesnt_fit_is_told_path_by_path(client: httpx.AsyncClient, fakes: Fakes, path: str) -> None:
    for given, errors in (
        ({"n": "1"}, [{"path": "input.n", "detail": "expected a whole number"}]),
        ({}, [{"path": "input.n", "detail": "is missing"}]),
        (None, [{"path": "input", "detail": "expected an object"}]),
    ):
        response = await client.post(path, json=body(path, given), headers=KEY)
        assert (response.status_code, response.json()["type"]) == (422, "urn:appliance:problem:input")
        assert response.json()["errors"] == errors
    assert fakes.producer.events == []


async def test_without_inputs_anything_goes_and_nothing_is_an_empty_object(
    client: httpx.AsyncClient, fakes: Fakes, workflow: dict[str, Any]
) -> None:
    workflow["definition"] = {"name": "w"}
    for sent in ({"input": [1]}, {"input": None}, {}):
        assert (await client.post(RUNS, json=sent, headers=KEY)).status_code == 202
    assert (await client.post(RUNS, headers=KEY)).status_code == 202
    assert [event.data for event, _ in fakes.producer.events] == [[1], None, {}, {}]
    assert {priority for _, priority in fakes.producer.events} == {"normal"}


@pytest.mark.parametrize("path", [RUNS, TRIGGER])
async def test_starting_again_with_a_key_names_the_first_run(
    client: httpx.AsyncClient, fakes: Fakes, path: str
) -> None:
    first = await client.post(path, json=body(path, {"n": 1}), headers={**KEY, "Idempotency-Key": "k"})
    again = await client.post(path, json={**body(path, {"n": 2}), "idempotency_key": "k"}, headers=KEY)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == {**first.json(), "status": "duplicate"}
    fakes.history.items["v"] = {**fakes.history.items["w"], "name": "v"}
    other = await client.post("/api/v1/workflows/v/runs", json={"input": {"n": 1}, "idempotency_key": "k"}, headers=KEY)
    assert other.status_code == 202


async def test_a_workflow_that_cant_be_started_says_why(
    client: httpx.AsyncClient, fakes: Fakes, workflow: dict[str, Any]
) -> None:
    assert (await client.post("/api/v1/workflows/nobody/runs", json={}, headers=KEY)).status_code == 404
    workflow["enabled"] = False
    response = await client.post(RUNS, json={"input": {"n": 1}}, headers=KEY)
    assert (response.status_code, response.json()["detail"]) == (409, "the workflow 'w' is disabled")
    assert fakes.producer.events == []


@pytest.mark.parametrize(
    ("path", "sent", "attribute"),
    [
        (RUNS, {"inputs": 1}, "inputs"),
        (RUNS, {"idempotency_key": "x" * 257}, "Idempotency-Key"),
        (RUNS, {"idempotency_key": 7}, "idempotency_key"),
        (TRIGGER, {}, "workflow_id"),
        (TRIGGER, {"workflow_id": True}, "workflow_id"),
        (TRIGGER, {"workflow_id": ["w"]}, "workflow_id"),
    ],
)
async def test_a_wrong_member_is_named(client: httpx.AsyncClient, path: str, sent: Any, attribute: str) -> None:
    response = await client.post(path, json=sent, headers=KEY)
    assert (response.status_code, response.json()["attribute"]) == (422, attribute)


async def test_starts_are_admitted_like_events(fakes: Fakes) -> None:
    settings = Settings(ingest=IngestSettings(rate_limit=1))
    transport = httpx.ASGITransport(create_app(fakes.services(settings)))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answers = [await client.post(RUNS, json={"input": {"n": 1}}, headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 429]


@pytest.mark.parametrize("refusal", [Overloaded("full"), StreamUnavailable("away")])
async def test_what_the_producer_refuses_is_refused(
    client: httpx.AsyncClient, fakes: Fakes, refusal: Exception
) -> None:
    fakes.producer.refusal = refusal
    assert (await client.post(RUNS, json={"input": {"n": 1}}, headers=KEY)).status_code == 503
