"""Schema migrations: numbered SQL files, forward only, one transaction each, one process at a time.

``schema_migrations`` records each file's number, name and checksum. A file that changed after it was applied, a gap, or
a migration in the database that this release doesn't know are refused: all three mean that code and schema disagree.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from appliance.errors import ConfigurationError, StoreUnavailable

_log = logging.getLogger(__name__)

_LOCK = 0x6170706C69616E63
"""Key of the advisory lock ("applianc"): replicas that start together migrate one after the other."""
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_MIN_SERVER = 150_000
"""PostgreSQL 15, as ``server_version_num``: the oldest release that the schema and the partitions were tried on."""
_CONNECT_TIMEOUT_S = 10

_CREATE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of ``store/migrations``."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What must not change once the migration was applied; line ends don't count."""
        return hashlib.sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.number:04d}_{self.name}"


def load_migrations() -> tuple[Migration, ...]:
    """The migrations of this release, in order."""
    found = []
    for path in (files("appliance.store") / "migrations").iterdir():
        match = _FILE.fullmatch(path.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], path.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ConfigurationError(f"migrations are not numbered without gaps: {', '.join(map(str, found))}")
    return tuple(found)


async def migrate(url: str, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Bring the database up to date; returns the names of what was applied, oldest first.

    Raises StoreUnavailable when the server can't be reached, ConfigurationError when it can't be used.
    """
    known = load_migrations() if migrations is None else tuple(migrations)
    async with await _connect(url) as connection:
        await connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))  # released with the connection
        async with connection.transaction():
            await connection.execute(_CREATE)
        applied = await _applied(connection)
        _check(known, applied)
        pending = [migration for migration in known if migration.number not in applied]
        for migration in pending:
            await _apply(connection, migration)
        return [str(migration) for migration in pending]


async def pending(url: str, migrations: Sequence[Migration] | None = None) -> list[str]:
    """The names of what :func:`migrate` would apply. Changes nothing; raises as it does."""
    known = load_migrations() if migrations is None else tuple(migrations)
    async with await _connect(url) as connection:
        found = await connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")
        row = await found.fetchone()
        applied = await _applied(connection) if row is not None and row[0] else {}
    _check(known, applied)
    return [str(migration) for migration in known if migration.number not in applied]


async def _connect(url: str) -> psycopg.AsyncConnection[TupleRow]:
    try:
        connection = await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="appliance migrate"
        )
    except psycopg.OperationalError as error:
        raise StoreUnavailable(f"PostgreSQL can't be reached: {error}") from None
    except psycopg.ProgrammingError as error:  # libpq can't parse the URL; its message doesn't show the password
        raise ConfigurationError(f"DATABASE_URL: {error}") from None
    if connection.info.server_version < _MIN_SERVER:
        await connection.close()
        raise ConfigurationError(
            f"PostgreSQL {_MIN_SERVER // 10_000} or later is needed, this is version "
            f"{connection.info.server_version // 10_000}"
        )
    return connection


async def _applied(connection: psycopg.AsyncConnection[Any]) -> Mapping[int, tuple[str, str]]:
    rows = await connection.execute("SELECT number, name, checksum FROM schema_migrations ORDER BY number")
    return {number: (name, checksum) for number, name, checksum in await rows.fetchall()}


def _check(known: Sequence[Migration], applied: Mapping[int, tuple[str, str]]) -> None:
    by_number = {migration.number: migration for migration in known}
    for number, (name, checksum) in applied.items():
        migration = by_number.get(number)
        if migration is None:
            raise ConfigurationError(
                f"the database has migration {number:04d}_{name}, which this release doesn't know: "
                "it was migrated by a newer release; start that one"
            )
        if migration.checksum != checksum:
            raise ConfigurationError(f"migration {migration} was changed after it had been applied; restore the file")


async def _apply(connection: psycopg.AsyncConnection[Any], migration: Migration) -> None:
    try:
        async with connection.transaction():
            # No parameters: the simple protocol, which takes several statements at once.
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                (migration.number, migration.name, migration.checksum),
            )
    except psycopg.errors.DatabaseError as error:
        raise ConfigurationError(f"migration {migration} failed and was rolled back: {error}") from error
    _log.info("applied migration %s", migration)
