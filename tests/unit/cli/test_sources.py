"""``appliance sources``: what it asks of the process, and how it ends."""

from __future__ import annotations

import json

from appliance.cli.client import Answer
from appliance.cli.exits import Exit
from tests.unit.cli.double import Invoke, Server

PREVIEW = {"name": "shop", "error": None, "columns": ["id", "at"], "events": [], "refused": [], "known": 2}


def test_sources_are_listed(server: Server, invoke: Invoke) -> None:
    item = {"name": "shop", "state": "failing", "cursor": "2026-01-31T12:00:00Z", "error": "no such table"}
    server.answers = [Answer(200, {"items": [item], "next_cursor": None})]
    code, out, _ = invoke("sources", "list")
    assert (code, server.asked) == (0, [("GET", "/api/v1/sources", None)])
    assert "failing" in out
    assert "no such table" in out


def test_a_test_shows_the_events_to_come(server: Server, invoke: Invoke) -> None:
    event = {"id": "7", "type": "order.placed", "data": {"id": 7}}
    server.answers = [Answer(200, PREVIEW | {"events": [event]}), Answer(200, PREVIEW)]
    code, out, _ = invoke("sources", "test", "the shop", "--limit", "3")
    assert (code, server.asked[0][1]) == (0, "/api/v1/sources/the%20shop/preview?limit=3")
    assert out.splitlines()[0] == "columns: id, at; 2 rows have an event already"
    assert "order.placed" in out
    code, out, _ = invoke("sources", "test", "shop", "--json")
    assert (code, json.loads(out)["known"]) == (0, 2)


def test_a_test_that_fails_says_why(server: Server, invoke: Invoke) -> None:
    refused = [{"key": "8", "error": "column price: NaN is no JSON number"}]
    server.answers = [
        Answer(200, PREVIEW | {"error": "connection refused"}),
        Answer(200, PREVIEW | {"refused": refused}),
    ]
    code, out, _ = invoke("sources", "test", "shop")
    assert (code, out) == (Exit.FAILED, "error: connection refused\n")
    code, out, _ = invoke("sources", "test", "shop")
    assert code == Exit.FAILED
    assert "NaN" in out


def test_refused_rows_are_listed(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {"items": [{"key": "8", "error": "NaN"}], "next_cursor": None})]
    code, out, _ = invoke("sources", "refused", "shop", "--limit", "5")
    assert (code, server.asked[0][1]) == (0, "/api/v1/sources/shop/refused?limit=5")
    assert "NaN" in out
