"""``appliance runs migrate``: what is sent, page by page, and what is printed."""

from __future__ import annotations

import json
from typing import Any

from appliance.cli.client import Answer
from tests.unit.cli.double import Invoke, Server

PATH = "/api/v1/workflows/w/migrate"


def page(moved: int = 0, *stayed: dict[str, Any], busy: int = 0, cursor: str | None = None) -> Answer:
    names = {"moved": [f"m{n}" for n in range(moved)], "busy": [f"b{n}" for n in range(busy)]}
    return Answer(200, {"to": 2, **names, "stayed": list(stayed), "next_cursor": cursor})


def test_all_pages_are_asked_for_and_counted(server: Server, invoke: Invoke) -> None:
    gone = {"revision": 1, "reasons": ["its step has gone"]}
    server.answers = [page(2, {"id": "r1", **gone}, busy=1, cursor="c"), page(1, {"id": "r2", **gone})]
    code, out, _ = invoke("runs", "migrate", "w")
    assert code == 0
    assert out.splitlines() == [
        "to revision  2",
        "moved        3",
        "busy         1",
        "",
        "REVISION  RUNS  EXAMPLE  WHY THEY STAY",
        "       1     2  r1       its step has gone",
    ]
    assert [(path, body) for _, path, body in server.asked] == [(PATH, {}), (PATH, {"to": 2, "cursor": "c"})]


def test_what_is_wanted_is_sent(server: Server, invoke: Invoke) -> None:
    server.answers = [page(1), page(1)]
    invoke("runs", "migrate", "w", "--to", "2", "--from", "1", "--run", "a", "--run", "a", "--dry-run")
    assert server.asked[0][2] == {"to": 2, "from": 1, "runs": ["a"], "dry_run": True}
    assert "would move" in invoke("runs", "migrate", "w", "--dry-run")[1]


def test_very_many_runs_are_named_in_several_requests(server: Server, invoke: Invoke) -> None:
    server.answers = [page(200), page(1)]
    names = [part for n in range(201) for part in ("--run", f"r{n}")]
    _, out, _ = invoke("runs", "migrate", "w", "--json", *names)
    assert json.loads(out) == {"to": 2, "moved": 201, "busy": 0, "stayed": []}
    assert [len(body["runs"]) for _, _, body in server.asked] == [200, 1]
