"""Branches and items: how they are joined, what becomes of losers, of failures, and of what comes round again."""

from __future__ import annotations

import time
from typing import Any

import pytest

from appliance.engine.core import scope
from appliance.engine.state import CANCELLED, FAILED, RUNNING, SUCCEEDED, UNKNOWN, WAITING, Listen, Retried, RunAction
from appliance.workflows.compile import compile_workflow
from tests.unit.engine.life import ONCE, QUICK, Close, Life, act, undoable

Step = dict[str, Any]


def parallel(join: str | int = "all", step_id: str = "p", more: Step | None = None, **branches: list[Step]) -> Step:
    return {"id": step_id, "parallel": {"branches": branches, "join": join}, **(more or {})}


def each(
    *steps: Step, items: Any = "{{ event.data.lines }}", called: str = "item", more: Step | None = None, **loop: Any
) -> Step:
    return {"id": "f", "for_each": {"items": items, "as": called, "steps": [*steps], **loop}, **(more or {})}


def wait(step_id: str) -> Step:
    return {"id": step_id, "wait": {"event": "go"}, "forever": True}


# --- parallel --------------------------------------------------------------------------------------------------------


def test_all_branches_run_side_by_side_and_are_joined() -> None:
    life = Life(parallel(left=[act("a"), act("b")], right=[act("c")]), act("d"))
    assert life.asked == ["a", "c"]
    life.ok("c", "C")
    life.ok("a", "A")
    assert (life.asked, life.standing()) == (["b"], ["b"])
    life.ok("b", "B")
    assert (life.asked, life.output("p")) == (["d"], {"left": "B", "right": "C"})


def test_of_any_the_first_wins_and_what_is_parked_is_cancelled() -> None:
    life = Life(parallel("any", fast=[act("a")], slow=[wait("w")], late=[{"id": "z", "delay": "1h"}]), act("d"))
    life.ok("a", 1)
    assert (life.asked, life.of(Close)) == (["d"], [Close("w", "wait", CANCELLED)])
    assert (life.status("w"), life.status("z")) == (CANCELLED, CANCELLED)
    assert life.output("p") == {"fast": 1, "slow": None, "late": None}


def test_an_attempt_that_is_under_way_when_its_branch_loses_is_finished_and_goes_no_further() -> None:
    life = Life(parallel("any", fast=[act("a")], slow=[act("b"), act("c")]), act("d"))
    life.ok("a")
    assert life.status("b") == RUNNING
    life.ok("d")
    assert not life.over, "it is waited for"
    life.ok("b", 5)
    assert (life.over, life.asked, life.output("b")) == (SUCCEEDED, [], 5)
    assert "c" not in life.state.steps


def test_a_loser_that_fails_is_not_repeated() -> None:
    life = Life(parallel("any", fast=[act("a")], slow=[act("b", **QUICK)]), act("d"))
    life.ok("a")
    life.fail("b", "away", retryable=True)
    assert (life.status("b"), life.state.next_due()) == (CANCELLED, None)


def test_a_lost_attempt_of_a_loser_is_made_again_only_if_it_can_be_undone() -> None:
    life = Life(parallel("any", fast=[act("a")], slow=[act("b")], dear=[undoable("c")]), act("d"))
    life.ok("a")
    life.wake()
    assert (life.asked, life.status("b")) == (["c", "d"], CANCELLED)


def test_a_number_of_branches_is_enough() -> None:
    life = Life(parallel(2, x=[act("a")], y=[act("b")], z=[act("c")]), act("d"))
    life.ok("c", 3)
    life.fail("a")
    assert life.asked == []
    life.ok("b", 2)
    assert (life.asked, life.output("p")) == (["d"], {"x": None, "y": 2, "z": 3})


def test_a_join_that_can_not_be_reached_any_more_fails_the_step_and_ends_the_others() -> None:
    life = Life(parallel(2, x=[act("a")], y=[act("b")], z=[wait("w")], more={"on_error": "d"}), act("d"))
    life.fail("a")
    assert life.of(Close) == []
    life.fail("b")
    assert (life.asked, life.of(Close)) == (["d"], [Close("w", "wait", CANCELLED)])
    assert life.state.steps["p"].error == "b: no"
    assert life.state.blocks == {}, "nothing is kept of a block that is over"


def test_a_branch_that_fails_fails_all_at_once_and_the_run_at_its_step() -> None:
    life = Life(parallel(x=[act("a", **ONCE)], y=[wait("w")]))
    life.fail("a", "broken")
    assert (life.over, life.state.at, life.state.error) == (FAILED, "a", "a: broken")
    assert life.status("w") == CANCELLED


def test_an_attempt_that_was_only_asked_for_is_not_made_when_its_block_fails_in_the_same_turn() -> None:
    bad = {"id": "b", "transform": "{{ 1 / event.data.zero }}"}
    life = Life(parallel(x=[act("a")], y=[bad]))
    assert (life.over, life.asked, life.status("a")) == (FAILED, [], CANCELLED)


def test_what_is_unknown_stays_so_when_its_branch_loses() -> None:
    life = Life(parallel("any", x=[act("a")], y=[act("b", effects="at_most_once")]), act("d"))
    life.fail("b", kind="timeout")
    life.ok("a")
    life.ok("d")
    assert (life.over, life.status("b")) == (None, UNKNOWN)
    life.settle("b", "succeeded")
    assert life.over == SUCCEEDED


def test_end_in_a_branch_ends_the_branch_and_an_end_step_the_run() -> None:
    life = Life(parallel(x=[act("a", on_error="end"), act("b")], y=[act("c")]), act("d"))
    life.fail("a")
    life.ok("c", 1)
    assert (life.asked, life.output("p")) == (["d"], {"x": None, "y": 1})
    other = Life(parallel("any", x=[act("a"), {"id": "e", "end": "early"}], y=[wait("w")]), act("d"))
    other.ok("a")
    assert (other.over, other.state.outcome, other.status("w")) == (SUCCEEDED, "early", CANCELLED)


def test_blocks_stand_in_blocks() -> None:
    inner = parallel("any", "q", x=[act("a")], y=[wait("w")])
    life = Life(parallel(left=[inner, act("b")], right=[each(act("c"), items=[1, 2], concurrency=2)]), act("d"))
    assert life.asked == ["a", "c[0]", "c[1]"]
    life.ok("a", 1)
    assert (life.asked, life.status("w")) == (["b"], CANCELLED)
    life.ok("c[1]", "y")
    life.ok("c[0]", "x")
    life.ok("b", 2)
    assert (life.asked, life.output("p")) == (["d"], {"left": 2, "right": ["x", "y"]})


def test_a_failure_goes_up_until_something_catches_it() -> None:
    inner = parallel("all", "q", x=[act("a", **ONCE)], y=[wait("w")])
    life = Life(parallel("all", "p", {"on_error": "d"}, left=[inner, act("b")], right=[wait("v")]), act("c"), act("d"))
    life.fail("a", "broken")
    assert life.asked == ["d"]
    assert life.statuses() | {"d": RUNNING} == {
        "p": FAILED, "q": FAILED, "a": FAILED, "w": CANCELLED, "v": CANCELLED, "d": RUNNING,
    }  # fmt: skip


# --- for_each --------------------------------------------------------------------------------------------------------


def test_items_run_one_after_the_other_and_give_their_outputs_in_order() -> None:
    life = Life(each(act("a"), act("b")), act("d"))
    for index in range(3):
        assert life.standing() == [f"a[{index}]"]
        life.ok(f"a[{index}]")
        life.ok(f"b[{index}]", index)
    assert (life.asked, life.output("f")) == (["d"], [0, 1, 2])


def test_as_many_items_as_allowed_are_under_way_and_the_order_is_that_of_the_list() -> None:
    life = Life(each(act("a"), concurrency=2))
    assert life.asked == ["a[0]", "a[1]"]
    life.ok("a[1]", "B")
    assert life.asked == ["a[2]"]
    life.ok("a[2]", "C")
    life.ok("a[0]", "A")
    assert (life.over, life.output("f")) == (SUCCEEDED, ["A", "B", "C"])


def test_each_item_sees_itself_and_its_own_steps() -> None:
    seen = {"id": "t", "transform": ["{{ line }}", "{{ index }}", "{{ steps.a.output }}"]}
    life = Life(each(act("a"), seen, concurrency=3, called="line"))
    for index in (2, 0, 1):
        life.ok(f"a[{index}]", index * 10)
    assert life.output("f") == [["a", 0, 0], ["b", 1, 10], ["c", 2, 20]]


def test_loops_stand_in_loops() -> None:
    inner = {"id": "g", "for_each": {"items": "{{ item }}", "as": "x", "steps": [{"id": "t", "transform": "{{ x }}"}]}}
    life = Life(each(inner, items=[[1, 2], [], [3]]))
    assert (life.over, life.output("f")) == (SUCCEEDED, [[1, 2], [], [3]])
    assert life.output("t[0][1]") == 2


def test_no_items_are_done_at_once() -> None:
    life = Life(each(act("a"), items=[]), act("d"))
    assert (life.asked, life.output("f")) == (["d"], [])


@pytest.mark.parametrize(("items", "message"), [("{{ event.data.n }}", "expected a list, got int"), ("big", "1001")])
def test_what_is_no_list_or_too_long_fails_the_step(items: str, message: str) -> None:
    life = Life(each(act("a"), items=list(range(1001)) if items == "big" else items))
    assert life.over == FAILED
    assert message in str(life.state.error)


def test_an_item_that_fails_ends_the_others() -> None:
    life = Life(each(act("a", **ONCE), wait("w"), concurrency=2, more={"on_error": "d"}), act("c"), act("d"))
    life.ok("a[1]")
    life.fail("a[0]", "broken")
    assert (life.asked, life.status("w[1]")) == (["d"], CANCELLED)
    assert "a[2]" not in life.state.steps


def test_what_undoes_or_tells_of_an_item_sees_the_item() -> None:
    undo = {"compensate": {"action": "undo", "with": {"line": "{{ line }}", "was": "{{ steps.a.output }}"}}}
    life = Life(each(act("a", **undo), act("b", **ONCE), called="line"))
    life.ok("a[0]", 7)
    life.fail("b[0]")
    assert life.asked == ["a.compensate[0]"]
    seen = scope(life.workflow, life.facts, life.state, "a.compensate[0]", 0.0)
    assert (seen["line"], seen["steps"]["a"]["output"]) == ("a", 7)


@pytest.mark.timeout(60)
def test_a_thousand_items_take_no_longer_than_they_must() -> None:
    """Each result looks at all steps, but only in passing: a few milliseconds where it would be a hundred."""
    items = list(range(1000))
    life = Life(each(act("a"), {"id": "t", "transform": "{{ item }}"}, items=items, concurrency=1000))
    began = time.perf_counter()
    for index in range(0, 1000, 10):
        life.ok(f"a[{index}]")
    assert (time.perf_counter() - began) / 100 < 0.1
    began = time.perf_counter()
    other = Life(each({"id": "t", "transform": "{{ item }}"}, items=items, concurrency=10))
    assert (other.over, other.output("f")) == (SUCCEEDED, list(range(1000)))
    assert time.perf_counter() - began < 10


# --- visits that come again ------------------------------------------------------------------------------------------


def test_an_attempt_of_an_earlier_visit_of_a_block_does_not_belong_to_the_present_one() -> None:
    """A loser that is under way while a state machine enters the same block again."""
    states = {
        "s": {"on": {"go": {"do": [parallel("any", fast=[act("a")], slow=[act("b"), act("c")])]}}},
    }
    definition = {"name": "w", "trigger": "manual", "initial": "s", "states": states, "forever": True}
    life = Life(compile_workflow({**definition, "correlate": "{{ event.id }}"}, actions=None))
    life.event("go")
    life.ok("a")
    assert life.status("s#2") == WAITING
    life.event("go")
    assert life.standing() == ["b", "a#2", "b#2"]
    life.ok("b")
    assert (life.asked, life.standing()) == ([], ["a#2", "b#2"])
    life.ok("b#2")
    assert life.asked == ["c"], "the branch of the present visit goes on"


# --- a person retries ------------------------------------------------------------------------------------------------


def test_a_retried_run_goes_on_in_every_branch() -> None:
    """One failed, one had just been done, one was parked, one had not begun."""
    bad = act("a", **ONCE)
    life = Life(parallel(w=[bad], x=[act("b"), act("c")], y=[wait("v"), act("d")]), act("e"))
    life.fail("a")
    assert life.over is None
    life.ok("b")
    assert life.over == FAILED
    life.retry()
    assert life.asked == ["a", "c"]
    assert life.of(Listen) == [Listen("v#2", "v", ())]
    life.ok("a")
    life.ok("c")
    life.event("go", "v#2")
    life.ok("d")
    assert life.asked == ["e"]


def test_a_retried_block_begins_the_branches_that_it_never_began() -> None:
    bad = {"id": "t", "transform": "{{ steps.z.output.missing.deeper }}"}
    life = Life(act("z"), parallel(x=[bad], y=[act("a")]), act("e"))
    life.ok("z", {})
    assert (life.over, "a" in life.state.steps) == (FAILED, False)
    mended = life.state.steps["z"]._replace(output={"missing": {"deeper": 1}})
    life.state = life.state._replace(steps={**life.state.steps, "z": mended})
    life.retry()
    assert life.asked == ["a"]
    life.ok("a")
    assert (life.asked, life.output("p")["x"]) == (["e"], 1)


def test_a_retried_item_goes_on_beside_those_that_are_done() -> None:
    life = Life(each(act("a", **ONCE), act("b"), concurrency=2), act("e"))
    life.ok("a[0]")
    life.ok("b[0]", 0)
    life.fail("a[1]")
    life.ok("a[2]")
    assert life.over == FAILED
    life.retry()
    assert life.asked == ["a[1]", "b[2]"]
    life.ok("b[2]", 2)
    life.ok("a[1]")
    life.ok("b[1]", 1)
    assert (life.asked, life.output("f")) == (["e"], [0, 1, 2])


def test_a_retried_step_that_is_no_action_is_begun_anew() -> None:
    life = Life({"id": "w", "wait": {"event": "go"}, "deadline": {"after": "1h"}}, act("e"))
    life.wake(3600.0)
    assert life.over == FAILED
    life.retry()
    assert (life.statuses(), life.state.next_due()) == ({"w": CANCELLED, "w#2": WAITING}, life.now - 1 + 3600.0)
    life.event("go", "w#2")
    assert life.asked == ["e"]


def test_a_retry_gives_all_attempts_again() -> None:
    life = Life(act("a", **QUICK), act("b"))
    life.fail("a", retryable=True)
    life.wake(life.state.next_due())
    life.fail("a", retryable=True)
    assert life.over == FAILED
    life.retry()
    assert life.commands == (RunAction("a", "a", 1),)
    life.ok("a")
    assert life.asked == ["b"]


def test_what_was_undone_is_not_retried() -> None:
    life = Life(undoable("a"), act("b", **ONCE))
    life.ok("a")
    life.fail("b")
    life.ok("a.compensate")
    assert life.over == FAILED
    life.given(Retried())
    assert life.over == FAILED
