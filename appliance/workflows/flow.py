"""Static checks of where a workflow leads: what nothing leads to, what can't be joined, what never ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from appliance.errors import Problem
from appliance.workflows.revision import CONTINUE, Step, Thread, Workflow


def check(
    steps: Sequence[Step], threads: Sequence[Thread], starts: Sequence[int], keys: Sequence[str], *, forever: bool
) -> list[Problem]:
    """Steps that nothing leads to, blocks that can't be joined, states without a way to an end.

    ``starts`` are the first steps of the run and of its ``on_error``; ``keys`` says where each step stands.
    """
    flow = _Flow(steps, threads)
    for start in starts:
        flow.explore(start)
    problems = [
        Problem(message, f"{keys[index]}.{key}", expected=expected) for index, key, message, expected in flow.wrong
    ]
    problems += _unreached(flow, keys)
    if not forever:
        problems += _endless(flow, keys)
    return problems


def call_cycles(workflows: Mapping[str, Workflow]) -> list[tuple[str, tuple[str, ...]]]:
    """Workflows that call themselves through others: (name, the way back to it, its name at both ends), by name."""
    calls = {name: sorted({step.flow for step in w.steps if step.flow is not None}) for name, w in workflows.items()}
    ways = ((name, _way_back(name, calls)) for name in sorted(calls))
    return [(name, way) for name, way in ways if way is not None]


def _way_back(name: str, calls: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """The shortest chain of calls from a workflow to itself."""
    ways: list[tuple[str, ...]] = [(name,)]
    seen: set[str] = set()
    for way in ways:  # grows meanwhile
        for called in calls.get(way[-1], ()):
            if called == name:
                return (*way, called)
            if called not in seen:
                seen.add(called)
                ways.append((*way, called))
    return None


def call_key(definition: Any, called: str, key: str = "") -> str | None:
    """Where in a definition (JSON data) a workflow is called: ``steps[2].workflow``; None if it isn't."""
    if isinstance(definition, list):
        found = (call_key(inner, called, f"{key}[{index}]") for index, inner in enumerate(definition))
        return next((place for place in found if place is not None), None)
    if not isinstance(definition, Mapping):
        return None
    call = definition.get("workflow")
    if (call.get("name") if isinstance(call, Mapping) else call) == called:
        return f"{key}.workflow"
    found = (call_key(inner, called, f"{key}.{name}" if key else name) for name, inner in definition.items())
    return next((place for place in found if place is not None), None)


class _Flow:
    """What is reached from where. ``edges`` are by step; ``wrong`` is (step, key, message, expected)."""

    def __init__(self, steps: Sequence[Step], threads: Sequence[Thread]) -> None:
        self.steps = steps
        self.edges: dict[int, set[int]] = {}
        self.wrong: list[tuple[int, str, str, str]] = []
        self._threads = threads
        self._by_id = {step.id: step.index for step in steps}

    def explore(self, first: int) -> bool:
        """Follow a thread from a step; returns whether it can come to its end."""
        ends, todo = False, [first]
        while todo:
            index = todo.pop()
            if index in self.edges:
                continue
            self.edges[index] = set()
            step = self.steps[index]
            ways = {*self._ways(step), *self._done(step)}
            ends = ends or None in ways
            onward = {way for way in ways if way is not None}
            self.edges[index] |= onward | {self._threads[thread].first for thread in step.threads}
            todo += sorted(onward)
        return ends

    def _ways(self, step: Step) -> Iterator[int | None]:
        """Where a step leads without being done."""
        if step.condition is not None:
            yield step.after
        if step.on_error == CONTINUE:
            yield step.follow
        elif step.on_error is not None:
            yield self._by_id.get(step.on_error)
        if step.deadline is not None and step.deadline.target is not None:
            yield step.deadline.target
        for branch in step.branches:
            yield branch.target
        for transition in step.transitions:
            yield transition.target

    def _done(self, step: Step) -> list[int | None]:
        """Where a step leads when it is done, if it ever is."""
        if step.kind in ("end", "state") or any(branch.condition is None for branch in step.branches):
            return []
        reached = [self.explore(self._threads[thread].first) for thread in step.threads]
        if step.kind == "parallel" and reached.count(True) < step.join <= len(reached):
            ending = [self._threads[t].name for t, ends in zip(step.threads, reached, strict=True) if not ends]
            message = f"{step.join} can't be joined: {', '.join(ending)} always ends the run"
            expected = "a join that the other branches can reach, or branches that don't end the run"
            self.wrong.append((step.index, "parallel.join", message, expected))
        return [step.follow]


def _unreached(flow: _Flow, keys: Sequence[str]) -> Iterator[Problem]:
    """Of what stands in a step or a state that isn't reached, only that one is named."""
    missing = [step for step in flow.steps if step.owner is None and step.index not in flow.edges]
    places = tuple(f"{keys[step.index]}." for step in missing)
    for step in missing:
        key = keys[step.index]
        if not any(key.startswith(place) for place in places):
            expected = (
                "a transition or a deadline to name it" if step.state is not None else "a next or on_error to name it"
            )
            yield Problem(f"nothing leads to {step.id!r}", key, expected=expected)


def _endless(flow: _Flow, keys: Sequence[str]) -> Iterator[Problem]:
    """States from which no end can be reached."""
    ending = {index for index in flow.edges if flow.steps[index].kind == "end"}
    grown = True
    while grown:
        more = {index for index, ways in flow.edges.items() if index not in ending and ways & ending}
        grown = bool(more)
        ending |= more
    for index in sorted(flow.edges):
        step = flow.steps[index]
        if step.kind == "state" and index not in ending:
            expected = "a way to a final state, or forever: true beside states"
            yield Problem(f"no way leads from {step.id!r} to an end", keys[index], expected=expected)
