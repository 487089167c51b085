"""The example workflows, each told as a story under the virtual clock, with the standard actions' own parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.events import loads
from appliance.plugin import Reject, Retry
from appliance.registry import Registry
from appliance.story import Done, Story
from appliance.workflows.schedules import Schedule

EXAMPLES = Path("config/workflows/examples")
ACTIONS = Registry.load({}).actions


def story(*names: str, **more: Any) -> Story:
    return Story(*(EXAMPLES / f"{name}.yaml" for name in names), actions=ACTIONS, **more)


def subjects(done: list[Done]) -> list[str]:
    return [did.params["subject"] for did in done if did.action == "send_email"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_loads_and_is_off(path: Path) -> None:
    (workflow,) = Story(path, actions=ACTIONS).workflows.values()
    assert not workflow.enabled
    assert workflow.name == path.stem


# --- onboarding ------------------------------------------------------------------------------------------------------


def test_who_confirms_at_once_gets_tips_in_working_hours_and_no_reminder() -> None:
    told = story("onboarding", at="2030-01-04T15:30:00+00:00")  # a Friday, 16:30 in Berlin
    told.event("user.signed_up", {"user_id": 7, "email": "ada@example.org", "name": "Ada"})
    told.wait("20m")
    told.event("user.confirmed", {"user_id": 8})
    assert told.run.at == ["confirmed"]
    told.event("user.confirmed", {"user_id": "7"})
    assert told.run.at == ["rest"]
    told.wait("3d")
    assert subjects(told.done) == ["Welcome, Ada"], "the weekend does not count"
    told.wait("2d")
    assert subjects(told.done) == ["Welcome, Ada", "Three tips to begin with"]
    assert told.run.outcome == "onboarded"


def test_who_never_confirms_is_reminded_once_and_left_alone() -> None:
    told = story("onboarding")
    told.event("user.signed_up", {"user_id": 7, "email": "ada@example.org", "name": None})
    told.wait("1d")
    assert subjects(told.done) == ["Welcome, friend"]
    told.wait("6d")
    assert subjects(told.done) == ["Welcome, friend", "Still there?"]
    assert (told.status, told.run.outcome) == ("succeeded", "never confirmed")


def test_a_mail_server_that_is_away_delays_the_welcome() -> None:
    told = story("onboarding")
    left = [3]

    def away(_: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] > 0:
            raise Retry("the mail server is away")

    told.when("welcome", away)
    told.event("user.signed_up", {"user_id": 7, "email": "ada@example.org", "name": "Ada"})
    told.wait("1h")
    assert [did.attempt for did in told.did("welcome")] == [1, 2, 3]
    assert told.run.at == ["confirmed"]


# --- refund ----------------------------------------------------------------------------------------------------------


def test_a_small_refund_is_paid_after_one_approval() -> None:
    told = story("refund")
    (run,) = told.event("refund.requested", {"order": "A1", "email": "ada@example.org", "amount": 80})
    assert run.at == ["pending"]
    told.event("refund.approved", {"order": "B2", "amount": 1})
    assert run.at == ["pending"], "another order's"
    told.event("refund.commented", {"order": "A1", "text": "please hurry"})
    assert [did.params["message"] for did in told.did("comment")] == ["A1: please hurry"]
    told.event("refund.approved", {"order": "A1", "amount": 80})
    assert run.at == ["paying"]
    assert len(told.did("pay")) == 1
    told.event("bank.paid", {"order": "A1"})
    assert (run.status, run.outcome) == ("succeeded", "paid")


def test_a_large_refund_needs_a_second_look() -> None:
    told = story("refund")
    (run,) = told.event("refund.requested", {"order": "A1", "email": "ada@example.org", "amount": 800})
    told.event("refund.approved", {"order": "A1", "amount": 800})
    assert run.at == ["second_look"]
    told.event("bank.paid", {"order": "A1"})
    assert run.at == ["second_look"], "not now"
    told.event("refund.confirmed", {"order": "A1"})
    assert run.at == ["paying"]


def test_a_comment_does_not_prolong_the_deadline() -> None:
    told = story("refund")
    (run,) = told.event("refund.requested", {"order": "A1", "email": "ada@example.org", "amount": 80})
    told.wait("47h")
    told.event("refund.commented", {"order": "A1", "text": "still there?"})
    told.wait("2h")
    assert (run.status, run.outcome) == ("succeeded", "nobody decided")


def test_a_second_request_for_an_order_goes_to_its_machine() -> None:
    told = story("refund")
    request = {"order": "A1", "email": "ada@example.org", "amount": 80}
    told.event("refund.requested", request)
    assert told.event("refund.requested", request) == []
    assert len(told.did("acknowledge")) == 1


def test_a_payment_of_unknown_outcome_waits_for_a_person() -> None:
    told = story("refund")

    def cut_off(_: dict[str, Any]) -> None:
        raise TimeoutError

    told.when("pay", cut_off)
    (run,) = told.event("refund.requested", {"order": "A1", "email": "ada@example.org", "amount": 80})
    told.event("refund.approved", {"order": "A1", "amount": 80})
    told.wait("10h")
    assert run.steps()["pay"] == "unknown"
    assert len(told.did("pay")) == 1, "never a second time"
    told.settle("pay", "succeeded")
    assert run.at == ["paying"]


# --- approval --------------------------------------------------------------------------------------------------------

EXPENSE = {"amount": 900, "by": "ada@example.org", "boss": "boss@example.org"}


def test_a_small_expense_is_booked_without_anybody() -> None:
    told = story("approval")
    told.event("expense.submitted", {**EXPENSE, "amount": 12.5})
    assert [did.step for did in told.done] == ["book"]
    assert told.run.outcome == "approved"


def test_the_boss_is_told_reminded_and_answers() -> None:
    told = story("approval")
    told.event("expense.submitted", EXPENSE)
    assert subjects(told.done) == ["Expense of 900 by ada@example.org"]
    assert "http" in told.did("approve.notify")[0].params["body"]
    told.wait("25h")
    assert len(told.did("approve.notify")) == 2
    told.answer("approve", {"approved": True})
    assert told.run.outcome == "approved"
    assert told.did("book")[0].params["json"] == {"amount": 900, "by": "ada@example.org"}
    told.wait("10d")
    assert len(told.did("approve.notify")) == 2, "nobody is reminded of what is done"


def test_a_refusal_says_why() -> None:
    told = story("approval")
    told.event("expense.submitted", EXPENSE)
    told.answer("approve", {"approved": False, "reason": "too dear"})
    assert told.run.outcome == "refused"
    assert told.did("refuse")[0].params["body"] == "too dear"


def test_what_nobody_answers_goes_to_finance_and_then_fails_with_an_alarm() -> None:
    told = story("approval")
    told.event("expense.submitted", EXPENSE)
    told.wait("3d")
    assert [task.status for task in told.tasks] == ["expired", "open"]
    assert told.tasks[1].group == "finance"
    told.wait("4d")
    assert told.status == "failed"
    assert told.did("alarm")[0].params["body"] == "escalate: its deadline passed"


def test_a_budget_that_is_refused_withdraws_the_question() -> None:
    told = story("approval")

    def broke(_: dict[str, Any]) -> None:
        raise Reject("no money")

    told.when("budget", broke)
    told.event("expense.submitted", EXPENSE)
    assert [task.status for task in told.tasks] == ["cancelled"]
    assert told.status == "failed"
    with pytest.raises(LookupError):
        told.answer("approve", {"approved": True})


# --- order -----------------------------------------------------------------------------------------------------------

ORDER = {
    "id": "A1",
    "email": "ada@example.org",
    "address": "Home 1",
    "lines": [{"sku": "pen", "count": 2}, {"sku": "ink", "count": 1}, {"sku": "pad", "count": 3}],
}


def path(did: Done) -> tuple[str, Any]:
    return did.params["url"].rsplit("/", 1)[1], did.params["json"].get("sku", did.params["json"].get("order"))


def test_an_order_is_reserved_charged_and_shipped() -> None:
    told = story("order", "shipment")
    told.event("order.placed", ORDER)
    told.wait("1d")
    told.event("parcel.weighed", {"order": "A1"})
    assert told.run.at == ["ship"]
    told.event("parcel.picked_up", {"order": "A1", "tracking": "T9"})
    assert (told.status, told.run.output) == ("succeeded", {"tracking": "T9"})
    assert [path(did) for did in told.did("webhook")] == [
        ("reservations", "pen"),
        ("reservations", "ink"),
        ("reservations", "pad"),
        ("charges", "A1"),
        ("labels", "A1"),
    ]
    assert subjects(told.done) == ["Your order is on its way"]


@pytest.mark.parametrize("event", ["parcel.lost", None])
def test_a_parcel_that_gets_lost_undoes_the_order_in_reverse(event: str | None) -> None:
    told = story("order", "shipment")
    told.event("order.placed", ORDER)
    if event is None:
        told.wait("4d")  # nobody picks it up: the called workflow's deadline passes
    else:
        told.event(event, {"order": "A1"})
    assert told.status == "failed"
    assert [path(did) for did in told.did("webhook")][5:] == [
        ("refunds", "A1"),
        ("releases", "pad"),
        ("releases", "ink"),
        ("releases", "pen"),
    ]
    assert subjects(told.done) == ["We can't deliver your order"]


def test_a_line_that_is_sold_out_releases_the_others_and_charges_nobody() -> None:
    told = story("order", "shipment")

    def reserve(params: dict[str, Any]) -> None:
        if params["json"]["sku"] == "ink":
            raise Reject("sold out")

    told.when("reserve_line", reserve)
    told.event("order.placed", ORDER)
    assert told.status == "failed"
    assert [path(did) for did in told.did("webhook")][3:] == [("releases", "pad"), ("releases", "pen")]
    assert told.run.state.error == "reserve_line: sold out"


def test_a_cancelled_order_takes_its_shipment_with_it() -> None:
    told = story("order", "shipment")
    told.event("order.placed", ORDER)
    told.cancel(told.run)
    assert told.status == "cancelled"
    assert [run.status for run in told.runs] == ["cancelled", "cancelled"]
    assert [path(did)[0] for did in told.did("webhook")][5:] == ["refunds", "releases", "releases", "releases"]


# --- nightly digest --------------------------------------------------------------------------------------------------


def test_the_digest_counts_the_orders_and_lists_the_large_ones() -> None:
    told = story("nightly-digest")
    orders = [{"id": "A1", "total": 20}, {"id": "B2", "total": 2500}]
    told.when("figures", {"status": 200, "body": {"orders": orders}})
    run = told.start("nightly-digest", loads(b'{"slot": "2030-01-07T06:30:00+01:00"}'))
    assert run.status == "succeeded"
    (mail,) = told.did("mail")
    assert mail.params["subject"] == "2 orders, 1 of them large"
    assert "B2: 2500" in mail.params["body"]


def test_the_digest_keeps_quiet_when_nothing_came_in() -> None:
    told = story("nightly-digest").when("figures", {"body": {"orders": []}})
    run = told.start("nightly-digest", {"slot": "2030-01-07T06:30:00+01:00"})
    assert (run.outcome, told.did("mail")) == ("nothing to tell", [])


def test_the_digest_is_due_on_working_mornings_in_berlin() -> None:
    (workflow,) = story("nightly-digest").workflows.values()
    (schedule,) = workflow.schedules
    assert isinstance(schedule, Schedule)
    assert (schedule.expression, schedule.timezone) == ("30 6 * * 1-5", "Europe/Berlin")


# --- search index ----------------------------------------------------------------------------------------------------


def test_the_index_is_told_once_of_a_product_that_is_edited_again_and_again() -> None:
    told = story("search-index")
    told.events("product.changed", *({"sku": "pen", "price": price} for price in (1, 2, 3)), every="6s")
    (ink,) = told.event("product.changed", {"sku": "ink", "price": 9})
    told.wait("9s")
    assert told.done == [], "it is not quiet yet"
    told.wait("1s")
    assert [did.params["json"] for did in told.did("write")] == [{"sku": "pen", "price": 3}, {"sku": "ink", "price": 9}]
    assert [run.outcome for run in told.runs] == ["debounced", "debounced", None, None]
    assert ink.status == "succeeded"


def test_the_index_does_not_wait_for_ever_and_hears_what_came_last() -> None:
    told = story("search-index")
    told.events("product.changed", *({"sku": "pen", "price": price} for price in range(16)), every="8s")
    assert [did.at[11:19] for did in told.did("write")] == ["09:02:00"]
    told.event("product.removed", {"sku": "pen"})
    told.wait("1m")
    assert [did.params["method"] for did in told.done] == ["PUT", "DELETE"], "the removal was the last word"


def test_an_import_reaches_the_index_at_its_pace() -> None:
    told = story("search-index")
    told.events("product.changed", *({"sku": number, "price": 1} for number in range(100)))
    told.wait("10s")
    assert len(told.done) == 20
    told.wait("4s")
    assert len(told.done) == 100


# --- comment digest --------------------------------------------------------------------------------------------------


def comment(by: str, text: str, thread: str = "Plans") -> dict[str, str]:
    return {"follower": "ada@example.org", "by": by, "text": text, "thread": thread}


def test_a_follower_gets_one_mail_for_four_hours_of_comments() -> None:
    told = story("comment-digest")
    told.event("comment.added", comment("Bob", "shall we?"))
    told.wait("3h")
    told.event("comment.added", comment("Eve", "we shall", "Lunch"))
    told.event("comment.added", {**comment("Eve", "hello"), "follower": "ida@example.org"})
    told.event("comment.added", {**comment("Eve", "nobody listens"), "follower": None})
    told.wait("59m")
    assert told.done == []
    told.wait("1m")
    (mail,) = told.done
    assert (mail.params["to"], mail.params["subject"]) == ("ada@example.org", "2 new comments")
    assert mail.params["body"] == "In Plans, Lunch:\n\nBob: shall we?\nEve: we shall\n"
    told.wait("4h")
    assert subjects(told.done) == ["2 new comments", "A new comment"]
    assert [run.output for run in told.runs] == [{"comments": 2}, {"comments": 1}]


def test_fifty_comments_are_enough_for_a_mail() -> None:
    told = story("comment-digest")
    told.events("comment.added", *(comment("Bob", str(number)) for number in range(51)))
    assert subjects(told.done) == ["50 new comments"]
    assert [run.status for run in told.runs] == ["succeeded", "waiting"]


def test_a_mail_server_that_is_away_does_not_split_the_digest() -> None:
    told = story("comment-digest")
    left = [2]

    def away(_: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise Retry("the mail server is away")

    told.when("mail", away)
    told.events("comment.added", comment("Bob", "1"), comment("Bob", "2"))
    told.wait("5h")
    assert [(did.attempt, did.params["subject"]) for did in told.done] == [
        (1, "2 new comments"),
        (2, "2 new comments"),
        (3, "2 new comments"),
    ]
