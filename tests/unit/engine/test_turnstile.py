"""Stories of workflows with flow control: what it holds, joins and leaves out under the virtual clock."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.turnstile import timeless
from appliance.errors import DefinitionError
from appliance.story import Story, StoryRun
from tests.unit.engine.lobby import Lobby

TENANT = "{{ event.data.t }}"


def told(*steps: dict[str, Any], **more: Any) -> Story:
    return Story(flow(*steps, **more))


def flow(*steps: dict[str, Any], name: str = "w", **more: Any) -> dict[str, Any]:
    note = {"id": "note", "action": "log", "with": {"message": "{{ input.n }}"}}
    return {"name": name, "trigger": {"event": name}, "steps": list(steps or (note,)), **more}


def numbers(*ns: int, t: str = "a") -> list[dict[str, Any]]:
    return [{"n": n, "t": t} for n in ns]


def notes(story: Story) -> list[tuple[str, Any]]:
    """What was noted, and when."""
    return [(did.at[11:19], did.params["message"]) for did in story.did("note")]


def fates(runs: list[StoryRun]) -> list[str | None]:
    return [run.outcome if run.status == "cancelled" else run.status for run in runs]


def test_of_a_burst_only_the_last_is_run_when_it_is_quiet() -> None:
    story = told(debounce={"period": "10s", "key": TENANT})
    runs = story.events("w", *numbers(1, 2, 3), every="4s")
    other = story.events("w", *numbers(9, t="b"))
    assert fates(runs) == ["debounced", "debounced", "waiting"]
    assert "for which run" in str(runs[0].state.error)
    assert (runs[2].held, runs[2].begun_at, story.done) == ("debounce", None, [])
    story.wait("9s")
    assert story.done == []
    story.wait("1s")
    assert notes(story) == [("09:00:18", 3), ("09:00:18", 9)]
    assert fates([*runs, *other]) == ["debounced", "debounced", "succeeded", "succeeded"]


def test_a_debounce_that_never_gets_quiet_ends_at_its_timeout() -> None:
    story = told(debounce={"period": "10s", "timeout": "25s"})
    story.events("w", *numbers(*range(8)), every="5s")
    story.wait("1m")
    assert notes(story) == [("09:00:25", 4), ("09:00:45", 7)]


def test_a_batch_begins_when_it_is_full_or_its_time_is_up() -> None:
    message = "{{ events|map(attribute='data')|map(attribute='n')|list }} since {{ event.data.n }}"
    step = {"id": "note", "action": "log", "with": {"message": message}}
    story = told(step, batch={"size": 3, "timeout": "1m", "key": TENANT})
    runs = story.events("w", *numbers(1, 2), *numbers(7, t="b"), *numbers(3, 4), every="10s")
    assert len(runs) == len(story.runs) == 3, "those that join have no run of their own"
    assert notes(story) == [("09:00:30", "[1,2,3] since 1")]
    story.wait("10m")
    assert notes(story)[1:] == [("09:01:20", "[7] since 7"), ("09:01:40", "[4] since 4")]
    assert fates(story.runs) == ["succeeded"] * 3
    assert story.runs[0].facts.events is not None
    assert [view["data"]["n"] for view in story.runs[0].facts.events] == [1, 2, 3]


def test_what_is_started_by_hand_joins_a_batch_and_what_is_called_is_one() -> None:
    step = {"id": "note", "action": "log", "with": {"message": "{{ events|length }}"}}
    batch = {"size": 2, "timeout": "1m"}
    story = Story(flow({"id": "call", "workflow": "w"}, name="outer"), flow(step, batch=batch))
    story.event("outer")
    assert notes(story) == [("09:00:00", 1)]
    first = story.start("w", {"n": 1})
    assert first.status == "waiting"
    assert story.start("w", {"n": 2}) is first
    assert notes(story) == [("09:00:00", 1), ("09:00:00", 2)]


def test_what_is_beyond_the_rate_is_left_out_and_says_so() -> None:
    story = told(rate_limit={"limit": 2, "period": "1m", "key": TENANT})
    runs = story.events("w", *numbers(1, 2, 3), *numbers(4, t="b"), every="10s")
    assert fates(runs) == ["succeeded", "succeeded", "rate_limited", "succeeded"]
    assert re.fullmatch("rate_limit: 2 runs in .* have begun for 'a'", str(runs[2].state.error))
    assert (runs[2].begun_at, runs[2].steps()) == (None, {})
    story.wait("30s")
    assert fates(story.events("w", *numbers(5))) == ["succeeded"]


def test_what_is_debounced_may_still_be_beyond_the_rate() -> None:
    story = told(debounce={"period": "1s"}, rate_limit={"limit": 1, "period": "1h"})
    (first,) = story.event("w", {"n": 1})
    story.wait("2s")
    (second,) = story.event("w", {"n": 2})
    assert second.status == "waiting"
    story.wait("2s")
    assert fates([first, second]) == ["succeeded", "rate_limited"]


def test_a_throttle_spreads_what_comes_at_once() -> None:
    story = told(throttle={"limit": 2, "period": "1m", "burst": 1})
    runs = story.events("w", *numbers(1, 2, 3, 4, 5))
    assert fates(runs) == ["succeeded"] * 3 + ["waiting"] * 2
    assert runs[4].held == "throttle"
    story.wait("2m")
    assert notes(story) == [("09:00:00", 1), ("09:00:00", 2), ("09:00:00", 3), ("09:00:30", 4), ("09:01:00", 5)]


SLOW: list[dict[str, Any]] = [
    {"id": "pause", "delay": "1h"},
    {"id": "note", "action": "log", "with": {"message": "{{ input.n }}"}},
]


def test_a_singleton_skips_while_another_goes_on() -> None:
    story = told(*SLOW, singleton={"mode": "skip", "key": TENANT})
    runs = story.events("w", *numbers(1, 2), *numbers(3, t="b"), every="1m")
    assert fates(runs) == ["waiting", "skipped", "waiting"]
    assert runs[1].state.error == f"singleton: run {runs[0].id} goes on for 'a'"
    story.wait("2h")
    assert fates(story.events("w", *numbers(4))) == ["waiting"]


def test_a_singleton_replaces_what_goes_on_and_undoes_it() -> None:
    book = {"id": "book", "action": "log", "compensate": {"action": "log", "with": {"message": "undo {{ input.n }}"}}}
    story = told(book, *SLOW, singleton="replace")
    runs = story.events("w", *numbers(1, 2, 3), every="1m")
    assert fates(runs) == [None, None, "waiting"]
    assert [did.params["message"] for did in story.did("book.compensate")] == ["undo 1", "undo 2"]
    story.wait("1h")
    assert notes(story) == [("10:02:00", 3)]


def test_runs_of_a_key_keep_their_order_to_the_end() -> None:
    story = told(*SLOW, ordering_key=TENANT)
    runs = story.events("w", *numbers(1, 2, 3), *numbers(7, t="b"))
    assert [(run.held, run.begun_at is None) for run in runs] == [
        (None, False),
        ("ordering", True),
        ("ordering", True),
        (None, False),
    ]
    story.cancel(runs[1])
    assert runs[1].status == "cancelled", "who waits can be cancelled"
    story.wait("3h")
    assert notes(story) == [("10:00:00", 1), ("10:00:00", 7), ("11:00:00", 3)]


def test_a_run_that_fails_lets_the_next_begin() -> None:
    story = told({"id": "go", "action": "x", "retry": {"max_attempts": 1}}, ordering_key="all")

    def fail(_: dict[str, Any]) -> None:
        raise RuntimeError("no")

    story.when("x", fail)
    assert fates(story.events("w", *numbers(1, 2, 3))) == ["failed"] * 3


def test_called_runs_wait_where_a_singleton_would_leave_events_out() -> None:
    call = {"id": "call", "workflow": {"name": "inner", "input": "{{ input }}"}}
    story = Story(flow(call), flow(*SLOW, name="inner", singleton="skip"))
    story.events("w", *numbers(1, 2))
    assert [(run.held, run.begun_at is None) for run in story.runs if run.caller] == [
        (None, False),
        ("singleton", True),
    ]
    (skipped,) = story.event("inner", {"n": 3})
    assert skipped.outcome == "skipped"
    story.wait("3h")
    assert notes(story) == [("10:00:00", 1), ("11:00:00", 2)]
    assert {run.status for run in story.runs} == {"succeeded", "cancelled"}


def test_a_caller_hears_of_a_called_run_that_is_replaced_before_it_began() -> None:
    call = {"id": "call", "workflow": "inner", "on_error": "note"}
    note = {"id": "note", "action": "log", "with": {"message": "{{ error.message }}"}}
    story = Story(flow(call, note), flow(*SLOW, name="inner", singleton="replace"))
    story.events("w", *numbers(1, 2))
    story.event("inner", {"n": 3})
    assert len(notes(story)) == 2


def test_concurrency_makes_nobody_wait_where_nothing_takes_time() -> None:
    story = told(*SLOW, concurrency=[1, {"limit": 1, "key": TENANT}])
    assert fates(story.events("w", *numbers(1, 2, 3))) == ["waiting"] * 3
    assert [run.held for run in story.runs] == [None] * 3
    (workflow,) = story.workflows.values()
    assert timeless(workflow.control) is None


def test_two_workflows_do_not_count_for_each_other() -> None:
    limit = {"limit": 1, "period": "1h"}
    story = Story(
        flow(trigger={"event": "x"}, rate_limit=limit), flow(name="v", trigger={"event": "x"}, throttle=limit)
    )
    assert sorted(str(fate) for fate in fates(story.events("x", *numbers(1, 2)))) == [
        "rate_limited",
        "succeeded",
        "succeeded",
        "waiting",
    ]


@pytest.mark.parametrize("n", [3])
def test_many_events_are_told_in_little_time(n: int) -> None:
    story = told(debounce={"period": "1s", "key": TENANT}, throttle={"limit": 1, "period": "1s", "key": TENANT})
    for number in range(1000):
        story.event("w", {"n": number, "t": number % n})
    story.wait("1m")
    assert len(notes(story)) == n


TIMED: list[dict[str, Any]] = [
    {"rate_limit": {"limit": 2, "period": "5s", "key": TENANT}},
    {"throttle": {"limit": 2, "period": "4s", "burst": 1}},
    {"debounce": {"period": "2s", "timeout": "5s", "key": TENANT}},
    {"batch": {"size": 3, "timeout": "3s", "key": TENANT}},
    {"debounce": {"period": "2s"}, "rate_limit": {"limit": 1, "period": "7s"}},
    {"batch": {"size": 2, "timeout": "3s"}, "throttle": {"limit": 1, "period": "5s", "key": TENANT}},
    {"rate_limit": {"limit": 3, "period": "6s"}, "throttle": {"limit": 1, "period": "2s"}, "concurrency": 3},
]


@given(
    st.sampled_from(TIMED),
    st.lists(st.tuples(st.sampled_from([0, 0.25, 1.1, 6.3]), st.sampled_from("ab")), max_size=25),
)
def test_it_keeps_what_rows_keep(said: dict[str, Any], events: list[tuple[float, str]]) -> None:
    """Against the table of rows with which the decisions themselves are tested."""
    lobby, story = Lobby.of(**{part: what for part, what in said.items() if part != "concurrency"}), told(**said)
    lobby.now = story.now.timestamp()
    for n, (gap, tenant) in enumerate(events):
        lobby.wait(gap)
        story.wait(f"{gap}s")
        lobby.arrive(lobby.event(str(n), n + 1, t=tenant))
        story.event("w", {"n": n, "t": tenant})
    lobby.wait(200)
    story.wait("200s")
    assert [str(n) for _, n in notes(story)] == lobby.begun
    assert Counter(fate for fate in fates(story.runs) if fate not in (None, "succeeded")) == lobby.skipped


def test_what_is_wrong_is_refused_as_everywhere() -> None:
    with pytest.raises(DefinitionError):
        told(debounce={"period": "1s"}, batch={"size": 2, "timeout": "1s"})
