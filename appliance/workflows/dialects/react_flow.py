"""The dialect of React Flow graphs: nodes that act, wait, ask, call and request, and the edges between them.

::

    {"name": …, "nodes": [{"id": …, "type": "delay", "position": {"x": 0, "y": 0}, "data": {…}}, …],
     "edges": [{"id": …, "source": …, "target": …, "sourceHandle": "true"}, …], "viewport": {…}}

Several edges out of a node that asks nothing are ways that are all taken, side by side, up to the node where they meet.
The graph itself is kept in ``editor``: ``workflows/drawing.py`` gives it back as long as it says what the steps say.
"""

from __future__ import annotations

from appliance.errors import DefinitionError
from appliance.workflows.dialects.draft import Draft, Object, Translation
from appliance.workflows.dialects.flow_graph import FlowGraph, read_graph, type_of
from appliance.workflows.dialects.heads import body_of, head
from appliance.workflows.dialects.nodes import STARTS, Nodes
from appliance.workflows.graph import MAX_NESTING
from appliance.workflows.revision import END

NAME = "a React Flow graph"
MARKS = "nodes and edges"
WRAPPERS = ("flow", "graph", "reactFlow", "react_flow", "reactFlowData", "flowData", "visual_workflow")
_GRAPH = ("nodes", "edges", "viewport")
_BESIDE = ("trigger", "event", "jsonLogic", "json_logic")


def recognises(document: Object) -> bool:
    """Whether ``document`` is in this dialect."""
    body, _ = _graph_of(document)
    return isinstance(body.get("nodes"), list) and bool(body["nodes"]) and isinstance(body.get("edges"), list)


def translate(document: Object) -> Translation:
    """The workflow in our own language; raises DefinitionError."""
    body, prefix = _graph_of(document)
    outer, outer_prefix = body_of(document)
    draft = Draft(outer_prefix)
    wrapped = body is not outer
    native = head(document, draft, (*WRAPPERS, *_BESIDE) if wrapped else (*_GRAPH, *_BESIDE))
    if wrapped:
        draft.refuse_unknown(body, prefix.rstrip("."), _GRAPH)
    _refuse_states(body, prefix, draft)
    graph = read_graph(body, prefix, STARTS, draft) if not draft.problems else None
    if graph is None:
        raise DefinitionError(*draft.problems)
    nodes = Nodes(graph, draft)
    native = nodes.workflow(outer, outer_prefix, native)
    native["steps"] = draft.at(_Layout(graph, nodes, draft).steps(), f"{prefix}nodes")
    native["editor"] = {key: body[key] for key in _GRAPH if key in body}
    if draft.problems:
        raise DefinitionError(*draft.problems)
    return draft.done(native, NAME)


def _graph_of(document: Object) -> tuple[Object, str]:
    """Where the nodes are, and at which key that stands."""
    body, prefix = body_of(document)
    for key in WRAPPERS:
        if isinstance(body.get(key), dict) and "nodes" not in body:
            return body[key], f"{prefix}{key}."
    return body, prefix


def _refuse_states(body: Object, prefix: str, draft: Draft) -> None:
    for index, node in enumerate(body["nodes"]):
        if isinstance(node, dict) and type_of(node) == "state":
            expected = "its definition in our own language: appliance export --as yaml"
            draft.complain("the drawing of a state machine can't be imported", f"{prefix}nodes[{index}].type", expected)


class _Layout:
    """The nodes of a graph as nested lists of steps."""

    def __init__(self, graph: FlowGraph, nodes: Nodes, draft: Draft) -> None:
        self._graph = graph
        self._nodes = nodes
        self._draft = draft
        self._placed: set[str] = set()
        self._depth = 0

    def steps(self) -> list[Object]:
        """The steps of the whole graph."""
        start = self._graph.start
        if not self._nodes.is_start(start):
            return self._thread([start], None)
        self._placed.add(start)
        targets = self._graph.targets(start)
        if not targets:
            self._draft.complain("nothing happens behind the start", self._graph.keys[start], "an edge to a first step")
            return []
        if len(targets) == 1:
            return self._thread(targets, None)
        return self._fork(start, None, None)

    def _thread(self, firsts: list[str], stop: str | None) -> list[Object]:
        """The steps from some nodes on, up to ``stop``, one after the other, with the blocks in them."""
        if self._depth > MAX_NESTING:
            expected = "ways that meet earlier, or several workflows"
            self._draft.complain(f"nested deeper than {MAX_NESTING} blocks", self._graph.keys[firsts[0]], expected)
            return []
        order = self._level(firsts, stop)
        native: list[Object] = []
        for position, node in enumerate(order):
            if node in self._placed:
                message = f"ways that are taken side by side cross in {node!r}"
                self._draft.complain(
                    message, self._graph.keys[node], "one node where all of them meet, whatever is answered on the way"
                )
                continue
            self._placed.add(node)
            following = order[position + 1] if position + 1 < len(order) else None
            native += self._node(node, following, stop)
        return native

    def _level(self, firsts: list[str], stop: str | None) -> list[str]:
        """The nodes of a thread, in order; what lies between a fork and where its ways meet is left to the fork."""
        found: set[str] = set()
        todo = [node for node in firsts if node != stop]
        while todo:
            node = todo.pop()
            if node in found:
                continue
            found.add(node)
            ways = self._nodes.jumps(node).all()
            if self._nodes.is_fork(node):
                ways = [*self._nodes.jumps(node).sides(), *self._meeting(node)]
            todo += [way for way in ways if way != stop]
        return sorted(found, key=lambda node: self._graph.ranks[node])

    def _meeting(self, node: str) -> list[str]:
        found = self._graph.meeting(self._nodes.jumps(node).out)
        return [found] if found is not None else []

    def _node(self, node: str, following: str | None, stop: str | None) -> list[Object]:
        jumps = self._nodes.jumps(node)
        if not self._nodes.is_fork(node):
            target = jumps.out[0] if jumps.out else None
            return [self._nodes.step(node, target, following, stop, nested=self._depth > 0)]
        # The block comes right behind the node, in the place of the following one.
        step = self._nodes.step(node, following, following, stop, nested=self._depth > 0)
        return [step, *self._fork(node, following, stop)]

    def _fork(self, node: str, following: str | None, outer: str | None) -> list[Object]:
        """The ways out of a node side by side, up to where they meet; of the start, all that follows as well.

        ``following`` is listed behind the block, ``outer`` is where the list ends that the block is in.
        """
        jumps, meeting = self._nodes.jumps(node), self._meeting(node)
        stop = meeting[0] if meeting else None
        block: Object = {"id": self._draft.fresh_id(f"{self._draft.step_id(node)}_ways")}
        branches: Object = {}
        for number, first in enumerate(jumps.out, 1):
            self._depth += 1
            inner = self._thread([first], stop)
            self._depth -= 1
            # A way that leads straight to the meeting does nothing.
            branches[f"way_{number}"] = inner or [{"id": self._draft.fresh_id("nothing"), "transform": None}]
        block["parallel"] = {"branches": branches}
        if self._nodes.is_start(node):
            behind = self._thread(meeting, None)
            return [self._draft.at(block, self._graph.keys[node]), *behind]
        onward = None if stop == outer else stop
        if onward != following:
            block["next"] = END if onward is None else self._draft.step_id(onward)
        return [self._draft.at(block, self._graph.keys[node])]
