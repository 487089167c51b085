"""Definitions through the API, in the form that somebody wants."""

from __future__ import annotations

import httpx
import pytest

from appliance.workflows.loader import parse_document
from tests.unit.http.fakes import Fakes
from tests.unit.http.test_tasks import KEY

DEFINITION = {"name": "a/b", "trigger": {"event": "x"}, "steps": [{"id": "s", "transform": {"text": "é"}}]}
PATH = "/api/v1/workflows/a%2Fb/export"


@pytest.fixture(autouse=True)
def workflow(fakes: Fakes) -> None:
    fakes.history.items["a/b"] = {"name": "a/b", "definition": DEFINITION}
    fakes.history.items["gone"] = {"name": "gone", "definition": None}


async def test_yaml_is_the_usual_form(client: httpx.AsyncClient) -> None:
    for path in (PATH, f"{PATH}?as=yaml"):
        response = await client.get(path, headers=KEY)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/yaml"
        assert parse_document(response.content).data == DEFINITION


async def test_json_and_graphs(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"{PATH}?as=json", headers=KEY)).json() == DEFINITION
    graph = (await client.get(f"{PATH}?as=react-flow", headers=KEY)).json()
    assert [node["id"] for node in graph["nodes"]] == ["start", "s"]
    assert all({"x", "y"} <= node["position"].keys() for node in graph["nodes"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/workflows/unknown/export", 404),
        ("/api/v1/workflows/gone/export", 404),
        (f"{PATH}?as=xml", 422),
        (f"{PATH}?to=yaml", 422),
    ],
)
async def test_what_can_not_be_exported(client: httpx.AsyncClient, path: str, status: int) -> None:
    response = await client.get(path, headers=KEY)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


async def test_without_the_key_nothing_is_told(client: httpx.AsyncClient) -> None:
    assert (await client.get(PATH)).status_code == 401
