"""Connections to Redis or Valkey, the scripts, and which errors mean "away for now".

Two clients: the *reader* blocks in XREADGROUP, so its timeout is longer than the block and it never retries; the
*commander* does everything else. Neither retries by itself: a retried XADD is a second event. RESP2 is pinned, because
reply shapes differ under RESP3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import redis.exceptions as rx
from redis import Redis as SyncRedis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as SyncRetry

from appliance.errors import StreamUnavailable
from appliance.settings import StreamSettings

COMMAND_TIMEOUT_S = 5.0

_AWAY = (rx.ConnectionError, rx.TimeoutError, rx.BusyLoadingError, rx.ReadOnlyError, rx.OutOfMemoryError, OSError)
_AWAY_CODES = ("OOM", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "BUSY ")


def unavailable(error: BaseException) -> StreamUnavailable | None:
    """The StreamUnavailable that ``error`` stands for, or None if it stands for something else."""
    if isinstance(error, StreamUnavailable):
        return error
    if isinstance(error, _AWAY) or (isinstance(error, rx.ResponseError) and str(error).startswith(_AWAY_CODES)):
        return StreamUnavailable(f"Redis: {str(error) or type(error).__name__}")
    return None


def is_no_group(error: BaseException) -> bool:
    """Whether the error says that the stream or its consumer group is gone."""
    return isinstance(error, rx.ResponseError) and ("NOGROUP" in str(error) or "no such key" in str(error).lower())


def commander(url: str, settings: StreamSettings) -> Redis:
    """The client for everything but blocking reads."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=settings.max_connections,
        timeout=COMMAND_TIMEOUT_S,
        protocol=2,
        socket_timeout=COMMAND_TIMEOUT_S,
        socket_connect_timeout=COMMAND_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )
    return Redis.from_pool(pool)  # the client owns the pool: closing one closes the other


def reader(url: str, settings: StreamSettings) -> Redis:
    """The client for the blocking read: one connection, which no other command can hold up."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=2,
        timeout=COMMAND_TIMEOUT_S,
        protocol=2,
        socket_timeout=settings.block.total_seconds() + 5.0,
        socket_connect_timeout=COMMAND_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
    )
    return Redis.from_pool(pool)  # the client owns the pool: closing one closes the other


def renewer(url: str) -> SyncRedis:
    """The client of the thread that renews leases: a blocked event loop can't stop it."""
    client: SyncRedis = SyncRedis.from_url(
        url,
        protocol=2,
        socket_timeout=COMMAND_TIMEOUT_S,
        socket_connect_timeout=COMMAND_TIMEOUT_S,
        retry=SyncRetry(NoBackoff(), 0),
        decode_responses=False,
    )
    return client


class Script:
    """A Lua script of ``stream/lua``: sent by its digest, and whole where the server doesn't know it (yet)."""

    def __init__(self, name: str) -> None:
        self.source = (files("appliance.stream") / "lua" / f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def call(self, client: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it; raises what redis-py raises."""
        try:
            return await client.evalsha(self.sha, len(keys), *keys, *args)
        except rx.NoScriptError:
            return await client.eval(self.source, len(keys), *keys, *args)

    def call_sync(self, client: SyncRedis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The same from a thread."""
        try:
            return client.evalsha(self.sha, len(keys), *keys, *args)
        except rx.NoScriptError:
            return client.eval(self.source, len(keys), *keys, *args)
