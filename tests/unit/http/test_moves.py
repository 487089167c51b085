"""Moving runs over HTTP: how it is asked for, and how it is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from appliance.engine.moves import Wanted
from appliance.errors import Conflict, NotFound
from tests.unit.http.fakes import API_KEY, Fakes

KEY = {"Authorization": f"Bearer {API_KEY}"}
PATH = "/api/v1/workflows/a%20b/migrate"


@pytest.mark.parametrize(
    ("body", "wanted", "options"),
    [
        (None, Wanted(), {}),
        ({}, Wanted(), {}),
        ({"to": 3, "from": 1, "dry_run": True}, Wanted(3, 1), {"dry_run": True}),
        ({"runs": ["r", "s"], "cursor": None}, Wanted(runs=["r", "s"]), {}),
        ({"cursor": "c"}, Wanted(after="c"), {}),
    ],
)
async def test_what_is_asked_for_reaches_the_engine(
    client: httpx.AsyncClient, fakes: Fakes, body: Any, wanted: Wanted, options: dict[str, Any]
) -> None:
    sent = {} if body is None else {"json": body}
    response = await client.post(PATH, headers=KEY, **sent)
    assert (response.status_code, response.json()["moved"]) == (200, ["r"])
    assert fakes.control.calls == [("migrate", "a b", "api", {"wanted": wanted, **options})]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"to": 0}, "to: expected a whole number from 1 to 2147483647, got 0."),
        ({"from": True}, "from: expected a whole number from 1 to 2147483647, got True."),
        ({"to": "2"}, "to: expected a whole number from 1 to 2147483647, got '2'."),
        ({"runs": []}, "runs: expected a list of 1 to 200 texts."),
        ({"cursor": 1}, "cursor: expected a text, got 1."),
        ({"dry_run": "no"}, "dry_run: expected true or false, got 'no'."),
        ({"all": True}, "all: unknown; there is to, from, runs, cursor, dry_run."),
    ],
)
async def test_a_wrong_body_is_refused_with_the_member_at_fault(
    client: httpx.AsyncClient, fakes: Fakes, body: Any, detail: str
) -> None:
    response = await client.post(PATH, json=body, headers=KEY)
    assert (response.status_code, response.json()["detail"]) == (422, detail)
    assert fakes.control.calls == []


@pytest.mark.parametrize(("refusal", "status"), [(NotFound("no"), 404), (Conflict("no"), 409)])
async def test_what_the_engine_refuses_is_told(
    client: httpx.AsyncClient, fakes: Fakes, refusal: Exception, status: int
) -> None:
    fakes.control.refusal = refusal
    assert (await client.post(PATH, headers=KEY)).status_code == status
    assert (await client.post(PATH)).status_code == 401
