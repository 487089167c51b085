"""How runs end: what was done is undone, on_error runs, and what is under way is waited for."""

from __future__ import annotations

from typing import Any

from appliance.engine.core import advance, scope
from appliance.engine.state import (
    CANCELLED,
    FAILED,
    RETRYING,
    RUNNING,
    SUCCEEDED,
    UNKNOWN,
    Cancelled,
    Facts,
    RunState,
)
from tests.unit.engine.life import ONCE, QUICK, VIEW, Close, Finish, Life, act, flow, undoable

Step = dict[str, Any]


def wait(step_id: str = "w") -> Step:
    return {"id": step_id, "wait": {"event": "go"}, "forever": True}


# --- compensation ----------------------------------------------------------------------------------------------------


def test_what_was_done_is_undone_in_reverse_when_the_run_fails() -> None:
    life = Life(undoable("a"), act("b"), undoable("c"), act("d", **ONCE))
    for key in "abc":
        life.ok(key)
    life.fail("d", "broken")
    assert life.asked == ["c.compensate"]
    life.ok("c.compensate")
    assert life.asked == ["a.compensate"]
    assert life.ok("a.compensate") == (Finish(dead="d"),)
    assert (life.over, life.state.error) == (FAILED, "broken")


def test_nothing_is_undone_when_the_run_succeeds() -> None:
    life = Life(undoable("a"))
    life.ok("a")
    assert (life.over, life.asked) == (SUCCEEDED, [])


def test_what_failed_or_was_skipped_is_not_undone() -> None:
    never = {"path": "data.n", "op": "==", "value": 9}
    life = Life(undoable("a", on_error="continue", **ONCE), undoable("b", **{"if": never}), act("c", **ONCE))
    life.fail("a")
    life.fail("c")
    assert (life.over, life.asked) == (FAILED, [])


def test_a_compensation_is_repeated_and_one_that_fails_for_good_does_not_stop_the_others() -> None:
    undo = {"compensate": {"action": "undo", **QUICK}}
    life = Life(act("a", **undo), act("b", **undo), act("c", **ONCE))
    life.ok("a")
    life.ok("b")
    life.fail("c", "broken")
    life.fail("b.compensate", "away", retryable=True)
    assert life.state.status == RETRYING
    life.wake(life.state.next_due())
    assert life.asked == ["b.compensate"]
    life.fail("b.compensate", "gone")
    assert life.asked == ["a.compensate"]
    life.ok("a.compensate")
    assert (life.over, life.state.error) == (FAILED, "broken; b.compensate: gone")


def test_branches_are_undone_in_the_reverse_order_of_their_ends() -> None:
    branches = {"x": [undoable("a"), act("z", **ONCE)], "y": [undoable("b")], "v": [undoable("c")]}
    life = Life({"id": "p", "parallel": {"branches": branches}})
    life.ok("b")
    life.ok("a")
    life.fail("z")
    assert life.asked == [], "c is under way: it may have its effect"
    life.ok("c")
    undone = []
    while life.over is None:
        (key,) = life.asked
        undone.append(key)
        life.ok(key)
    assert undone == ["c.compensate", "a.compensate", "b.compensate"]


def test_each_item_is_undone() -> None:
    loop = {"items": [1, 2], "steps": [undoable("a")]}
    life = Life({"id": "f", "for_each": loop}, act("z", **ONCE))
    life.ok("a[0]")
    life.ok("a[1]")
    life.fail("z")
    assert life.asked == ["a.compensate[1]"]
    life.ok("a.compensate[1]")
    assert life.asked == ["a.compensate[0]"]


def test_a_compensation_that_was_lost_is_made_again() -> None:
    life = Life(undoable("a"), act("b", **ONCE))
    life.ok("a")
    life.fail("b")
    life.wake()
    assert life.asked == ["a.compensate"]


def test_a_lost_attempt_that_can_be_undone_is_made_again_to_find_out() -> None:
    branches = {"x": [act("a", **ONCE)], "y": [undoable("b")]}
    life = Life({"id": "p", "parallel": {"branches": branches}})
    life.fail("a")
    life.wake()
    assert life.asked == ["b"]
    life.ok("b")
    assert life.asked == ["b.compensate"]


def test_what_is_unknown_is_settled_before_anything_is_undone() -> None:
    pay = undoable("b", effects="at_most_once")
    life = Life({"id": "p", "parallel": {"branches": {"x": [act("a", **ONCE)], "y": [pay]}}})
    life.fail("b", kind="timeout")
    life.fail("a")
    assert (life.over, life.status("b")) == (None, UNKNOWN)
    life.settle("b", "succeeded")
    assert life.asked == ["b.compensate"]
    life.ok("b.compensate")
    assert life.over == FAILED


def test_what_need_not_be_done_any_more_is_not_tried_again() -> None:
    life = Life(act("b", effects="at_most_once"))
    life.wake()
    life.cancel()
    assert life.status("b") == UNKNOWN
    life.settle("b", "retry")
    assert (life.over, life.status("b"), life.asked) == (CANCELLED, CANCELLED, [])


def test_a_called_run_that_is_to_be_undone_is_heard_out() -> None:
    """It is asked to end, and may succeed all the same: then it is undone."""
    called = {"id": "c", "workflow": "other", "compensate": {"action": "undo"}}
    life = Life(called)
    life.cancel()
    assert (life.over, life.of(Close)) == (None, [Close("c", "workflow", CANCELLED)])
    life.child("c", output=1)
    assert life.asked == ["c.compensate"]
    other = Life(called)
    other.cancel()
    other.child("c", CANCELLED)
    assert (other.over, other.status("c"), other.asked) == (CANCELLED, CANCELLED, [])


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_a_run_that_never_began_can_be_cancelled() -> None:
    state, commands = advance(flow(act("a")), Facts(VIEW), RunState(), Cancelled("no"), 1.0)
    assert (state.status, state.error, commands) == (CANCELLED, "no", (Finish(),))


def test_what_is_parked_is_cancelled_at_once_and_what_was_done_is_undone() -> None:
    life = Life(undoable("a"), wait())
    life.ok("a")
    life.cancel()
    assert (life.of(Close), life.asked) == ([Close("w", "wait", CANCELLED)], ["a.compensate"])
    life.ok("a.compensate")
    assert (life.over, life.state.error) == (CANCELLED, "enough")


def test_an_attempt_that_is_under_way_is_waited_for_and_undone() -> None:
    life = Life(undoable("a"), act("b"))
    life.cancel()
    assert (life.asked, life.over, life.status("a")) == ([], None, RUNNING)
    life.ok("a")
    assert life.asked == ["a.compensate"]


def test_a_lost_attempt_of_a_cancelled_run_is_not_made_again() -> None:
    life = Life(act("a"), act("b"))
    life.cancel()
    life.wake()
    assert (life.over, life.status("a")) == (CANCELLED, CANCELLED)
    assert "may have had its effect" in str(life.state.steps["a"].error)


def test_what_waits_for_its_next_attempt_is_cancelled() -> None:
    life = Life(act("a", **QUICK))
    life.fail("a", retryable=True)
    life.cancel()
    assert life.over == CANCELLED


def test_a_cancel_does_not_run_on_error_and_a_second_one_changes_nothing() -> None:
    life = Life(undoable("a"), wait(), on_error=[act("h")])
    life.ok("a")
    life.cancel()
    life.cancel()
    assert life.standing() == ["a.compensate"]
    life.ok("a.compensate")
    assert (life.over, life.asked) == (CANCELLED, [])


def test_what_comes_in_for_a_run_that_is_about_to_end_is_not_taken() -> None:
    life = Life({"id": "p", "parallel": {"branches": {"x": [act("a")], "y": [wait()]}}})
    life.cancel()
    life.event("go", "w")
    assert life.status("w") == CANCELLED
    life.ok("a")
    assert life.over == CANCELLED


# --- on_error of the workflow ----------------------------------------------------------------------------------------


def test_on_error_runs_last_and_sees_what_failed() -> None:
    life = Life(undoable("a"), act("b", **ONCE), on_error=[act("h"), act("i")])
    life.ok("a")
    life.fail("b", "broken")
    life.fail("a.compensate", "stuck")
    assert life.asked == ["h"]
    assert scope(life.workflow, life.facts, life.state, "h", 0.0)["error"] == {"step": "b", "message": "broken"}
    life.ok("h")
    assert life.ok("i") == (Finish(dead="b"),)
    assert life.over == FAILED


def test_on_error_sees_the_end_that_let_the_run_fail() -> None:
    life = Life({"id": "e", "end": {"outcome": "refused", "status": "failed"}}, on_error=[act("h")])
    seen = scope(life.workflow, life.facts, life.state, "h", 0.0)["error"]
    assert seen == {"step": "e", "message": "ended as refused at e"}


def test_on_error_that_fails_is_said_and_the_run_stays_failed_at_its_step() -> None:
    life = Life(act("a", **ONCE), on_error=[act("h", **ONCE), act("i")])
    life.fail("a", "broken")
    life.fail("h", "too")
    assert (life.over, life.state.at, life.state.error) == (FAILED, "a", "broken; on_error, h: too")


def test_on_error_may_wait_for_what_comes_in() -> None:
    """A task, a called run and an event, while the run is about to end."""
    task = {"id": "t", "human_task": {"title": "What now?"}}
    handlers = [task, {"id": "c", "workflow": "other"}, wait()]
    life = Life(act("a", **ONCE), on_error=handlers)
    life.fail("a")
    life.answer("t", retry=False)
    assert life.output("t") == {"retry": False}
    life.child("c", output=1)
    life.event("go", "w")
    assert (life.over, life.status("w")) == (FAILED, SUCCEEDED)


def test_what_is_unknown_in_on_error_is_settled() -> None:
    life = Life(act("a", **ONCE), on_error=[act("h", effects="at_most_once"), act("i")])
    life.fail("a")
    life.fail("h", kind="timeout")
    life.settle("h", "succeeded")
    assert life.asked == ["i"]


def test_a_block_that_fails_in_on_error_ends_its_other_branches() -> None:
    block = {"id": "p", "parallel": {"branches": {"x": [act("h", **ONCE)], "y": [wait()]}}}
    life = Life({"id": "e", "end": {"status": "failed"}}, on_error=[block])
    life.fail("h")
    assert (life.over, life.status("w"), life.state.at) == (FAILED, CANCELLED, None)


def test_end_in_on_error_gives_the_outcome_and_ends_the_handler() -> None:
    block = {"id": "p", "parallel": {"join": "any", "branches": {"x": [{"id": "e", "end": "given up"}], "y": [wait()]}}}
    life = Life(act("a", **ONCE), on_error=[block, act("i")])
    life.fail("a")
    assert (life.over, life.state.outcome, life.asked) == (FAILED, "given up", [])


def test_a_retried_run_runs_on_error_again() -> None:
    life = Life(act("a", **ONCE), on_error=[act("h")])
    life.fail("a")
    life.ok("h")
    life.retry()
    life.fail("a")
    assert life.asked == ["h#2"]
    life.ok("h#2")
    assert life.over == FAILED
