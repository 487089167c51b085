"""Connections to PostgreSQL, and which errors mean "away for now"."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
from psycopg import IsolationLevel
from psycopg import errors as pe
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from appliance.errors import StoreUnavailable
from appliance.settings import StoreSettings

Connection = psycopg.AsyncConnection[tuple[object, ...]]
Pool = AsyncConnectionPool[Connection]

_CHECKOUT_S = 10.0
_RETRYABLE = (
    psycopg.OperationalError,  # connection trouble, admin shutdown, too many connections, lock and query cancellation
    pe.SerializationFailure,
    pe.DeadlockDetected,
    pe.ReadOnlySqlTransaction,
    pe.DiskFull,
    pe.InsufficientResources,
    pe.OperatorIntervention,
    pe.IdleInTransactionSessionTimeout,
    pe.TransactionTimeout,
    pe.ObjectNotInPrerequisiteState,
    PoolTimeout,
    OSError,
)


def unavailable(error: BaseException) -> StoreUnavailable | None:
    """The StoreUnavailable that ``error`` stands for, or None: then the statement itself is at fault.

    Only classified SQLSTATEs count (classes 08, 40, 53, 57, read-only, time limits): a constraint violation is never
    retried.
    """
    if isinstance(error, StoreUnavailable):
        return error
    if isinstance(error, pe.ProgramLimitExceeded):  # a psycopg.OperationalError, but it is this value that is too large
        return None
    if isinstance(error, (pe.QueryCanceled, _RETRYABLE)):
        return StoreUnavailable(f"PostgreSQL: {str(error).strip() or type(error).__name__}")
    return None


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn "away for now" errors of the block into StoreUnavailable."""
    try:
        yield
    except Exception as error:
        away = unavailable(error)
        if away is None:
            raise
        raise away from error


def options(settings: StoreSettings) -> dict[str, object]:
    """Connection parameters that every connection of ours has."""
    timeout_ms = int(settings.statement_timeout.total_seconds() * 1000)
    return {
        "application_name": "appliance",
        "connect_timeout": 5,
        # A connection that vanished without a word is noticed in half a minute, not in two hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "options": f"-c statement_timeout={timeout_ms} -c timezone=UTC",
    }


async def open_pool(url: str, settings: StoreSettings) -> Pool:
    """A pool whose connections are checked when they are handed out (after killed backends the first use would fail).

    Raises StoreUnavailable when PostgreSQL can't be reached.
    """
    pool: Pool = AsyncConnectionPool(
        url,
        kwargs=options(settings),
        min_size=1,
        max_size=settings.pool_size,
        timeout=_CHECKOUT_S,
        check=AsyncConnectionPool.check_connection,
        open=False,
        name="appliance",
    )
    try:
        await pool.open(wait=True, timeout=_CHECKOUT_S)
    except PoolTimeout as error:
        await pool.close()
        raise StoreUnavailable(f"PostgreSQL can't be reached: {error}") from None
    return pool


async def open_connection(url: str, settings: StoreSettings) -> Connection:
    """A connection of its own, in autocommit mode. Raises StoreUnavailable."""
    with translated():
        connection: Connection = await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            **options(settings),  # type: ignore[arg-type]
        )
    return connection


@contextlib.asynccontextmanager
async def checked_out(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool in a transaction that is committed at the end. Raises StoreUnavailable."""
    with translated():
        async with pool.connection() as connection:
            yield connection


@contextlib.asynccontextmanager
async def one_moment(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """A read-only transaction in which every statement sees the same commits; elsewhere each sees those before it."""
    before = connection.isolation_level, connection.read_only
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    try:
        async with connection.transaction():
            yield
    finally:
        if not connection.closed:
            await connection.set_isolation_level(before[0])
            await connection.set_read_only(before[1])
