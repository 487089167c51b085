"""Random workflows in the language itself, so that only what the compiler accepts is simulated."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from appliance.errors import DefinitionError
from appliance.workflows.compile import compile_workflow
from appliance.workflows.revision import Workflow

Definition = dict[str, Any]
EVENTS = ("go", "back", "done", "noise")
_HOLDS = {"path": "data.n", "op": ">", "value": 3}
_FAILS_NOT = {"path": "data.n", "op": ">", "value": 100}


class Maker:
    """Makes workflows. In ``calm`` ones no timing decides: branches don't fail, nothing races a deadline."""

    def __init__(self, rng: random.Random, *, calm: bool) -> None:
        self._rng = rng
        self._calm = calm
        self._number = 0
        self._handling = False
        """Within on_error, which nothing undoes."""
        self._callable: tuple[str, ...] = ()

    def family(self) -> list[Workflow]:
        """A workflow named ``main``, and those that it calls."""
        names = [f"child{number}" for number in range(self._rng.randint(0, 2))]
        children = [self._accepted(partial(self._flow, name, 1)) for name in names]
        self._callable = tuple(child.name for child in children)
        machine = self._rng.random() < 0.25
        return [self._accepted(self._machine if machine else partial(self._flow, "main", 3)), *children]

    def _accepted(self, make: Callable[[], Definition]) -> Workflow:
        while True:
            self._number, self._handling = 0, False
            try:
                return compile_workflow(make(), actions=None)
            except DefinitionError:
                continue

    # --- workflows ---------------------------------------------------------------------------------------------------

    def _flow(self, name: str, depth: int) -> Definition:
        made: Definition = {"name": name, "trigger": "manual", "steps": self._steps(depth, serial=True)}
        return self._ending(made)

    def _machine(self) -> Definition:
        rng = self._rng
        states: Definition = {"closed": {"final": True}}
        names = ["a", "b", "c"]
        for number, name in enumerate(names):
            ways: Definition = {}
            for event in rng.sample(EVENTS[:3], rng.randint(1, 3)):
                several = [self._way([*names, "closed"]) for _ in range(rng.randint(1, 2))]
                ways[event] = several if len(several) > 1 or rng.random() < 0.5 else several[0]
            states[name] = {"on": ways, "enter": self._steps(1, serial=True) if rng.random() < 0.3 else []}
            if rng.random() < 0.6:
                states[name]["deadline"] = {
                    "after": rng.choice(["2h", "3h"]),
                    "next": rng.choice([*names[number + 1 :], "closed"]),
                }
        made = {"name": "main", "trigger": "manual", "initial": "a", "states": states, "forever": True}
        return self._ending({**made, "correlate": "{{ event.type }}"})

    def _way(self, names: list[str]) -> Definition:
        rng = self._rng
        way: Definition = {}
        if rng.random() < 0.8:
            way["next"] = rng.choice(names)
        if rng.random() < 0.4:
            way["when"] = rng.choice([_HOLDS, {"path": "data.n", "op": "<", "value": 8}])
        if rng.random() < 0.5 or "next" not in way:
            way["do"] = self._steps(2, serial=True)
        return way

    def _ending(self, made: Definition) -> Definition:
        if self._rng.random() < 0.3:
            self._handling = True
            made["on_error"] = self._steps(2, serial=True, last=True)
            self._handling = False
        return made

    # --- steps -------------------------------------------------------------------------------------------------------

    def _steps(self, depth: int, *, serial: bool, last: bool = False) -> list[Definition]:
        rng = self._rng
        made = [self._step(depth, serial) for _ in range(rng.randint(1, 4 if depth > 1 else 2))]
        for number, step in enumerate(made):
            later = [other["id"] for other in made[number + 1 :]]
            kind = next(key for key in step if key != "id")
            if later and kind != "end" and rng.random() < 0.1:
                step["next"] = rng.choice(later)
            if rng.random() < 0.15:
                failed = _HOLDS if self._calm else {"path": "error", "op": "exists", "value": False}
                step["if"] = rng.choice([_HOLDS, _FAILS_NOT, failed])
            self._catch(step, kind, later, serial)
        if last:
            made = [step for step in made if "end" not in step] or [self._action("action")]
        return made

    def _catch(self, step: Definition, kind: str, later: list[str], serial: bool) -> None:
        if kind in ("delay", "choose", "end"):
            return
        if self._calm and not serial:
            step["on_error"] = "continue"
        elif self._rng.random() < 0.3:
            step["on_error"] = self._rng.choice(["continue", "continue", "end", *later])

    def _step(self, depth: int, serial: bool) -> Definition:
        kinds = {"action": 10, "transform": 2, "delay": 2, "choose": 2, "wait": 2, "human_task": 2}
        if depth > 1:
            kinds |= {"parallel": 5, "for_each": 3}
        if self._callable:
            kinds["workflow"] = 3
        if serial or not self._calm:
            kinds["end"] = 1
        kind = self._rng.choices([*kinds], [*kinds.values()])[0]
        self._number += 1
        made: Definition = {"id": f"s{self._number}"}
        inside = (depth, serial) if kind in ("choose", "parallel", "for_each") else ()
        own: Definition = getattr(self, f"_{kind}")(*inside)
        return made | own

    def _action(self, kind: str | None = None) -> Definition:
        rng = self._rng
        made: Definition = {"action": "x"}
        if kind is not None:
            self._number += 1
            made = {"id": f"s{self._number}", **made}
        if rng.random() < 0.5 and not self._handling:
            made["compensate"] = {"action": "undo", "retry": self._retry()}
        if not self._calm and rng.random() < 0.2:
            return {**made, "effects": "at_most_once"}
        return {**made, "retry": self._retry()}

    def _retry(self) -> Definition:
        made: Definition = {"max_attempts": self._rng.randint(1, 3), "initial": "5s", "jitter": False}
        if self._rng.random() < 0.3:
            made["by_error"] = {"timeout": {"max_attempts": 4}}
        return made

    def _transform(self) -> Definition:
        seen = "{{ input }}" if self._calm else "{{ steps }}"  # those of other branches are seen as far as they are
        return {"transform": self._rng.choice([seen, {"n": "{{ event.data.n }}"}, "{{ 1 / event.data.zero }}"])}

    def _delay(self) -> Definition:
        return {"delay": self._rng.choice(["0s", "10s", "3m"])}

    def _choose(self, depth: int, serial: bool) -> Definition:
        branches: list[Definition] = [
            {"when": self._rng.choice([_HOLDS, _FAILS_NOT]), "steps": self._steps(depth - 1, serial=serial)}
        ]
        if self._rng.random() < 0.5:
            branches.append({"steps": self._steps(depth - 1, serial=serial)})
        return {"choose": branches}

    def _parallel(self, depth: int, _: bool) -> Definition:
        count = self._rng.randint(2, 3)
        join = "all" if self._calm else self._rng.choice(["all", "any", count - 1])
        branches = {f"b{n}": self._steps(depth - 1, serial=False) for n in range(count)}
        return {"parallel": {"branches": branches, "join": join}}

    def _for_each(self, depth: int, serial: bool) -> Definition:
        concurrency = self._rng.randint(1, 3)
        items = self._rng.choice([[], ["a"], ["a", "b", "c"], "{{ event.data.lines }}"])
        steps = self._steps(depth - 1, serial=serial and concurrency == 1)
        return {"for_each": {"items": items, "concurrency": concurrency, "steps": steps}}

    def _wait(self) -> Definition:
        made: Definition = {"wait": {"event": self._rng.choice([["go", "done"], "d*", "back"])}}
        if self._rng.random() < 0.3:
            made["wait"]["when"] = _HOLDS
        if self._rng.random() < 0.4:
            return {**made, "forever": True}
        return {**made, "deadline": self._deadline()}

    def _human_task(self) -> Definition:
        made: Definition = {"human_task": {"title": "Say"}}
        if self._rng.random() < 0.5:
            notify = {"action": "tell", "retry": self._retry()}
            made["human_task"] |= {"notify": notify, "reminders": ["1m", "20m"]}
        return made if self._rng.random() < 0.4 else {**made, "deadline": self._deadline()}

    def _workflow(self) -> Definition:
        made: Definition = {"workflow": {"name": self._rng.choice(self._callable), "input": {"n": 1}}}
        if self._rng.random() < 0.3 and not self._handling:
            made["compensate"] = {"action": "undo"}
        return made if self._calm or self._rng.random() < 0.6 else {**made, "deadline": self._deadline()}

    def _deadline(self) -> Definition:
        made: Definition = {"after": "2h" if self._calm else self._rng.choice(["20s", "2m", "2h"])}
        return {**made, "next": "end"} if self._rng.random() < 0.4 else made

    def _end(self) -> Definition:
        return {"end": {"outcome": "o", "output": {"n": 1}, "status": self._rng.choice(["succeeded", "failed"])}}
