"""The ledger over all lives of the streams: the present one from Redis, the former ones as PostgreSQL last saw them.

When Redis loses its data, its counters begin again at zero. What they said is saved every second while they change, so
the entries that were accepted and not yet settled when it happened show up as a difference, instead of vanishing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from appliance.errors import StoreUnavailable, StreamUnavailable
from appliance.events import PRIORITIES
from appliance.observe.metrics import METRICS
from appliance.store.pool import Pool, checked_out
from appliance.store.queries import named
from appliance.stream.ledger import Account, Ledger

_SAVE_EVERY_S = 1.0
SQL = named("epochs")

log = logging.getLogger("appliance.bookkeeping")


class Bookkeeper:
    """Reads the ledger, and saves it."""

    def __init__(self, ledger: Ledger, pool: Pool) -> None:
        self._ledger = ledger
        self._pool = pool
        self._saved: list[Account] = []
        self._closed = Account()

    async def ledger(self) -> dict[str, Any]:
        """The account of everything; ``streams`` has the present lives' alone.

        Raises StreamUnavailable. While PostgreSQL is away, former lives are as they were known last.
        """
        accounts = await self._ledger.accounts()
        total = sum(accounts, self._closed)
        return {
            **total.as_dict(),
            "streams": {p: account.as_dict() for p, account in zip(PRIORITIES, accounts, strict=True)},
            "former": self._closed.as_dict(),
        }

    async def run_forever(self) -> None:
        """Save what changed, once a second."""
        while True:
            try:
                await self.save()
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
        known = [account for account in accounts if account.epoch]
        if known == self._saved:
            return
        columns = [
            [getattr(account, name) for account in known]
            for name in ("epoch", "accepted", "handled", "unmatched", "duplicate", "dead", "in_flight")
        ]
        async with checked_out(self._pool) as connection:
            await connection.execute(SQL["save"], columns)
            await connection.execute(SQL["close"], [columns[0]])
            cursor = await connection.execute(SQL["closed"])
            rows: list[Any] = await cursor.fetchall()
        self._closed = Account(*rows[0])
        self._saved = known
