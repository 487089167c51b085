"""The rate limit of ingest: a token bucket that holds one second's worth."""

from __future__ import annotations

import time
from collections.abc import Callable

from appliance.http.problems import unavailable


class TokenBucket:
    """``rate`` events a second, with bursts of as many (at least 1); ``rate`` 0 is no limit.

    A batch larger than the burst passes when the bucket is full, and leaves a debt that later requests wait for.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(rate, 1.0)
        self._clock = clock
        self._tokens = self._burst
        self._filled_at = clock()

    def take(self, count: int = 1) -> None:
        """Take ``count`` tokens, or raise a 429 problem that says when to come back."""
        if not self._rate:
            return
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        needed = min(float(count), self._burst)
        if self._tokens < needed:
            wait_s = (needed - self._tokens) / self._rate
            raise unavailable("rate-limit", f"More than {self._rate:g} events a second.", wait_s)
        self._tokens -= count
