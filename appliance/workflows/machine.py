"""A workflow written as states, laid out as steps: entry actions, the state itself, what leads to the next one.

Of each state the steps of ``enter`` come first, then the step of the kind ``state`` (``end`` for a final one), at which
the run waits. What a transition does leads to the next state's first step; where there is none, to a hidden step
``<state>.stay``, which leads back to the state without entering it anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from appliance.errors import Problem
from appliance.templating import Template
from appliance.workflows.graph import Chain, Graph, Node, hint
from appliance.workflows.models import StateModel, StateStepModel, TransitionModel, WorkflowModel
from appliance.workflows.revision import Machine, Transition
from appliance.workflows.values import Values, deadline_of


@dataclass(frozen=True, slots=True)
class Way:
    """Out of a state: by an event (``model``), or by its deadline. ``key`` is where it stands."""

    key: str
    chain: Chain
    to: str
    event: str = ""
    model: TransitionModel | None = None

    @property
    def target(self) -> Node | None:
        """The first step of it, or of the next state."""
        return self.chain.nodes[0] if self.chain.nodes else self.chain.tail


class MachineDraft:
    """The states of a definition in a graph. ``ways`` and ``late`` are by state."""

    def __init__(self, graph: Graph, model: WorkflowModel) -> None:
        self._graph = graph
        self._states = model.states or {}
        self._entries: dict[str, Node] = {}
        self.nodes: dict[str, Node] = {}
        self.ways: dict[str, list[Way]] = {}
        self.late: dict[str, Way] = {}
        graph.cyclic = True
        graph.thread("")
        for name, state in self._states.items():
            self._lay(name, state)
        self._initial = str(model.initial)
        self.first = self._entries.get(self._initial)
        self._check(model)

    def connect(self) -> None:
        """Let every way lead somewhere; to be called when all other steps are in the graph."""
        for name, ways in self.ways.items():
            for way in ways:
                way.chain.tail = self._entries.get(way.to) if _moves(way) else self._stay(name)
        for way in self.late.values():
            way.chain.tail = self._entries.get(way.to)

    def _lay(self, name: str, state: StateModel) -> None:
        key = f"states.{name}"
        chain = self._chain(state.enter, f"{key}.enter", f"{name}.enter")
        node = self._graph.add(name, "end" if state.final else "state", key, chain)
        node.state = name
        self.nodes[name] = node
        self._entries[name] = chain.nodes[0]
        self.ways[name] = []
        for event, found in state.on.items():
            several = isinstance(found, list)
            for number, model in enumerate(found if isinstance(found, list) else [found]):
                inner = f"{key}.on.{event}[{number}]" if several else f"{key}.on.{event}"
                do = self._chain(model.do, f"{inner}.do", f"{name}.{_plain(event)}")
                self.ways[name].append(Way(inner, do, model.next or name, event, model))
        if state.deadline is not None:
            inner = f"{key}.deadline"
            do = self._chain(state.deadline.do, f"{inner}.do", f"{name}.deadline")
            self.late[name] = Way(inner, do, state.deadline.next)

    def _chain(self, steps: list[StateStepModel], key: str, prefix: str) -> Chain:
        chain = Chain(0, leaves=False)
        self._graph.lay(steps, key, chain, prefix)
        return chain

    def _stay(self, name: str) -> Node:
        found = self._graph.by_id.get(f"{name}.stay")
        if found is None:
            state = self.nodes[name]
            found = self._graph.hide(f"{name}.stay", "stay", state, state.key)
            found.target, found.state = state, name
        return found

    # --- compiling ---------------------------------------------------------------------------------------------------

    def fields(self, node: Node, values: Values, names: tuple[str, ...]) -> dict[str, Any]:
        """What the compiled step of a state has beside its name."""
        name = str(node.state)
        state = self._states[name]
        if state.final:
            return {"outcome": state.outcome or name}
        deadline = None
        if state.deadline is not None:
            due, _ = values.deadline(state.deadline, node, names)
            target = self.late[name].target
            deadline = deadline_of(due, target.index if target is not None else None)
        return {
            "transitions": tuple(self._transition(way, node, values) for way in self.ways[name]),
            "deadline": deadline,
        }

    def _transition(self, way: Way, node: Node, values: Values) -> Transition:
        condition = values.condition(way.model.when, f"{way.key}.when", node) if way.model is not None else None
        target = way.target
        return Transition((way.event,), condition, target.index if target is not None else 0, way.to)

    def compiled(self, correlate: Template) -> Machine:
        """The machine itself."""
        states = {name: node.index for name, node in self.nodes.items()}
        events = dict.fromkeys(way.event for ways in self.ways.values() for way in ways)
        return Machine(self._initial, MappingProxyType(states), correlate, tuple(events))

    # --- checks ------------------------------------------------------------------------------------------------------

    def _check(self, model: WorkflowModel) -> None:
        if model.initial is None:
            expected = f"one of {', '.join(self._states)}"
            self._graph.problems.append(Problem("initial is missing", "initial", expected=expected))
        else:
            self._check_name(model.initial, "initial")
        if model.correlate is None:
            expected = 'a template of the event that gives the business key: "{{ event.subject }}"'
            self._graph.problems.append(Problem("correlate is missing", "correlate", expected=expected))
        for name, state in self._states.items():
            self._check_state(name, state)
        for way in (*(way for ways in self.ways.values() for way in ways), *self.late.values()):
            self._check_name(way.to, f"{way.key}.next")

    def _check_name(self, name: str, key: str) -> None:
        if name not in self._states:
            message = f"there is no state {name!r}{hint(name, self._states)}"
            self._graph.problems.append(Problem(message, key, expected=f"one of {', '.join(self._states)}"))

    def _check_state(self, name: str, state: StateModel) -> None:
        key = f"states.{name}"
        if state.final:
            for word in ("on", "deadline"):
                if getattr(state, word):
                    message = f"the run ends in {name!r}: there is no way out"
                    self._graph.problems.append(Problem(message, f"{key}.{word}", expected="no final, or no " + word))
        else:
            if state.outcome is not None:
                message = "only a final state has an outcome"
                self._graph.problems.append(Problem(message, f"{key}.outcome", expected="final: true beside it"))
            if not state.on and state.deadline is None:
                expected = "on, deadline or final: true"
                self._graph.problems.append(Problem(f"nothing ever happens in {name!r}", key, expected=expected))


def _moves(way: Way) -> bool:
    """Whether the state is left (to be entered anew, maybe)."""
    return way.model is None or way.model.next is not None


def _plain(event: str) -> str:
    """A type of event as part of a step's id, in which brackets and # have meanings of their own."""
    return "".join(character if character.isalnum() or character in "_.-" else "_" for character in event)
