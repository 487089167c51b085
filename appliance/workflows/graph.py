"""The steps of a definition, nested as they are written, laid out as one list: who follows whom, who may jump where.

A :class:`Chain` is a list of steps; those of a ``choose`` belong to the thread around it, each branch of a ``parallel``
and the steps of a ``for_each`` are threads of their own. Steps that the engine needs beside those that were written
(what compensates, notifies, leads back) come last: their ids hold a dot.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from appliance.errors import Problem
from appliance.workflows.models import EffectModel, StepModel
from appliance.workflows.revision import CONTINUE, END

MAX_STEPS = 2000
"""Steps of one workflow, nested and hidden ones included."""
MAX_NESTING = 10
"""Blocks inside each other."""
RESERVED = (END, CONTINUE)


@dataclass(eq=False, slots=True)
class Chain:
    """Steps that run one after the other. ``around`` is the ``choose`` whose branch they are.

    ``tail`` follows the last one (of a state machine: the next state); ``leaves`` says that ``end`` may stand in it.
    """

    thread: int
    around: Node | None = None
    tail: Node | None = None
    leaves: bool = True
    nodes: list[Node] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Node:
    """A step on its way to be compiled; ``key`` is where it stands in the definition (``steps[0]``).

    ``owner`` is the step that a hidden one belongs to. ``chains`` are the branches of a ``choose``, by their number;
    ``threads`` those of a block. ``target`` is where a hidden step leads.
    """

    id: str
    kind: str
    key: str
    chain: Chain
    index: int
    model: StepModel | None = None
    effect: EffectModel | None = None
    owner: Node | None = None
    position: int = -1
    chains: dict[int, Chain] = field(default_factory=dict)
    threads: list[int] = field(default_factory=list)
    target: Node | None = None
    state: str | None = None

    @property
    def hidden(self) -> bool:
        """Whether nobody wrote it as a step."""
        return self.position < 0


@dataclass(eq=False, slots=True)
class ThreadDraft:
    """A thread on its way to be compiled; ``parent`` is the block whose branch it is."""

    name: str
    parent: Node | None
    chain: Chain


class Graph:
    """All steps of one workflow. ``problems`` is added to."""

    def __init__(self, problems: list[Problem]) -> None:
        self.nodes: list[Node] = []
        self.threads: list[ThreadDraft] = []
        self.by_id: dict[str, Node] = {}
        self.problems = problems
        self.cyclic = False
        """Whether steps may come round again: those of a state machine."""
        self._depth = 0

    # --- laying out --------------------------------------------------------------------------------------------------

    def thread(self, name: str, parent: Node | None = None) -> Chain:
        """A new thread; its steps are to be put into the chain."""
        chain = Chain(len(self.threads))
        self.threads.append(ThreadDraft(name, parent, chain))
        return chain

    def lay(self, models: Iterable[StepModel], key: str, chain: Chain, prefix: str = "") -> None:
        """Put steps, with all that is in them, at the end of a chain. ``prefix`` names those without an id."""
        self._depth += 1
        if self._depth > MAX_NESTING:
            self.problems.append(Problem(f"nested deeper than {MAX_NESTING} blocks", key))
        else:
            for number, model in enumerate(models):
                node = self.add(model.id or self._free(prefix), model.kind, f"{key}[{number}]", chain, model)
                self._lay_inner(node, model)
        self._depth -= 1

    def add(self, id: str, kind: str, key: str, chain: Chain, model: StepModel | None = None) -> Node:
        """Put one step at the end of a chain."""
        node = Node(id, kind, key, chain, len(self.nodes), model, position=len(chain.nodes))
        self.nodes.append(node)
        chain.nodes.append(node)
        self._name(node, f"{key}.id" if model is not None else key)
        return node

    def hide(self, id: str, kind: str, owner: Node, key: str, effect: EffectModel | None = None) -> Node:
        """A hidden step: an action in a thread of its own, anything else in that of its owner."""
        chain = self.thread(id) if effect is not None else Chain(owner.chain.thread)
        node = Node(id, kind, key, chain, len(self.nodes), effect=effect, owner=owner)
        self.nodes.append(node)
        self.by_id[id] = node
        if effect is not None:
            chain.nodes.append(node)
        return node

    def _lay_inner(self, node: Node, model: StepModel) -> None:
        key = node.key
        for number, branch in enumerate(model.choose or ()):
            if branch.steps is not None:
                inner = Chain(node.chain.thread, around=node, leaves=node.chain.leaves)
                node.chains[number] = inner
                self.lay(branch.steps, f"{key}.choose[{number}].steps", inner)
        for name, steps in model.parallel.branches.items() if model.parallel is not None else ():
            self._lay_thread(node, name, steps, f"{key}.parallel.branches.{name}")
        if model.for_each is not None:
            self._lay_thread(node, "", model.for_each.steps, f"{key}.for_each.steps")

    def _lay_thread(self, node: Node, name: str, steps: list[StepModel], key: str) -> None:
        chain = self.thread(name, node)
        node.threads.append(chain.thread)
        self.lay(steps, key, chain)

    def _free(self, prefix: str) -> str:
        number = 0
        while f"{prefix}.{number}" in self.by_id:
            number += 1
        return f"{prefix}.{number}"

    def _name(self, node: Node, key: str) -> None:
        if node.id in RESERVED:
            self.problems.append(Problem(f"{node.id!r} has a meaning of its own", key, expected="another id"))
        elif (other := self.by_id.setdefault(node.id, node)) is not node:
            message = f"{node.id!r} is already the id of {other.key}"
            self.problems.append(Problem(message, key, expected="an id of its own"))

    # --- who follows whom --------------------------------------------------------------------------------------------

    def after(self, node: Node) -> Node | None:
        """What follows a step that is skipped; None: its thread is over."""
        chain = node.chain
        if node.position + 1 < len(chain.nodes):
            return chain.nodes[node.position + 1]
        return self.follow(chain.around) if chain.around is not None else chain.tail

    def follow(self, node: Node) -> Node | None:
        """What follows a step that is done; None: its thread is over."""
        if node.hidden:
            return node.target
        target = node.model.next if node.model is not None else None
        if target is None:
            return self.after(node)
        return self.by_id.get(target) if target != END else None

    def lineage(self, node: Node) -> Iterator[tuple[Node, Chain]]:
        """The blocks that a step stands in, the innermost first, each with the chain in it where the step is."""
        while True:
            if node.hidden and node.owner is not None:
                node = node.owner
            above = node.chain.around or self.threads[node.chain.thread].parent
            if above is None:
                return
            yield above, node.chain
            node = above

    # --- jumps -------------------------------------------------------------------------------------------------------

    def check_jump(self, node: Node, target: str | None, key: str, words: tuple[str, ...] = (END,)) -> Node | None:
        """The step that a jump leads to (None: none, or one of ``words``); what is wrong with it is a problem."""
        expected = "a later step, or " + " or ".join(words)
        if target is None:
            return None
        if target in words:
            if target == END and not node.chain.leaves:
                expected = "a step of the kind end, or a transition to a final state"
                self.problems.append(Problem("a state machine doesn't end between two states", key, expected=expected))
            return None
        found = self.by_id.get(target)
        message = self._wrong_jump(node, target, found)
        if message is not None:
            self.problems.append(Problem(message, key, expected=expected))
            return None
        return found

    def _wrong_jump(self, node: Node, target: str, found: Node | None) -> str | None:
        if found is None or found.hidden:
            return f"there is no step {target!r}{hint(target, self._named())}"
        if found.kind in ("state", "end") and found.model is None:
            return f"{target!r} is a state: only a transition's next leads to one"
        if found.chain.thread != node.chain.thread:
            return f"{target!r} stands in another thread ({found.key}): a jump stays in its branch"
        if found.index <= node.index:
            return f"{target!r} doesn't come later: loops aren't supported"
        chains, chain = [node.chain], node.chain
        while chain.around is not None:
            chain = chain.around.chain
            chains.append(chain)
        return (
            None if found.chain in chains else f"{target!r} stands in {found.key}: nothing jumps into a list of steps"
        )

    def _named(self) -> list[str]:
        return [name for name, node in self.by_id.items() if not node.hidden]


def hint(name: str, known: Iterable[str]) -> str:
    """`` did you mean``, if one of the ``known`` is nearly ``name``."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
