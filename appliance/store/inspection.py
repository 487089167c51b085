"""What a PostgreSQL says about itself: the facts on which the promise rests."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg

from appliance.errors import ConfigurationError, StoreUnavailable

_CONNECT_TIMEOUT_S = 5
_FACTS = """
SELECT current_setting('server_version'), current_setting('synchronous_commit'), current_setting('fsync'),
       current_setting('transaction_read_only') = 'on' OR pg_is_in_recovery(),
       current_setting('max_connections')::int, (SELECT count(*) FROM pg_stat_activity WHERE backend_type =
       'client backend'), extract(epoch FROM clock_timestamp())::float8, current_setting('server_encoding')
"""
_HAS_QUEUE = "SELECT to_regclass('queue') IS NOT NULL"
_LONG_WAITING = """
SELECT count(*) FROM (SELECT since FROM queue LIMIT 10000) AS some_rows WHERE since < now() - interval '1 hour'
"""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """One look at the server. ``clock_ahead_s`` is how far its clock is before ours, in seconds.

    ``long_waiting``: runs that have waited for places for more than an hour, of the first 10,000 that wait.
    """

    version: str
    synchronous_commit: str
    fsync: str
    read_only: bool
    max_connections: int
    connections: int
    clock_ahead_s: float
    encoding: str
    long_waiting: int = 0


async def inspect_store(url: str) -> StoreFacts:
    """Ask the server; raises StoreUnavailable, or ConfigurationError for a URL that is none."""
    try:
        async with await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S, application_name="appliance doctor"
        ) as connection:
            before = time.time()
            row = await (await connection.execute(_FACTS)).fetchone()
            after = time.time()
            has_queue = await (await connection.execute(_HAS_QUEUE)).fetchone()
            waiting = await (await connection.execute(_LONG_WAITING)).fetchone() if has_queue == (True,) else None
    except psycopg.OperationalError as error:
        raise StoreUnavailable(f"PostgreSQL: {' '.join(str(error).split())}") from None
    except psycopg.ProgrammingError as error:  # libpq's message about a URL doesn't show the password
        raise ConfigurationError(f"DATABASE_URL: {error}") from None
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    version, sync, fsync, read_only, maximum, used, clock, encoding = row
    return StoreFacts(
        version=version.split()[0],
        synchronous_commit=sync,
        fsync=fsync,
        read_only=read_only,
        max_connections=maximum,
        connections=used,
        clock_ahead_s=clock - (before + after) / 2,
        encoding=encoding,
        long_waiting=waiting[0] if waiting is not None else 0,
    )
