"""State machines: what moves them, what they don't take, when their time is over."""

from __future__ import annotations

from typing import Any

from appliance.engine.state import FAILED, SUCCEEDED, WAITING
from appliance.workflows.compile import compile_workflow
from tests.unit.engine.life import ONCE, Life, Take, act

Step = dict[str, Any]


def machine(**states: Step) -> Life:
    """One that begins in its first state; ``closed`` is final."""
    definition = {
        "name": "w",
        "trigger": "manual",
        "initial": next(iter(states)),
        "correlate": "{{ event.id }}",
        "states": {**states, "closed": {"final": True}},
        "forever": True,
    }
    return Life(compile_workflow(definition, actions=None))


def place(life: Life) -> Any:
    return (life.state.place or {}).get("state")


def test_an_event_leads_to_the_next_state_and_its_final_one_ends_the_run() -> None:
    life = machine(pending={"on": {"paid": {"next": "closed", "do": [act("a")]}}})
    assert (place(life), life.state.status, life.state.next_due()) == ("pending", WAITING, None)
    life.event("paid")
    assert (life.of(Take), life.asked) == ([Take("s1", "", "pending", True)], ["a"])
    life.ok("a")
    assert (life.over, life.state.outcome, place(life)) == (SUCCEEDED, "closed", "closed")


def test_entering_runs_the_steps_of_the_state_each_time() -> None:
    life = machine(
        one={"enter": [act("a")], "on": {"go": {"next": "two"}}},
        two={"enter": [act("b")], "on": {"go": {"next": "one"}, "stop": {"next": "closed"}}},
    )
    assert life.asked == ["a"]
    life.ok("a")
    life.event("go")
    life.ok("b")
    life.event("go")
    assert (life.asked, place(life)) == (["a#2"], "two"), "it is there when the steps are done"
    life.ok("a#2")
    assert place(life) == "one"


def test_of_several_transitions_the_first_that_holds_is_taken() -> None:
    dear = {"path": "data.amount", "op": ">", "value": 100}
    ways = [{"next": "closed", "when": dear}, {"next": "two"}]
    for amount, to in ((500, "closed"), (5, "two")):
        life = machine(one={"on": {"paid": ways}}, two={"on": {"go": {"next": "closed"}}})
        life.event("paid", amount=amount)
        assert place(life) == to


def test_an_event_that_no_transition_takes_is_recorded_as_ignored() -> None:
    never = {"path": "data.amount", "op": ">", "value": 100}
    life = machine(one={"on": {"paid": {"next": "closed", "when": never}}})
    for number, event in enumerate(["paid", "noise"], 1):
        life.event(event, amount=1)
        assert life.of(Take) == [Take(f"s{number}", "", "one", False)]
    assert (place(life), life.state.steps["one"].status) == ("one", WAITING)


def test_an_event_that_comes_while_it_is_busy_waits_and_the_order_is_kept() -> None:
    life = machine(
        one={"on": {"paid": {"next": "two", "do": [act("a")]}}},
        two={"on": {"sent": {"next": "three"}}},
        three={"on": {"back": {"next": "closed"}}},
    )
    life.event("paid")
    life.event("sent")
    life.event("back")
    assert (life.of(Take), len(life.state.inbox)) == ([], 2)
    life.ok("a")
    assert life.of(Take) == [Take("s2", "", "two", True), Take("s3", "", "three", True)]
    assert life.over == SUCCEEDED


def test_a_transition_without_next_stays_and_the_deadline_goes_on() -> None:
    life = machine(
        one={
            "enter": [act("a")],
            "on": {"note": {"do": [act("n")]}},
            "deadline": {"after": "1h", "next": "closed", "do": [act("late")]},
        }
    )
    life.now = 100.0
    life.ok("a")
    assert life.state.next_due() == 3700.0
    life.event("note")
    assert (life.asked, life.state.next_due()) == (["n"], None)
    life.ok("n")
    assert (life.status("one#2"), life.state.next_due()) == (WAITING, 3700.0)
    assert "a#2" not in life.state.steps, "it is not entered anew"
    life.wake(3700.0)
    assert life.asked == ["late"]
    life.ok("late")
    assert life.over == SUCCEEDED


def test_a_transition_to_the_same_state_enters_it_anew() -> None:
    life = machine(one={"on": {"again": {"next": "one"}}, "deadline": {"after": "1h", "next": "closed"}})
    life.now = 1000.0
    life.event("again")
    assert life.state.next_due() == 4600.0


def test_a_deadline_that_passed_while_it_was_busy_counts_when_it_is_back() -> None:
    life = machine(one={"on": {"note": {"do": [act("n")]}}, "deadline": {"after": "1h", "next": "closed"}})
    life.event("note")
    life.now = 9000.0
    life.ok("n")
    assert life.state.next_due() == 3600.0
    life.wake(9001.0)
    assert life.over == SUCCEEDED


def test_an_event_that_is_there_wins_against_a_deadline_that_has_passed() -> None:
    life = machine(
        one={"on": {"paid": {"next": "two"}}, "deadline": {"after": "1h", "next": "closed"}},
        two={"on": {"go": {"next": "closed"}}},
    )
    life.now = 9000.0
    life.event("paid")
    assert place(life) == "two"


def test_steps_see_the_event_that_was_taken_last() -> None:
    seen = {"id": "t", "transform": "{{ event.data.amount }}"}
    life = machine(one={"on": {"paid": {"next": "closed", "do": [seen]}}})
    life.event("paid", amount=5)
    assert life.output("t") == 5


def test_a_wait_inside_a_machine_leaves_the_machine_its_events() -> None:
    """What is for the machine goes to its states: the wait is told of its own events by its key."""
    inner = {"id": "w", "wait": {"event": "paid"}, "forever": True}
    life = machine(one={"on": {"go": {"next": "two", "do": [inner]}}}, two={"on": {"paid": {"next": "closed"}}})
    life.event("go")
    life.event("paid")
    assert (life.of(Take), life.standing()) == ([], ["w"])
    life.event("paid", "w")
    assert [take.by for take in life.of(Take)] == ["w", "two"]
    assert life.over == SUCCEEDED


def test_a_failure_on_the_way_fails_the_run_and_a_retry_goes_on_there() -> None:
    life = machine(one={"on": {"paid": {"next": "closed", "do": [act("a", **ONCE), act("b")]}}})
    life.event("paid")
    life.fail("a")
    assert (life.over, place(life)) == (FAILED, "one")
    life.retry()
    life.ok("a")
    life.ok("b")
    assert life.over == SUCCEEDED
