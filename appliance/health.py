"""Whether this process is alive, and whether it is ready for traffic, with the reasons."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from appliance import __version__
from appliance.errors import StreamUnavailable
from appliance.http.services import Health
from appliance.observe.metrics import METRICS
from appliance.observe.stall import StallWatchdog

_CHECK_EVERY_S = 2.0

log = logging.getLogger("appliance.health")


class HealthMonitor:
    """Collects what is wrong.

    ``sources`` are asked at each reading: name -> None, or what is wrong. ``policy`` asks Redis what it does when its
    memory is full.
    """

    def __init__(
        self,
        policy: Callable[[], Awaitable[str]],
        watchdog: StallWatchdog,
        sources: Mapping[str, Callable[[], str | None]],
        details: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.started = False
        self.dead: tuple[str, ...] = ()
        self._policy = policy
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
            policy = await self._policy()
            refusal = f"maxmemory-policy is {policy}: it would drop events; set it to noeviction"
            self._redis = None if policy == "noeviction" else refusal
        except StreamUnavailable as error:
            self._redis = str(error)
        if self._redis is not None and self._redis != before:
            log.error("not ready: redis: %s", self._redis)
