"""The watchdog for a blocked event loop: says what blocks it, and ends the process when it doesn't come back.

A plugin that calls ``time.sleep`` in an async action stops everything but threads: no lease is renewed by the loop, no
request is answered. A thread watches a heartbeat that the loop must give.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from appliance.observe.metrics import METRICS

_log = logging.getLogger(__name__)

EXIT_STATUS = 70
"""EX_SOFTWARE of <sysexits.h>: the service manager starts the process again."""
_BEATS_PER_WARNING = 4


class StallWatchdog:
    """``start()`` on the loop's thread, ``stop()`` at the end. ``stalled`` can be read from any thread.

    ``end`` ends the process at once: a blocked loop can't run an orderly stop. What was not committed is done again
    after the next start, as after any kill.
    """

    def __init__(self, warning_s: float, limit_s: float, end: Callable[[int], object] = os._exit) -> None:
        self.stalled = False
        self._warning_s = warning_s
        self._limit_s = limit_s
        self._interval_s = warning_s / _BEATS_PER_WARNING
        self._end = end
        self._beat_at = 0.0
        self._stopped = threading.Event()
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat_at = time.monotonic()
        self._schedule()
        threading.Thread(target=self._watch, name="stall-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._handle is not None:
            self._handle.cancel()

    def _schedule(self) -> None:
        self._handle = self._loop.call_later(self._interval_s, self._beat)

    def _beat(self) -> None:
        now = time.monotonic()
        METRICS.loop_lag_seconds.observe(max(0.0, now - self._beat_at - self._interval_s))
        self._beat_at = now
        self._schedule()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            silent_s = time.monotonic() - self._beat_at
            if silent_s < self._warning_s + self._interval_s:
                if self.stalled:
                    self._recovered()
            elif not self.stalled:
                self._stall(silent_s)
            elif silent_s >= self._limit_s:
                _log.critical(
                    "the event loop has been blocked for %.0f s (limit %.0f s): the process ends; blocked by %s\n%s",
                    *(silent_s, self._limit_s, self._task(), self._stack()),
                )
                self._end(EXIT_STATUS)
                return

    def _stall(self, silent_s: float) -> None:
        self.stalled = True
        METRICS.loop_stalled.set(1)
        METRICS.loop_stalls.inc()
        _log.error("the event loop is blocked for %.1f s, by %s\n%s", silent_s, self._task(), self._stack())

    def _recovered(self) -> None:
        self.stalled = False
        METRICS.loop_stalled.set(0)
        _log.warning("the event loop runs again")

    def _task(self) -> str:
        """The name of the task that holds the loop: tasks that run an action are named after it."""
        try:
            task = asyncio.current_task(self._loop)
        except RuntimeError:
            task = None
        return task.get_name() if task is not None else "a callback"

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        return "".join(traceback.format_stack(frame)).rstrip() if frame is not None else "(the loop's thread is gone)"
