"""Which ends of runs are announced, and what the events say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.engine.lifecycle import Ending, Lifecycle, lifecycle_event, workflows_of
from appliance.events import Event, decode_entry, new_event
from appliance.rules.matcher import Matcher, Rule, Trigger
from appliance.store.outbox import packed, unpacked

RUN = "01a1fc06-b13f-71dc-b3a8-7c2ee6ed4b2a"


def ending(event: Event | None = None, **more: Any) -> Ending:
    values: dict[str, Any] = {
        "run_id": RUN,
        "workflow": "order",
        "revision": 3,
        "event": event or new_event("order.paid", {}, source="/shop", id="o-1"),
        "priority": "normal",
        "version": 2,
        "status": "succeeded",
        "finished_at": 1_800_000_000.25,
        "outcome": "paid",
        "output": {"total": 5},
    }
    return Ending(**{**values, **more})


def made(given: Ending) -> Event:
    event = lifecycle_event(given)
    assert event is not None
    return event


def lifecycle(mode: str = "always", *, wants: bool = False, max_hops: int = 16) -> Lifecycle:
    return Lifecycle(mode, lambda _: wants, max_hops, lambda: None)


def test_an_event_says_how_the_run_ended() -> None:
    event = made(ending())
    assert (event.type, event.source, event.subject) == ("workflow.completed", "workflow:order", RUN)
    assert event.time == "2027-01-15T08:00:00.250Z"
    assert event.attributes == {
        "correlationid": "o-1", "causationid": RUN, "hops": 1, "workflow": "order", "chain": "order"
    }  # fmt: skip
    assert event.data == {
        "run": RUN, "workflow": "order", "revision": 3, "status": "succeeded", "outcome": "paid",
        "output": {"total": 5}, "error": None, "event": {"id": "o-1", "type": "order.paid", "source": "/shop"},
    }  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), [("failed", "workflow.failed"), ("cancelled", "workflow.cancelled")])
def test_each_status_has_its_type(status: str, kind: str) -> None:
    assert made(ending(status=status, error="no")).type == kind


def test_the_same_end_is_the_same_event_and_another_end_is_another() -> None:
    assert made(ending()) == made(ending())
    again = made(ending(version=7))
    assert (again.uid, again.id, again.key) != (made(ending()).uid, made(ending()).id, made(ending()).key)


def test_the_outbox_gives_it_back() -> None:
    event = made(ending())
    assert decode_entry("s", b"1-1", unpacked(packed(event))) == event


def test_a_chain_keeps_its_correlation_and_has_each_workflow_once() -> None:
    first = made(ending())
    second = made(ending(first, workflow="invoice", run_id="01a1fc06-b13f-71dc-b3a8-7c2ee6ed4b2b"))
    assert second.attributes["correlationid"] == "o-1"
    assert (second.attributes["hops"], workflows_of(second)) == (2, ("order", "invoice"))
    assert lifecycle_event(ending(second)) is None
    assert lifecycle_event(ending(second, workflow="invoice")) is None


def test_the_failure_of_a_watcher_of_failures_is_not_announced() -> None:
    failure = made(ending(status="failed"))
    assert lifecycle_event(ending(failure, workflow="alert", status="failed")) is None
    assert lifecycle_event(ending(failure, workflow="alert")) is not None


def test_a_chain_is_only_believed_of_our_own_events() -> None:
    stranger = new_event("order.paid", {}, source="/shop", attributes={"chain": "order"})
    assert lifecycle_event(ending(stranger)) is not None


def test_a_large_output_is_left_out() -> None:
    data = made(ending(output="x" * 70_000)).data
    assert (data["output"], data["output_omitted"]) == (None, True)


def test_beyond_max_hops_there_is_none() -> None:
    cause = new_event("t", {}, source="/s", attributes={"hops": 2})
    assert lifecycle(max_hops=3).row(ending(cause)) is not None
    assert lifecycle(max_hops=2).row(ending(cause)) is None


@pytest.mark.parametrize(
    ("mode", "wants", "expected"),
    [("auto", False, False), ("auto", True, True), ("always", False, True), ("never", True, False)],
)
def test_the_setting_decides(mode: str, wants: bool, expected: bool) -> None:
    row = lifecycle(mode, wants=wants).row(ending())
    assert (row is not None) is expected
    assert row is None or (row.priority, row.durable) == ("normal", False)


def test_a_run_that_goes_on_is_not_announced() -> None:
    assert lifecycle().row(replace(ending(), status="waiting")) is None


@pytest.mark.parametrize(
    ("event", "expected"),
    [("workflow.failed", True), ("workflow.*", True), ("workflow.completed", False), ("*", False), ("order.*", False)],
)
def test_only_triggers_meant_for_it_have_it_made(event: str, expected: bool) -> None:
    matcher = Matcher([Rule("w", (Trigger(event),), 0, None)])
    assert [matcher.wants("workflow.failed") for _ in range(2)] == [expected] * 2


def test_attributes_that_no_event_of_ours_can_have_cost_the_event_only() -> None:
    cause = new_event("t", {}, source="/s", attributes={"correlationid": "x" * 2000})
    assert lifecycle().row(ending(cause)) is None
