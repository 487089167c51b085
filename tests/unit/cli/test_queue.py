"""``appliance queue``, and what other commands show of runs that flow control holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.cli.client import Answer
from appliance.cli.trace import tree_text
from tests.unit.cli.double import Invoke, Server

LANE = {
    "waiting": 1000,
    "next": ["r1", "r2"],
    "since": "2030-01-01T00:00:00.000Z",
    "needs": [
        {"part": "concurrency.0", "key": "", "limit": 50, "at_work": 50, "runs": ["r0"]},
        {"part": "concurrency.1", "key": "acme\x1b[2J", "limit": 5, "at_work": 2, "runs": ["r0"]},
    ],
}
METER = {"part": "batch", "key": "k", "count": 3, "since": "s", "until": "u", "run_id": "r9"}
QUEUE = {"workflow": "sync", "items": [LANE], "meters": [METER], "next_cursor": "c1"}
RUN = {"id": "r1", "workflow": "sync", "status": "waiting"}


def test_workflows_of_which_runs_wait(server: Server, invoke: Invoke) -> None:
    items = [{"workflow": "a", "waiting": 1000, "since": "s"}, {"workflow": "b", "waiting": 7, "since": "s"}]
    server.answers = [
        Answer(200, {"items": items, "next_cursor": None}),
        Answer(200, {"items": [], "next_cursor": None}),
    ]
    assert [line.split() for line in invoke("queue", "--limit", "3")[1].splitlines()] == [
        ["WORKFLOW", "WAITING", "SINCE"],
        ["a", "1000+", "s"],
        ["b", "7", "s"],
    ]
    assert server.asked == [("GET", "/api/v1/queues?limit=3", None)]
    assert invoke("queue")[1] == "nobody waits for a place\n"


def test_who_waits_in_one_workflow_and_what_is_counted(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, QUEUE)]
    code, out, err = invoke("queue", "team/sync", "--cursor", "c0")
    assert server.asked == [("GET", "/api/v1/workflows/team%2Fsync/queue?limit=20&cursor=c0", None)]
    assert (code, err) == (0, "more with --cursor c1\n")
    assert [line.split() for line in out.splitlines()] == [
        ["FOR", "KEY", "AT", "WORK", "LIMIT", "WAITING", "SINCE", "NEXT"],
        ["concurrency", "50", "50", "1000+", "2030-01-01T00:00:00.000Z", "r1"],
        ["concurrency", "acme\\x1b[2J", "2", "5"],
        [],
        ["FOR", "KEY", "COUNT", "SINCE", "UNTIL", "WAITING", "RUN", "ID"],
        ["batch", "k", "3", "s", "u", "r9"],
    ]


def test_nobody_waits_in_a_workflow(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {**QUEUE, "items": [], "meters": [], "next_cursor": None})]
    assert invoke("queue", "sync") == (0, "nobody waits for a place\n", "")


def test_a_queue_as_json_is_what_the_process_said(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, QUEUE)]
    assert json.loads(invoke("queue", "sync", "--json")[1]) == QUEUE


@pytest.mark.parametrize(
    ("held", "line"),
    [
        ({"for": "debounce", "key": "k", "until": "t", "position": None}, "held      by debounce of 'k' until t"),
        ({"for": "ordering", "key": "", "until": None, "position": 3}, "held      by ordering, position 3"),
    ],
)
def test_a_run_that_is_held_says_by_what(server: Server, invoke: Invoke, held: dict[str, Any], line: str) -> None:
    server.answers = [Answer(200, {**RUN, "held": held})]
    assert line in invoke("runs", "show", "r1")[1].splitlines()


def test_a_batch_names_its_events(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {**RUN, "events": ["e1", "e2"]})]
    assert "\n2 events\n  e1\n  e2\n" in invoke("runs", "show", "r1")[1]


def test_a_trace_names_the_event_that_a_batch_began_with() -> None:
    run: dict[str, Any] = {
        **RUN,
        "duration_s": None,
        "error": None,
        "origin": None,
        "joined": "e1",
        "events": [],
        "runs": [],
    }
    event = {"uid": "e2", "id": "e2", "type": "t", "time": "now", "outcome": "handled", "runs": [run]}
    text = tree_text({"event": "e2", "correlation_id": "c", "events": [event], "cut": False})
    assert text.splitlines()[-1] == "  run  sync  r1  waiting  batch of event e1"


def test_the_ledger_says_which_handled_events_began_no_run(server: Server, invoke: Invoke) -> None:
    sums = {"accepted": 3, "handled": 3, "unmatched": 0, "duplicate": 0, "dead": 0, "in_flight": 0, "difference": 0}
    skipped = [{"workflow": "sync", "reason": "debounced", "count": 2}]
    server.answers = [Answer(200, {**sums, "skipped": skipped}), Answer(200, {**sums, "skipped": []})]
    assert [line.split() for line in invoke("ledger")[1].splitlines()[-4:]] == [
        [],
        ["of", "those", "handled,", "flow", "control", "left", "out:"],
        ["WORKFLOW", "REASON", "COUNT"],
        ["sync", "debounced", "2"],
    ]
    assert "flow" not in invoke("ledger")[1]
