"""The ledger over all lives of the streams: the present one from Redis, the former ones as PostgreSQL last saw them.

When Redis loses its data, its counters begin again at zero. What they said is saved every second while they change, so
the entries that were accepted and not yet settled when it happened show up as a difference, instead of vanishing.
What happened after they were saved for the last time is taken from the history, as far as it stands there.

Counters are read and saved under a lock of the database, so what is saved is never older than what stands there, and a
life that was closed stays as it is: what was accepted in it and what was not can be told for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from appliance.errors import StoreUnavailable, StreamUnavailable
from appliance.events import PRIORITIES, dumps
from appliance.observe.metrics import METRICS
from appliance.store.pool import Connection, Pool, checked_out
from appliance.store.queries import named
from appliance.stream.ledger import Account, Ledger

_SAVE_EVERY_S = 1.0
_COUNT_EVERY_S = 10.0
SQL = named("epochs")

log = logging.getLogger("appliance.bookkeeping")


class Bookkeeper:
    """Reads the ledger, and saves it."""

    def __init__(self, ledger: Ledger, pool: Pool) -> None:
        self._ledger = ledger
        self._pool = pool
        self._saved: list[tuple[Account, str]] = []
        self._closed = Account()
        self._skipped: list[dict[str, Any]] = []

    async def ledger(self) -> dict[str, Any]:
        """The account of everything; ``streams`` has the present lives' alone.

        ``skipped`` says, by ``workflow`` and ``reason``, for how many events (``count``) flow control began no run; all
        of them are handled. Raises StreamUnavailable. While PostgreSQL is away, former lives and that are as they
        were known last.
        """
        accounts = await self._ledger.accounts()
        with contextlib.suppress(StoreUnavailable):
            async with checked_out(self._pool) as connection:
                self._closed = await _former(connection, accounts)
                self._skipped = await _skipped(connection)
        total = sum(accounts, self._closed)
        return {
            **total.as_dict(),
            "streams": {p: account.as_dict() for p, account in zip(PRIORITIES, accounts, strict=True)},
            "former": self._closed.as_dict(),
            "skipped": self._skipped,
        }

    async def run_forever(self) -> None:
        """Save what changed, once a second; now and then count who waits."""
        counted_at = 0.0
        while True:
            try:
                await self.save()
                if time.monotonic() - counted_at >= _COUNT_EVERY_S:
                    counted_at = time.monotonic()
                    await self.count()
            except (StreamUnavailable, StoreUnavailable) as error:
                log.debug("the ledger was not saved: %s", error)
            await asyncio.sleep(_SAVE_EVERY_S)

    async def save(self) -> None:
        """Save the present counters, and close lives that are over."""
        accounts = await self._ledger.accounts()
        for priority, account in zip(PRIORITIES, accounts, strict=True):
            METRICS.backlog.labels(priority).set(account.in_flight)
            age_s = time.time() - account.oldest_ms / 1000 if account.oldest_ms is not None else 0.0
            METRICS.lag.labels(priority).set(max(0.0, age_s))
        if _known(accounts) == self._saved:
            return
        async with checked_out(self._pool) as connection:
            await connection.execute(SQL["alone"])
            accounts = await self._ledger.accounts()
            known = _known(accounts)
            await connection.execute(SQL["save"], _columns(known))
            cursor = await connection.execute(SQL["close"], [[a.epoch for a, _ in known], [p for _, p in known]])
            if cursor.rowcount:
                await connection.execute(SQL["complete"])
            self._closed = await _former(connection, accounts)
        self._saved = known

    async def count(self) -> None:
        """Let the metrics say how many runs flow control has wait for places."""
        async with checked_out(self._pool) as connection:
            rows: list[Any] = await (await connection.execute(SQL["waiting"])).fetchall()
        METRICS.queue_runs.set(rows[0][0])

    async def complete(self) -> None:
        """Save, and add to lives that ended lately what the history has learnt of them since."""
        await self.save()
        async with checked_out(self._pool) as connection:
            await connection.execute(SQL["complete"])

    async def signs(self) -> object:
        """What changes when entries vanish: the names of the streams' lives, and what is not accounted for."""
        return [(account.epoch, account.difference) for account in await self._ledger.accounts()]


def _known(accounts: Sequence[Account]) -> list[tuple[Account, str]]:
    """With their priorities, and without those of streams that are lost at this moment."""
    return [(account, priority) for account, priority in zip(accounts, PRIORITIES, strict=True) if account.epoch]


def _columns(known: Sequence[tuple[Account, str]]) -> list[Any]:
    names = ("epoch", "accepted", "handled", "unmatched", "duplicate", "dead", "in_flight")
    return [
        *([getattr(account, name) for account, _ in known] for name in names),
        [priority for _, priority in known],
        [account.first_id for account, _ in known],
        [account.last_id for account, _ in known],
        [dumps(dict(account.recent)).decode() for account, _ in known],
    ]


async def _former(connection: Connection, accounts: Sequence[Account]) -> Account:
    """All lives but the present ones."""
    present = [account.epoch for account in accounts]
    rows: list[Any] = await (await connection.execute(SQL["former"], [present])).fetchall()
    return Account(*rows[0])


async def _skipped(connection: Connection) -> list[dict[str, Any]]:
    rows: list[Any] = await (await connection.execute(SQL["skipped"])).fetchall()
    return [{"workflow": workflow, "reason": reason, "count": count} for workflow, reason, count in rows]
