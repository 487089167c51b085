"""What flow control reads and writes: places, the queue, meters, batches."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from appliance.store.pool import Connection, Pool


class Gates:
    """Transactions of the gatekeeper, on a connection of their own that ``connect`` opens (autocommit mode)."""

    def __init__(self, pool: Pool, connect: Callable[[], Awaitable[Connection]], *, timeout_s: float = 35.0) -> None:
        self._pool = pool
        self._connect = connect
        self._timeout_s = timeout_s
