"""An event loop whose time passes at once: it sleeps by setting its clock forward."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

MAX_WAITS = 20_000
"""How often time may be set forward: a story that needs more goes round for ever."""


class _Selector:
    """Waits for nothing but time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            self._loop.stop()  # nothing will ever happen any more
        elif timeout > 0:
            self._loop.now += timeout
            self._loop.waits += 1
            if self._loop.waits > MAX_WAITS:
                raise TimeoutError("this goes on for ever")
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """``run_forever`` returns when nothing is scheduled any more. Threads' work is done on the spot."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.now = start
        self._clock_resolution = 1e-6  # a float can't tell less of today's times
        self.waits = 0
        self._selector = _Selector(self)

    def drop(self) -> None:
        """Forget everything that is scheduled."""
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.waits = 0

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(contextvars.copy_context().run(func, *args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
