"""Where the nodes of a graph stand: in layers from top to bottom, each below all that lead to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WIDTH, HEIGHT = 180, 60
"""Size of a node, in the pixels of a drawing."""
_GAP = 60
_PADDING = 40


@dataclass(frozen=True, slots=True)
class Box:
    """The size of a node; one that holds others has them in a column."""

    width: int
    height: int

    def inside(self, index: int) -> tuple[int, int]:
        """Where the inner node of this number stands."""
        return _PADDING, _PADDING * 2 + index * (HEIGHT + _PADDING)


def column(inner: int) -> Box:
    """The size of a node that holds so many others."""
    if not inner:
        return Box(WIDTH, HEIGHT)
    return Box(WIDTH + 2 * _PADDING, _PADDING * 2 + inner * (HEIGHT + _PADDING))


def arranged(boxes: Mapping[str, Box], edges: Iterable[tuple[str, str]]) -> dict[str, tuple[int, int]]:
    """The upper left corner of each box. Edges that lead back, or to what is no box, don't count."""
    ways: dict[str, list[str]] = {node: [] for node in boxes}
    for source, target in edges:
        if source in boxes and target in boxes and source != target:
            ways[source].append(target)
    layers: dict[int, list[str]] = {}
    for node, depth in _depths(ways).items():
        layers.setdefault(depth, []).append(node)
    places: dict[str, tuple[int, int]] = {}
    y = 0
    for depth in sorted(layers):
        row = layers[depth]
        width = sum(boxes[node].width for node in row) + _GAP * (len(row) - 1)
        x = -width // 2
        for node in row:
            places[node] = (x, y)
            x += boxes[node].width + _GAP
        y += max(boxes[node].height for node in row) + _GAP
    return {node: places[node] for node in boxes}


def _depths(ways: Mapping[str, list[str]]) -> dict[str, int]:
    """How far below the top each node stands: one below the lowest of those that lead to it, circles cut open."""
    order: list[str] = []
    seen: set[str] = set()
    for root in ways:
        todo = [(root, iter(ways[root]))] if root not in seen else []
        seen.add(root)
        while todo:
            node, onward = todo[-1]
            further = next((target for target in onward if target not in seen), None)
            if further is None:
                order.append(node)
                todo.pop()
            else:
                seen.add(further)
                todo.append((further, iter(ways[further])))
    order.reverse()
    rank = {node: index for index, node in enumerate(order)}
    depths = dict.fromkeys(ways, 0)
    for node in order:
        for target in ways[node]:
            if rank[target] > rank[node]:
                depths[target] = max(depths[target], depths[node] + 1)
    return depths
