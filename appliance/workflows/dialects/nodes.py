"""What each node of a drawn graph does, as a step: by its type and ``data``, or as ``data.step`` says it in ours."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from appliance.workflows.dialects.actions import Given, is_known, translate_action
from appliance.workflows.dialects.automations import trigger_of
from appliance.workflows.dialects.conditions import condition
from appliance.workflows.dialects.draft import Draft, Object
from appliance.workflows.dialects.flow_graph import Edge, FlowGraph, type_of
from appliance.workflows.dialects.texts import mustache
from appliance.workflows.nesting import branches_of, falls_through, may_end, nested
from appliance.workflows.revision import END

STARTS = ("start", "trigger", "input", "event")
"""Types of nodes at which a run begins; so do those that end in ``-trigger``."""
ENDS = ("end", "output", "stop")
CONDITIONS = ("condition", "if", "decision", "branch", "switch")
MERGES = ("merge", "join")
TRUE = ("true", "yes", "then", "if")
FALSE = ("false", "no", "else", "otherwise", "default")
FAILURES = ("error", "failure", "failed", "on-error", "on_error", "catch")
TYPES = "action, delay, condition, shared-flow, webhook, email, log, publish, transform, merge, end, start or a trigger"
_LOOKS = ("label", "icon", "color", "category", "subcategory", "nodeType", "kind", "description")
"""Members of ``data`` that are for people, or say the node's type once more."""
_PARAMETERS = ("actionData", "actionDetails", "config", "params", "parameters")
_NAMES = ("actionType", "action", "type")
_ASKED = ("condition", "conditions", "jsonLogic", "logic", "rule", "expression")
_EVENTS = ("event", "triggerEvent", "eventType", "event_type")
_CASES = ("branches", "cases")


@dataclass(frozen=True, slots=True)
class Jumps:
    """Where the edges of a node lead: ``out`` without a name, ``named`` by their handle.

    ``leaps`` is where steps inside a block of ours jump.
    """

    out: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    leaps: list[str] = field(default_factory=list)

    def sides(self) -> list[str]:
        """Where the named edges, and those out of a block, lead."""
        return [*self.named.values(), *self.leaps]

    def all(self) -> list[str]:
        """Where all edges lead."""
        return [*self.out, *self.sides()]


class Nodes:
    """The nodes of a graph, as steps."""

    def __init__(self, graph: FlowGraph, draft: Draft) -> None:
        self._graph = graph
        self._draft = draft
        self._jumps = {node: self._jumps_of(node) for node in graph.nodes}
        for node in sorted(graph.nodes, key=lambda node: graph.ranks[node]):
            if not self.is_start(node):
                draft.step_id(node)

    def is_start(self, node: str) -> bool:
        """Whether it only says what starts a run."""
        type_ = type_of(self._graph.nodes[node])
        return type_ in STARTS or type_.endswith("-trigger")

    def is_fork(self, node: str) -> bool:
        """Whether several ways lead out of it that are all taken."""
        return len(self._jumps[node].out) > 1

    def jumps(self, node: str) -> Jumps:
        """Where its edges lead."""
        return self._jumps[node]

    # --- edges -------------------------------------------------------------------------------------------------------

    def _jumps_of(self, node: str) -> Jumps:
        given, data = self._graph.nodes[node], self._data(node)
        edges = self._graph.out[node]
        jumps = Jumps(leaps=self._graph.leaps.get(node, []))
        asks = type_of(given) in CONDITIONS and "step" not in data
        for edge in edges:
            name = self._name(edge, data, asks=asks, sole=len(edges) == 1)
            if name is None:
                if edge.target not in jumps.out:
                    jumps.out.append(edge.target)
            elif jumps.named.setdefault(name, edge.target) != edge.target:
                expected = "one edge; from a node behind it, several may lead on"
                self._draft.complain(f"two edges leave {node!r} at {edge.handle!r}", edge.key, expected)
        if asks and not {*(self._cases(data) or ["true"]), "false"} <= jumps.named.keys():
            self._graph.exits.add(node)
        if "step" in data and may_end(data["step"]):
            self._graph.exits.add(node)
        return jumps

    def _name(self, edge: Edge, data: Object, *, asks: bool, sole: bool) -> str | None:
        """What the place is called at which an edge leaves its node; None: the usual one."""
        handle = edge.handle.lower()
        if "step" in data:
            return edge.handle if handle not in ("", "out") else None
        if handle in FAILURES:
            return "error"
        if not asks:
            return None
        if edge.handle in self._cases(data):
            return edge.handle
        if handle in TRUE or (sole and not handle):
            return "true"
        if handle in FALSE:
            return "false"
        expected = "a sourceHandle: true, false" + "".join(f", {case}" for case in self._cases(data))
        self._draft.complain("it isn't clear when this edge is taken", edge.key, expected)
        return None

    def _cases(self, data: Object) -> list[str]:
        """The handles of a node that asks several things."""
        cases: list[Any] = next((data[word] for word in _CASES if isinstance(data.get(word), list)), [])
        return [
            str(case.get("id", case.get("handle", index))) for index, case in enumerate(cases) if isinstance(case, dict)
        ]

    # --- steps -------------------------------------------------------------------------------------------------------

    def step(self, node: str, target: str | None, following: str | None, stop: str | None, *, nested: bool) -> Object:
        """The step that a node is: it goes on with ``target``; ``following`` is the next in the list.

        ``stop`` is where its list ends, ``nested`` says that the list is a way among others.
        """
        key, data = self._graph.keys[node], self._data(node)
        native: Object = {"id": self._draft.step_id(node)}
        if isinstance(data.get("step"), dict):
            own: Object = copy.deepcopy(data["step"])
            self._check_drawn(node, own)
            native = self._draft.at(own | native, f"{key}.data.step")
            self._lead_own(native, node, following, stop)
        else:
            if isinstance(data.get("description"), str) and data["description"]:
                native["description"] = data["description"]
            native = self._draft.joined(native, self._kind(node, stop, nested=nested), key, id=f"{key}.id")
            if "error" in self._jumps[node].named:
                native["on_error"] = self._label(self._jumps[node].named["error"], stop)
        if falls_through(native):
            self._lead(native, key, target, following, stop)
        return native

    def _lead(self, step: Object, key: str, target: str | None, following: str | None, stop: str | None) -> None:
        """Say where it goes on, unless that is clear."""
        label = self._label(target, stop)
        if "end" in step:
            if target is not None:
                self._draft.complain(f"nothing comes behind {step['id']!r}: the run ends there", key, "no edge")
        elif following == (None if target == stop else target):
            if step.get("next") != label:
                step.pop("next", None)
        else:
            step["next"] = label
            if "if" in step and following is not None and not self._skips_to(step, following):
                expected = "an edge from skipped to the node that is listed next"
                self._draft.complain("a step that is skipped goes on with the following one", key, expected)

    def _skips_to(self, step: Object, following: str) -> bool:
        return any(
            self._jumps[node].named.get("skipped") == following
            for node in self._jumps
            if self._draft.step_id(node) == step["id"]
        )

    def _label(self, target: str | None, stop: str | None) -> str:
        return END if target is None or target == stop else self._draft.step_id(target)

    def _kind(self, node: str, stop: str | None, *, nested: bool) -> Object:
        key, data, type_ = self._graph.keys[node], self._data(node), type_of(self._graph.nodes[node])
        if type_ in CONDITIONS:
            return self._choose(node, data, f"{key}.data", stop)
        if type_ in ENDS:
            said = {word: data[word] for word in ("outcome", "output", "status") if word in data}
            return {"transform": None} if nested and not said else {"end": said}
        if type_ in MERGES:
            return {"transform": None}
        if type_ == "action":
            return self._action(data, key)
        if type_ == "email" or type_.endswith("-email"):
            return self._translated("send_email", f"{key}.type", data, f"{key}.data")
        if is_known(type_):
            return self._translated(type_, f"{key}.type", data, f"{key}.data")
        self._draft.complain(f"nodes of type {type_!r} can't be translated", f"{key}.type", TYPES)
        return {}

    def _action(self, data: Object, key: str) -> Object:
        named = next((word for word in _NAMES if isinstance(data.get(word), str)), None)
        if named is None:
            self._draft.complain("which action isn't said", f"{key}.data", "actionType")
            return {}
        rest = {name: value for name, value in data.items() if name not in (named, "actionName")}
        return self._translated(data[named], f"{key}.data.{named}", rest, f"{key}.data")

    def _translated(self, name: str, name_key: str, data: Object, key: str) -> Object:
        values = {word: value for word, value in data.items() if word not in _LOOKS}
        inner = next((word for word in _PARAMETERS if isinstance(values.get(word), dict)), None)
        if inner is not None:
            self._draft.refuse_unknown(values, key, (inner,))
        given = Given(name, name_key, values[inner] if inner else values, f"{key}.{inner}" if inner else key)
        return translate_action(given, self._draft, lambda text, place: mustache(text, place, self._draft))

    # --- conditions --------------------------------------------------------------------------------------------------

    def _choose(self, node: str, data: Object, key: str, stop: str | None) -> Object:
        """A branch for each edge; what no edge is for ends the way."""
        named = self._jumps[node].named
        branches = []
        for case, asked in self._asked(data, key):
            branches.append(self._draft.at({"when": asked, "next": self._label(named.get(case), stop)}, key))
        branches.append({"next": self._label(named.get("false"), stop)})
        return {"choose": branches}

    def _asked(self, data: Object, key: str) -> Iterator[tuple[str, Any]]:
        """(handle, condition) of each question that a node asks."""
        word = next((word for word in _CASES if isinstance(data.get(word), list)), None)
        if word is None:
            yield "true", self._question(data, key)
            return
        self._refuse(data, key, word)
        for index, (case, handle) in enumerate(zip(data[word], self._cases(data), strict=False)):
            yield handle, self._question({k: v for k, v in case.items() if k != "handle"}, f"{key}.{word}[{index}]")

    def _question(self, data: Object, key: str) -> Any:
        """``condition`` (criteria or JSON Logic), or ``conditionType``, ``operator`` and ``conditionValue``."""
        if "conditionType" in data:
            self._refuse(data, key, "conditionType", "operator", "conditionValue")
            value = {"value": data["conditionValue"]} if "conditionValue" in data else {}
            test = {"field": data["conditionType"], "operator": data.get("operator", "equals"), **value}
            return self._draft.at(condition(test, key, self._draft, "input"), key)
        if "field" in data:
            self._refuse(data, key, "field", "operator", "value")
            test = {word: data[word] for word in ("field", "operator", "value") if word in data}
            return condition(test, key, self._draft, "input")
        word = next((word for word in _ASKED if data.get(word) not in (None, "", {}, [])), None)
        if word is None:
            self._draft.complain("what is asked isn't said", key, "condition: JSON Logic, or {field, operator, value}")
            return {}
        self._refuse(data, key, word)
        return condition(data[word], f"{key}.{word}", self._draft, "input")

    def _refuse(self, data: Object, key: str, *known: str) -> None:
        rest = {name: value for name, value in data.items() if name not in (*_LOOKS, "id")}
        self._draft.refuse_unknown(rest, key, known)

    # --- what we drew ------------------------------------------------------------------------------------------------

    def _lead_own(self, step: Object, node: str, following: str | None, stop: str | None) -> None:
        """Let the jumps of a step of ours lead where the edges do."""
        named = dict(self._jumps[node].named)
        self._set(step, "on_error", named.pop("error", None), stop, gone=None)
        if isinstance(step.get("deadline"), dict):
            self._set(step["deadline"], "next", named.pop("deadline", None), stop, gone=None)
        for index, branch in enumerate(branches_of(step)):
            if isinstance(branch, dict) and "steps" not in branch:
                self._set(branch, "next", named.pop(f"when-{index}", None), stop, gone=END)
        if named.pop("skipped", following) != following:
            expected = f"{following!r}, which is listed next" if following else "no edge"
            self._draft.complain("a skipped step goes on with the following one", self._graph.keys[node], expected)
        for name in named:
            expected = "out, error, deadline, skipped or when- and the number of a branch"
            self._draft.complain(f"no edge can leave {node!r} at {name!r}", self._graph.keys[node], expected)

    def _set(self, step: Object, word: str, target: str | None, stop: str | None, *, gone: str | None) -> None:
        if target is not None:
            step[word] = self._label(target, stop)
        elif step.get(word) not in (None, END, "continue"):
            step.pop(word)
            if gone is not None:
                step[word] = gone

    def _check_drawn(self, node: str, step: Object) -> None:
        """What is drawn of the steps in a block must be what the block says."""
        inner = dict(nested(step))
        for drawn, given, key in self._graph.inner.get(node, ()):
            if inner.get(drawn) != given:
                expected = f"data.step of {node!r}, where it is changed"
                self._draft.complain(f"{drawn!r} is drawn from {node!r}, which says something else", key, expected)

    # --- the workflow ------------------------------------------------------------------------------------------------

    def workflow(self, outer: Object, prefix: str, native: Object) -> Object:
        """All that isn't steps: what starts a run, and (in drawings of ours) whatever else the workflow says."""
        start = self._graph.start
        data = self._data(start) if self.is_start(start) else {}
        if isinstance(data.get("workflow"), dict):
            whole: Object = copy.deepcopy(data["workflow"]) | native
            return self._draft.at(whole, f"{self._graph.keys[start]}.data.workflow")
        trigger = self._trigger(data, f"{self._graph.keys[start]}.data")
        if trigger is None and "trigger" in outer:
            trigger = outer["trigger"]
        if trigger is None and (found := _event(outer)) is not None:
            trigger = self._draft.at({"event": found[1]}, f"{prefix}{found[0]}", event=f"{prefix}{found[0]}")
        if trigger is None and self.is_start(start) and type_of(self._graph.nodes[start]).endswith("-trigger"):
            self._draft.complain("no type of event", f"{self._graph.keys[start]}.data", "triggerEvent")
        native["trigger"] = trigger if trigger is not None else "manual"
        return native

    def _trigger(self, data: Object, key: str) -> Any:
        """What a start node says of the trigger; None if it says nothing."""
        said = {name: value for name, value in data.items() if name not in _LOOKS and value not in (None, "")}
        if not said:
            return None
        if isinstance(said.get("trigger"), dict | list | str):
            return said["trigger"]
        event = next((word for word in _EVENTS if word in said), None)
        draft = self._draft
        if event is not None:
            draft.refuse_unknown(said, key, (event, "conditions", "condition", "triggerType", "type"))
            native: Object = {"event": said[event]}
            asked = next((word for word in ("conditions", "condition") if said.get(word)), None)
            if asked is not None:
                native["when"] = condition(said[asked], f"{key}.{asked}", draft, "data")
            return draft.at(native, key, event=f"{key}.{event}", when=f"{key}.{asked}")
        kind = said.pop("triggerType", None) or said.pop("type", None)
        named = Draft(f"{key}.")
        trigger = trigger_of({"trigger_type": kind, "trigger_config": said}, named)
        for problem in named.problems:
            draft.complain(problem.message, key, problem.expected)
        return trigger

    def _data(self, node: str) -> Object:
        data = self._graph.nodes[node].get("data")
        return data if isinstance(data, dict) else {}


def _event(outer: Object) -> tuple[str, str] | None:
    """The event that is named beside a graph, and its key."""
    if isinstance(outer.get("event"), str):
        return "event", outer["event"]
    for word in ("jsonLogic", "json_logic"):
        if isinstance(outer.get(word), dict) and isinstance(outer[word].get("event"), str):
            return f"{word}.event", outer[word]["event"]
    return None
