"""The pure core, one kind of step after the other: what it asks for at once, what it waits for, where it leads."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.engine.core import MAX_RETRY_AFTER_S, advance, postponed, scope
from appliance.engine.state import (
    CANCELLED,
    FAILED,
    RETRYING,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    UNKNOWN,
    WAITING,
    ActionFailed,
    ActionSucceeded,
    Facts,
    Resumed,
    Retried,
    RunAction,
    RunState,
    Started,
)
from tests.unit.engine.life import ONCE, QUICK, VIEW, Ask, Call, Close, Finish, Life, Listen, Take, act, flow

# --- actions ---------------------------------------------------------------------------------------------------------


def test_steps_run_one_after_the_other_and_the_run_succeeds() -> None:
    life = Life(act("a"), act("b"))
    assert life.commands == (RunAction("a", "a", 1),)
    assert life.ok("a", {"k": 1}) == (RunAction("b", "b", 1),)
    assert life.ok("b") == (Finish(),)
    assert (life.over, life.state.finished_at) == (SUCCEEDED, 2.0)
    assert life.output("a") == {"k": 1}


def test_a_step_whose_condition_does_not_hold_is_skipped_and_does_not_jump() -> None:
    more = {"path": "data.n", "op": ">", "value": 5}
    life = Life(act("a", **{"if": more}, next="c"), act("b"), act("c"))
    assert life.asked == ["b"]
    assert life.status("a") == SKIPPED


def test_a_condition_sees_earlier_outputs() -> None:
    condition = {"path": "steps.a.output.ok", "op": "==", "value": True}
    for ok, over in ((True, None), (False, SUCCEEDED)):
        life = Life(act("a"), act("b", **{"if": condition}))
        life.ok("a", {"ok": ok})
        assert life.over == over


def test_a_condition_sees_the_error_of_the_only_step_before() -> None:
    condition = {"path": "error.message", "op": "==", "value": "away"}
    life = Life(act("a", on_error="continue", **ONCE), act("b", **{"if": condition}))
    life.fail("a", "away")
    assert life.asked == ["b"]


def test_next_jumps_forward_and_end_ends() -> None:
    life = Life(act("a", next="c", on_error="b"), act("b", next="end"), act("c"))
    life.ok("a")
    assert life.asked == ["c"]
    assert "b" not in life.state.steps
    other = Life(act("a", next="c", on_error="b"), act("b", next="end"), act("c"))
    other.fail("a")
    other.ok("b")
    assert other.over == SUCCEEDED


def test_a_retryable_failure_waits_and_tries_again_until_its_attempts_are_used_up() -> None:
    life = Life(act("a", **QUICK))
    life.now = 100.0
    life.fail("a", "away", retryable=True)
    assert (life.state.status, life.state.next_due(), life.asked) == (RETRYING, 110.0, [])
    assert life.wake(105.0) == ()
    assert life.wake(110.0) == (RunAction("a", "a", 2),)
    assert life.fail("a", "still away", retryable=True) == (Finish(dead="a"),)
    assert (life.over, life.state.error) == (FAILED, "still away")


def test_a_rejected_attempt_is_not_repeated() -> None:
    life = Life(act("a", **QUICK))
    assert life.fail("a") == (Finish(dead="a"),)
    assert life.state.steps["a"].attempt == 1


def test_what_the_other_side_asks_for_is_a_lower_bound_with_a_cap() -> None:
    for after_s, due in ((90.0, 90.0), (1e12, MAX_RETRY_AFTER_S), (1.0, 10.0)):
        life = Life(act("a", **QUICK))
        life.now = 0.0
        life.fail("a", retryable=True, after_s=after_s)
        assert life.state.next_due() == due


def test_max_elapsed_bounds_the_retries() -> None:
    life = Life(act("a", retry={"initial": "10s", "max_elapsed": "15s", "jitter": False}))
    life.now = 0.0
    life.fail("a", retryable=True)
    life.wake(10.0)
    life.now = 10.0
    assert life.fail("a", retryable=True) == (Finish(dead="a"),)


@pytest.mark.parametrize(
    ("kind", "classes", "attempts"), [("timeout", (), 1), ("error", ("ConnectError",), 4), ("error", ("OSError",), 2)]
)
def test_retries_differ_by_error(kind: str, classes: tuple[str, ...], attempts: int) -> None:
    by_error = {"timeout": {"max_attempts": 1}, "ConnectError": {"max_attempts": 4}}
    life = Life(act("a", retry={**QUICK["retry"], "by_error": by_error}))
    made = 0
    while life.over is None:
        made += 1
        life.fail("a", retryable=True, kind=kind, classes=classes)
        if life.over is None:
            life.wake(life.state.next_due())
    assert made == attempts


@pytest.mark.parametrize(
    ("on_error", "asked", "over"), [("c", ["c"], None), ("continue", ["b"], None), ("end", [], SUCCEEDED)]
)
def test_on_error(on_error: str, asked: list[str], over: str | None) -> None:
    life = Life(act("a", on_error=on_error), act("b"), act("c"))
    life.fail("a")
    assert (life.asked, life.over, life.status("a")) == (asked, over, FAILED)


def test_an_attempt_whose_process_died_is_made_again() -> None:
    life = Life(act("a", **QUICK))
    life.fail("a", retryable=True)
    life.wake(50.0)
    assert life.wake() == (RunAction("a", "a", 2),), "the same attempt"
    assert life.wake(lost=False) == (), "whoever makes it is there"


def test_what_was_postponed_is_due_at_once() -> None:
    workflow = flow(act("a"))
    state, _ = advance(workflow, Facts(VIEW), RunState(), Started(), 0.0)
    state = postponed(state, ["a"], 5.0)
    assert (state.status, state.next_due()) == (RETRYING, 5.0)
    assert advance(workflow, Facts(VIEW), state, Resumed(), 9.0)[1] == (RunAction("a", "a", 1),)


def test_a_result_of_a_step_at_which_the_run_does_not_stand_is_refused() -> None:
    life = Life(act("a"), act("b"))
    with pytest.raises(ValueError, match="'b'"):
        life.ok("b")


@pytest.mark.parametrize("status", [SUCCEEDED, CANCELLED])
def test_a_finished_run_stays_as_it_is(status: str) -> None:
    ended = RunState(status=status)
    for given in (Started(), Resumed(), ActionSucceeded("a", 1), ActionFailed("a", "", True), Retried()):
        assert advance(flow(act("a")), Facts(VIEW), ended, given, 9.0) == (ended, (Finish(),))


def test_parameters_see_event_steps_run_and_input() -> None:
    life = Life(act("a"), act("b"))
    life.ok("a", {"k": 1})
    seen = scope(life.workflow, life.facts, life.state, "b", 0.0)
    assert seen["steps"]["a"] == {"output": {"k": 1}, "status": SUCCEEDED, "error": None}
    assert (seen["event"], seen["input"], seen["run"], seen["error"]) == (VIEW, {"given": 1}, {"id": "r"}, None)
    assert "secrets" not in seen


# --- at most once ----------------------------------------------------------------------------------------------------


def once(*more: Any) -> Life:
    return Life(act("a", effects="at_most_once"), act("b"), *more)


def test_an_attempt_made_at_most_once_that_got_lost_waits_for_a_person() -> None:
    life = once()
    assert life.wake() == ()
    assert (life.status("a"), life.state.status, life.state.next_due()) == (UNKNOWN, WAITING, None)


@pytest.mark.parametrize("kind", ["timeout", "error"])
def test_a_failure_that_says_nothing_about_the_effect_waits_for_a_person(kind: str) -> None:
    life = once()
    life.fail("a", retryable=True, kind=kind)
    assert life.status("a") == UNKNOWN


@pytest.mark.parametrize("kind", ["rejected", "retry"])
def test_a_failure_that_says_that_nothing_happened_fails_at_once(kind: str) -> None:
    life = once()
    life.fail("a", retryable=True, kind=kind)
    assert life.over == FAILED


def test_what_is_unknown_is_settled_as_succeeded() -> None:
    life = once()
    life.wake()
    life.settle("a", "succeeded", output={"id": 7})
    assert (life.asked, life.output("a")) == (["b"], {"id": 7})


def test_what_is_unknown_is_settled_as_failed() -> None:
    life = once()
    life.wake()
    life.settle("a", "failed", error="it never arrived")
    assert (life.over, life.state.error) == (FAILED, "it never arrived")


def test_what_is_unknown_is_tried_again_if_a_person_says_so() -> None:
    life = once()
    life.wake()
    life.settle("a", "retry")
    assert life.status("a") in (RETRYING, RUNNING)
    life.wake(lost=False)
    assert life.status("a") == RUNNING


def test_what_is_settled_twice_is_settled_once() -> None:
    life = once()
    life.wake()
    life.settle("a", "succeeded")
    life.settle("a", "failed")
    assert life.of(Take) == [Take("s2", "a", "a", False)]
    assert life.status("a") == SUCCEEDED


# --- delay, choose, transform, end -----------------------------------------------------------------------------------


def test_a_delay_parks_and_goes_on_when_it_is_over() -> None:
    life = Life(flow({"id": "a", "delay": "1h"}, act("b")))
    assert (life.state.status, life.state.next_due(), life.commands) == (WAITING, 3600.0, ())
    assert life.wake(3599.0) == ()
    assert life.wake(3600.0) == (RunAction("b", "b", 1),)
    assert life.status("a") == SUCCEEDED


def test_a_delay_of_business_hours_counts_open_time_only() -> None:
    hours = {"days": "mon-fri", "from": "09:00", "to": "17:00"}
    friday = 1_900_000_000.0 // 604_800 * 604_800 + 86_400 + 16 * 3600  # Thursday is day 0: Friday, 16:00
    workflow = flow({"id": "a", "delay": {"for": "2h", "business_hours": hours}})
    state, _ = advance(workflow, Facts(VIEW), RunState(), Started(), friday)
    assert state.next_due() == friday + 3 * 86_400 - 6 * 3600, "Monday, 10:00"


def test_what_can_not_be_computed_fails_its_step() -> None:
    life = Life({"id": "a", "delay": {"until": "{{ event.data.when }}"}})
    assert life.commands == (Finish(dead="a"),)
    other = Life({"id": "a", "transform": "{{ 1 / event.data.zero }}", "on_error": "b"}, act("b"))
    assert other.asked == ["b"]


def test_choose_takes_the_first_branch_that_holds() -> None:
    holds, not_ = ({"path": "data.n", "op": "==", "value": value} for value in (1, 2))
    branches = [{"when": not_, "steps": [act("x")]}, {"when": holds, "steps": [act("y")]}, {"steps": [act("z")]}]
    life = Life({"id": "a", "choose": branches}, act("b"))
    assert (life.asked, life.output("a")) == (["y"], {"branch": 1})
    life.ok("y")
    assert life.asked == ["b"]
    assert Life({"id": "a", "choose": branches[:1]}, act("b")).asked == ["b"], "none holds: it goes on behind"
    assert Life({"id": "a", "choose": [{"when": holds, "next": "c"}]}, act("b"), act("c")).asked == ["c"]


def test_transform_makes_data() -> None:
    made = {"id": "a", "transform": {"n": "{{ event.data.n + 1 }}", "all": "{{ event.data.lines }}"}}
    life = Life(made, {"id": "b", "transform": {"logic": {"+": [{"var": "steps.a.output.n"}, 1]}}})
    assert (life.over, life.output("a"), life.output("b")) == (SUCCEEDED, {"n": 2, "all": ["a", "b", "c"]}, 3)


def test_end_ends_the_run_with_its_outcome_and_output() -> None:
    life = Life(act("a"), {"id": "e", "end": {"outcome": "done", "output": {"n": "{{ steps.a.output }}"}}})
    life.ok("a", 3)
    assert (life.over, life.state.outcome, life.state.output) == (SUCCEEDED, "done", {"n": 3})


def test_end_may_let_the_run_fail_without_a_dead_letter() -> None:
    life = Life({"id": "e", "end": {"outcome": "refused", "status": "failed"}})
    assert (life.over, life.state.outcome, life.commands) == (FAILED, "refused", (Finish(),))


def test_the_output_of_the_workflow_is_rendered_at_its_end() -> None:
    life = Life(act("a"), output={"got": "{{ steps.a.output }}"})
    life.ok("a", [1])
    assert life.state.output == {"got": [1]}
    other = Life(act("a"), output="{{ 1 / event.data.zero }}")
    other.ok("a")
    assert (other.over, other.state.error) == (FAILED, "output: output: division by zero")


# --- wait ------------------------------------------------------------------------------------------------------------


def wait(**more: Any) -> dict[str, Any]:
    match = {"path": "data.order", "value": "{{ event.data.n }}"}
    return {"id": "w", "wait": {"event": ["paid", "re*"], "match": match, **more.pop("wait", {})}, **more}


def test_a_wait_listens_for_the_values_that_it_matches() -> None:
    life = Life(wait(forever=True), act("b"))
    assert life.commands == (Listen("w", "w", (1,)),)
    assert (life.state.status, life.state.next_due()) == (WAITING, None)
    life.event("paid", "w", order=1)
    assert life.asked == ["b"]
    assert life.of(Close) == [Close("w", "wait", "answered")]
    assert life.output("w")["data"] == {"order": 1}


def test_an_event_that_does_not_fulfil_the_condition_is_ignored() -> None:
    condition = {"path": "data.amount", "op": ">", "value": 10}
    life = Life(wait(forever=True, wait={"when": condition}), act("b"))
    life.event("paid", "w", amount=5)
    assert life.of(Take) == [Take("s1", "w", "w", False)]
    life.event("paid", "w", amount=50)
    assert life.asked == ["b"]


def test_a_wait_whose_time_is_over_fails_or_goes_elsewhere() -> None:
    life = Life(wait(deadline={"after": "1h"}), act("b"))
    life.wake(3600.0)
    assert (life.over, life.state.error) == (FAILED, "its deadline passed")
    assert life.of(Close) == [Close("w", "wait", "expired")]
    other = Life(wait(deadline={"after": "1h", "next": "c"}), act("b", next="end"), act("c"))
    other.wake(3600.0)
    assert (other.asked, other.status("w")) == (["c"], FAILED)
    third = Life(wait(deadline={"after": "1h", "next": "end"}), act("b"))
    third.wake(3600.0)
    assert third.over == SUCCEEDED


def test_an_event_that_was_sent_before_the_wait_begins_is_kept_for_it() -> None:
    life = Life(act("a"), wait(forever=True), act("b"))
    life.event("refund")
    assert life.of(Take) == []
    life.ok("a")
    assert life.asked == ["b"]
    assert life.of(Take) == [Take("s1", "", "w", True)]


def test_an_event_of_another_type_is_not_for_the_wait() -> None:
    life = Life(wait(forever=True))
    life.event("noise")
    assert (life.of(Take), life.standing()) == ([], ["w"])


# --- people ----------------------------------------------------------------------------------------------------------


def ask(notify: bool = True, **more: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"title": "Pay {{ event.data.n }}?", "group": "boss"}
    if notify:
        about |= {"notify": {"action": "mail", **QUICK}, "reminders": ["1h", "2h"]}
    return {"id": "t", "human_task": about, **more}


def test_a_task_is_asked_and_its_answer_is_the_output() -> None:
    life = Life(ask(notify=False), act("b"))
    (asked,) = life.of(Ask)
    assert (asked.about["title"], asked.about["group"], asked.due_at) == ("Pay 1?", "boss", None)
    life.answer("t", yes=True)
    assert (life.asked, life.output("t")) == (["b"], {"yes": True})


def test_people_are_told_and_reminded_until_there_is_an_answer() -> None:
    life = Life(ask(), act("b"))
    assert (life.asked, life.state.next_due()) == (["t.notify"], 3600.0)
    life.ok("t.notify")
    assert life.wake(3600.0) == (RunAction("t.notify#2", "t.notify", 1),)
    life.ok("t.notify#2")
    assert life.state.next_due() == 7200.0
    life.wake(7200.0)
    life.ok("t.notify#3")
    assert life.state.next_due() is None
    life.answer("t", yes=True)
    assert life.asked == ["b"]


def test_a_notice_that_fails_harms_nobody_and_one_that_is_due_is_not_given_after_the_answer() -> None:
    life = Life(ask(), act("b"))
    life.fail("t.notify")
    assert life.standing() == ["t"]
    other = Life(ask(), act("b"))
    other.fail("t.notify", retryable=True)
    other.answer("t", yes=True)
    assert (other.status("t.notify"), other.standing()) == (CANCELLED, ["b"])


def test_an_answer_that_is_there_wins_against_a_deadline_that_has_passed() -> None:
    life = Life(ask(notify=False, deadline={"after": "1h"}), act("b"))
    life.now = 9999.0
    life.answer("t", yes=True)
    assert (life.asked, life.of(Close)) == (["b"], [Close("t", "human_task", "answered")])


def test_a_task_that_nobody_answers_expires() -> None:
    life = Life(ask(deadline={"after": "90m", "next": "c"}), act("b", next="end"), act("c"))
    life.ok("t.notify")
    life.wake(3600.0)
    life.ok("t.notify#2")
    assert life.state.next_due() == 5400.0, "the deadline comes before the second reminder"
    life.wake(5400.0)
    assert (life.asked, life.of(Close)) == (["c"], [Close("t", "human_task", "expired")])
    life.answer("t", yes=True)
    assert life.of(Take) == [Take("s1", "t", "t", False)]


# --- calls -----------------------------------------------------------------------------------------------------------


def call(**more: Any) -> dict[str, Any]:
    return {"id": "c", "workflow": {"name": "other", "input": {"n": "{{ event.data.n }}"}}, **more}


def test_a_call_gives_the_output_of_the_called_run() -> None:
    life = Life(call(), act("b"))
    assert life.commands == (Call("c", "c", "other", {"n": 1}),)
    life.child("c", output={"k": 2})
    assert (life.asked, life.output("c")) == (["b"], {"k": 2})


@pytest.mark.parametrize("status", [FAILED, CANCELLED])
def test_a_called_run_that_does_not_succeed_fails_the_step(status: str) -> None:
    life = Life(call(on_error="b"), act("b"))
    life.child("c", status)
    assert (life.asked, life.status("c")) == (["b"], FAILED)
    assert life.state.steps["c"].error == f"other: it was {status}"


def test_a_call_that_takes_too_long_is_given_up_and_ended() -> None:
    life = Life(call(deadline={"after": "1h"}))
    life.wake(3600.0)
    assert (life.over, life.of(Close)) == (FAILED, [Close("c", "workflow", "expired")])


def test_a_call_that_can_not_be_made_fails_the_step() -> None:
    life = Life(call(on_error="b"), act("b"))
    life.fail("c", "there is no such workflow", kind="call")
    assert life.asked == ["b"]
