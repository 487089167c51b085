"""The life of an embedded server: start and wait until it answers, watch it, start it again, stop it."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.embedded.process import Command, ServerProcess, spawn, take_lock
from appliance.errors import ConfigurationError, Unavailable
from appliance.observe.metrics import METRICS

_log = logging.getLogger(__name__)

_PROBE_S = 0.01
START_TIMEOUT_S = 300.0
"""Loading a large append-only file or recovering after a crash takes minutes; a server that died is noticed at once."""
STOP_TIMEOUT_S = 30.0
_MAX_RESTARTS = 5
_RESTART_WINDOW_S = 300.0
"""More restarts than this in so many seconds are not an accident: the server is given up."""
_MAX_LOG_BYTES = 1_048_576


class EmbeddedServer(abc.ABC):
    """``async with EmbeddedValkey(...) as server``: ``server.url`` answers inside the block.

    A server that ends unasked is started again on its data, after a backoff; clients see a short outage.
    ``on_failure(reason)`` is called, once, when it can't be kept up; without it the reason is only logged.
    """

    name: str
    url: str
    stop_signal: signal.Signals

    def __init__(self, directory: Path, on_failure: Callable[[str], None] | None = None) -> None:
        self.directory = directory
        self.process: ServerProcess | None = None
        self._on_failure = on_failure
        self._watcher: asyncio.Task[None] | None = None

    @abc.abstractmethod
    async def command(self, lock_fd: int) -> Command:
        """Prepare the directory, if need be, and say what to run.

        A program that prepares something has to inherit ``lock_fd``, so that a successor waits for its end as well.
        """

    @abc.abstractmethod
    async def answers(self) -> bool:
        """Whether the server is ready for clients. Never raises for a server that is not."""

    async def first_start(self) -> None:  # noqa: B027 - most servers need none
        """What remains to be done once the server answers (idempotent)."""

    async def __aenter__(self) -> Self:
        await self._start()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch-{self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._stop()

    async def _start(self) -> None:
        started = time.monotonic()
        lock = self.directory.parent / f"{self.name}.lock"
        lock_fd = await take_lock(lock, self.stop_signal, STOP_TIMEOUT_S * 2)
        preparing = asyncio.ensure_future(self.command(lock_fd))
        try:
            command = await asyncio.shield(preparing)
            _shorten(command.log)
        except asyncio.CancelledError:
            await asyncio.wait({preparing})  # initdb in its thread goes on: nobody may remove the folder under it
            os.close(lock_fd)
            raise
        except BaseException:
            os.close(lock_fd)
            raise
        self.process = spawn(command, lock_fd)
        try:
            await self._wait_ready(self.process, started)
            await self.first_start()
        except BaseException:
            await self._stop()
            raise
        _log.info(
            "%s answers after %.0f ms", self.name, (time.monotonic() - started) * 1000, extra={"pid": self.process.pid}
        )

    async def _wait_ready(self, process: ServerProcess, started: float) -> None:
        deadline = started + START_TIMEOUT_S
        report = started + 5
        while not await self.answers():
            if process.exited.done():
                raise ConfigurationError(
                    f"the embedded {self.name} did not start (exit status {process.exited.result()}):\n"
                    f"{process.last_words()}"
                )
            now = time.monotonic()
            if now > deadline:
                raise Unavailable(f"the embedded {self.name} did not answer within {START_TIMEOUT_S:.0f} s")
            if now > report:
                report = now + 5
                _log.info("waiting for the embedded %s: %s", self.name, process.last_words(1))
            await asyncio.sleep(_PROBE_S)

    async def _stop(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            await process.stop(STOP_TIMEOUT_S)

    async def _watch(self) -> None:
        restarts: deque[float] = deque(maxlen=_MAX_RESTARTS)
        while self.process is not None:
            status = await asyncio.shield(self.process.exited)
            _log.error("the embedded %s ended (exit status %d): %s", self.name, status, self.process.last_words())
            reason = await self._restart(restarts)
            if reason is not None:
                self.process = None
                _log.critical("the embedded %s is given up: %s", self.name, reason)
                if self._on_failure is not None:
                    self._on_failure(reason)

    async def _restart(self, restarts: deque[float]) -> str | None:
        """Start again, with a growing backoff; returns why not when that is hopeless."""
        while True:
            now = time.monotonic()
            if len(restarts) == _MAX_RESTARTS and now - restarts[0] < _RESTART_WINDOW_S:
                return f"the embedded {self.name} ended {_MAX_RESTARTS + 1} times in {now - restarts[0]:.0f} s"
            recent = sum(now - at < _RESTART_WINDOW_S for at in restarts)
            restarts.append(now)
            await asyncio.sleep(0.1 * 4**recent if recent else 0)
            try:
                await self._start()
            except (ConfigurationError, Unavailable, OSError) as error:
                _log.error("the embedded %s did not start again: %s", self.name, error)
            else:
                METRICS.server_restarts.labels(self.name).inc()
                return None


def _shorten(log: Path) -> None:
    """Keep one earlier log when it has grown long; the servers themselves write a few lines a start."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
