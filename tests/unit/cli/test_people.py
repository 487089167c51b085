"""Starting workflows, answering tasks and looking at state machines from the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.cli.client import Answer
from appliance.cli.exits import Exit
from tests.unit.cli.double import Invoke, Server

RUN = {"id": "r1", "workflow": "w", "revision": 2, "event_id": "e1", "status": "succeeded"}
STARTED = {"run_id": "r1", "event_id": "e1", "workflow": "w", "status": "accepted"}


def test_a_start_sends_its_input(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(202, STARTED)]
    arguments = ("--input", '{"a": 1, "b": 2}', "--set", "b=x=y", "--set", "c=true", "--set", 'd="5"', "--set", "e=05")
    code, out, _ = invoke("start", "a b/c", *arguments, "--idempotency-key", "k")
    given = {"a": 1, "b": "x=y", "c": True, "d": "5", "e": "05"}
    assert server.asked == [
        ("POST", "/api/v1/workflows/a%20b%2Fc/runs", {"input": given, "idempotency_key": "k"}),
    ]
    assert code == 0
    assert out.split() == ["run_id", "r1", "status", "accepted"]


@pytest.mark.parametrize(
    "arguments", [("--input", "{"), ("--input", "[1]", "--set", "a=1"), ("--set", "a"), ("--set", "=1")]
)
def test_input_that_cant_be_read_is_a_usage_error(server: Server, invoke: Invoke, arguments: tuple[str, ...]) -> None:
    code, _, err = invoke("start", "w", *arguments)
    assert (code, server.asked) == (Exit.USAGE, [])
    assert arguments[-2] in err or "--input" in err


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [("succeeded", Exit.OK, "succeeded (paid)"), ("failed", Exit.FAILED, "failed (paid): no money")],
)
def test_a_start_that_waits_prints_the_output_of_the_run(
    server: Server, invoke: Invoke, status: str, code: Exit, words: str
) -> None:
    run = {**RUN, "status": status, "outcome": "paid", "output": {"n": "ä"}, "error": "no money"}
    server.answers = [
        Answer(202, STARTED),
        Answer(404, {}),
        Answer(200, {**run, "status": "waiting"}),
        Answer(200, run),
    ]
    found, out, err = invoke("start", "w", "--wait")
    assert (found, json.loads(out)) == (code, {"n": "ä"})
    assert words in err
    assert [path for _, path, _ in server.asked[1:]] == ["/api/v1/runs/r1"] * 3


def test_a_start_that_waits_prints_the_run_as_json(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(202, STARTED), Answer(200, RUN)]
    assert json.loads(invoke("start", "w", "--wait", "--json")[1]) == RUN


def test_a_start_that_is_refused_says_why(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(409, {"detail": "the workflow 'w' is disabled"})]
    code, _, err = invoke("start", "w", "--wait")
    assert (code, "is disabled" in err) == (Exit.NOT_FOUND, True)


TASK: dict[str, Any] = {"id": "t1", "title": "Approve \x1b[31m", "status": "open", "form": {"type": "object"}}


def test_open_tasks_are_listed_by_their_filters(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {"items": [TASK], "next_cursor": None})]
    code, out, _ = invoke("tasks", "list", "--assignee", "ann", "--run-id", "r1")
    assert server.asked == [("GET", "/api/v1/tasks?limit=20&status=open&assignee=ann&run_id=r1", None)]
    assert (code, "Approve \\x1b[31m" in out) == (0, True)


def test_a_task_is_shown_with_its_link(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {**TASK, "link": "http://x/tasks/t1?sig=s"})]
    assert "http://x/tasks/t1?sig=s" in invoke("tasks", "show", "t1")[1]


def test_a_task_is_answered(server: Server, invoke: Invoke) -> None:
    answer = {"id": "t1", "status": "answered", "run_id": "r1", "step": "s"}
    server.answers = [Answer(200, answer), Answer(409, {"detail": "task t1 was answered by bob"})]
    code, out, _ = invoke("tasks", "answer", "t1", "--set", "approved=true", "--by", "ann")
    assert server.asked == [("POST", "/api/v1/tasks/t1/answer", {"answer": {"approved": True}, "by": "ann"})]
    assert (code, "answered" in out) == (0, True)
    code, _, err = invoke("tasks", "answer", "t1", "--data", '"x"')
    assert (code, server.asked[1][2]) == (Exit.NOT_FOUND, {"answer": "x"})
    assert "was answered by bob" in err


def test_a_task_is_given_to_somebody_else(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {"id": "t1", "assignee": None, "group": "ops"})]
    assert invoke("tasks", "assign", "t1", "--assignee", "", "--group", "ops")[0] == 0
    assert server.asked == [("POST", "/api/v1/tasks/t1/assign", {"assignee": None, "group": "ops"})]
    assert invoke("tasks", "assign", "t1")[0] == Exit.USAGE


def test_machines_are_listed_and_shown(server: Server, invoke: Invoke) -> None:
    machine = {
        "workflow": "refund",
        "key": "o/17",
        "state": "pending",
        "events": [{"event": "APPROVED", "when": {"op": "<="}, "next": "paid"}],
        "history": [{"kind": "event", "at": "t", "type": "NOTED", "taken": "ignored", "state": "pending"}],
    }
    server.answers = [Answer(200, {"items": [machine], "next_cursor": None}), Answer(200, machine)]
    assert "pending" in invoke("machines", "list", "--workflow", "refund", "--key", "o/17")[1]
    out = invoke("machines", "show", "refund", "o/17")[1]
    assert [path for _, path, _ in server.asked] == [
        "/api/v1/machines?limit=20&workflow=refund&key=o%2F17",
        "/api/v1/machines/refund/o%2F17",
    ]
    for word in ("APPROVED", "paid", "ignored", "NOTED"):
        assert word in out


def test_a_run_is_shown_with_what_it_waits_for(server: Server, invoke: Invoke) -> None:
    run = {
        **RUN,
        "outcome": "done",
        "waits": [{"step": "answer", "event": "reply.*"}],
        "signals": [{"kind": "event", "type": "reply.late", "taken": "ignored"}],
        "children": [{"step": "call", "run_id": "r2"}],
        "tasks": [{"id": "t1", "title": "Approve"}],
    }
    server.answers = [Answer(200, run)]
    out = invoke("runs", "show", "r1")[1]
    for word in ("done", "reply.*", "reply.late", "r2", "Approve"):
        assert word in out
