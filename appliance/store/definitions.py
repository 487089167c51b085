"""Workflows and their revisions in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    """What is in force for a workflow."""

    workflow_id: int
    name: str
    origin: str
    file: str | None
    enabled: bool
    revision_id: int
    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision with its definition (JSON)."""

    id: int
    workflow_id: int
    number: int
    definition: str


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
            cursor = await connection.execute(_SQL["current"])
            return [CurrentWorkflow(*row) for row in await cursor.fetchall()]  # type: ignore[arg-type]

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

    async def put(self, definitions: Sequence[NewDefinition], actor: str) -> None:
        """Make these the definitions in force, all or none. What is so already changes nothing, nor the version."""
        if not definitions:
            return
        definitions = sorted(definitions, key=lambda d: d.name)  # one order everywhere, against deadlocks
        names = [d.name for d in definitions]
        origins = [d.origin for d in definitions]
        digests = [d.digest for d in definitions]
        async with checked_out(self._pool) as connection:
            await connection.execute(_SQL["add_workflows"], (names, origins))
            await connection.execute(_SQL["lock_workflows"], (names,))
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
            await self._changed(connection, await cursor.fetchall(), actor, "put workflow")

    async def disable(self, names: Sequence[str], actor: str) -> None:
        """Events start no runs of these workflows any more."""
        if not names:
            return
        async with checked_out(self._pool) as connection:
            cursor = await connection.execute(_SQL["disable"], (list(names),))
            await self._changed(connection, await cursor.fetchall(), actor, "disable workflow")

    async def _changed(self, connection: Connection, rows: list[tuple[object, ...]], actor: str, action: str) -> None:
        if rows:
            await connection.execute(_SQL["bump_version"])
            await connection.execute(_SQL["audit"], (actor, action, [row[0] for row in rows]))
