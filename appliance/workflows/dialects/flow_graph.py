"""A drawn graph: nodes and edges, whether it can be a workflow, and how its ways part and meet."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from appliance.workflows.dialects.draft import Draft, Object
from appliance.workflows.graph import MAX_STEPS

NOTES = ("note", "comment", "annotation", "sticky-note", "group")
"""Types of nodes that are for people: without edges, they are no steps."""
_LONGEST = 10
"""Nodes named in a message."""


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge; ``handle`` is where it leaves its source (a name, or nothing), ``key`` where it stands."""

    source: str
    target: str
    handle: str
    key: str


@dataclass
class FlowGraph:
    """Nodes by id, in the order in which a run may come to them, and the edges that leave each."""

    nodes: dict[str, Object] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    out: dict[str, list[Edge]] = field(default_factory=dict)
    inner: dict[str, list[tuple[str, Any, str]]] = field(default_factory=dict)
    """By a block of ours: what is drawn of the steps in it, which is no node by itself: (id, step, key)."""
    leaps: dict[str, list[str]] = field(default_factory=dict)
    """By a block of ours: where the steps in it jump to."""
    exits: set[str] = field(default_factory=set)
    """Nodes at which a way may end although edges leave them: conditions with an answer that no edge is for."""
    start: str = ""
    ranks: dict[str, int] = field(default_factory=dict)

    def targets(self, node: str) -> list[str]:
        """Where the edges of a node lead, each once."""
        return list(dict.fromkeys([*(edge.target for edge in self.out[node]), *self.leaps.get(node, ())]))

    def reach(self, first: str, stop: str | None = None) -> set[str]:
        """All that can be come to from ``first``, itself included, without passing ``stop``."""
        found: set[str] = set()
        todo = [first]
        while todo:
            node = todo.pop()
            if node != stop and node not in found:
                found.add(node)
                todo += self.targets(node)
        return found

    def meeting(self, nodes: Iterable[str]) -> str | None:
        """The first node that every way from each of ``nodes`` comes to; None if there is none."""
        common = -1
        for node in nodes:
            common &= self._musts[node]
        return self._ranked[(common & -common).bit_length() - 1] if common else None

    @cached_property
    def _ranked(self) -> list[str]:
        return sorted(self.nodes, key=lambda node: self.ranks[node])

    @cached_property
    def _musts(self) -> dict[str, int]:
        """By node, what every way from it to an end comes to: a bit for each node, by its rank."""
        musts: dict[str, int] = {}
        for node in reversed(self._ranked):
            targets = self.targets(node)
            common = -1 if targets and node not in self.exits else 0
            for target in targets:
                common &= musts[target]
            musts[node] = common | 1 << self.ranks[node]
        return musts


def read_graph(body: Object, prefix: str, starts: Iterable[str], draft: Draft) -> FlowGraph | None:
    """The graph in ``body``; None if it can't be a workflow, which the draft then knows.

    ``starts`` are types of nodes at which a run begins.
    """
    graph = FlowGraph()
    if len(body["nodes"]) > MAX_STEPS:
        draft.complain(f"more than {MAX_STEPS} nodes", f"{prefix}nodes", "several workflows")
        return None
    _read_nodes(graph, body["nodes"], f"{prefix}nodes", draft)
    _read_edges(graph, body["edges"], f"{prefix}edges", draft)
    for block, drawn in graph.inner.items():
        if block not in graph.nodes:
            draft.complain(f"there is no node {block!r}, in which this is drawn", f"{drawn[0][2]}.data.of", "a block")
    if draft.problems:
        return None
    for node in list(graph.nodes):
        if type_of(graph.nodes[node]) in NOTES and not _touched(graph, node):
            del graph.nodes[node], graph.out[node]
    if not graph.nodes:
        draft.complain("no nodes", f"{prefix}nodes", "a list with at least one")
        return None
    _rank(graph, draft)
    if not draft.problems:
        _begin(graph, set(starts), draft)
    return None if draft.problems else graph


def type_of(node: Object) -> str:
    """A node's type in plain words: ``delay`` for ``delay-node``, ``delayNode`` and so on."""
    data: Object = node["data"] if isinstance(node.get("data"), dict) else {}
    own = node.get("type")
    if own in (None, "default", "custom", "customNode"):
        own = next((data[word] for word in ("nodeType", "type", "kind") if isinstance(data.get(word), str)), own)
    words = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in str(own or "default"))
    return words.replace("_", "-").strip("-").removesuffix("-node")


def _read_nodes(graph: FlowGraph, nodes: list[Any], key: str, draft: Draft) -> None:
    for index, node in enumerate(nodes):
        place = f"{key}[{index}]"
        if (block := block_of(node)) is not None and isinstance(node.get("id"), str):
            graph.inner.setdefault(block, []).append((node.get("id"), node["data"].get("step"), place))
            continue
        if not isinstance(node, dict) or not isinstance(node.get("id"), str) or not node["id"]:
            draft.complain("a node without an id", place, '{"id": …, "type": …, "data": {…}}')
        elif node["id"] in graph.nodes:
            draft.complain(f"{node['id']!r} appears twice", f"{place}.id", "an id of its own")
        elif not isinstance(node.get("data", {}), dict):
            draft.complain("not an object", f"{place}.data", "what the node does")
        else:
            graph.nodes[node["id"]], graph.keys[node["id"]], graph.out[node["id"]] = node, place, []


def block_of(node: Any) -> str | None:
    """The block that a node is drawn in as one of its steps, if it is one of our drawings."""
    data = node.get("data") if isinstance(node, dict) else None
    return data["of"] if isinstance(data, dict) and isinstance(data.get("of"), str) else None


def _read_edges(graph: FlowGraph, edges: list[Any], key: str, draft: Draft) -> None:
    inner = {node: block for block, drawn in graph.inner.items() for node, _, _ in drawn}
    for index, edge in enumerate(edges):
        place = f"{key}[{index}]"
        if not isinstance(edge, dict) or not all(isinstance(edge.get(end), str) for end in ("source", "target")):
            draft.complain("not an edge", place, '{"id": …, "source": …, "target": …}')
            continue
        if edge["source"] in inner:
            if edge["target"] in graph.nodes:
                graph.leaps.setdefault(inner[edge["source"]], []).append(edge["target"])
            continue
        missing = [end for end in ("source", "target") if edge[end] not in graph.nodes]
        for end in missing:
            message = f"there is no node {edge[end]!r:.80}: the edge hangs in the air"
            draft.complain(message, f"{place}.{end}", "the id of a node, or no edge")
        data = edge.get("data")
        if isinstance(data, dict) and data.get("condition"):
            expected = "a condition node, whose edges leave from true and false"
            draft.complain("edges can't have conditions", f"{place}.data.condition", expected)
        if not missing:
            handle = edge.get("sourceHandle") or (edge.get("label") if isinstance(edge.get("label"), str) else "")
            graph.out[edge["source"]].append(Edge(edge["source"], edge["target"], str(handle or ""), place))


def _touched(graph: FlowGraph, node: str) -> bool:
    return bool(graph.out[node]) or any(edge.target == node for edges in graph.out.values() for edge in edges)


def _rank(graph: FlowGraph, draft: Draft) -> None:
    """An order in which no edge leads back; as the nodes are listed, where that is free."""
    listed = list(graph.nodes)
    numbers = {node: number for number, node in enumerate(listed)}
    waiting = dict.fromkeys(listed, 0)
    for node in listed:
        for target in graph.targets(node):
            waiting[target] += 1
    ready = [index for index, node in enumerate(listed) if not waiting[node]]
    while ready:
        node = listed[heapq.heappop(ready)]
        graph.ranks[node] = len(graph.ranks)
        for target in graph.targets(node):
            waiting[target] -= 1
            if not waiting[target]:
                heapq.heappush(ready, numbers[target])
    round_ = [node for node in listed if node not in graph.ranks]
    if round_:
        way = list(_circle(graph, round_))
        expected = "edges that lead forward only (what goes back is a workflow with states)"
        draft.complain(f"the graph goes round in a circle: {' → '.join(way)}", graph.keys[way[0]], expected)


def _circle(graph: FlowGraph, among: list[str]) -> Iterator[str]:
    """Some circle among nodes each of which waits for another one of them; begins and ends with the same node."""
    before = {target: node for node in among for target in graph.targets(node) if target in among}
    seen: list[str] = []
    node = next(node for node in among if node in before)
    while node not in seen:
        seen.append(node)
        node = before[node]
    ring = seen[seen.index(node) :][::-1]
    first = ring.index(min(ring, key=among.index))
    ring = ring[first:] + ring[:first]
    yield from [*ring, ring[0]][:_LONGEST]


def _begin(graph: FlowGraph, starts: set[str], draft: Draft) -> None:
    """Find the node at which a run begins, from which all others must be reached."""
    targeted = {target for node in graph.nodes for target in graph.targets(node)}
    marked = [node for node in graph.nodes if type_of(graph.nodes[node]) in starts or _is_trigger(graph.nodes[node])]
    for node in marked:
        if node in targeted:
            draft.complain(f"an edge leads to {node!r}, where a run begins", graph.keys[node], "edges out of it only")
    heads = marked or [node for node in graph.nodes if node not in targeted]
    if len(heads) > 1:
        expected = "one start, and edges to all other nodes"
        draft.complain(f"several starts: {', '.join(map(repr, heads[:_LONGEST]))}", graph.keys[heads[1]], expected)
    if draft.problems:
        return
    graph.start = heads[0]
    reached = graph.reach(graph.start)
    for node in graph.nodes:
        if node not in reached:
            draft.complain(f"nothing leads to {node!r}", graph.keys[node], "an edge to it")


def _is_trigger(node: Object) -> bool:
    return type_of(node).endswith("-trigger")
