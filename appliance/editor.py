"""The editor: how people and programs change which definitions are in force, and see beforehand what that would do.

Whatever a change depends on is looked at in the transaction that makes it, with the workflow's row locked: of two who
change the same workflow at once, on any replicas, the second sees what the first has done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from appliance.catalog import Catalog
from appliance.errors import Conflict, DefinitionError, NotFound, Problem, StoreUnavailable
from appliance.plugin import Action
from appliance.preconditions import NOTHING_SAID, Precondition, refuse_file
from appliance.store.definitions import CurrentWorkflow, DefinitionStore, Edit, NewDefinition, StoredRevision
from appliance.workflows.compile import compile_workflow
from appliance.workflows.cycles import find_cycles
from appliance.workflows.difference import diff
from appliance.workflows.flow import call_cycles
from appliance.workflows.revision import Workflow


@dataclass(frozen=True, slots=True)
class Draft:
    """What a change comes to: ``kind`` is create, change, enable, disable, rollback or none (it is so already).

    ``workflow`` is None if its definition stays as it is and nothing is begun with it; ``revision`` is the stored one
    that would be in force, None if there is none yet.
    """

    kind: str
    enabled: bool
    definition: Mapping[str, Any]
    workflow: Workflow | None
    revision: StoredRevision | None


class Change(Protocol):
    """A change of the workflow ``name``. ``needs_etag``: whoever changes something has to say what he saw.

    ``draft`` raises NotFound, Conflict and DefinitionError.
    """

    @property
    def name(self) -> str: ...
    @property
    def creates(self) -> bool: ...
    @property
    def needs_etag(self) -> bool: ...

    async def draft(self, edit: Edit) -> Draft: ...
    async def make(self, edit: Edit, draft: Draft) -> CurrentWorkflow: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change came to, and what is in force by it."""

    kind: str
    standing: CurrentWorkflow


@dataclass(frozen=True, slots=True)
class Plan:
    """What a change would do. ``current``: what is in force now; ``missing``: called workflows that aren't there.

    ``diff`` is one of YAML, ``warnings`` are texts; ``follows``: parked runs go on in the definition, where they can.
    """

    name: str
    draft: Draft
    current: CurrentWorkflow | None
    diff: str
    warnings: list[str]
    missing: list[str]
    follows: bool


class Editor:
    """Changes and looks at definitions. All of it raises StoreUnavailable while PostgreSQL is away."""

    def __init__(self, catalog: Catalog, store: DefinitionStore, actions: Mapping[str, Action]) -> None:
        self._catalog = catalog
        self._store = store
        self._actions = actions

    def put(self, document: Any, name: str | None = None) -> Change:
        """Put a definition of any dialect in force; raises DefinitionError, also if its name isn't ``name``."""
        workflow, definition = self._catalog.read(document)
        if name is not None and workflow.name != name:
            expected = f"{name!r}, as in the path"
            raise DefinitionError(Problem(f"the definition's name is {workflow.name!r}", "name", expected=expected))
        return _Put(workflow, definition)

    def switch(self, name: str, enabled: bool) -> Change:
        """Let events and schedules start runs of a workflow, or not, whatever its definition says."""
        return _Switch(name, enabled, self._actions)

    def rollback(self, name: str, number: int | None = None) -> Change:
        """Put an earlier revision in force again; without a number the one before the present one."""
        return _Rollback(name, number, self._actions)

    async def make(self, change: Change, actor: str, condition: Precondition = NOTHING_SAID) -> Outcome:
        """Make a change, or none of it.

        Raises NotFound, Conflict (OwnedByFile, Outdated, Unseen) and DefinitionError.
        """
        async with self._store.edit(change.name, actor, create=change.creates) as edit:
            draft = await _draft(change, edit, condition, required=change.needs_etag)
            standing = await change.make(edit, draft)
        with contextlib.suppress(StoreUnavailable):  # it is made; this replica will take notice like the others
            await self._catalog.take_over(*([draft.workflow] if draft.workflow is not None else []))
        return Outcome(draft.kind, standing)

    async def plan(self, change: Change, condition: Precondition = NOTHING_SAID) -> Plan:
        """What a change would do. Raises what making it would raise, but wants no ETag."""
        async with self._store.edit(change.name, "") as edit:
            draft = await _draft(change, edit, condition, required=False)
            current = edit.standing
            known = None if current is None else await edit.numbered(current.number)
        old = None if known is None else _definition(known)
        labels = (_label(change.name, known), _label(change.name, draft.revision))
        difference = await asyncio.to_thread(diff, old, draft.definition, labels)
        warnings, missing = await asyncio.to_thread(self._warnings, change.name, draft, current)
        follows = draft.workflow is not None and draft.workflow.follows
        return Plan(change.name, draft, current, difference, warnings, missing, follows)

    async def revision(self, name: str, number: int | None = None) -> tuple[CurrentWorkflow, StoredRevision]:
        """A revision of a workflow (without a number: the one in force), and what is in force; raises NotFound."""
        standing = _there(await self._store.standing(name), name)
        stored = await self._store.numbered(standing.workflow_id, standing.number if number is None else number)
        return standing, _found(stored, name, number)

    async def difference(self, name: str, first: int, second: int | None = None) -> str:
        """A unified diff of one revision to another (without a number: the one in force); raises NotFound."""
        _, old = await self.revision(name, first)
        _, new = await self.revision(name, second)
        labels = (_label(name, old), _label(name, new))
        return await asyncio.to_thread(diff, _definition(old), _definition(new), labels)

    def _warnings(self, name: str, draft: Draft, current: CurrentWorkflow | None) -> tuple[list[str], list[str]]:
        """What would be odd without being wrong, and which workflows it calls that aren't there."""
        workflow = draft.workflow
        if workflow is None or draft.kind == "none":
            return [], []
        workflows, enabled = self._catalog.in_force()
        workflows[name] = workflow
        enabled = enabled | {name} if draft.enabled else enabled - {name}
        cycles = find_cycles(workflows.values(), enabled, through=name)
        warnings = [f"triggers itself: {cycle}" for cycle in cycles]
        warnings += [f"calls itself: {' → '.join(way)}" for _, way in call_cycles(workflows) if name == way[0]]
        if draft.kind in ("change", "rollback") and current is not None and draft.enabled != current.enabled:
            was, will = ("disabled", "enables") if draft.enabled else ("enabled", "disables")
            warnings.append(f"it is {was}, and this {will} it")
        called = {step.flow for step in workflow.steps if step.flow is not None}
        return warnings, sorted(called - workflows.keys())


@dataclass(frozen=True, slots=True)
class _Put:
    workflow: Workflow
    new: NewDefinition
    creates: bool = True
    needs_etag: bool = True

    @property
    def name(self) -> str:
        return self.workflow.name

    async def draft(self, edit: Edit) -> Draft:
        standing = edit.standing
        kind = "none"
        if standing is None:
            kind = "create"
        elif standing.digest != self.workflow.digest:
            kind = "change"
        elif standing.enabled != self.workflow.enabled:
            kind = _switched(self.workflow.enabled)
        known = await edit.alike(self.workflow.digest)
        return Draft(kind, self.workflow.enabled, self.workflow.definition, self.workflow, known)

    async def make(self, edit: Edit, draft: Draft) -> CurrentWorkflow:
        return await edit.put(self.new)


@dataclass(frozen=True, slots=True)
class _Switch:
    name: str
    enabled: bool
    actions: Mapping[str, Action]
    creates: bool = False
    needs_etag: bool = False

    async def draft(self, edit: Edit) -> Draft:
        standing = _there(edit.standing, self.name)
        stored = _found(await edit.numbered(standing.number), self.name, standing.number)
        workflow = await _compiled(stored, self.actions) if self.enabled else None
        kind = "none" if standing.enabled == self.enabled else _switched(self.enabled)
        return Draft(kind, self.enabled, _definition(stored), workflow, stored)

    async def make(self, edit: Edit, draft: Draft) -> CurrentWorkflow:
        return await _switch(edit, draft)


@dataclass(frozen=True, slots=True)
class _Rollback:
    name: str
    number: int | None
    actions: Mapping[str, Action]
    creates: bool = False
    needs_etag: bool = False

    async def draft(self, edit: Edit) -> Draft:
        standing = _there(edit.standing, self.name)
        if self.number is None:
            stored = await edit.before(standing.number)
            if stored is None:
                raise Conflict(f"there is no revision before {standing.number}, the one in force of {self.name!r}")
        else:
            stored = _found(await edit.numbered(self.number), self.name, self.number)
        workflow = await _compiled(stored, self.actions)
        present = _found(await edit.numbered(standing.number), self.name, standing.number)
        by_hand = not standing.enabled and _definition(present).get("enabled", True)
        enabled = workflow.enabled and not by_hand
        same = (standing.revision_id, standing.enabled) == (stored.id, enabled)
        return Draft("none" if same else "rollback", enabled, workflow.definition, workflow, stored)

    async def make(self, edit: Edit, draft: Draft) -> CurrentWorkflow:
        return await _switch(edit, draft)


_ACTIONS = {"enable": "enable workflow", "disable": "disable workflow", "rollback": "roll back workflow"}
"""What the audit log calls them."""


async def _draft(change: Change, edit: Edit, condition: Precondition, *, required: bool) -> Draft:
    """What the change comes to, if it may be made."""
    refuse_file(edit.standing)
    draft = await change.draft(edit)
    condition.check(edit.standing, changes=draft.kind != "none", required=required)
    return draft


async def _switch(edit: Edit, draft: Draft) -> CurrentWorkflow:
    assert edit.standing is not None  # noqa: S101  # else there would be no draft
    assert draft.revision is not None  # noqa: S101
    if draft.kind == "none":
        return edit.standing
    return await edit.switch(draft.revision.id, draft.enabled, _ACTIONS[draft.kind])


async def _compiled(stored: StoredRevision, actions: Mapping[str, Action]) -> Workflow:
    """A revision, if it could be put today. Raises DefinitionError."""
    try:
        return await asyncio.to_thread(compile_workflow, _definition(stored), actions=actions)
    except DefinitionError as error:
        gone = Problem(f"revision {stored.number} can't be put in force any more")
        raise DefinitionError(gone, *error.problems) from None


def _there(standing: CurrentWorkflow | None, name: str) -> CurrentWorkflow:
    if standing is None:
        raise NotFound(f"there is no workflow {name!r}")
    return standing


def _found(stored: StoredRevision | None, name: str, number: int | None) -> StoredRevision:
    if stored is None:
        raise NotFound(f"there is no revision {number} of the workflow {name!r}")
    return stored


def _definition(stored: StoredRevision) -> Mapping[str, Any]:
    definition: Mapping[str, Any] = orjson.loads(stored.definition)
    return definition


def _switched(enabled: bool) -> str:
    return "enable" if enabled else "disable"


def _label(name: str, revision: StoredRevision | None) -> str:
    return f"{name} (new)" if revision is None else f"{name} (revision {revision.number})"
