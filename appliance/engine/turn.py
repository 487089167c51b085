"""One turn of the core: the run's state while it is being changed, and what its expressions see.

The core is a pure function for whoever calls it; inside a turn it works on copies of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from appliance.engine.state import (
    ACTIVE,
    FAILED,
    RUNNING,
    Block,
    Command,
    Facts,
    Path,
    RunState,
    StepState,
    base_key,
    path_of,
)
from appliance.errors import ApplianceError
from appliance.templating import TemplateError
from appliance.workflows.revision import Step, Workflow

MAX_VISITS = 10_000
"""Steps that one run may go through: a state machine that goes round for ever ends here."""
MAX_ITEMS = 1000
"""Items of one for_each: each is a step row at least, and each turn looks at all of them."""


class StepError(ApplianceError):
    """A step can't be done with the data at hand."""


class Turn:
    """What a run becomes while one input is worked in. ``todo``: (step to go to, thread, path, step that led there)."""

    __slots__ = (
        "_error",
        "_known",
        "at",
        "before",
        "blocks",
        "commands",
        "ending",
        "error",
        "facts",
        "finished_at",
        "inbox",
        "now",
        "outcome",
        "output",
        "phase",
        "place",
        "status",
        "steps",
        "todo",
        "workflow",
    )

    def __init__(self, workflow: Workflow, facts: Facts, state: RunState, now: float) -> None:
        self.workflow = workflow
        self.facts = facts
        self.now = now
        self.status = state.status
        self.at = state.at
        self.before = state.steps
        self.steps: dict[str, StepState] = dict(state.steps)
        self.error = state.error
        self.finished_at = state.finished_at
        self.blocks: Mapping[str, Block] = state.blocks
        self.phase = state.phase
        self.ending = state.ending
        self.outcome = state.outcome
        self.output = state.output
        self.place = state.place
        self.inbox = state.inbox
        self.commands: list[Command] = []
        self.todo: deque[tuple[int | None, int, Path, str | None]] = deque()
        self._known: dict[Path, dict[str, StepState]] | None = None
        self._error: StepState | None = None

    def result(self) -> RunState:
        """The state after this turn."""
        return RunState(
            self.status,
            self.at,
            self.steps,
            self.error,
            self.finished_at,
            self.blocks,
            self.phase,
            self.ending,
            self.outcome,
            self.output,
            self.place,
            self.inbox,
        )

    def put(self, visit: StepState) -> StepState:
        """Record a visit, new or changed."""
        self.steps[visit.key] = visit
        if self._error is not None and self._error.key == visit.key:
            self._known = self._error = None
        elif self._known is not None:
            self._know(visit)
        return visit

    def visit(self, step: Step, path: Path, status: str = RUNNING) -> StepState:
        """A new visit of a step, begun now."""
        now = self.now
        return StepState(self._new_key(step, path), step.id, self.next_seq(), status, 1, now, now)

    def next_seq(self) -> int:
        """What the next visit's ``seq`` is. Not the number of visits: a rerun takes over some of another run's."""
        return next(reversed(self.steps.values())).seq + 1 if self.steps else 0

    def step(self, visit: StepState) -> Step:
        """The definition of a visit's step."""
        return self.workflow.steps[self.workflow.by_id[visit.step]]

    def known(self, visit: StepState) -> Step | None:
        """The same of a visit that is over; None if it was of an earlier revision, and this one has no such step."""
        index = self.workflow.by_id.get(visit.step)
        return None if index is None else self.workflow.steps[index]

    def set_block(self, key: str, block: Block | None) -> None:
        """Record the progress of a block; None: it is over."""
        self.blocks = {k: b for k, b in self.blocks.items() if k != key} | ({key: block} if block is not None else {})

    def latest(self, step: Step, path: Path, before: int | None = None) -> StepState | None:
        """The last visit of a step; with ``before``, of those that were begun before this ``seq``."""
        base = base_key(step.id, path)
        found, number = self.steps.get(base), 2
        while (later := self.steps.get(f"{base}#{number}")) is not None and (before is None or later.seq < before):
            found = later
            number += 1
        return found

    def parent(self, step: Step, path: Path, before: int | None = None) -> tuple[StepState, int] | None:
        """The visit of the block around a step, and which of its branches (or items) the step is in.

        ``before`` is the ``seq`` of the step's visit; without it, the visit is about to be.
        """
        thread = self.workflow.threads[step.thread]
        if thread.parent is None:
            return None
        block = self.workflow.steps[thread.parent]
        above, branch = (path[:-1], path[-1]) if block.kind == "for_each" else (path, block.threads.index(step.thread))
        visit = self.latest(block, above, before)
        return (visit, branch) if visit is not None else None

    def is_live(self, visit: StepState) -> bool:
        """Whether the run goes on behind this visit: not if what is around it is over."""
        if self.ending is not None and not self.phase:
            return False
        while (found := self.parent(self.step(visit), path_of(visit.key), visit.seq)) is not None:
            visit, _ = found
            if visit.status != RUNNING:
                return False
        return True

    def within(self, block: StepState) -> list[StepState]:
        """The active visits in the branches of a block, nested ones too."""
        inside = set(threads_in(self.workflow, self.step(block).index))
        path = path_of(block.key)
        return [
            visit
            for visit in self.steps.values()
            if visit.status in ACTIVE
            and visit.seq > block.seq
            and self.step(visit).thread in inside
            and path_of(visit.key)[: len(path)] == path
        ]

    # --- what expressions see ----------------------------------------------------------------------------------------

    def scope(self, step: Step, path: Path) -> dict[str, Any]:
        """What the templates of a step see, but for secrets."""
        facts = self.facts
        place = self.place
        event = facts.view if place is None or place.get("event") is None else place["event"]
        names = {
            "event": event,
            "steps": self.outputs(path),
            "run": facts.run,
            "input": facts.input,
            "error": self._last_error(),
        }
        if facts.events is not None:
            names["events"] = facts.events
        return names | self._items(step, path) if path else names

    def condition_scope(self, step: Step, path: Path) -> dict[str, Any]:
        """What an ``if`` sees: the event's attributes at the root beside the names of templates."""
        scope = self.scope(step, path)
        return {**scope["event"], **scope}

    def outputs(self, path: Path = ()) -> dict[str, dict[str, Any]]:
        """``steps`` as a step in ``path`` sees it: the last visit of each step that is not in another item."""
        known = self._look_over()
        return {
            s.step: {"output": s.output, "status": s.status, "error": s.error}
            for depth in range(len(path) + 1)
            for s in known.get(path[:depth], {}).values()
        }

    def items(self, step: Step, path: Path) -> list[Any]:
        """The items of a ``for_each``; raises StepError for what is no list, or too long."""
        memo = self.facts.memo
        visit = self.latest(step, path)
        key = visit.key if visit is not None else ""
        if memo is not None and key in memo:
            found: list[Any] = memo[key]
            return found
        try:
            items = step.items.render(self.scope(step, path)) if step.items is not None else []
        except TemplateError as error:
            raise StepError(str(error)) from None
        if not isinstance(items, list):
            raise StepError(f"for_each.items: expected a list, got {type(items).__name__}")
        if len(items) > MAX_ITEMS:
            raise StepError(f"for_each.items: {len(items)} items; at most {MAX_ITEMS} are possible")
        if memo is not None:
            memo[key] = items
        return items

    def _items(self, step: Step, path: Path) -> dict[str, Any]:
        names: dict[str, Any] = {}
        while path:
            thread = self.workflow.threads[step.thread]
            if thread.parent is None:
                if step.owner is None:
                    break
                step = self.workflow.steps[step.owner]  # a hidden step sees what its own step sees
                continue
            block = self.workflow.steps[thread.parent]
            if block.kind == "for_each":
                index, path = path[-1], path[:-1]
                if "index" not in names:
                    names["index"] = index
                items = self.items(block, path)
                names.setdefault(block.item_name, items[index] if index < len(items) else None)
            step = block
        return names

    def _last_error(self) -> dict[str, Any] | None:
        """What failed last; when the run is about to end, why it does."""
        if self.phase and self.error is not None:
            return self._cause()
        self._look_over()
        last = self._error
        return {"step": last.step, "message": last.error} if last is not None else None

    def _cause(self) -> dict[str, Any]:
        at = self.steps.get(self.at) if self.at is not None else None
        if at is not None and at.error is not None:
            return {"step": at.step, "message": at.error}
        ends = [s.step for s in self.steps.values() if (step := self.known(s)) is not None and step.fails]
        return {"step": ends[-1] if ends else None, "message": self.error}

    def _look_over(self) -> dict[Path, dict[str, StepState]]:
        """The last visit of each step, by path. Looked for once a turn: there may be thousands of visits."""
        if self._known is None:
            self._known = {}
            for visit in self.steps.values():
                self._know(visit)
        return self._known

    def _know(self, visit: StepState) -> None:
        of_path = (self._known or {}).get(path := path_of(visit.key))
        if of_path is None and self._known is not None:
            of_path = self._known[path] = {}
        if of_path is not None and ((other := of_path.get(visit.step)) is None or other.seq <= visit.seq):
            of_path[visit.step] = visit
        if visit.status == FAILED and (self._error is None or _ended(self._error) <= _ended(visit)):
            self._error = visit

    def _new_key(self, step: Step, path: Path) -> str:
        base = base_key(step.id, path)
        if base not in self.steps:
            return base
        number = 2
        while f"{base}#{number}" in self.steps:
            number += 1
        return f"{base}#{number}"


def _ended(visit: StepState) -> tuple[float, int]:
    return visit.finished_at or 0.0, visit.seq


def threads_in(workflow: Workflow, block: int) -> list[int]:
    """The threads of a block, and those of the blocks in them."""
    found = list(workflow.steps[block].threads)
    for step in workflow.steps:
        if step.threads and step.index != block and step.thread in found:
            found += [thread for thread in step.threads if thread not in found]
    return found
