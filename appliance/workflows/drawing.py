"""A workflow as a React Flow graph: a node for each step, edges to where it may lead, and places for all of them.

A graph that was imported stands in ``editor``, and is given back as it was as long as it still says what the steps say.
Otherwise a new one is drawn, with the places of the nodes that are known. Its nodes hold their step as ``data.step``,
so that importing the drawing gives the workflow again; steps inside a block are drawn in it (``data.of``), and changed
there. A state machine can be drawn, but not imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from appliance.errors import DefinitionError
from appliance.workflows.dialects import translate
from appliance.workflows.dialects.draft import Object, plain_id
from appliance.workflows.layout import arranged, column
from appliance.workflows.models import KINDS
from appliance.workflows.nesting import falls_through, nested_lists
from appliance.workflows.revision import CONTINUE, END

_HEAD = ("name", "description", "enabled", "priority", "order")
_TYPES = {"choose": "condition", "workflow": "shared-flow", "human_task": "human-task", "for_each": "for-each"}
START = "start"
"""Id of the node at which a run begins, unless a step is called so."""


def draw(definition: Mapping[str, Any]) -> Object:
    """The graph of a definition in our own language: ``{"name", "nodes", "edges"}``, what is beside, ``viewport``."""
    return _kept(definition) or _drawn(definition)


def _kept(definition: Mapping[str, Any]) -> Object | None:
    """The graph that the definition was made of, if it still says the same."""
    editor = definition.get("editor")
    if not isinstance(editor, dict):
        return None
    name = {"name": definition.get("name")}
    head = {key: definition[key] for key in _HEAD if key in definition}
    # As little beside the graph as the definition allows.
    for beside in (name, head, head | {"trigger": definition.get("trigger")}):
        document = {**beside, **editor}
        try:
            if translate(document).native == definition:
                return document
        except DefinitionError:
            continue
    return None


def _drawn(definition: Mapping[str, Any]) -> Object:
    start = START
    drawing = _Drawing(definition)
    while start in drawing.taken:
        start += "_"
    inner = ("name", "steps", "states", "editor")
    whole = {key: value for key, value in definition.items() if key not in inner}
    drawing.node(start, "trigger", {"label": _started_by(definition.get("trigger")), "workflow": whole})
    if "states" in definition:
        drawing.states(start, definition)
    else:
        steps = definition.get("steps") or []
        drawing.edge(start, "", steps[0]["id"])
        drawing.steps(steps)
    viewport = (definition.get("editor") or {}).get("viewport")
    graph: Object = {"name": definition.get("name"), "nodes": drawing.placed(), "edges": drawing.edges}
    return graph | ({"viewport": viewport} if viewport is not None else {})


class _Drawing:
    """The nodes and edges of one workflow."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.nodes: list[Object] = []
        self.edges: list[Object] = []
        self.taken = {step["id"] for step in _all(definition.get("steps") or [])} | {*definition.get("states", {})}
        known = (definition.get("editor") or {}).get("nodes")
        self._known = {
            plain_id(str(node.get("id"))): node["position"]
            for node in (known if isinstance(known, list) else [])
            if isinstance(node, dict) and "position" in node
        }

    def node(self, id: str, type: str, data: Object, **more: Any) -> None:
        """Add a node."""
        self.nodes.append({"id": id, "type": type, "data": data, **more})

    def edge(self, source: str, handle: str, target: str, **more: Any) -> None:
        """Add an edge; one without a handle leaves at the usual place."""
        edge: Object = {"id": f"{source}-{handle or 'out'}-{target}", "source": source, "target": target}
        if handle:
            edge |= {"sourceHandle": handle, "label": handle}
        self.edges.append(edge | more)

    # --- steps -------------------------------------------------------------------------------------------------------

    def steps(self, steps: list[Object], block: str | None = None, behind: str | None = None) -> None:
        """A list of steps; ``behind`` is what follows its last one."""
        for position, step in enumerate(steps):
            following = steps[position + 1]["id"] if position + 1 < len(steps) else behind
            more = {} if block is None else {"parentId": block, "extent": "parent"}
            kind = next((kind for kind in KINDS if kind in step), "action")
            data = {"label": str(step.get("description") or step["id"]), "step": step}
            self.node(step["id"], _type(kind, step), data if block is None else data | {"of": block}, **more)
            for handle, target in _ways(step, following):
                self.edge(step["id"], handle, target)
            for _, inner in nested_lists(step):
                # Behind the last step of a choice comes what follows the choice; other lists just end.
                after = _after(step, following) if kind == "choose" else None
                self.steps(inner, block or step["id"], after)

    # --- states ------------------------------------------------------------------------------------------------------

    def states(self, start: str, definition: Mapping[str, Any]) -> None:
        """The states of a machine, and what leads from one to the next."""
        self.edge(start, "", str(definition.get("initial")))
        for name, state in definition["states"].items():
            self.node(name, "state", {"label": name, "state": state})
            for event, found in (state.get("on") or {}).items():
                for number, way in enumerate(found if isinstance(found, list) else [found]):
                    handle = f"{event}-{number}" if isinstance(found, list) and len(found) > 1 else event
                    self.edge(name, handle, way.get("next") or name, label=event, data=way)
            if isinstance(state.get("deadline"), dict):
                self.edge(name, "deadline", state["deadline"]["next"], data=state["deadline"])

    # --- places ------------------------------------------------------------------------------------------------------

    def placed(self) -> list[Object]:
        """The nodes with their positions: those that are known, else in layers from top to bottom."""
        inner: dict[str, list[str]] = {}
        for node in self.nodes:
            if "parentId" in node:
                inner.setdefault(node["parentId"], []).append(node["id"])
        outer = [node["id"] for node in self.nodes if "parentId" not in node]
        boxes = {id: column(len(inner.get(id, ()))) for id in outer}
        places = arranged(boxes, [(edge["source"], edge["target"]) for edge in self.edges])
        for node in self.nodes:
            block = node.get("parentId")
            x, y = places[node["id"]] if block is None else boxes[block].inside(inner[block].index(node["id"]))
            node["position"] = self._known.get(node["id"], {"x": x, "y": y})
            if node["id"] in inner:
                node["style"] = {"width": boxes[node["id"]].width, "height": boxes[node["id"]].height}
        return self.nodes


def _ways(step: Object, following: str | None) -> Iterator[tuple[str, str]]:
    """(handle, step) of each place to which a step may lead."""
    if "end" in step:
        if "if" in step and following is not None:
            yield "skipped", following
        return
    onward = _after(step, following)
    if onward is not None and falls_through(step):
        yield "", onward
    if "if" in step and "next" in step and following not in (None, onward):
        yield "skipped", str(following)
    for index, branch in enumerate(step.get("choose") or []):
        if branch.get("next") not in (None, END):
            yield f"when-{index}", branch["next"]
    deadline = step.get("deadline")
    late = deadline.get("next") if isinstance(deadline, dict) else None
    for handle, target in (("error", step.get("on_error")), ("deadline", late)):
        if target not in (None, END, CONTINUE):
            yield handle, target


def _after(step: Object, following: str | None) -> str | None:
    target = step.get("next", following)
    return None if target == END else target


def _type(kind: str, step: Object) -> str:
    return "webhook" if step.get("action") == "webhook" else _TYPES.get(kind, kind)


def _started_by(trigger: Any) -> str:
    """What a trigger waits for, in a word."""
    if isinstance(trigger, list):
        return ", ".join(map(_started_by, trigger))
    if not isinstance(trigger, dict):
        return str(trigger or "manual")
    named = trigger.get("event", trigger.get("schedule"))
    return ", ".join(map(str, named)) if isinstance(named, list) else str(named)


def _all(steps: Iterable[Object]) -> Iterator[Object]:
    for step in steps:
        yield step
        for _, inner in nested_lists(step):
            yield from _all(inner)
