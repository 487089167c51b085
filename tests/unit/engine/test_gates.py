"""Flow control's decisions: each part by example, and all of it in worlds where arrivals, ends and wakes mix."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.gates import (
    COLLECTED,
    ORDER,
    PLACES,
    TURN,
    Arrival,
    Floor,
    Go,
    Join,
    Leave,
    Standing,
    Wait,
    Waiting,
    admit,
    decide,
    position_of,
)
from appliance.engine.state import CANCELLED, FAILED, SUCCEEDED, WAITING
from appliance.workflows.flow_control import LANE
from tests.unit.engine.lobby import GO, GONE, Lobby, Run

# --- positions -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2**41 - 1), st.integers(0, 2**20 - 1)), min_size=2, max_size=2))
def test_positions_are_in_the_order_of_entries_and_fit_into_a_bigint(ids: list[tuple[int, int]]) -> None:
    first, second = (position_of(f"{ms}-{seq}") for ms, seq in ids)
    assert (first < second) == (ids[0] < ids[1])
    assert max(first, second) < 2**63


# --- throttle --------------------------------------------------------------------------------------------------------


def test_a_throttle_lets_limit_and_burst_begin_at_once_and_then_one_every_interval() -> None:
    lobby = Lobby.of(throttle={"limit": 2, "period": "6s", "burst": 1})
    made = [lobby.arrive(lobby.event(str(n), n))[0] for n in range(6)]
    assert made[:3] == [GO, GO, GO]
    assert [wait.due_at for wait in made[3:] if isinstance(wait, Wait)] == [1003.0, 1006.0, 1009.0]
    lobby.wait(9)
    assert lobby.begun == list("012345")


def test_after_a_rest_a_throttle_lets_as_many_begin_as_at_first() -> None:
    lobby = Lobby.of(throttle={"limit": 2, "period": "6s"})
    lobby.arrive(*(lobby.event(str(n), n) for n in range(3)))
    lobby.wait(60)
    assert lobby.arrive(*(lobby.event(str(n), n) for n in range(3, 6)))[:2] == [GO, GO]
    assert lobby.status("5") == TURN


def test_a_run_that_is_woken_before_its_turn_waits_on_and_loses_nothing() -> None:
    lobby = Lobby.of(throttle={"limit": 1, "period": "10s"})
    lobby.arrive(*(lobby.event(str(n), n) for n in range(3)))
    assert lobby.wake("1") == Wait(TURN, 1010.0, "throttle", "")
    assert lobby.wake("1") == Wait(TURN, 1010.0, "throttle", "")
    lobby.wait(20)
    assert lobby.begun == ["0", "1", "2"]


@given(
    limit=st.integers(1, 4),
    burst=st.integers(0, 3),
    gaps=st.lists(st.sampled_from([0.0, 0.0, 0.5, 2.0, 30.0]), min_size=1, max_size=40),
)
def test_no_period_sees_more_than_limit_and_burst_and_limit_more(limit: int, burst: int, gaps: list[float]) -> None:
    period_s = 6.0
    lobby = Lobby.of(throttle={"limit": limit, "period": "6s", "burst": burst})
    times: dict[str, float] = {}

    def note() -> None:
        times.update({run: lobby.now for run in lobby.begun if run not in times})

    for n, gap in enumerate(gaps):
        lobby.arrive(lobby.event(f"{n:02}", n))
        note()
        until = lobby.now + gap
        while lobby.now < until:
            lobby.wait(min(0.5, until - lobby.now))
            note()
    while lobby.timers:
        lobby.wait(0.5)
        note()
    assert len(times) == len(gaps)
    assert lobby.begun == sorted(lobby.begun)
    starts = sorted(times.values())
    for at in starts:
        assert sum(at <= other < at + period_s - 0.5 for other in starts) <= 2 * limit + burst


# --- rate_limit ------------------------------------------------------------------------------------------------------


def test_a_rate_limits_period_begins_with_the_first_event_and_what_is_too_much_says_why() -> None:
    lobby = Lobby.of(rate_limit={"limit": 2, "period": "1m", "key": "{{ event.data.k }}"})
    assert lobby.arrive(lobby.event("a", 1, k="x")) == [GO]
    lobby.wait(59)
    made = lobby.arrive(lobby.event("b", 2, k="x"), lobby.event("c", 3, k="x"), lobby.event("d", 4, k="y"))
    assert made == [GO, Leave("rate_limited", "rate_limit: 2 runs in 1m have begun for 'x'"), GO]
    lobby.wait(0.9)
    assert lobby.arrive(lobby.event("e", 5, k="x")) != [GO]
    lobby.wait(0.1)  # the period is over: the second event was in it, and counts no more
    assert lobby.arrive(lobby.event("f", 6, k="x"), lobby.event("g", 7, k="x")) == [GO, GO]
    assert lobby.skipped == {"rate_limited": 2}


def test_an_event_that_is_delivered_again_counts_once() -> None:
    lobby = Lobby.of(rate_limit={"limit": 1, "period": "1m"})
    first, second = lobby.event("a", 1), lobby.event("b", 2)
    lobby.arrive(first, second)
    assert lobby.arrive(first, second) == [GO, GONE]
    assert lobby.skipped == {"rate_limited": 1}


# --- debounce --------------------------------------------------------------------------------------------------------


def test_the_last_event_wins_a_while_after_it_and_the_others_are_left_out() -> None:
    lobby = Lobby.of(debounce={"period": "5s"})
    for n in range(3):
        lobby.arrive(lobby.event(str(n), n))
        lobby.wait(4)
    assert lobby.begun == []
    lobby.wait(1)
    assert lobby.begun == ["2"]
    assert [lobby.status(run) for run in "01"] == ["debounced", "debounced"]
    assert lobby.skipped == {"debounced": 2}


def test_an_event_that_comes_out_of_order_does_not_win_over_a_later_one() -> None:
    lobby = Lobby.of(debounce={"period": "5s"})
    lobby.arrive(lobby.event("late", 9))
    (left,) = lobby.arrive(lobby.event("early", 3))
    assert left == Leave("debounced", "debounce: a later event came before, for which run late begins")
    lobby.wait(5)
    assert lobby.begun == ["late"]


def test_a_flood_in_one_batch_leaves_one_run() -> None:
    lobby = Lobby.of(debounce={"period": "5s"})
    arrivals = [lobby.event(f"{n:03}", n) for n in range(200)]
    random.Random(4).shuffle(arrivals)
    made = lobby.arrive(*arrivals)
    assert Counter(type(decision) for decision in made) == {Leave: 199, Wait: 1}
    lobby.wait(5)
    assert lobby.begun == ["199"]


def test_a_timeout_ends_the_collecting_however_many_events_come() -> None:
    lobby = Lobby.of(debounce={"period": "5s", "timeout": "12s"})
    for n in range(30):
        lobby.arrive(lobby.event(f"{n:02}", n))
        lobby.wait(1)
    lobby.wait(5)
    assert lobby.begun == ["11", "23", "29"]


def test_events_that_come_before_an_overdue_run_is_taken_up_do_not_put_it_off() -> None:
    lobby = Lobby.of(debounce={"period": "5s", "timeout": "12s"})
    lobby.arrive(lobby.event("a", 1))
    lobby.now += 60  # nobody was there
    lobby.arrive(lobby.event("b", 2))
    assert [lobby.status(run) for run in "ab"] == [COLLECTED, COLLECTED]
    assert lobby.wake("a") == GO
    assert lobby.wake("b") == Wait(COLLECTED, lobby.now + 5, "debounce", "")


def test_what_was_collected_passes_the_other_gates_too() -> None:
    lobby = Lobby.of(debounce={"period": "5s"}, concurrency=1)
    lobby.arrive(lobby.event("a", 1))
    lobby.wait(5)
    lobby.arrive(lobby.event("b", 2))
    lobby.wait(5)
    assert [lobby.status(run) for run in "ab"] == ["at work", PLACES]
    lobby.end("a")
    lobby.wait()
    assert lobby.begun == ["a", "b"]


# --- batch -----------------------------------------------------------------------------------------------------------


def test_a_batch_begins_when_it_is_full() -> None:
    lobby = Lobby.of(batch={"size": 3, "timeout": "1m"})
    made = [lobby.arrive(lobby.event(str(n), n))[0] for n in range(4)]
    assert made == [Wait(COLLECTED, 1060.0, "batch", ""), Join("0"), Join("0"), Wait(COLLECTED, 1060.0, "batch", "")]
    lobby.wait()
    assert lobby.begun == ["0"]
    lobby.wait(60)
    assert lobby.begun == ["0", "3"]
    assert list(lobby.joined.values()) == ["0", "0", "0", "3"]


def test_batches_that_fill_in_one_go_begin_at_once() -> None:
    lobby = Lobby.of(batch={"size": 3, "timeout": "1m", "key": "{{ event.data.k }}"})
    lobby.arrive(*(lobby.event(f"{n:02}", n, k=n % 2) for n in range(14)))
    lobby.wait()
    assert lobby.begun == ["00", "01", "06", "07"]
    lobby.wait(60)
    assert lobby.begun == ["00", "01", "06", "07", "12", "13"]


def test_joining_twice_is_joining_once() -> None:
    lobby = Lobby.of(batch={"size": 3, "timeout": "1m"})
    first, second = lobby.event("0", 0), lobby.event("1", 1)
    lobby.arrive(first)
    assert [lobby.arrive(second) for _ in range(3)] == [[Join("0")]] * 3
    assert lobby.arrive(first) == [GONE]
    assert lobby.meters[lobby.control.keys(1, {"event": {}})["batch"].digest].number == 2


def test_a_batch_that_somebody_cancelled_takes_no_more() -> None:
    lobby = Lobby.of(batch={"size": 3, "timeout": "1m"})
    lobby.arrive(lobby.event("0", 0))
    lobby.end("0", CANCELLED)
    assert lobby.arrive(lobby.event("1", 1)) == [Wait(COLLECTED, 1060.0, "batch", "")]


@given(size=st.integers(1, 5), sizes=st.lists(st.integers(0, 7), max_size=8), again=st.randoms())
def test_every_event_is_in_one_batch_and_none_has_too_many(size: int, sizes: list[int], again: random.Random) -> None:
    lobby = Lobby.of(batch={"size": size, "timeout": "10s"})
    events: list[Arrival] = []
    for number in sizes:
        fresh = [lobby.event(f"{len(events) + n:03}", len(events) + n) for n in range(number)]
        events += fresh
        lobby.arrive(*fresh, *again.sample(events, min(len(events), 3)))
        lobby.wait(again.choice([0, 1, 9]))
    lobby.wait(10)
    counts = Counter(lobby.joined.values())
    assert sum(counts.values()) == len(events)
    assert sorted(lobby.begun) == sorted(counts)
    assert all(number <= size for number in counts.values())


# --- singleton -------------------------------------------------------------------------------------------------------


def test_skip_leaves_out_what_comes_while_another_goes_on_parked_or_not() -> None:
    lobby = Lobby.of(singleton={"mode": "skip", "key": "{{ event.data.k }}"})
    assert lobby.arrive(lobby.event("a", 1, k=1), lobby.event("b", 2, k=1), lobby.event("c", 3, k=2)) == [
        GO,
        Leave("skipped", "singleton: run a goes on for '1'"),
        GO,
    ]
    lobby.park("a")
    assert isinstance(lobby.arrive(lobby.event("d", 4, k=1))[0], Leave)
    lobby.end("a")
    assert lobby.arrive(lobby.event("e", 5, k=1)) == [GO]


def test_skip_leaves_out_what_comes_while_another_waits_for_its_places() -> None:
    lobby = Lobby.of(singleton={"mode": "skip", "key": "{{ event.data.k }}"}, concurrency=1)
    lobby.arrive(lobby.event("a", 1, k=1), lobby.event("b", 2, k=2), lobby.event("c", 3, k=2))
    assert [lobby.status(run) for run in "abc"] == ["at work", PLACES, "skipped"]


def test_replace_asks_the_run_at_work_to_end_and_takes_its_place_then() -> None:
    lobby = Lobby.of(singleton="replace")
    lobby.arrive(lobby.event("a", 1))
    lobby.arrive(lobby.event("b", 2))
    assert (lobby.cancels, lobby.status("b")) == (["a"], PLACES)
    lobby.arrive(lobby.event("c", 3))
    assert (lobby.status("b"), lobby.status("c")) == ("replaced", PLACES)
    lobby.end("a", CANCELLED)
    lobby.wait()
    assert lobby.begun == ["a", "c"]


def test_of_several_that_come_at_once_the_last_replaces_all() -> None:
    lobby = Lobby.of(singleton="replace")
    made = lobby.arrive(*(lobby.event(str(n), n) for n in range(5)))
    assert [type(decision) for decision in made[:4]] == [Leave] * 4
    assert made[4] == GO
    assert (lobby.cancels, lobby.skipped) == ([], {"replaced": 4})
    assert [run for _, run in lobby.places] == ["4"]


def test_a_run_that_waits_for_a_place_again_is_asked_to_end_as_it_has_something_to_undo() -> None:
    lobby = Lobby.of(singleton={"mode": "replace", "key": "{{ event.data.k }}"}, concurrency=1)
    lobby.arrive(lobby.event("a", 1, k=1))
    lobby.park("a")
    lobby.arrive(lobby.event("b", 2, k=2))
    assert isinstance(lobby.wake("a"), Wait)
    lobby.arrive(lobby.event("c", 3, k=1))
    assert lobby.cancels == ["a"]
    assert lobby.status("a") == PLACES


def test_a_run_that_is_left_out_by_its_rate_replaces_nobody() -> None:
    lobby = Lobby.of(singleton="replace", rate_limit={"limit": 1, "period": "1m"})
    lobby.arrive(lobby.event("a", 1))
    assert isinstance(lobby.arrive(lobby.event("b", 2))[0], Leave)
    assert lobby.cancels == []


def test_a_call_waits_where_an_event_would_be_skipped() -> None:
    lobby = Lobby.of(singleton="skip")
    lobby.arrive(lobby.event("a", 1))
    assert lobby.call(lobby.event("b", 2)) == Wait(PLACES, None, "singleton", "")
    lobby.end("a")
    lobby.wait()
    assert lobby.begun == ["a", "b"]


# --- ordering --------------------------------------------------------------------------------------------------------


def test_a_run_begins_when_the_one_before_it_is_over_also_if_that_is_parked_for_long() -> None:
    lobby = Lobby.of(ordering_key="{{ event.data.k }}")
    assert lobby.arrive(lobby.event("a", 1, k=1), lobby.event("b", 2, k=1), lobby.event("c", 3, k=2)) == [
        GO,
        Wait(PLACES, None, "ordering", "1"),
        GO,
    ]
    lobby.park("a")
    lobby.wait(100_000)
    assert lobby.wake("b") == Wait(PLACES, None, "ordering", "1")  # somebody woke it early
    assert lobby.wake("a") == GO
    lobby.end("a", FAILED)
    lobby.wait()
    assert lobby.begun == ["a", "c", "b"]


def test_a_run_that_keeps_its_key_does_not_wait_behind_one_that_waits_for_it() -> None:
    """A run of a lower position that comes later (by a retry, from another hand) can't stand in its way."""
    lobby = Lobby.of(ordering_key="{{ event.data.k }}", concurrency=1)
    lobby.arrive(lobby.event("b", 5, k=1))
    lobby.park("b")
    lobby.arrive(lobby.event("c", 6, k=2))
    lobby.call(lobby.event("a", 1, k=1))
    assert lobby.wake("b") == Wait(PLACES, None, "concurrency.0", "")
    lobby.end("c")
    lobby.wait()
    assert lobby.at_work == ["b"]
    lobby.end("b")
    lobby.wait()
    assert lobby.at_work == ["a"]


def test_a_run_waits_for_its_turn_with_its_key_and_nobody_passes_it() -> None:
    lobby = Lobby.of(
        ordering_key="{{ event.data.k }}", throttle={"limit": 1, "period": "10s", "key": "{{ event.data.k }}"}
    )
    lobby.arrive(*(lobby.event(str(n), n, k=1) for n in range(3)))
    assert [lobby.status(run) for run in "012"] == ["at work", ORDER, ORDER]
    lobby.end("0")
    lobby.wait()
    assert lobby.status("1") == TURN
    lobby.wait(60)
    assert lobby.begun == ["0", "1"]
    lobby.end("1")
    lobby.wait(10)
    assert lobby.begun == ["0", "1", "2"]


def test_a_woken_run_keeps_its_place_in_the_queue_whatever_position_it_is_said_to_have() -> None:
    lobby = Lobby.of(ordering_key="k")
    lobby.arrive(*(lobby.event(str(n), n) for n in (1, 2, 3)))
    lobby.runs["3"].arrival = lobby.event("3", 0)
    lobby.wake("3")
    lobby.end("1")
    lobby.wait()
    assert lobby.begun == ["1", "2"]


_ORDERED: list[dict[str, Any]] = [
    {"ordering_key": "{{ event.data.k }}"},
    {"ordering_key": "{{ event.data.k }}", "concurrency": {"key": "{{ event.data.t }}", "limit": 1}},
    {"ordering_key": "{{ event.data.k }}", "throttle": {"limit": 2, "period": "3s"}, "concurrency": 1},
    {"ordering_key": "{{ event.data.k }}", "throttle": {"limit": 1, "period": "1s", "key": "{{ event.data.k }}"}},
]


class Story:
    """A world in which anything may happen next, as long as events of a key arrive in the order of their entries."""

    def __init__(self, lobby: Lobby, chance: random.Random, keys: int) -> None:
        self.lobby = lobby
        self.chance = chance
        self.keys = keys
        self.events: list[Arrival] = []
        self.key_of: dict[str, int] = {}
        self.parked: set[str] = set()

    def step(self) -> None:
        self.chance.choice(
            [self.arrive, self.arrive, self.end, self.end, self.park, self.wake, self.again, self.tick]
        )()
        self.check()

    def arrive(self) -> None:
        fresh = []
        for _ in range(self.chance.randint(1, 6)):
            number = len(self.events)
            key = self.chance.randrange(self.keys)
            event = self.lobby.event(f"{number:03}", number, t=self.chance.randrange(2), k=key)
            self.key_of[event.run_id] = key
            self.events.append(event)
            fresh.append(event)
        self.chance.shuffle(fresh)
        self.lobby.arrive(*fresh)

    def again(self) -> None:
        """Entries are delivered again, a few at once."""
        if self.events:
            self.lobby.arrive(*self.chance.choices(self.events, k=3))

    def end(self) -> None:
        if self.lobby.at_work:
            self.lobby.end(self.chance.choice(self.lobby.at_work), self.chance.choice([SUCCEEDED, FAILED, CANCELLED]))

    def park(self) -> None:
        if self.lobby.at_work:
            run = self.chance.choice(self.lobby.at_work)
            self.lobby.park(run)
            self.parked.add(run)

    def wake(self) -> None:
        """Wakes come early, late and doubled."""
        held = [name for name, run in self.lobby.runs.items() if run.standing.held]
        if held:
            self._wake(self.chance.choices(held, k=2))

    def tick(self) -> None:
        self.lobby.wait(self.chance.choice([0, 0.5, 4]))

    def _wake(self, runs: list[str]) -> None:
        self.lobby.wake(*runs)
        self.parked -= {run for run in runs if not self.lobby.runs[run].standing.held or self.lobby.runs[run].over}

    def finish(self) -> None:
        """Nothing more comes; whoever is at work ends, whoever is parked is woken."""
        for _ in range(20 * len(self.events) + 20):
            if all(run.over for run in self.lobby.runs.values()):
                return
            if self.parked:
                self._wake(sorted(self.parked))
                self.parked -= {run for run in self.parked if self.lobby.runs[run].standing.stage != PLACES}
                self.parked -= set(self.lobby.queue)
            for run in self.lobby.at_work:
                self.lobby.end(run)
                self.check()
            self.lobby.wait(3)
            self.check()
        raise AssertionError({run: self.lobby.status(run) for run in self.lobby.runs if not self.lobby.runs[run].over})

    def check(self) -> None:
        limits = {
            self.lobby.event("x", 0, k=key, t=t).keys[slots.part].digest: slots.limit
            for key in range(self.keys)
            for t in range(2)
            for slots in self.lobby.control.slots
        }
        for digest, number in self.lobby.taken().items():
            assert number <= limits[digest]
        for run in self.lobby.at_work:  # whoever is at work has all its places
            for slots in self.lobby.control.slots:
                assert (self.lobby.runs[run].arrival.keys[slots.part].digest, run) in self.lobby.places


@pytest.mark.parametrize("said", _ORDERED, ids=["alone", "keyed concurrency", "throttle+concurrency", "throttle"])
@given(chance=st.randoms(use_true_random=False), keys=st.integers(1, 3), steps=st.integers(5, 60))
@settings(max_examples=50)
def test_runs_of_a_key_go_one_by_one_in_the_order_of_their_entries_and_all_get_through(
    said: dict[str, Any], chance: random.Random, keys: int, steps: int
) -> None:
    story = Story(Lobby.of(**said), chance, keys)
    for _ in range(steps):
        story.step()
        busy = Counter(story.key_of[run] for run in story.lobby.at_work)
        assert all(number == 1 for number in busy.values())
    story.finish()
    assert len(story.lobby.begun) == len(story.events)
    for key in range(keys):
        begun = [run for run in story.lobby.begun if story.key_of[run] == key]
        assert begun == sorted(begun)


# --- concurrency -----------------------------------------------------------------------------------------------------

_TWO: dict[str, Any] = {"concurrency": [3, {"key": "{{ event.data.k }}", "limit": 2}]}


@given(chance=st.randoms(use_true_random=False), keys=st.integers(1, 4), steps=st.integers(5, 60))
@settings(max_examples=80)
def test_no_limit_is_ever_exceeded_and_nobody_waits_for_ever(chance: random.Random, keys: int, steps: int) -> None:
    story = Story(Lobby.of(**_TWO), chance, keys)
    for _ in range(steps):
        story.step()
    story.finish()
    assert sorted(story.lobby.begun) == [event.run_id for event in story.events]


def test_a_flood_in_one_batch_fills_the_places_and_the_rest_waits_in_order() -> None:
    lobby = Lobby.of(**_TWO)
    arrivals = [lobby.event(f"{n:03}", n, k="flood") for n in range(200)]
    random.Random(1).shuffle(arrivals)
    lobby.arrive(*arrivals)
    assert sorted(lobby.at_work) == ["000", "001"]
    assert sorted(lobby.queue) == [f"{n:03}" for n in range(2, 200)]
    lobby.arrive(lobby.event("other", 200, k="quiet"))
    assert lobby.status("other") == "at work"  # the place that the flood can't have


def test_nobody_passes_a_run_of_the_same_lane_that_waits_for_something_else() -> None:
    lobby = Lobby.of(ordering_key="{{ event.data.k }}", concurrency={"key": "{{ event.data.t }}", "limit": 1})
    lobby.arrive(lobby.event("x", 1, k="other", t="full"))
    lobby.arrive(lobby.event("a", 2, k="mine", t="full"))
    assert lobby.arrive(lobby.event("b", 3, k="mine", t="free")) == [Wait(PLACES, None, "ordering", "mine")]
    lobby.end("x")
    lobby.wait()
    assert lobby.at_work == ["a"]


def test_a_run_that_goes_on_stands_in_nobodys_way_in_the_same_go() -> None:
    lobby = Lobby.of(concurrency=2)
    first, second = lobby.event("a", 1)._replace(woken=True), lobby.event("b", 2)
    floor = Floor({"a": Standing(WAITING, PLACES)}, waiting={first.keys[LANE].digest: [(1, "a")]})
    decisions = decide([second, first], floor, lobby.now)
    assert [type(decisions.made[run]) for run in "ab"] == [Go, Go]


def test_lanes_take_turns() -> None:
    lobby = Lobby.of(concurrency=[1, {"key": "{{ event.data.k }}", "limit": 1}])
    lobby.arrive(*(lobby.event(f"flood{n:02}", n, k="flood") for n in range(50)))
    lobby.arrive(*(lobby.event(f"quiet{n}", 100 + n, k="quiet") for n in range(5)))
    for _ in range(12):
        lobby.end(lobby.at_work[0])
        lobby.wait()
    assert sum(run.startswith("quiet") for run in lobby.begun) == 5


def test_runs_that_have_begun_come_before_those_that_have_not() -> None:
    lobby = Lobby.of(concurrency=1)
    lobby.arrive(*(lobby.event(str(n), n) for n in range(3)))
    lobby.park("0")
    lobby.admit()
    lobby.wait()
    assert lobby.at_work == ["1"]
    lobby.wake("0")
    lobby.end("1")
    lobby.wait()
    assert lobby.at_work == ["0"]


def test_a_parked_run_gives_back_what_it_does_not_keep() -> None:
    lobby = Lobby.of(concurrency=1, ordering_key="{{ event.data.k }}")
    lobby.arrive(lobby.event("a", 1, k=1), lobby.event("b", 2, k=2))
    lobby.park("a")
    lobby.admit()
    lobby.wait()
    assert lobby.at_work == ["b"]
    assert isinstance(lobby.arrive(lobby.event("c", 3, k=1))[0], Wait)


def test_admitting_goes_by_the_limits_in_force() -> None:
    rows = [
        Waiting(str(n), 1, "lane", n, "normal", ("concurrency.0",), ("d",), ("",), (1,)) for n in range(5)
    ]  # fmt: skip
    assert [row.run_id for row in admit([rows], {"d": 1}, {})[0]] == []
    assert [row.run_id for row in admit([rows], {"d": 1}, {"concurrency.0": 3})[0]] == ["0", "1"]
    assert admit([], {}, {}) == ([], None)


@given(
    lanes=st.lists(st.integers(0, 6), max_size=5),
    room=st.integers(0, 12),
    limit=st.integers(1, 4),
)
def test_admitting_is_fair_and_leaves_no_place_empty_that_somebody_could_have(
    lanes: list[int], room: int, limit: int
) -> None:
    def row(lane: int, n: int) -> Waiting:
        parts, digests = ("concurrency.0", "concurrency.1"), ("all", f"lane {lane}")
        return Waiting(f"{lane}.{n}", 1, f"lane {lane}", n, "normal", parts, digests, ("", ""), (room, limit))

    rows = [[row(lane, n) for n in range(number)] for lane, number in enumerate(lanes)]
    admitted, last = admit(rows, {}, {})
    got = Counter(waiting.lane for waiting in admitted)
    assert len(admitted) == min(room, sum(min(limit, number) for number in lanes))
    assert last == (admitted[-1].lane if admitted else None)
    for lane, number in enumerate(lanes):
        mine = [waiting.position for waiting in admitted if waiting.lane == f"lane {lane}"]
        assert mine == list(range(len(mine)))
        if len(mine) < min(number, limit):  # it could have had more: nobody else got two more than it
            assert all(other <= len(mine) + 1 for other in got.values())


# --- runs that exist -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["rate_limit", "debounce", "batch"])
def test_calls_and_reruns_pass_what_is_for_events(part: str) -> None:
    said = {
        "rate_limit": {"limit": 1, "period": "1h"},
        "debounce": {"period": "1h"},
        "batch": {"size": 10, "timeout": "1h"},
    }[part]
    lobby = Lobby.of(**{part: said})
    lobby.arrive(lobby.event("a", 1))
    assert lobby.call(lobby.event("b", 2)) == GO


def test_calls_wait_for_their_turn_and_for_places() -> None:
    lobby = Lobby.of(throttle={"limit": 1, "period": "10s"}, concurrency=1)
    assert lobby.call(lobby.event("a", 1)) == GO
    assert lobby.call(lobby.event("b", 2)) == Wait(TURN, 1010.0, "throttle", "")
    lobby.wait(10)
    assert lobby.status("b") == PLACES
    lobby.end("a")
    lobby.wait()
    assert lobby.begun == ["a", "b"]


def test_a_run_that_has_begun_needs_no_turn_when_it_goes_on() -> None:
    lobby = Lobby.of(throttle={"limit": 1, "period": "10s"})
    lobby.arrive(lobby.event("a", 1), lobby.event("b", 2))
    lobby.park("a")
    assert lobby.wake("a") == GO


def test_a_run_that_began_without_flow_control_needs_no_turn_but_a_place() -> None:
    lobby = Lobby.of(throttle={"limit": 1, "period": "10s"}, concurrency=1)
    for name in ("a", "b"):
        lobby.runs[name] = Run(lobby.event(name, 1)._replace(begun=True), Standing(WAITING))
    assert lobby.wake("a") == GO
    assert lobby.wake("b") == Wait(PLACES, None, "concurrency.0", "")
    assert lobby.meters == {}


def test_a_run_that_is_tried_again_waits_for_its_key_like_the_others() -> None:
    lobby = Lobby.of(ordering_key="k")
    lobby.arrive(lobby.event("a", 1))
    lobby.end("a", FAILED)
    lobby.arrive(lobby.event("b", 2), lobby.event("c", 3))
    lobby.runs["a"].standing = Standing(WAITING, PLACES)
    assert lobby.wake("a") == Wait(PLACES, None, "ordering", "k")
    lobby.end("b")
    lobby.wait()
    assert lobby.begun == ["a", "b"]
    assert lobby.at_work == ["a"]  # its position is lower than that of c
    lobby.end("a")
    lobby.wait()
    assert lobby.begun == ["a", "b", "c"]


def test_an_event_delivered_again_while_its_run_is_at_work_goes_on_and_takes_no_second_place() -> None:
    lobby = Lobby.of(concurrency=2)
    event = lobby.event("a", 1)
    assert [lobby.arrive(event), lobby.arrive(event)] == [[GO], [GO]]
    assert len(lobby.places) == 1


def test_a_run_whose_entry_was_set_aside_asks_again_for_the_places_that_it_gave_back() -> None:
    lobby = Lobby.of(ordering_key="{{ event.data.k }}")
    first, second = lobby.event("a", 1, k="k"), lobby.event("b", 2, k="k")
    lobby.arrive(first)
    lobby.places.clear()
    lobby.arrive(second)
    assert lobby.arrive(first._replace(position=3, returns=True)) == [Wait(PLACES, None, "ordering", "k")]
    lobby.end("b")
    lobby.wait()
    assert lobby.at_work == ["a"]
    assert lobby.arrive(first._replace(position=3, returns=True)) == [GO]  # and was delivered again


def test_nothing_is_done_for_a_run_that_is_over_or_that_only_its_wake_may_move() -> None:
    lobby = Lobby.of(concurrency=1)
    first, second = lobby.event("a", 1), lobby.event("b", 2)
    lobby.arrive(first, second)
    assert lobby.arrive(second) == [GONE]
    lobby.end("a")
    assert lobby.arrive(first) == [GONE]
    assert lobby.wake("a") == GONE


def test_the_same_run_twice_in_one_go_is_decided_about_once() -> None:
    lobby = Lobby.of(concurrency=1, throttle={"limit": 5, "period": "10s"})
    event = lobby.event("a", 1)
    decisions = decide([event, event], Floor(), lobby.now)
    assert [type(decision) for decision in decisions.made.values()] == [Go]
    assert len(decisions.places) == 1


def test_lanes_are_those_of_what_runs_keep_else_of_the_last_key() -> None:
    lobby = Lobby.of(concurrency=[{"key": "{{ event.data.a }}", "limit": 1}], ordering_key="{{ event.data.b }}")
    assert lobby.event("x", 1, a=1, b=2).keys[LANE].text == "2"
    assert Lobby.of(**_TWO).event("x", 1, k="t").keys[LANE].text == "t"
    assert Lobby.of(concurrency=5).event("x", 1).keys[LANE].text == ""
