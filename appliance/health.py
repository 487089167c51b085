"""Whether this process is alive, and whether it is ready for traffic, with the reasons."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import redis.exceptions as rx
from redis.asyncio import Redis

from appliance import __version__
from appliance.http.services import Health
from appliance.observe.metrics import METRICS
from appliance.observe.stall import StallWatchdog
from appliance.stream.client import unavailable

_CHECK_EVERY_S = 2.0

log = logging.getLogger("appliance.health")


class HealthMonitor:
    """Collects what is wrong. ``sources`` are asked at each reading: name -> None, or what is wrong."""

    def __init__(
        self,
        client: Redis,
        watchdog: StallWatchdog,
        sources: Mapping[str, Callable[[], str | None]],
        details: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.started = False
        self.dead: tuple[str, ...] = ()
        self._client = client
        self._watchdog = watchdog
        self._sources = sources
        self._details = details
        self._redis: str | None = None

    def health(self) -> Health:
        """The state at this moment; costs nothing."""
        reasons = [f"{name}: {what}" for name, source in self._sources.items() if (what := source()) is not None]
        if self._redis is not None:
            reasons.append(f"redis: {self._redis}")
        if self._watchdog.stalled:
            reasons.append("event loop: blocked")
        health = Health(
            started=self.started,
            dead=self.dead,
            unready=tuple(reasons),
            details={"version": __version__, **self._details()},
        )
        METRICS.ready.set(1 if health.ready else 0)
        return health

    async def run_forever(self) -> None:
        """Ask Redis every two seconds."""
        while True:
            await self.check()
            await asyncio.sleep(_CHECK_EVERY_S)

    async def check(self) -> None:
        """Ask Redis whether it is there, and whether it would rather forget events than refuse them."""
        before = self._redis
        try:
            memory = await self._client.info("memory")
            policy = memory.get("maxmemory_policy", "noeviction")
            limited = int(memory.get("maxmemory", 0)) > 0
            self._redis = None
            if policy != "noeviction" and limited:
                self._redis = f"maxmemory-policy is {policy}: it would drop events; set it to noeviction"
        except (rx.RedisError, OSError) as error:
            self._redis = str(unavailable(error) or error)
        if self._redis is not None and self._redis != before:
            log.error("not ready: redis: %s", self._redis)
