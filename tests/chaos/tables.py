"""What the tables say of durable runs: where they stand, what must hold, and that what is final stays so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, LiteralString

import psycopg

from tests.servers import wait_until

_RULES: tuple[tuple[str, LiteralString], ...] = (
    (
        "a run that nothing will ever move on",
        "SELECT r.id, r.status FROM runs r WHERE r.status IN ('running', 'retrying', 'waiting') "
        "AND r.state ->> 'by' = 'timer' "
        "AND NOT EXISTS (SELECT FROM timers t WHERE t.run_id = r.id) "
        "AND NOT EXISTS (SELECT FROM waits w WHERE w.run_id = r.id) "
        "AND NOT EXISTS (SELECT FROM tasks t WHERE t.run_id = r.id AND t.status = 'open') "
        "AND NOT EXISTS (SELECT FROM steps s WHERE s.run_id = r.id AND s.status = 'unknown') "
        "AND NOT EXISTS (SELECT FROM children c JOIN runs n ON n.id = c.run_id "
        "                WHERE c.parent_id = r.id AND n.finished_at IS NULL)",
    ),
    (
        "a run that an entry holds, although the streams are empty",
        "SELECT id, status, state ->> 'by' FROM runs WHERE status IN ('running', 'retrying', 'waiting') "
        "AND state ->> 'by' IS DISTINCT FROM 'timer'",
    ),
    (
        "an open task of a run that is over, or of a step that doesn't wait",
        "SELECT t.id, r.status, s.status FROM tasks t JOIN runs r ON r.id = t.run_id "
        "LEFT JOIN steps s ON s.run_id = t.run_id AND s.key = t.key "
        "WHERE t.status = 'open' AND (r.finished_at IS NOT NULL OR s.status IS DISTINCT FROM 'waiting')",
    ),
    (
        "a run that is over and still listens, or is still the machine of its key",
        "SELECT r.id, r.status FROM runs r WHERE r.finished_at IS NOT NULL AND "
        "(EXISTS (SELECT FROM waits w WHERE w.run_id = r.id) OR EXISTS (SELECT FROM machines m WHERE m.run_id = r.id))",
    ),
    (
        "something came in for a run that isn't paused, and nobody will look at it",
        "SELECT s.run_id, s.kind, s.key, r.status FROM signals s JOIN runs r ON r.id = s.run_id "
        "WHERE s.taken IS NULL AND r.finished_at IS NULL AND r.status <> 'paused' "
        "AND NOT EXISTS (SELECT FROM timers t WHERE t.run_id = r.id)",
    ),
    (
        "a call without its run, or one that is over and whose caller was never told",
        "SELECT c.parent_id, c.key, n.status FROM children c LEFT JOIN runs n ON n.id = c.run_id "
        "JOIN steps s ON s.run_id = c.parent_id AND s.key = c.key "
        "WHERE n.id IS NULL OR (s.status = 'waiting' AND n.finished_at IS NOT NULL AND NOT EXISTS "
        "(SELECT FROM signals g WHERE g.run_id = c.parent_id AND g.key = c.key AND g.taken IS NULL))",
    ),
    (
        "two live state machines of one key",
        "SELECT w.name, e.data ->> 'n', count(*) FROM runs r JOIN workflows w ON w.id = r.workflow_id "
        "JOIN events e ON e.uid = r.event_uid WHERE w.name = 'door' AND r.finished_at IS NULL "
        "GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    (
        "an undoing without the effect that it undoes",
        "SELECT c.run_id, c.key FROM steps c WHERE c.key LIKE '%.compensate' AND NOT EXISTS "
        "(SELECT FROM steps s WHERE s.run_id = c.run_id AND s.key || '.compensate' = c.key AND s.status = 'succeeded')",
    ),
)
"""What no row may show once the streams are empty."""

_FINAL_STEPS: LiteralString = (
    "SELECT run_id::text, key, status::text, attempt, finished_at, output::text FROM steps "
    "WHERE status IN ('succeeded', 'skipped')"
)
_FINAL_RUNS: LiteralString = (
    "SELECT id::text, '', status::text, finished_at, result::text FROM runs WHERE status IN ('succeeded', 'cancelled')"
)


class Tables:
    """One connection that only reads, opened anew when it was lost.

    ``changed`` lists what was final once and is not the same any more.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self._final: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.changed: list[str] = []

    async def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        """What a query finds."""
        async with self._lock:
            connection = await self._connected()
            return await (await connection.execute(query)).fetchall()

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
            await self._connection.execute("SET default_transaction_read_only = on")
        return self._connection

    async def statuses(self) -> dict[tuple[str, str], int]:
        """How many runs there are by (workflow, status)."""
        found = await self.rows(
            "SELECT w.name, r.status::text, count(*) FROM runs r JOIN workflows w ON w.id = r.workflow_id GROUP BY 1, 2"
        )
        return {(name, status): number for name, status, number in found}

    async def all_over(self, timeout_s: float) -> None:
        """Wait until no run is under way, parked or paused."""

        async def over() -> bool:
            return not await self.rows("SELECT FROM runs WHERE finished_at IS NULL LIMIT 1")

        try:
            await wait_until(over, "all runs are over", timeout_s)
        except AssertionError as error:
            left = await self.rows(
                "SELECT r.id::text, w.name, r.status::text, r.asked, r.state::text, "
                "(SELECT array_agg(s.key || ' ' || s.status) FROM steps s WHERE s.run_id = r.id) AS steps, "
                "(SELECT array_agg(t.key || ' ' || t.due_at) FROM timers t WHERE t.run_id = r.id) AS timers, "
                "(SELECT array_agg(g.kind || ' ' || coalesce(g.taken, 'open')) FROM signals g WHERE g.run_id = r.id) "
                "FROM runs r JOIN workflows w ON w.id = r.workflow_id WHERE r.finished_at IS NULL LIMIT 10"
            )
            raise AssertionError("\n".join([str(error), *map(repr, left)])) from None

    async def violations(self) -> list[str]:
        """What is wrong with the runs as they stand at rest, and what has changed that was final."""
        await self.look()
        found = list(self.changed)
        for name, query in _RULES:
            found += [f"{name}: {', '.join(map(str, row))}" for row in (await self.rows(query))[:5]]
        return found

    async def look(self) -> None:
        """Compare what is final now with what was."""
        now = {(row[0], row[1]): row[2:] for query in (_FINAL_STEPS, _FINAL_RUNS) for row in await self.rows(query)}
        for place, was in self._final.items():
            if now.get(place) != was:
                self.changed.append(f"I3: {place} was {was}, and is {now.get(place)}")
        self._final |= now

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(psycopg.OperationalError):  # PostgreSQL is away
                await self.look()
            await asyncio.sleep(0.25)


@contextlib.asynccontextmanager
async def open_tables(database_url: str) -> AsyncIterator[Tables]:
    """The tables, watched until the block ends."""
    tables = Tables(database_url)
    watching = asyncio.create_task(tables._watch())
    try:
        yield tables
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        await tables.close()
