"""The recorder: the changes of many entries in one transaction.

Each caller gets its answer once its own change is durable. A flush is one pipeline, which PostgreSQL treats as one
transaction (autocommit mode, one Sync at the end). When a batch is refused it is halved until the change at fault
stands alone; the others are committed. When PostgreSQL is away the flush waits and tries again: nothing is acknowledged
meanwhile, and :attr:`Recorder.healthy` tells the consumer to stop reading.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain
from typing import Any

import psycopg
from psycopg import errors as pe

from appliance import faultpoints
from appliance.batching import Batcher
from appliance.errors import Fenced, LeaseLost, StoreUnavailable
from appliance.observe.metrics import METRICS
from appliance.store.columns import column, register
from appliance.store.pool import Connection, unavailable
from appliance.store.queries import named
from appliance.store.rows import Change

FENCED_SQLSTATE = "AP001"
"""Raised by ``appliance_expect`` (migration 0001): a guarded write met fewer rows than it must."""
_MAX_WAIT_S = 5.0
_UNDONE = pe.DeadlockDetected | pe.SerializationFailure
"""PostgreSQL has undone the transaction so that another can go on: it is there, and nothing of ours is."""
_MOST_UNDONE = 20
_Cursor = psycopg.AsyncCursor[Any]

log = logging.getLogger("appliance.store.recorder")


class Refused(Exception):
    """PostgreSQL refuses this change for good: what it holds can't be stored."""


class Recorder:
    """Group commit. ``connect`` opens a connection in autocommit mode.

    A flush that brings no reply within ``timeout_s`` counts as a lost connection; it is to be longer than
    ``store.statement_timeout``.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *, batch: int, timeout_s: float = 35.0) -> None:
        self.healthy = True
        self.catalog_version = 0
        """Of the workflows in force, as of the last commit (see ``store/definitions.py``)."""
        self._timeout_s = timeout_s
        self._connect = connect
        self._connection: Connection | None = None
        self._sql = {**named("record"), **named("parked")}
        self._batcher: Batcher[Change, None] = Batcher(self._flush, limit=batch, name="recorder")
        self._closing = False

    async def record(self, change: Change) -> None:
        """Return once ``change`` is durable.

        Raises Fenced when somebody else's write came first or the lease was lost, Refused when PostgreSQL can't store
        it, StoreUnavailable only while stopping.
        """
        await self._batcher.submit(change)

    async def close(self) -> None:
        """Commit what was handed in, then close. Does not wait for a PostgreSQL that is away."""
        self._closing = True
        await self._batcher.drain()
        if self._connection is not None:
            await self._connection.close()

    async def _flush(self, batch: list[Change]) -> list[BaseException | None]:
        METRICS.commit_batch.observe(len(batch))
        faultpoints.hit("before_commit")
        with METRICS.commit_seconds.time():
            answers = await self._commit(batch)
        faultpoints.hit("after_commit")
        _count(batch, answers)
        return answers

    async def _commit(self, batch: list[Change], *, unsure: bool = False) -> list[BaseException | None]:
        """Commit ``batch``; an answer for each change: None, Fenced, Refused or StoreUnavailable.

        ``unsure``: a transaction that these changes were part of may have been committed.
        """
        failures = 0
        while True:
            invalid = [not change.valid() for change in batch]
            if any(invalid):
                return await self._without(batch, invalid, unsure)
            try:
                if not (unsure and await self._is_written(batch)):
                    await self._transact(batch)
            except Exception as error:
                away = unavailable(error)
                if away is None:
                    return await self._refused(batch, error, unsure)
                failures += 1
                if isinstance(error, _UNDONE) and failures < _MOST_UNDONE:
                    continue  # two flushes met: PostgreSQL chose this one, the other has gone through by now
                unsure = unsure or isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
                if self._closing:
                    return [away] * len(batch)
                await self._wait(away, failures)
                continue
            self._recovered()
            return [None] * len(batch)

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = await self._connect()
            register(connection)
        return connection

    async def _transact(self, batch: list[Change]) -> None:
        connection = await self._connected()
        alarm = asyncio.get_running_loop().call_later(self._timeout_s, hang_up, connection)
        try:
            await self._send(connection, batch)
        except BaseException:
            # What was to be prepared behind a statement that failed was not, but psycopg takes it for prepared.
            await connection.close()
            raise
        finally:
            alarm.cancel()

    async def _send(self, connection: Connection, batch: list[Change]) -> None:
        going_on = _going_on(batch)
        asked, version = connection.cursor(), connection.cursor()
        async with connection.pipeline():
            try:
                await self._queue(connection.cursor(), batch)
                if going_on:
                    await asked.execute(self._sql["asked"], [list(going_on)])
                await version.execute(self._sql["catalog_version"])
            except BaseException:
                await connection.close()  # before the pipeline's Sync, which would commit what went out already
                raise
        await self._told(going_on, asked if going_on else None, version)

    async def _told(self, going_on: dict[str, Change], asked: _Cursor | None, version: _Cursor) -> None:
        """Hand on what a commit brings back: what people ask of the runs, and whether there are newer workflows."""
        for row in await asked.fetchall() if asked is not None else ():
            going_on[str(row[0])].asked = str(row[1])
        if (found := await version.fetchone()) is not None:
            self.catalog_version = int(str(found[0]))

    async def _queue(self, cursor: psycopg.AsyncCursor[Any], batch: list[Change]) -> None:
        if decided := [row[0] for change in batch for row in chain(change.deaths, change.outcomes)]:
            await cursor.execute(self._sql["lock"], [decided])
        for name in _ORDER:
            rows = list(chain.from_iterable(getattr(change, name) for change in batch))
            if rows:
                await self._write(cursor, name, rows)
        rare = [change.more for change in batch if change.more is not None]
        for name in _RARE if rare else ():
            rows = [row for more in rare for row in more.get(name, ())]
            if rows:
                await self._write(cursor, name, rows)

    async def _write(self, cursor: psycopg.AsyncCursor[Any], name: str, rows: list[Any]) -> None:
        columns: list[Any] = [column(values) for values in zip(*rows, strict=True)]
        if name == "run_updates":
            columns.append(len(rows))
        await cursor.execute(self._sql[name], columns)

    async def _refused(self, batch: list[Change], error: Exception, unsure: bool) -> list[BaseException | None]:
        """The transaction failed for good: find the changes at fault by halving."""
        if len(batch) > 1:
            middle = len(batch) // 2
            first = await self._commit(batch[:middle], unsure=unsure)
            return [*first, *await self._commit(batch[middle:], unsure=unsure)]
        if isinstance(error, pe.UniqueViolation) or getattr(error, "sqlstate", None) == FENCED_SQLSTATE:
            METRICS.commits_fenced.inc()
            return [Fenced(f"somebody else has recorded this: {error}")]
        if isinstance(error, psycopg.Error | UnicodeEncodeError):
            log.error("PostgreSQL refuses a change: %s", error)
            return [Refused(f"PostgreSQL: {error}")]
        return [error]

    async def _without(self, batch: list[Change], invalid: list[bool], unsure: bool) -> list[BaseException | None]:
        METRICS.commits_fenced.inc(sum(invalid))
        rest = [change for change, bad in zip(batch, invalid, strict=True) if not bad]
        answers = iter(await self._commit(rest, unsure=unsure) if rest else [])
        return [LeaseLost("the lease was lost") if bad else next(answers) for bad in invalid]

    async def _is_written(self, batch: list[Change]) -> bool:
        """Whether the lost reply belonged to a commit that succeeded: the outcome is re-read, not guessed.

        Wholly, for a batch is one transaction: one run that stands exactly as we wrote it is proof. Others may have
        gone on meanwhile: runs that were called, say. A change without runs may be written twice.
        """
        rows = [row for change in batch for row in _run_rows(change)]
        if not rows:
            return False
        connection = await self._connected()
        cursor = await connection.execute(self._sql["written"], [[row.id for row in rows]])
        stands = {(row[0], row[1]): row[2] for row in await cursor.fetchall()}
        if not any(_is_same_time(stands.get((row.id, row.version)), row.updated_at) for row in rows):
            return False
        going_on = _going_on(batch)
        asked = await connection.execute(self._sql["asked"], [list(going_on)])
        version = await connection.execute(self._sql["catalog_version"])
        await self._told(going_on, asked, version)
        return True

    async def _wait(self, away: StoreUnavailable, failures: int) -> None:
        if self.healthy:
            log.error("commits are not possible, reading pauses: %s", away)
        self.healthy = False
        METRICS.store_errors.inc()
        await asyncio.sleep(min(_MAX_WAIT_S, 0.05 * 2 ** min(failures, 8)) * random.uniform(0.5, 1.0))

    def _recovered(self) -> None:
        if not self.healthy:
            log.info("commits are possible again")
        self.healthy = True


_ORDER = (
    "events", "runs", "run_updates", "steps", "attempts", "timers", "deliveries", "letters", "duplicates", "deaths",
    "outcomes",
)  # fmt: skip
_RARE = (
    "revisions", "correlations", "machines", "waits", "tasks", "children", "signals", "taken", "closed_tasks",
    "closed_waits", "cancelled_children", "no_timers", "ended_timers", "ended_waits", "ended_machines", "ended_signals",
    "parked_places", "aside_places", "ended_places", "outbox",
)  # fmt: skip
"""In the order in which they are sent: what is asked for in a change is closed behind it."""


def _count(batch: list[Change], answers: list[BaseException | None]) -> None:
    """Count the runs that were begun and ended: once a batch, because a counter costs as much as a row."""
    written = [change for change, answer in zip(batch, answers, strict=True) if answer is None]
    if begun := sum(len(change.runs) for change in written):
        METRICS.runs_started.inc(begun)
    ended = Counter(row.status for change in written for row in _run_rows(change) if row.finished_at is not None)
    for status, number in ended.items():
        METRICS.runs_finished.labels(status).inc(number)


def hang_up(connection: Connection) -> None:
    """Shut the socket, so that whoever waits for a reply sees the end of the connection.

    Cancelling the wait instead would have psycopg ask the same black hole, for ten seconds, to cancel the query.
    """
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


def _going_on(batch: list[Change]) -> dict[str, Change]:
    """The changes of runs that go on behind them, by run."""
    return {row.id: change for change in batch for row in change.run_updates if row.finished_at is None}


def _run_rows(change: Change) -> Iterable[Any]:
    return chain(change.runs, change.run_updates)


def _is_same_time(stored: Any, written: float) -> bool:
    """Whether a stored time is the one that was written: PostgreSQL keeps microseconds, rounded its own way."""
    return stored is not None and abs(float(stored) - written) < 2e-6
