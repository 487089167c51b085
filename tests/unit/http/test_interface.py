"""The documented interface is the one that is served: routes, OpenAPI and docs/api.md agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.http.app import create_app
from appliance.http.problems import KINDS
from appliance.settings import Settings
from tests.unit.http.fakes import Fakes

DOCUMENT = (Path(__file__).parents[3] / "docs" / "api.md").read_text("utf-8")
ROW = re.compile(r"^\| `(GET|POST|PUT) (\S+)` \| (open)? ?\|", re.MULTILINE)


async def openapi(client: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await client.get("/api/v1/openapi.json")).json()
    return document


def served(fakes: Fakes) -> set[tuple[str, str]]:
    return {(op.method, op.path) for op in create_app(fakes.services()).operations}


def test_every_operation_is_in_the_documentation_with_its_openness(fakes: Fakes) -> None:
    documented = {(method, path): bool(mark) for method, path, mark in ROW.findall(DOCUMENT)}
    operations = create_app(fakes.services()).operations
    assert documented == {(op.method, op.path): op.open for op in operations}


async def test_every_operation_is_in_the_openapi_document(client: httpx.AsyncClient, fakes: Fakes) -> None:
    paths = (await openapi(client))["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert described == served(fakes)


async def test_every_operation_is_reached_by_its_route(client: httpx.AsyncClient, fakes: Fakes) -> None:
    for method, path in served(fakes):
        response = await client.request(method, path)
        assert response.status_code != 405, path
        assert "There is nothing at this path" not in response.text, path


async def test_openapi_is_closed_in_itself(client: httpx.AsyncClient) -> None:
    document = await openapi(client)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


async def test_parameters_are_described_in_both_documents(client: httpx.AsyncClient) -> None:
    paths = (await openapi(client))["paths"]
    for path in ("/api/v1/events", "/api/v1/runs", "/api/v1/dead-letters"):
        names = {parameter["name"] for parameter in paths[path]["get"]["parameters"]}
        assert {"cursor", "limit"} < names
        (row,) = [line for line in DOCUMENT.splitlines() if line.startswith(f"| `GET {path}` ")]
        assert not [name for name in names - {"cursor", "limit"} if f"`{name}`" not in row]


async def test_what_changes_workflows_says_which_headers_it_takes(client: httpx.AsyncClient) -> None:
    paths = (await openapi(client))["paths"]
    for method, path in (("put", ""), ("post", "/enable"), ("post", "/disable"), ("post", "/rollback")):
        parameters = paths[f"/api/v1/workflows/{{name}}{path}"][method]["parameters"]
        assert {p["name"] for p in parameters if p["in"] == "header"} == {"If-Match", "If-None-Match"}


def test_every_problem_is_documented_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (\d{3}) \|", DOCUMENT, re.MULTILINE))
    assert rows == {code: str(status) for code, (status, _) in KINDS.items()}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:http|ingest)\.\w+)`", DOCUMENT))))
def test_every_setting_that_is_named_exists(name: str) -> None:
    section, _, key = name.partition(".")
    assert key in type(getattr(Settings(), section)).model_fields
