"""Workflows that trigger themselves, directly or through others, by what they publish or by events about their ends.

Found without looking at pairs of all workflows. First by types of events alone, in a graph in which all who publish a
type share one place, as do all who take it; only what comes round there is looked at more closely, pair by pair, with
whatever an event's definition says of it: a trigger whose criteria such an event can't fulfil doesn't count.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from appliance.rules.changes import applied
from appliance.rules.conditions import Condition
from appliance.rules.criteria import Group, Node, Test
from appliance.rules.logic import number_in
from appliance.rules.matcher import fits, is_glob
from appliance.workflows.emissions import ENDS, UNKNOWN, Emission, emissions_of, known_at
from appliance.workflows.knots import knots, way_back
from appliance.workflows.revision import Workflow

_MAX_PAIRS = 50_000
"""Events and triggers of one knot that are looked at pair by pair: some 0.2 s. Beyond, their types alone decide."""
_MAX_GLOBS = 20_000
"""Pairs of patterns that are compared: some 0.2 s. Beyond, they count as different."""
_SHOWN = 10
"""Workflows of one cycle that are named."""
MAX_CYCLES = 20
"""Cycles that are told at once: who mends them is told the next."""


_Key = tuple[str, str]
"""Runs of a workflow: its name, and the kind of end that began them (see :class:`_Run`)."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """A way from a workflow back to itself: its name at both ends; ``verbs[i]`` leads from ``names[i]`` to the next."""

    names: tuple[str, ...]
    verbs: tuple[str, ...]

    def __str__(self) -> str:
        steps = [f" -{verb}-> {name}" for verb, name in zip(self.verbs, self.names[1:], strict=True)]
        if len(steps) > _SHOWN:
            steps[_SHOWN - 1 : -1] = [f" … {len(steps) - _SHOWN} more …"]
        return self.names[0] + "".join(steps)


class _Run:
    """Runs of one workflow. ``via``: the failure or cancellation that began them, whose like is not announced again."""

    __slots__ = ("emissions", "via", "workflow")

    def __init__(self, workflow: Workflow, via: str, emissions: Iterable[Emission]) -> None:
        self.workflow = workflow
        self.via = via
        self.emissions = [emission for emission in emissions if not (via and emission.end == via)]


def find_cycles(
    workflows: Iterable[Workflow], enabled: Container[str] | None = None, *, through: str | None = None
) -> list[Cycle]:
    """The cycles of these workflows, shortest ways, by name; at most MAX_CYCLES.

    With ``through`` only those in which this workflow is: one at least, if there is any.

    Those that are not ``enabled`` (by name; left out, as they say themselves) are begun by calls only. Workflows that
    only call each other are no matter of this: :func:`appliance.workflows.flow.call_cycles`.
    """
    known = {workflow.name: workflow for workflow in workflows}
    triggered = {name for name, w in known.items() if (w.enabled if enabled is None else name in enabled)}
    found = _Finder(known, triggered, through).cycles()
    return found if through is None else [cycle for cycle in found if through in cycle.names]


class _Finder:
    def __init__(self, workflows: Mapping[str, Workflow], enabled: Set[str], through: str | None) -> None:
        self._workflows = workflows
        self._through = through
        self._enabled = enabled
        self._takers: dict[str, list[str]] = {}
        for name, workflow in sorted(workflows.items()):
            for event in dict.fromkeys(trigger.event for trigger in workflow.triggers) if name in enabled else ():
                self._takers.setdefault(event, []).append(name)
        self._exact = sorted(event for event in self._takers if not is_glob(event))
        self._globs: dict[str, list[str]] = {}
        for event in filter(is_glob, self._takers):
            self._globs.setdefault(_beginning(event), []).append(event)
        self._beginnings = sorted(self._globs)
        self._compared = 0
        self._left = MAX_CYCLES
        self._ends = [end for end in ENDS if self._is_announced(end)]
        self._runs: dict[_Key, _Run] = {}
        self._tests: dict[int, Condition] = {}
        self._taken: dict[str, list[str]] = {}

    def cycles(self) -> list[Cycle]:
        """All of them, as far as they are told."""
        # Whatever leads back to a workflow is reached from it.
        starts = sorted(self._workflows) if self._through is None else [self._through]
        found: list[Cycle] = []
        for knot in knots([(name, "") for name in starts], self._roughly):
            runs = self._ordered(place for place in knot if len(place) == 2)
            if any(self._run(run).emissions for run in runs):
                found += self._within(runs, set(knot))
        return sorted(dict.fromkeys(found), key=str)

    def _ordered(self, runs: Iterable[_Key]) -> list[_Key]:
        """By name, but first those that are asked about: there may be too many cycles to tell all."""
        return sorted(runs, key=lambda run: (run[0] != self._through, run))

    def _within(self, runs: list[_Key], knot: set[Any]) -> Iterator[Cycle]:
        """The cycles of one knot: each workflow in one of them, if it is in any."""
        exact = self._exactly(runs)
        if exact is None:
            yield from self._told(runs, self._roughly_told, knot)
            return
        alone = [[run] for run in runs if any(to == run for _, to in exact[run])]
        # A knot's runs may call, beside each other, workflows that don't lead back.
        tight = knots(runs, lambda run: [to for _, to in exact[run] if to in exact])
        for inner in (*alone, *tight):
            yield from self._told(self._ordered(inner), exact.__getitem__, set(inner))

    def _told(
        self, runs: list[_Key], ways: Callable[[Any], Iterable[tuple[str, Any]]], knot: set[Any]
    ) -> Iterator[Cycle]:
        told: set[str] = set()
        for run in runs:
            if run[0] in told or self._left <= 0:
                continue
            way = way_back(run, ways, knot)
            if way is None or {verb for verb, _ in way} <= {"calls", ""}:
                continue
            self._left -= 1
            names = (run[0], *(place[0] for _, place in way if len(place) == 2))
            told |= set(names)
            yield Cycle(names, tuple(verb for verb, _ in way if verb))

    # --- by types alone: places are (name, via), and for events (what, type, via) -----------------------------------

    def _roughly(self, place: Any) -> Iterator[Any]:
        return (to for _, to in self._roughly_told(place))

    def _roughly_told(self, place: Any) -> Iterator[tuple[str, Any]]:
        if len(place) == 2:
            run = self._run(place)
            for emission in run.emissions:
                yield emission.verb, ("made", emission.type, _via(emission))
            for called in self._called(run.workflow):
                yield "calls", (called, place[1])
            return
        what, event, via = place
        if what == "made":
            for taken in self._taken_by(event):
                yield "", ("taken", taken, via)
            return
        for name in self._takers[event]:
            yield "", (name, via)

    def _taken_by(self, event: str) -> list[str]:
        """The types (and globs) of triggers that may take events of a type (or glob)."""
        known = self._taken.get(event)
        if known is None:
            begins = _beginning(event)
            shorter = [begins[:length] for length in range(len(begins)) if begins[:length] in self._globs]
            longer = _starting(self._beginnings, begins)
            known = [g for b in (*shorter, *longer) for g in self._globs[b] if self._overlap(event, g)]
            known += [e for e in _starting(self._exact, begins) if self._overlap(event, e)]
            self._taken[event] = known
        return known

    def _overlap(self, a: str, b: str) -> bool:
        if not is_glob(a) and not is_glob(b):
            return a == b
        self._compared += 1
        return self._compared <= _MAX_GLOBS and overlap(a, b)

    def _run(self, key: _Key) -> _Run:
        run = self._runs.get(key)
        if run is None:
            name, via = key
            workflow = self._workflows[name]
            run = self._runs[key] = _Run(workflow, via, emissions_of(workflow, self._ends))
        return run

    def _called(self, workflow: Workflow) -> list[str]:
        called = {step.flow for step in workflow.steps if step.flow is not None}
        return sorted(name for name in called if name in self._workflows)

    def _is_announced(self, end: str) -> bool:
        """As the matcher's ``wants``: a trigger on everything has no events made for its sake."""
        waits = (event for w in self._workflows.values() for s in w.steps if s.wait for event in s.wait.events)
        return any(event.startswith("workflow") and fits(event, end) for event in (*self._takers, *waits))

    # --- pair by pair ------------------------------------------------------------------------------------------------

    def _exactly(self, runs: Sequence[_Key]) -> dict[_Key, list[tuple[str, _Key]]] | None:
        """Who leads to whom in a knot, and how; None if there are too many pairs to look at."""
        names = dict.fromkeys(name for name, _ in runs if name in self._enabled)
        index = _Index(self._workflows[name] for name in names)
        edges: dict[_Key, list[tuple[str, _Key]]] = {}
        left = _MAX_PAIRS
        for key in runs:
            run = self._run(key)
            edges[key] = [("calls", (called, key[1])) for called in self._called(run.workflow)]
            for emission in run.emissions:
                for event in self._taken_by(emission.type):
                    maybe = index.candidates(event, emission, left)
                    left -= len(maybe)
                    if left <= 0:
                        return None
                    to = dict.fromkeys(w.name for w, condition in maybe if self._may_take(condition, emission))
                    edges[key] += [(emission.verb, (name, _via(emission))) for name in to]
        return edges

    def _may_take(self, condition: Condition | None, emission: Emission) -> bool:
        return condition is None or self._holds(condition.root, emission) is not False

    def _holds(self, node: Node, emission: Emission) -> bool | None:
        """Whether criteria hold for such events; None where that depends."""
        if isinstance(node, Test):
            return self._tested(node, emission)
        if not isinstance(node, Group):
            return None
        results = [self._holds(child, emission) for child in node.children]
        if node.kind == "not":
            return None if results[0] is None else not results[0]
        decisive = node.kind == "any"
        if decisive in results:
            return decisive
        return None if None in results else not decisive

    def _tested(self, test: Test, emission: Emission) -> bool | None:
        value = known_at(emission, test.path)
        if value is UNKNOWN:
            return None
        if isinstance(value, str) and isinstance(test.value, str) and test.op in ("==", "!="):
            return (value == test.value) is (test.op == "==")
        if id(test) not in self._tests:
            self._tests[id(test)] = Condition(None, test)
        return self._tests[id(test)].holds(applied({}, [(test.path, value)]))


_Candidates = list[tuple[Workflow, Condition | None]]


class _Index:
    """The triggers of some workflows by type, and within it by a value that the event must have."""

    def __init__(self, workflows: Iterable[Workflow]) -> None:
        self._rest: dict[str, _Candidates] = {}
        self._filed: dict[str, dict[str, dict[Any, _Candidates]]] = {}
        for workflow in workflows:
            for trigger in workflow.triggers:
                entry = (workflow, trigger.condition)
                equalities = trigger.condition.equalities if trigger.condition is not None else ()
                for path, values in equalities[:1]:
                    by_value = self._filed.setdefault(trigger.event, {}).setdefault(path, {})
                    for value in values:
                        by_value.setdefault(value if isinstance(value, str) else float(value), []).append(entry)
                if not equalities:
                    self._rest.setdefault(trigger.event, []).append(entry)

    def candidates(self, event: str, emission: Emission, most: int) -> _Candidates:
        """The triggers on ``event`` that may take such events; hardly more than ``most``."""
        found = list(self._rest.get(event, ())[:most])
        for path, by_value in self._filed.get(event, {}).items():
            value = known_at(emission, path)
            if value is not UNKNOWN:
                found += [entry for key in _keys(value) for entry in by_value.get(key, ())]
                continue
            for entries in by_value.values():
                if len(found) > most:
                    break
                found += entries
        return found


def _via(emission: Emission) -> str:
    return emission.end if emission.end != "workflow.completed" else ""


def _keys(value: Any) -> list[Any]:
    """What a value is filed under: a text also under the number that it spells."""
    if isinstance(value, str):
        return [value, number_in(value)]
    return [float(value)] if isinstance(value, int | float) and abs(value) < 2**63 else []


def _beginning(event: str) -> str:
    """What stands before a pattern's first sign; all of it, if it is none."""
    return re.split(r"[*?]", event, maxsplit=1)[0]


def _starting(texts: Sequence[str], begins: str) -> Iterator[str]:
    """Those of some sorted texts that begin so."""
    at = bisect_left(texts, begins)
    while at < len(texts) and texts[at].startswith(begins):
        yield texts[at]
        at += 1


def overlap(a: str, b: str) -> bool:
    """Whether there is a text that both globs (of ``*`` and ``?``) fit."""
    # row[j]: whether some text fits what was read of a and the first j characters of b.
    row = [True]
    for sign in b:
        row.append(row[-1] and sign == "*")
    for own in a:
        last, row = row, [row[0] and own == "*"]
        for j, other in enumerate(b):
            if own == "*" or other == "*":
                row.append(last[j + 1] or row[j])
            else:
                row.append(last[j] and (own == other or "?" in (own, other)))
    return row[-1]
