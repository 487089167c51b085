"""Graphs of any places: which lead to each other, and the shortest way round."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

Onward = Callable[[Any], Iterable[Any]]
"""Where a place leads. Places are hashable."""


def knots(starts: Iterable[Any], onward: Onward) -> list[list[Any]]:
    """The places reached from ``starts`` that lead to each other, two or more at a time (by Tarjan's algorithm)."""
    search = _Search(onward)
    for start in starts:
        if start not in search.low:
            search.walk(start)
    return [knot for knot in search.knots if len(knot) > 1]


def way_back(
    start: Any, onward: Callable[[Any], Iterable[tuple[str, Any]]], within: Container[Any]
) -> list[tuple[str, Any]] | None:
    """The shortest way from a place to itself that stays ``within``: (how, whereto) of each step, or None.

    ``onward`` tells how a place leads where.
    """
    came: dict[Any, tuple[Any, str]] = {}
    places = [start]
    for place in places:  # grows meanwhile
        for how, to in onward(place):
            if to not in came and to in within:
                came[to] = (place, how)
                if to == start:
                    return _steps(start, came)
                places.append(to)
    return None


def _steps(start: Any, came: dict[Any, tuple[Any, str]]) -> list[tuple[str, Any]]:
    steps: list[tuple[str, Any]] = []
    place = start
    while not steps or place != start:
        before, how = came[place]
        steps.append((how, place))
        place = before
    return steps[::-1]


class _Search:
    """``low``: of each place the lowest number that it leads back to, among those whose knot is still open."""

    def __init__(self, onward: Onward) -> None:
        self.knots: list[list[Any]] = []
        self.low: dict[Any, int] = {}
        self._onward = onward
        self._number: dict[Any, int] = {}
        self._open: dict[Any, None] = {}

    def walk(self, start: Any) -> None:
        """Go everywhere from a place. Without recursion: a chain may be ten thousand workflows long."""
        work = [(start, self._enter(start))]
        while work:
            place, ways = work[-1]
            unseen = next((to for to in ways if not self._look(place, to)), None)
            if unseen is not None:
                work.append((unseen, self._enter(unseen)))
                continue
            work.pop()
            if work:
                above = work[-1][0]
                self.low[above] = min(self.low[above], self.low[place])
            if self.low[place] == self._number[place]:
                self._close(place)

    def _enter(self, place: Any) -> Iterator[Any]:
        self.low[place] = self._number[place] = len(self._number)
        self._open[place] = None
        return iter(self._onward(place))

    def _look(self, place: Any, to: Any) -> bool:
        """Whether a place was entered before."""
        if to in self._open:
            self.low[place] = min(self.low[place], self._number[to])
        return to in self._number

    def _close(self, place: Any) -> None:
        knot = []
        while place in self._open:
            last, _ = self._open.popitem()
            knot.append(last)
        self.knots.append(knot)
