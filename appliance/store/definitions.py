"""Workflows and their revisions in PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from appliance.store.pool import Connection, Pool, checked_out
from appliance.store.queries import named

_SQL = named("definitions")


@dataclass(frozen=True, slots=True)
class NewDefinition:
    """A definition to put: ``definition`` is canonical JSON, ``source`` the text in another dialect, if it was one."""

    name: str
    origin: str
    file: str | None
    enabled: bool
    digest: str
    definition: str
    source: str | None = None
    listeners: tuple[tuple[str, str], ...] = ()
    """(digest, JSON) of what its runs may listen for."""


@dataclass(frozen=True, slots=True)
class CurrentWorkflow:
    """What is in force for a workflow. ``file`` is the file that owns it, as a path within the folder of workflows."""

    workflow_id: int
    name: str
    origin: str
    file: str | None
    enabled: bool
    revision_id: int
    number: int
    digest: str
    etag: str
    """Another one after every change of the above."""


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision with its definition (JSON)."""

    id: int
    workflow_id: int
    number: int
    definition: str
    digest: str
    created_at: datetime


class Edit:
    """A change of one workflow, which nobody else can change until its transaction ends.

    ``standing`` is what is in force, also after the change; None: there is no workflow of this name yet.
    """

    def __init__(self, connection: Connection, name: str, actor: str, standing: CurrentWorkflow | None) -> None:
        self.standing = standing
        self._connection = connection
        self._name = name
        self._actor = actor

    async def put(self, definition: NewDefinition) -> CurrentWorkflow:
        """Put a definition of this name in force."""
        await _put(self._connection, [definition], self._actor)
        return await self._changed()

    async def switch(self, revision_id: int, enabled: bool, action: str) -> CurrentWorkflow:
        """Put a stored revision in force, or the workflow on or off; ``action`` is for the audit log."""
        cursor = await self._connection.execute(_SQL["switch"], (enabled, revision_id, self._name))
        await _note(self._connection, await cursor.fetchall(), self._actor, action)
        return await self._changed()

    async def numbered(self, number: int) -> StoredRevision | None:
        """The revision of a number."""
        return await self._revision("numbered", number)

    async def before(self, number: int) -> StoredRevision | None:
        """The revision before that of a number."""
        return await self._revision("before", number)

    async def alike(self, digest: str) -> StoredRevision | None:
        """The revision that has this content."""
        return await self._revision("alike", digest)

    async def _revision(self, statement: str, key: int | str) -> StoredRevision | None:
        if self.standing is None:
            return None
        return await _revision(self._connection, statement, self.standing.workflow_id, key)

    async def _changed(self) -> CurrentWorkflow:
        self.standing = await _standing(self._connection, self._name)
        assert self.standing is not None  # noqa: S101  # it was put, or switched, just now
        return self.standing


class DefinitionStore:
    """Reads and writes definitions. Every method raises StoreUnavailable while PostgreSQL is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def version(self) -> int:
        """A number that grows with every change of any definition, by any replica."""
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["version"])
            row = await cursor.fetchone()
        return int(str(row[0])) if row else 0

    async def current(self) -> list[CurrentWorkflow]:
        """All workflows, disabled ones too, in the order in which they were first seen."""
        async with checked_out(self._pool) as connection:
            return await _current(connection, None)

    async def revisions(self, ids: Iterable[int]) -> list[StoredRevision]:
        """Those of the revisions that exist."""
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["revisions"], (list(ids),))
            return [StoredRevision(*row) for row in await cursor.fetchall()]  # type: ignore[arg-type]

    async def listeners(self) -> list[str]:
        """What runs of any revision may listen for, as JSON."""
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["listeners"])
            return [str(row[0]) for row in await cursor.fetchall()]

    async def standing(self, name: str) -> CurrentWorkflow | None:
        """What is in force for one workflow; None: there is none of this name."""
        async with checked_out(self._pool) as connection:
            return await _standing(connection, name)

    async def numbered(self, workflow_id: int, number: int) -> StoredRevision | None:
        """A revision of a workflow by its number."""
        async with checked_out(self._pool) as connection:
            return await _revision(connection, "numbered", workflow_id, number)

    @contextlib.asynccontextmanager
    async def edit(self, name: str, actor: str, *, create: bool = False) -> AsyncIterator[Edit]:
        """Change one workflow: what the block decides on stays so until it ends, on all replicas.

        Nothing is changed if the block raises. With ``create``, others who would create the same one wait as well.
        """
        async with checked_out(self._pool) as connection:
            if create:
                await connection.execute(_SQL["add_workflows"], ([name], ["api"]))
            await connection.execute(_SQL["lock_workflows"], ([name],))
            # Only now: what a statement that waits for a lock joins with is as old as its beginning.
            yield Edit(connection, name, actor, await _standing(connection, name))

    async def put(self, definitions: Sequence[NewDefinition], actor: str) -> list[CurrentWorkflow]:
        """Make these the definitions in force, all or none. What is so already changes nothing, nor the version.

        Returns what files take over from the API: as it was.
        """
        if not definitions:
            return []
        async with checked_out(self._pool) as connection:
            return await _put(connection, definitions, actor)

    async def disown(self, orphans: Sequence[CurrentWorkflow], actor: str) -> None:
        """Workflows whose files have gone: events start no runs of them any more, and no file owns them."""
        if not orphans:
            return
        names = [row.name for row in orphans]
        async with checked_out(self._pool) as connection:
            await connection.execute(_SQL["lock_workflows"], (names,))
            cursor = await connection.execute(_SQL["disown"], (names, [row.file for row in orphans]))
            await _note(connection, await cursor.fetchall(), actor, "disable workflow")


async def _put(connection: Connection, definitions: Sequence[NewDefinition], actor: str) -> list[CurrentWorkflow]:
    definitions = sorted(definitions, key=lambda d: d.name)  # one order everywhere, against deadlocks
    names = [d.name for d in definitions]
    origins = [d.origin for d in definitions]
    digests = [d.digest for d in definitions]
    await connection.execute(_SQL["add_workflows"], (names, origins))
    await connection.execute(_SQL["lock_workflows"], (names,))
    of_files = [d.name for d in definitions if d.origin == "file"]
    before = [row for row in (await _current(connection, of_files) if of_files else ()) if row.origin == "api"]
    await connection.execute(
        _SQL["add_revisions"],
        (names, digests, [d.definition for d in definitions], [d.source for d in definitions]),
    )
    if listeners := sorted({listener for d in definitions for listener in d.listeners}):
        values = ([digest for digest, _ in listeners], [shape for _, shape in listeners])
        await connection.execute(_SQL["add_listeners"], values)
    cursor = await connection.execute(
        _SQL["set_current"],
        (names, origins, [d.file for d in definitions], [d.enabled for d in definitions], digests),
    )
    await _note(connection, await cursor.fetchall(), actor, "put workflow")
    return before


async def _current(connection: Connection, names: Sequence[str] | None) -> list[CurrentWorkflow]:
    """What is in force, of all workflows or (not None) those of these names."""
    names = None if names is None else list(names)
    cursor = await connection.execute(_SQL["current"], (names, names))
    return [CurrentWorkflow(*row) for row in await cursor.fetchall()]  # type: ignore[arg-type]


async def _standing(connection: Connection, name: str) -> CurrentWorkflow | None:
    return next(iter(await _current(connection, [name])), None)


async def _revision(connection: Connection, statement: str, workflow_id: int, key: int | str) -> StoredRevision | None:
    cursor = await connection.execute(_SQL[statement], (workflow_id, key))
    return next((StoredRevision(*row) for row in await cursor.fetchall()), None)  # type: ignore[arg-type]


async def _note(connection: Connection, rows: list[tuple[object, ...]], actor: str, action: str) -> None:
    """Tell the other replicas, and the audit log.

    ``rows``: of what was changed name, revision number, whether it is enabled, and the number of the revision before.
    """
    if rows:
        await connection.execute(_SQL["bump_version"])
        await connection.execute(_SQL["audit"], (actor, action, *map(list, zip(*rows, strict=True))))
