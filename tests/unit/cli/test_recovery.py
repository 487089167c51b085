"""``appliance trace`` and ``appliance recover``."""

from __future__ import annotations

import json
from typing import Any

from appliance.cli.client import Answer
from tests.unit.cli.double import Invoke, Server

RUN: dict[str, Any] = {
    "id": "r1", "workflow": "order", "revision": 1, "status": "succeeded", "origin": None, "started_at": "s",
    "finished_at": "f", "duration_s": 0.25, "error": None, "events": [], "runs": [],
}  # fmt: skip
CHILD = {**RUN, "id": "r2", "workflow": "pack", "status": "running", "duration_s": None, "step": "packing"}
EVENT: dict[str, Any] = {
    "uid": "u1", "id": "o-1", "type": "order.paid", "source": "/shop", "subject": None, "time": "t",
    "outcome": "handled", "runs": [],
}  # fmt: skip
PUBLISHED = {**EVENT, "uid": "u2", "id": "p-1", "type": "bad\x1b[31m", "outcome": None}
TREE = {
    "event": "u2", "correlation_id": "o-1", "nodes": 4, "cut": True,
    "events": [{**EVENT, "runs": [{**RUN, "events": [PUBLISHED], "runs": [CHILD]}]}],
}  # fmt: skip


def test_a_tree_is_indented_by_what_belongs_to_what(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, TREE)]
    code, out, err = invoke("trace", "p/1")
    assert (code, err) == (0, "")
    assert server.asked == [("GET", "/api/v1/events/p%2F1/trace", None)]
    assert out.splitlines() == [
        "correlation  o-1",
        "event  order.paid  o-1  handled  t",
        "  run  order  r1  succeeded  0.250 s",
        "    event  bad\\x1b[31m  p-1  in flight  t *",
        "    run  pack  r2  running  called by packing",
        "… cut after 4 events and runs",
    ]


def test_a_tree_as_json(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, TREE)]
    assert json.loads(invoke("trace", "u2", "--json")[1]) == TREE


def test_recover_says_what_it_put_back(server: Server, invoke: Invoke) -> None:
    report = {"recovered": 3, "held": 2, "parked": 1, "events": 0, "resent": 0, "adopted": 0, "busy": False}
    server.answers = [Answer(200, report), Answer(200, {**report, "recovered": 0})]
    code, out, _ = invoke("recover")
    assert code == 0
    assert server.asked == [("POST", "/api/v1/recover", None)]
    assert out.splitlines()[0] == "runs whose entries were gone           2"
    assert invoke("recover")[1] == "nothing was lost\n"
