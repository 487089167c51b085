"""The catalog: the workflows in force, from files and the API, kept in step with every other replica's.

Files are read, checked and stored as revisions; what is in force is then taken from the database, so that all replicas
run the same. A file that is refused leaves its last good revision in force; a file that goes disables its workflow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from appliance.engine.listeners import Listeners, Shape, shape_from, shapes_of
from appliance.errors import DefinitionError, NotFound, Problem, StoreUnavailable
from appliance.observe.metrics import METRICS
from appliance.plugin import Action
from appliance.preconditions import refuse_file
from appliance.rules.matcher import Matcher, Rule
from appliance.store.definitions import CurrentWorkflow, DefinitionStore, NewDefinition, StoredRevision
from appliance.workflows.compile import compile_workflow
from appliance.workflows.cycles import Cycle, find_cycles
from appliance.workflows.dialects import compile_document
from appliance.workflows.folder import DefinitionFile, Folder
from appliance.workflows.revision import Revision, Workflow

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between two looks at the files and at the catalog's version."""
_REST = 20
"""How many times as long as a look took to wait before the next: very many files must not eat the time."""
_MAX_OLD = 1000
"""Revisions that are no longer in force but kept compiled, for runs that are still on them."""
_FILES = "files"
"""Who puts what comes from files, in the audit log."""


class Catalog:
    """The workflows in force. ``matcher`` is replaced as a whole, never changed."""

    def __init__(self, store: DefinitionStore, actions: Mapping[str, Action], config_dir: Path) -> None:
        self.matcher = Matcher()
        self.listeners = Listeners()
        self._store = store
        self._actions = actions
        self._folder = Folder(config_dir / "workflows", actions)
        self._version = -1
        self._current: dict[str, Revision] = {}
        self._old: OrderedDict[int, Revision] = OrderedDict()
        self._fresh: dict[str, Workflow] = {}
        """What was put but not taken over yet, by digest: it needn't be compiled again."""
        self.unusable: tuple[str, ...] = ()
        """Enabled workflows whose revision in force can't be read here, because a later release has put it: an event
        that is read now would be taken for one that they are not for."""
        self._lock = asyncio.Lock()
        self._cycles: tuple[Cycle, ...] = ()
        self._looked_at: Matcher | None = None

    @property
    def version(self) -> int:
        """Of what is in force here: it grows with every change of any definition."""
        return self._version

    @property
    def broken(self) -> Mapping[str, DefinitionError]:
        """The files that are refused, with what is wrong with each."""
        return {name: file.error for name, file in self._folder.files.items() if file.error is not None}

    async def load(self) -> None:
        """Read the files and what is in force. Raises StoreUnavailable; files that are refused are logged."""
        await self.refresh()

    async def refresh(self) -> None:
        """Take over what changed in the files or, through another replica or the API, in the database."""
        async with self._lock:
            await self._take_files()
            await self._take_current()

    async def catch_up(self, version: int) -> None:
        """Take over what another replica changed, unless what is in force here is of ``version`` or later."""
        async with self._lock:
            if self._version < version:
                await self._take_current()

    async def run(self) -> None:
        """Refresh for ever; while PostgreSQL is away, what was in force stays."""
        took_s = 0.0
        while True:
            await asyncio.sleep(max(POLL_S, _REST * took_s))
            try:
                began = time.monotonic()
                await self.refresh()
                await self.look_for_cycles()
                took_s = time.monotonic() - began
            except StoreUnavailable as error:
                log.warning("the workflows can't be refreshed for now: %s", error)

    def warnings(self, name: str) -> list[str]:
        """What is odd about a workflow although it is in order: ways in which it triggers itself."""
        return [f"triggers itself: {cycle}" for cycle in self._cycles if name in cycle.names]

    async def look_for_cycles(self) -> None:
        """Look for workflows that trigger themselves, if anything changed since; log those that are new."""
        if self.matcher is self._looked_at:
            return
        matcher, before = self.matcher, set(self._cycles)
        enabled = {rule.workflow for rule in matcher.rules}
        workflows = [revision.workflow for revision in self._current.values()]
        self._cycles = tuple(await asyncio.to_thread(find_cycles, workflows, enabled))
        self._looked_at = matcher
        for cycle in self._cycles:
            if cycle not in before:
                log.warning("workflows that trigger themselves, until engine.max_hops ends it: %s", cycle)

    def workflows(self) -> list[Revision]:
        """The revisions in force, disabled workflows left out, in the matcher's order."""
        return [rule.payload for rule in self.matcher.rules]

    async def get(self, name: str) -> Revision:
        """The revision in force of a workflow, disabled or not; raises NotFound."""
        return self.current(name)

    def current(self, name: str) -> Revision:
        """The same, for whoever can't wait."""
        if name not in self._current:
            raise NotFound(f"there is no workflow {name!r}")
        return self._current[name]

    async def revision(self, revision_id: int) -> Revision:
        """A revision, old ones too; raises NotFound, StoreUnavailable, or DefinitionError if it can't be read any more.

        An action that has gone since is no error here: the step that wants it fails.
        """
        known = self._old.get(revision_id)
        if known is None:
            stored = await self._store.revisions([revision_id])
            if not stored:
                raise NotFound(f"there is no revision {revision_id}")
            known = self._old[revision_id] = _compiled(stored[0])
            while len(self._old) > _MAX_OLD + len(self._current):
                self._old.popitem(last=False)
        self._old.move_to_end(revision_id)
        return known

    def lacking(self, workflow: Workflow) -> list[str]:
        """The actions that a workflow wants and that aren't installed (any more), by name."""
        wanted = {step.action for step in workflow.steps if step.action is not None}
        return sorted(wanted - self._actions.keys())

    def read(self, document: Any) -> tuple[Workflow, NewDefinition]:
        """A definition of any dialect: checked, and as it would be stored. Raises DefinitionError."""
        try:
            workflow, translated = compile_document(document, actions=self._actions)
        except DefinitionError:
            METRICS.definitions_refused.inc()
            raise
        source = orjson.dumps(document).decode() if translated else None
        return workflow, _definition(workflow, "api", None, source)

    async def put(self, document: Any, *, actor: str = "api") -> Revision:
        """Store a definition of any dialect and put it in force, whatever is now; the same content is the same one.

        For people, who ought to see what they change, there is :mod:`appliance.editor`. Raises DefinitionError,
        Conflict (the workflow belongs to a file) and StoreUnavailable.
        """
        workflow, definition = self.read(document)
        async with self._store.edit(workflow.name, actor, create=True) as edit:
            refuse_file(edit.standing)
            standing = await edit.put(definition)
        await self.take_over(workflow)
        return await self.revision(standing.revision_id)

    async def take_over(self, *fresh: Workflow) -> None:
        """Take over what was changed in the database just now; those of ``fresh`` needn't be compiled again."""
        self._fresh |= {workflow.digest: workflow for workflow in fresh}
        async with self._lock:  # of several at once, the first takes over all that were stored by then
            await self._take_current()

    def in_force(self) -> tuple[dict[str, Workflow], set[str]]:
        """The workflows by name, disabled ones too, and the names of those that are enabled."""
        workflows = {name: revision.workflow for name, revision in self._current.items()}
        return workflows, {rule.workflow for rule in self.matcher.rules}

    async def _take_files(self) -> None:
        before = self._folder.files
        changed, gone = await asyncio.to_thread(self._folder.scan)
        first = self._version < 0
        if not (changed or gone or first):
            return
        good = self._accepted(changed)
        orphans: list[CurrentWorkflow] = []
        try:
            taken = await self._store.put([_definition(w, "file", f.name, f.source) for f, w in good], _FILES)
            if self._folder.exists:
                orphans = [row for row in await self._store.current() if self._is_orphan(row)]
                await self._store.disown(orphans, _FILES)
        except BaseException:
            self._folder.files = before  # they are still to be taken
            raise
        for row in orphans:
            why = "holds another workflow now" if row.file in self._folder.files else "has gone"
            log.warning("%s %s: workflow %r is disabled, for all replicas", row.file, why, row.name)
        before_it = {row.name: row.number for row in taken}
        for file, workflow in good:
            log.info("%s: workflow %r loaded", file.name, workflow.name)
            if (number := before_it.get(workflow.name)) is not None:
                what = f"takes over workflow {workflow.name!r}, whose revision {number} came through the API"
                log.warning("%s %s: from now on it can be changed in the file only", file.name, what)

    def _accepted(self, changed: Sequence[DefinitionFile]) -> list[tuple[DefinitionFile, Workflow]]:
        """The files that can be taken; a name that another file has already is refused."""
        owners: dict[str, str] = {}
        accepted = []
        fresh = {file.name for file in changed}
        files = dict(self._folder.files)
        for file in list(files.values()):
            if file.workflow is not None:
                owner = owners.setdefault(file.workflow.name, file.name)
                if owner != file.name:
                    path = str(self._folder.path / file.name)
                    problem = Problem(f"{file.workflow.name!r} is already the name of {owner}", "name", file=path)
                    file = files[file.name] = DefinitionFile(file.name, file.stamp, None, DefinitionError(problem))
            if file.name not in fresh:
                continue
            if file.error is not None:
                METRICS.definitions_refused.inc()
                log.error("%s refused; what it held before stays in force:\n%s", file.name, file.error)
            elif file.workflow is not None:
                accepted.append((file, file.workflow))
        self._folder.files = files
        return accepted

    def _is_orphan(self, row: CurrentWorkflow) -> bool:
        """Whether a stored workflow belongs to a file that has gone, or that now holds another workflow."""
        if row.file is None:
            return False
        file = self._folder.files.get(row.file)
        return file is None or (file.workflow is not None and file.workflow.name != row.name)

    async def _take_current(self) -> None:
        """Compile what is in force and isn't compiled yet, and make a matcher of it."""
        version = await self._store.version()
        if version == self._version:
            return
        rows = await self._store.current()
        ready = {f.workflow.digest: f.workflow for f in self._folder.files.values() if f.workflow is not None}
        ready |= self._fresh
        known = {revision.id: revision for revision in self._current.values()} | self._old
        for row in rows:
            if row.revision_id not in known and row.digest in ready:
                known[row.revision_id] = Revision(row.revision_id, row.workflow_id, row.number, ready[row.digest])
        missing = [row.revision_id for row in rows if row.revision_id not in known]
        for stored in await self._store.revisions(missing) if missing else ():
            try:
                known[stored.id] = await asyncio.to_thread(_compiled, stored)
            except DefinitionError as error:
                log.error("revision %s can't be used any more:\n%s", stored.id, error)
        listeners = Listeners(_shapes(await self._store.listeners()))
        # From here on nothing is waited for: an event meets either the old rules and listeners or the new ones.
        self._install(rows, known)
        self.listeners = listeners
        self._version = version
        self._fresh.clear()

    def _install(self, rows: list[CurrentWorkflow], known: Mapping[int, Revision]) -> None:
        usable = [row for row in rows if row.revision_id in known]
        self._current = {row.name: known[row.revision_id] for row in usable}
        self.unusable = tuple(row.name for row in rows if row.enabled and row.revision_id not in known)
        for row in usable:
            self._old[row.revision_id] = known[row.revision_id]
        self.matcher = Matcher(
            Rule(row.name, known[row.revision_id].workflow.triggers, order, known[row.revision_id])
            for order, row in enumerate(sorted(usable, key=lambda row: -known[row.revision_id].workflow.order))
            if row.enabled
        )
        METRICS.workflows.set(len(self.matcher.rules))


def _definition(workflow: Workflow, origin: str, file: str | None, source: str | None) -> NewDefinition:
    definition = orjson.dumps(workflow.definition, option=orjson.OPT_SORT_KEYS).decode()
    listeners = tuple((shape.digest, shape.to_json()) for shape in shapes_of(workflow))
    return NewDefinition(workflow.name, origin, file, workflow.enabled, workflow.digest, definition, source, listeners)


def _shapes(stored: Iterable[str]) -> Iterator[Shape]:
    """What runs may listen for. What a later release has put there is left to it, and to its runs."""
    for text in stored:
        try:
            shape = shape_from(orjson.loads(text))
            Listeners([shape])
        except (ValueError, TypeError, DefinitionError) as error:
            log.error("a listener can't be read, nobody is told of its events here: %s: %s", text, error)
        else:
            yield shape


def _compiled(stored: StoredRevision) -> Revision:
    workflow = compile_workflow(orjson.loads(stored.definition), actions=None)
    return Revision(stored.id, stored.workflow_id, stored.number, workflow)
