"""What each command asks of the process, how it shows the answer, and how it ends."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from appliance.cli.client import Answer, Client
from appliance.cli.exits import Exit
from appliance.errors import (
    ApplianceError,
    ConfigurationError,
    Conflict,
    NotFound,
    Overloaded,
    Problem,
)
from tests.unit.cli.double import Invoke, Server

RUN = {"id": "r1", "workflow": "contact", "revision": 2, "event_id": "e1", "status": "succeeded"}


def test_runs_list_filters_and_shows_a_table(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {"items": [RUN], "next_cursor": None})]
    code, out, err = invoke("runs", "list", "--event-id", "e1", "--status", "failed", "--limit", "5")
    assert (code, err) == (0, "")
    assert server.asked == [("GET", "/api/v1/runs?limit=5&event_id=e1&status=failed", None)]
    assert out.splitlines()[0].split()[:3] == ["ID", "WORKFLOW", "REVISION"]
    assert "contact" in out


def test_a_list_goes_over_as_many_pages_as_it_takes(server: Server, invoke: Invoke) -> None:
    page = [{**RUN, "id": str(n)} for n in range(100)]
    server.answers = [
        Answer(200, {"items": page, "next_cursor": "c1"}),
        Answer(200, {"items": page, "next_cursor": "c2"}),
    ]
    code, out, _ = invoke("runs", "list", "--limit", "150", "--json")
    assert code == 0
    assert [path for _, path, _ in server.asked] == ["/api/v1/runs?limit=100", "/api/v1/runs?limit=50&cursor=c1"]
    assert json.loads(out)["next_cursor"] == "c2"


def test_an_empty_page_is_not_the_end(server: Server, invoke: Invoke) -> None:
    server.answers = [
        Answer(200, {"items": [], "next_cursor": "c1"}),
        Answer(200, {"items": [RUN], "next_cursor": None}),
    ]
    assert "contact" in invoke("runs", "list", "--workflow", "contact")[1]


def test_the_way_to_the_next_page_is_not_in_the_table(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {"items": [RUN], "next_cursor": "c1"})]
    _, out, err = invoke("runs", "list", "--limit", "1")
    assert "c1" not in out
    assert err == "more with --cursor c1\n"


def test_a_run_is_shown_with_its_steps_attempts_and_deliveries(server: Server, invoke: Invoke) -> None:
    step = {"id": "thank", "status": "succeeded", "attempt": 2, "output": {"sent": 1}, "error": None}
    attempt = {"attempt": 1, "error": "450 greylisted", "finished_at": "t"}
    delivery = {"step": "thank", "channel": "email", "recipient": "a@b.c", "status": "sent", "attempts": 2}
    server.answers = [Answer(200, {**RUN, "steps": [{**step, "attempts": [attempt]}], "deliveries": [delivery]})]
    code, out, _ = invoke("runs", "show", "r1")
    assert code == 0
    assert "450 greylisted" in out
    assert "a@b.c" in out
    assert '{"sent": 1}' in out


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("runs", "retry", "r1"), "/api/v1/runs/r1/retry"),
        (("runs", "cancel", "r1"), "/api/v1/runs/r1/cancel"),
        (("dlq", "redrive", "d1"), "/api/v1/dead-letters/d1/redrive"),
        (("dlq", "discard", "d1"), "/api/v1/dead-letters/d1/discard"),
    ],
)
def test_interventions_post(server: Server, invoke: Invoke, arguments: tuple[str, ...], path: str) -> None:
    server.answers = [Answer(200, {"id": "x", "status": "running"})]
    code, out, _ = invoke(*arguments)
    assert code == 0
    assert server.asked == [("POST", path, None)]
    assert arguments[-1] in out


def test_a_dead_letter_is_shown_with_the_fields_of_its_entry_as_texts(server: Server, invoke: Invoke) -> None:
    pairs = [[base64.b64encode(part).decode() for part in pair] for pair in ((b"ty\x1bpe", b"t"), (b"who", b"\xff!"))]
    server.answers = [Answer(200, {"id": "d1", "kind": "entry", "error": "not UTF-8", "fields": pairs})] * 2
    _, out, _ = invoke("dlq", "show", "d1")
    assert out.splitlines()[-2:] == [r"field ty\x1bpe  t", r"field who       \xff!"]
    assert json.loads(invoke("dlq", "show", "d1", "--json")[1])["fields"] == pairs


def test_submit_sends_a_form(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(202, {"id": "e1", "submission_id": "e1", "status": "accepted"})]
    code, out, _ = invoke("submit", "contact", "email=a@b.c", "text=x=y", "--org-id", "o", "--idempotency-key", "k")
    assert code == 0
    body = {"template_id": "contact", "data": {"email": "a@b.c", "text": "x=y"}, "org_id": "o"}
    assert server.asked == [("POST", "/submit", body)]
    assert server.headers[0]["Idempotency-Key"] == "k"
    assert out == "id      e1\nstatus  accepted\n"


def test_publish_sends_a_cloudevent(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(202, {"id": "17", "uid": "u", "status": "accepted"})]
    options = (
        "--data",
        '{"total": 5}',
        "--id",
        "17",
        "--subject",
        "o17",
        "--attribute",
        "region=eu",
        "--priority",
        "high",
    )
    code, _, _ = invoke("publish", "order.paid", "currency=EUR", *options)
    assert code == 0
    ((method, path, event),) = server.asked
    assert (method, path) == ("POST", "/api/v1/events?priority=high")
    assert event == {
        "specversion": "1.0",
        "id": "17",
        "source": "appliance-cli",
        "type": "order.paid",
        "subject": "o17",
        "region": "eu",
        "data": {"total": 5, "currency": "EUR"},
    }
    assert server.headers[0]["Content-Type"] == "application/cloudevents+json"


@pytest.mark.parametrize(
    "arguments",
    [
        ("publish",),
        ("publish", "t", "novalue"),
        ("publish", "t", "--data", "{"),
        ("publish", "t", "a=b", "--data", "[1]"),
        ("explain",),
        ("explain", "e1", "--file", "x.json"),
        ("runs", "list", "--limit", "0"),
        ("runs", "list", "--status", "done"),
        ("nonsense",),
        ("runs", "nonsense"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(server: Server, invoke: Invoke, arguments: tuple[str, ...]) -> None:
    code, out, err = invoke(*arguments)
    assert code == Exit.USAGE
    assert out == ""
    assert "Error: " in err
    assert server.asked == []


def test_explain_shows_each_verdict_with_its_reason(server: Server, invoke: Invoke) -> None:
    verdicts = [
        {"workflow": "contact", "matched": True, "reason": "form_submitted", "failure": None},
        {"workflow": "refund", "matched": False, "reason": 'template_id == "refund": it is "contact"', "failure": {}},
    ]
    server.answers = [Answer(200, {"verdicts": verdicts})]
    code, out, _ = invoke("explain", "e1", "--workflow", "refund")
    assert code == 0
    assert server.asked == [("GET", "/api/v1/events/e1/explain?workflow=refund", None)]
    assert out.splitlines()[1:] == [
        "contact   matched      form_submitted",
        'refund    not matched  template_id == "refund": it is "contact"',
    ]


def test_explain_shows_with_which_changes_an_event_would_be_taken(server: Server, invoke: Invoke) -> None:
    changes = [{"text": "type = 'a'; was 'b'"}, {"text": "data.amount ≥ 100; was 80"}]
    server.answers = [
        Answer(200, {"verdicts": [{"workflow": "x", "matched": False, "reason": "no", "changes": changes}]}),
        Answer(200, {"verdicts": [{"workflow": "x", "matched": False, "reason": "no", "note": "no change found"}]}),
    ]
    assert invoke("explain", "e1")[1].splitlines() == [
        "WORKFLOW  VERDICT      REASON  WITH",
        "x         not matched  no      type = 'a'; was 'b'; and data.amount ≥ 100; was 80",
    ]
    assert invoke("explain", "e1")[1].splitlines()[1] == "x         not matched  no      no change found"


LEDGER = {"accepted": 2, "handled": 1, "unmatched": 0, "duplicate": 0, "dead": 0, "in_flight": 0, "difference": 1}


def test_ledger_check_fails_on_a_difference_only(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, LEDGER), Answer(200, LEDGER), Answer(200, {**LEDGER, "difference": 0})]
    assert invoke("ledger")[0] == Exit.OK
    code, out, _ = invoke("ledger", "--check", "--json")
    assert code == Exit.FAILED
    assert json.loads(out)["difference"] == 1
    assert invoke("ledger", "--check")[0] == Exit.OK


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, 6), (403, 6), (404, 3), (409, 3), (422, 1), (429, 4), (500, 1), (503, 4)],
)
def test_each_refusal_has_its_exit_code_and_one_line(server: Server, invoke: Invoke, status: int, code: int) -> None:
    server.answers = [Answer(status, {"title": "No", "detail": "because\nof that"})]
    ended, out, err = invoke("events", "show", "e1")
    assert ended == code
    assert out == ""
    assert err == "error: because of that\n"


def test_a_refused_definition_lists_its_problems(server: Server, invoke: Invoke) -> None:
    problems = [{"key": "steps[0].with.to", "message": "missing"}, {"message": "no trigger"}]
    server.answers = [Answer(422, {"title": "Wrong", "detail": "long", "problems": problems})]
    assert invoke("explain", "e1")[2] == "error: Wrong: steps[0].with.to: missing; no trigger\n"


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_a_quick_doctor_only_asks_for_readiness(server: Server, invoke: Invoke, status: int, code: int) -> None:
    server.answers = [Answer(status, {"reasons": ["PostgreSQL is away"]})]
    assert invoke("doctor", "--quick")[0] == code
    assert server.asked == [("GET", "/readyz", None)]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            ConfigurationError(Problem("too low", key="http.port", file="a.yaml", line=3, column=5)),
            5,
            "a.yaml:3:5: http.port: too low",
        ),
        (Overloaded("full"), 4, "full"),
        (NotFound("no run r1"), 3, "no run r1"),
        (Conflict("it is finished"), 3, "it is finished"),
        (ApplianceError("odd"), 1, "odd"),
    ],
)
def test_the_appliances_own_errors_map_to_exit_codes(
    monkeypatch: pytest.MonkeyPatch, invoke: Invoke, error: ApplianceError, code: int, line: str
) -> None:
    def fail(*_: Any, **__: Any) -> Answer:
        raise error

    monkeypatch.setattr(Client, "ask", fail)
    assert invoke("ledger") == (code, "", f"error: {line}\n")


def test_a_bug_is_one_line_unless_the_traceback_is_asked_for(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    def fail(*_: Any, **__: Any) -> Answer:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Client, "ask", fail)
    code, _, err = invoke("ledger")
    assert code == Exit.FAILED
    assert err.startswith("error: this is a bug in appliance")
    assert err.count("\n") == 1
    assert "Traceback" in invoke("--traceback", "ledger")[2]


def test_ctrl_c_is_not_an_error_message(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> None:
    def interrupt(*_: Any, **__: Any) -> Answer:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "ask", interrupt)
    assert invoke("ledger") == (Exit.INTERRUPTED, "", "\n")  # click ends the line that shows ^C


def test_schedules_are_shown_with_what_is_to_come(server: Server, invoke: Invoke) -> None:
    schedule = {"workflow": "digest", "schedule": "0 9 * * 1", "timezone": "Europe/Berlin", "misfire": "once"}
    slots = ["2026-11-23T09:00:00+01:00", "2026-11-30T09:00:00+01:00"]
    item = {**schedule, "next_at": "2026-11-23T08:00:00.000Z", "last_slot": None, "upcoming": slots}
    server.answers = [Answer(200, {"items": [item], "next_cursor": None})] * 2
    code, out, _ = invoke("schedules", "--workflow", "digest", "--preview", "2")
    assert (code, server.asked[0][1]) == (0, "/api/v1/schedules?limit=20&workflow=digest&preview=2")
    assert out.splitlines()[0].split("  ")[0] == "WORKFLOW"
    assert out.splitlines()[2:] == ["", "digest: 0 9 * * 1 (Europe/Berlin)", *(f"  {slot}" for slot in slots)]
    assert json.loads(invoke("schedules", "--json")[1])["items"] == [item]
    assert server.asked[1][1] == "/api/v1/schedules?limit=20"
