"""Static check of what expressions name: the steps that can have run by then, and nothing that isn't there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.errors import Problem
from appliance.workflows.graph import Chain, Graph, Node, hint
from appliance.workflows.values import Use


def check(graph: Graph, uses: Iterable[Use], *, is_batch: bool = False) -> Iterator[Problem]:
    """Every name in ``uses`` that can't exist where it stands. ``is_batch``: there are ``events``."""
    for use in uses:
        for name in use.steps:
            found = graph.by_id.get(name)
            if found is None or (found.hidden and found.effect is None):
                known = [known for known, node in graph.by_id.items() if not node.hidden]
                yield Problem(f"there is no step {name!r}{hint(name, known)}", use.key)
            elif (wrong := _wrong(graph, use.node, found)) is not None:
                yield Problem(f"names {name!r}, which {wrong[0]}", use.key, expected=wrong[1])
        yield from _check_roots(graph, use)
        if "events" in use.roots and not is_batch:
            yield Problem("there is no events here", use.key, expected="event; events only with batch")


def _wrong(graph: Graph, node: Node | None, found: Node) -> tuple[str, str] | None:
    """Why a step can't be seen from another (None: from the workflow's output), and what to write instead."""
    outer = [*graph.lineage(found)]
    inner = [*graph.lineage(node)] if node is not None else []
    blocks = [block for block, _ in inner]
    for block, _ in outer:
        if block.kind == "for_each" and block not in blocks:
            return (
                f"runs once for each item of {block.id!r}: only its own steps see it",
                f"steps.{block.id}.output, the list of the last outputs",
            )
    if _root(graph, outer, found) != 0 and (node is None or _root(graph, inner, node) != _root(graph, outer, found)):
        return "only runs when the run ends", "an earlier step"
    if node is None or (node.hidden and node.id.endswith(".compensate")):
        return None  # whatever has run by then
    return _wrong_order(graph, _writer(node), found, outer, inner)


def _wrong_order(
    graph: Graph, node: Node, found: Node, outer: list[tuple[Node, Chain]], inner: list[tuple[Node, Chain]]
) -> tuple[str, str] | None:
    if graph.cyclic and _root(graph, inner, node) == 0:
        return None  # it may have run when the machine was here before
    if found is node:
        return "is this very step", "an earlier step"
    if _root(graph, inner, node) != _root(graph, outer, found):
        return None  # what runs when the run has failed sees all that came before
    for block, _ in inner:
        if block is found and found.kind != "choose":
            return "is the block around this step: it has no output yet", "an earlier step"
    for (block, mine), (other, its) in zip(reversed(inner), reversed(outer), strict=False):
        if block is not other:
            break
        if mine is not its:
            return f"stands in another branch of {block.id!r}", "a step of the same branch, or one before the branches"
    return ("is a later step", "an earlier step") if found.index > node.index else None


def _writer(node: Node) -> Node:
    """The step that was written, of a hidden one."""
    return node.owner if node.hidden and node.owner is not None else node


def _root(graph: Graph, lineage: list[tuple[Node, Chain]], node: Node) -> int:
    """The outermost thread around a step: 0, or that of the workflow's ``on_error``."""
    return (lineage[-1][0] if lineage else _writer(node)).chain.thread


def _check_roots(graph: Graph, use: Use) -> Iterator[Problem]:
    """Conditions see the event's attributes at the root, so only what surely is no attribute can be refused."""
    if not use.roots:
        return
    own = {name for node in graph.nodes if (name := _item_name(node)) is not None}
    around = {_item_name(block) for block, _ in graph.lineage(use.node)} if use.node is not None else set()
    for root in use.roots:
        if root in ("secrets", "task"):
            yield Problem(f"{root} can't be seen here", use.key, expected="the event, steps, run, input or error")
        elif root in (own | {"item"}) - around:
            yield Problem(f"there is no {root} here", use.key, expected=f"{root} only within the steps of a for_each")


def _item_name(node: Node) -> str | None:
    return node.model.for_each.as_ if node.model is not None and node.model.for_each is not None else None
