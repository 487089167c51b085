"""Entries in one replica's hands: none goes on while an earlier one of its key may not have."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from appliance.stream.entry import Entry
from appliance.stream.precedence import Precedence


def entry(number: int, priority: str = "normal") -> Entry:
    return Entry(priority, b"1700000000000-%d" % number, {}, 0.0)


async def _steps() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def waiting(precedence: Precedence, *entries: Entry) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(precedence.clear(each)) for each in entries]
    await _steps()
    return tasks


async def test_one_waits_until_it_is_known_whom_an_earlier_one_holds_up() -> None:
    precedence = Precedence()
    first, second, third = entry(1), entry(2), entry(3)
    for each in (first, second, third):
        precedence.enter(each)
    precedence.know(second, ["a"])
    precedence.know(third, ["b"])
    tasks = await waiting(precedence, second, third)
    assert [task.done() for task in tasks] == [False, False]
    precedence.know(first, ["b"])
    await _steps()
    assert [task.done() for task in tasks] == [True, False]
    precedence.leave(first)
    await _steps()
    assert tasks[1].done()


async def test_later_entries_and_those_of_other_streams_hold_nobody_up() -> None:
    precedence = Precedence()
    low, mine, later = entry(1, "low"), entry(5), entry(9)
    for each in (low, mine, later):
        precedence.enter(each)
    precedence.know(mine, ["a"])
    (task,) = await waiting(precedence, mine)
    assert task.done()


async def test_ids_are_compared_as_numbers() -> None:
    precedence = Precedence()
    first, second = entry(9), entry(10)
    for each in (second, first):
        precedence.enter(each)
        precedence.know(each, ["a"])
    tasks = await waiting(precedence, first, second)
    assert [task.done() for task in tasks] == [True, False]
    precedence.leave(first)
    await asyncio.gather(*tasks)


async def test_who_stops_waiting_is_in_nobodys_way() -> None:
    precedence = Precedence()
    entries = [entry(n) for n in range(3)]
    for each in entries:
        precedence.enter(each)
        precedence.know(each, ["a"])
    tasks = await waiting(precedence, *entries[1:])
    tasks[0].cancel()
    precedence.leave(entries[1])
    precedence.leave(entries[1])
    precedence.leave(entries[0])
    await tasks[1]
    precedence.leave(entries[2])
    assert len(precedence) == 0
    assert not precedence._by_key


async def test_behind_one_that_takes_long_nothing_piles_up() -> None:
    precedence = Precedence()
    precedence.enter(entry(0))
    for number in range(1, 5000):
        each = entry(number)
        precedence.enter(each)
        precedence.leave(each)
    assert len(precedence._unknown["normal"]) < 200


@given(keys=st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=25), chance=st.randoms())
def test_whatever_happens_when_those_of_a_key_go_on_in_order_and_all_do(keys: list[str], chance: random.Random) -> None:
    async def play() -> dict[str, list[int]]:
        precedence = Precedence()
        entries = [entry(n) for n in range(len(keys))]
        went: dict[str, list[int]] = {}

        async def life(number: int) -> None:
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            if keys[number]:
                precedence.know(entries[number], [keys[number]])
                await precedence.clear(entries[number])
                went.setdefault(keys[number], []).append(number)
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
            precedence.leave(entries[number])

        for each in chance.sample(entries, len(entries)):
            precedence.enter(each)
        async with asyncio.timeout(10):
            await asyncio.gather(*(life(number) for number in range(len(keys))))
        assert len(precedence) == 0
        return went

    went = asyncio.run(play())
    for key in set(keys) - {""}:
        assert went[key] == [number for number, other in enumerate(keys) if other == key]
