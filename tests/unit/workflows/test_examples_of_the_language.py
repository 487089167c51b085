"""The examples of docs/workflows.md for each kind of step do what the page says: played under the virtual clock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from appliance.plugin import Reject, Retry
from appliance.story import Story
from appliance.workflows.loader import parse_document
from appliance.workflows.models import KINDS

PAGE = (Path(__file__).parents[3] / "docs" / "workflows.md").read_text()
TEXTS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
DEFINITIONS: dict[str, Any] = {d["name"]: d for d in (parse_document(text.encode()).data for text in TEXTS)}
PLAYED = {*re.findall(r'"([\w-]+)"', " ".join(re.findall(r"story\((.*)\)", Path(__file__).read_text())))}


def story(*names: str) -> Story:
    return Story(*(DEFINITIONS[name] for name in names))


def said(played: Story) -> list[str]:
    """What was logged, in order."""
    return [done.params["message"] for done in played.did("log")]


def test_action() -> None:
    played = story("charge")
    played.when("charge", fails(TimeoutError())).event("order.placed", {"id": 7, "total": 5})
    played.wait("1h")
    assert (played.status, len(played.did("charge"))) == ("failed", 2)
    played.when("charge", {}).when("ship", fails(TimeoutError()))
    played.event("order.placed", {"id": 8, "total": 5})
    played.wait("30d")
    assert (played.status, played.run.steps()["ship"], len(played.did("ship"))) == ("waiting", "unknown", 1)
    played.settle("ship", "succeeded")
    assert played.status == "succeeded"


def fails(error: Exception) -> Any:
    def does(params: dict[str, Any]) -> None:
        raise error

    return does


def test_delay() -> None:
    played = story("remind")
    # Christmas Eve 2029 is a Monday; it is noon in Berlin.
    played.wait_until("2030-12-24T11:00:00Z")
    data = {"remind_at": "2030-12-24T15:30:00Z", "name": "Ann", "patient": True}
    played.event("appointment.made", data)
    played.wait_until("2030-12-26T09:29:00Z")
    assert said(played) == ["confirmed"]
    played.wait("2m")
    assert said(played) == ["confirmed", "see you, Ann"]


def test_choose() -> None:
    played = story("route")
    for total in (5000, 500, 5):
        played.event("request.made", {"total": total})
    assert said(played) == ["a big one: 5000", "boss", "filed", "done", "done", "small", "filed", "done"]
    assert played.run.state.steps["size"].output == {"branch": 2}


def test_parallel() -> None:
    played = story("first-answer")
    played.event("question.asked", {"text": "why?"})
    question = played.run.facts.view["id"]
    assert said(played) == ["by mail: why?", "by chat: why?"]
    played.event("chat.replied", {"question": "another"})
    assert played.status == "waiting"
    played.event("chat.replied", {"question": question})
    assert played.status == "succeeded"
    assert played.run.steps()["replied"] == "cancelled"
    assert played.run.state.steps["ask"].output["mail"] is None
    assert played.run.state.steps["ask"].output["chat"]["data"] == {"question": question}


def test_for_each() -> None:
    played = story("reserve")
    lines = [{"sku": "a", "price": 5}, {"sku": "b", "price": 0}, {"sku": "c", "price": 1}]
    played.event("order.placed", {"lines": lines})
    assert played.status == "succeeded"
    assert played.run.state.steps["lines"].output == ["0: a", {"branch": 0}, "2: c"]


def test_wait() -> None:
    played = story("invoice")
    played.event("invoice.sent", {"number": 42})
    played.event("payment.made", {"invoice": "42", "amount": 0})
    assert played.status == "waiting"
    played.event("payment.made", {"invoice": "42", "amount": 9})
    assert said(played) == ["9 came in"]
    played.event("invoice.sent", {"number": 43})
    played.wait("15d")
    assert said(played) == ["9 came in", "invoice 43 is open"]


def test_human_task() -> None:
    played = story("approval")
    played.event("expense.submitted", {"amount": 9, "by": "Ann"})
    [task] = played.tasks
    assert (task.title, task.group) == ("Approve 9 for Ann?", "accounting")
    played.wait("25h")
    assert len(played.did("approve.notify")) == 2
    played.answer("approve", {"approved": True})
    assert (said(played), played.status) == (["paid"], "succeeded")
    played.event("expense.submitted", {"amount": 9, "by": "Bob"})
    played.wait("4d")
    assert said(played) == ["paid", "nobody answered"]
    assert played.tasks[-1].status == "expired"
    assert len(played.did("approve.notify")) == 5


def test_workflow() -> None:
    played = story("parent", "welcome")
    played.event("order.paid", {"email": "a@example.org"})
    assert said(played) == ["welcome, a@example.org", "a@example.org"]
    played.event("order.paid", {"email": "nobody"})
    assert played.status == "failed"


def test_transform() -> None:
    played = story("totals")
    played.event("order.placed", {"email": "a@example.org", "lines": [{"price": 5}, {"price": 2}]})
    assert said(played) == ["2 lines, 7"]


def test_end() -> None:
    played = story("check")
    played.event("order.placed", {"email": "a@example.org"})
    assert (played.status, played.run.outcome, played.run.output) == (
        "succeeded",
        "accepted",
        {"email": "a@example.org"},
    )
    played.event("order.placed", {})
    assert (played.status, played.run.outcome) == ("failed", "no address")


def test_compensations() -> None:
    played = story("trip")
    played.when("flight", {"body": {"id": "f1"}}).when("pay", fails(Reject("no money")))
    attempts = iter([fails(Retry("busy")), lambda params: None])
    played.when("hotel.compensate", lambda params: next(attempts)(params))
    played.event("trip.booked", {"id": 1})
    played.wait("1h")
    assert played.status == "failed"
    assert [done.step for done in played.done] == [
        "flight", "hotel", "pay", "hotel.compensate", "hotel.compensate", "flight.compensate", "alarm",
    ]  # fmt: skip
    assert played.did("flight.compensate")[0].params["json"] == {"booking": "f1"}
    assert said(played)[-1] == "trip 1, pay: no money"


def test_state_machine() -> None:
    played = story("refund")
    played.event("refund.requested", {}, subject="o1")
    played.event("refund.requested", {}, subject="o1")  # there is one already
    assert len(played.runs) == 1
    played.event("NOTE", {"text": "hm"}, subject="o1")
    played.event("APPROVED", {"amount": 900}, subject="o1")
    assert played.run.at == ["review"]
    played.wait("9d")
    played.event("CONFIRMED", {}, subject="o1")
    assert (played.status, played.run.outcome) == ("succeeded", "paid")
    assert said(played) == ["refund o1 is pending", "hm"]
    played.event("refund.requested", {}, subject="o1")
    played.event("APPROVED", {"amount": 5}, subject="o1")
    assert said(played)[2:] == ["refund o1 is pending", "pay 5"]
    played.event("refund.requested", {}, subject="o2")
    played.wait("47h")
    played.event("NOTE", {"text": "still here"}, subject="o2")
    played.wait("2h")
    assert (said(played)[-1], played.run.outcome) == ("too late", "nobody decided")


def test_every_kind_was_played() -> None:
    kinds = {kind for name in PLAYED for kind in KINDS if f'"{kind}":' in str(DEFINITIONS[name]).replace("'", '"')}
    assert kinds == {*KINDS}
