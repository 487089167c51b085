"""Reading for people: named statements, read-only snapshots, and rows as JSON data."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import cache
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from appliance.errors import StoreUnavailable
from appliance.events import format_time
from appliance.store.pool import one_moment
from appliance.store.queries import named

Item = dict[str, Any]
Connection = AsyncConnection[Any]

_CONNECTION_TIMEOUT_S = 5.0
"""How long a request waits for a connection before it is answered 503."""


@asynccontextmanager
async def snapshot(pool: AsyncConnectionPool[Any]) -> AsyncIterator[Connection]:
    """A connection in a read-only transaction that sees one moment; raises StoreUnavailable."""
    try:
        async with pool.connection(timeout=_CONNECTION_TIMEOUT_S) as conn, one_moment(conn):
            yield conn
    except PoolTimeout:
        raise StoreUnavailable("no connection to PostgreSQL is free") from None
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise StoreUnavailable(f"PostgreSQL: {error}") from error


def query(name: str, *, file: str = "history", **clauses: LiteralString) -> LiteralString:
    """A statement of ``sql/<file>.sql`` with its ``{places}`` filled in by clauses of this program's own."""
    text: LiteralString = _statements(file)[name].decode()
    for place, clause in clauses.items():
        text = text.replace("{" + place + "}", clause)
    return text


async def rows(conn: Connection, statement: LiteralString, values: Mapping[str, Any]) -> list[Item]:
    """The rows of a query as JSON data: times and UUIDs are texts."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        # Not prepared: a generic plan could not use the partial indexes.
        await cursor.execute(statement, values, prepare=False)
        return [{name: _plain(value) for name, value in row.items()} for row in await cursor.fetchall()]


@cache
def _statements(file: str) -> Mapping[str, bytes]:
    return named(file)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_time(value)
    return str(value) if isinstance(value, UUID) else value
