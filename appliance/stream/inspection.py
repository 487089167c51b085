"""What a Redis or Valkey says about itself: the facts on which the promise rests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import redis.exceptions as rx
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from appliance.errors import ConfigurationError, StreamUnavailable
from appliance.stream.client import COMMAND_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One look at the server.

    ``clock_ahead_s`` is how far its clock is before ours, in seconds. ``max_memory_bytes`` is 0 without a limit.
    """

    server: str
    version: str
    role: str
    eviction_policy: str
    append_only: bool
    append_sync: str
    """``always``, ``everysec`` or ``no``; empty where the server does not say."""
    used_memory_bytes: int
    max_memory_bytes: int
    clock_ahead_s: float


async def inspect_stream(url: str) -> StreamFacts:
    """Ask the server; raises StreamUnavailable, or ConfigurationError for a URL that is none."""
    try:
        client = Redis.from_url(
            url,
            protocol=2,
            socket_timeout=COMMAND_TIMEOUT_S,
            socket_connect_timeout=COMMAND_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigurationError(f"REDIS_URL: {error}") from None
    async with client:
        try:
            info: dict[str, Any] = await client.info()
            before = time.time()
            seconds, microseconds = await client.time()
            ahead = seconds + microseconds / 1e6 - (before + time.time()) / 2
            sync = await _append_sync(client)
        except (rx.RedisError, OSError) as error:
            raise StreamUnavailable(f"Redis: {str(error) or type(error).__name__}") from None
    valkey = info.get("server_name") == "valkey"
    return StreamFacts(
        server="Valkey" if valkey else "Redis",
        version=str(info["valkey_version"] if valkey else info["redis_version"]),
        role=str(info["role"]),
        eviction_policy=str(info.get("maxmemory_policy", "")),
        append_only=info.get("aof_enabled") == 1,
        append_sync=sync,
        used_memory_bytes=int(info["used_memory"]),
        max_memory_bytes=int(info.get("maxmemory", 0)),
        clock_ahead_s=ahead,
    )


async def eviction_policy(client: Redis) -> str:
    """What the server does when its memory is full; raises StreamUnavailable."""
    try:
        return str((await client.info("memory")).get("maxmemory_policy", "noeviction"))
    except (rx.RedisError, OSError) as error:
        raise StreamUnavailable(f"Redis: {str(error) or type(error).__name__}") from None


async def _append_sync(client: Redis) -> str:
    try:
        return str((await client.config_get("appendfsync")).get("appendfsync", ""))
    except rx.ResponseError:  # hosted servers forbid CONFIG
        return ""
