"""What plugins keep open for the life of the process (connection pools and such), each in a task of its own.

A resource is entered and left in the same task, as context managers built on task groups require, and one that hangs or
fails while it opens holds up nobody else: it is tried again with a growing pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from appliance.plugin import Environment, ResourceOpener

if TYPE_CHECKING:
    import httpx

_OPEN_S = 10.0
"""How long the start waits for a resource; opening goes on behind it."""
_CLOSE_S = 5.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """What every plugin's :class:`~appliance.plugin.Environment` has in common."""

    data_dir: Path
    config_dir: Path
    http: httpx.AsyncClient


class ResourceUnavailable(Exception):
    """The resource isn't open (yet); the text says why."""


class Resources:
    """The open resources by action name. Used as a context manager: leaving it closes them all."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._keepers: dict[str, _Keeper] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(keeper.close() for keeper in self._keepers.values()))

    async def open(self, openers: Mapping[str, tuple[ResourceOpener, Any]]) -> None:
        """Open these (name -> opener and the plugin's settings); returns after ``_OPEN_S`` at the latest."""
        new = {
            name: _Keeper(name, opener, self._environment(name, settings))
            for name, (opener, settings) in openers.items()
        }
        self._keepers |= new
        await asyncio.gather(*(keeper.opened_or_failed() for keeper in new.values()))

    def get(self, name: str) -> Any:
        """The action's resource, None if it has none; raises ResourceUnavailable while it isn't open."""
        keeper = self._keepers.get(name)
        if keeper is None:
            return None
        if not keeper.is_open:
            raise ResourceUnavailable(f"what the action {name} needs is not open: {keeper.why_not}")
        return keeper.value

    def _environment(self, name: str, settings: Any) -> Environment:
        return Environment(
            settings=settings,
            data_dir=self._place.data_dir,
            config_dir=self._place.config_dir,
            http=self._place.http,
            log=logging.LoggerAdapter(logging.getLogger(f"appliance.actions.{name}"), {"action": name}),
        )


class _Keeper:
    """Opens one resource, holds it, closes it: all in one task."""

    def __init__(self, name: str, opener: ResourceOpener, environment: Environment) -> None:
        self.value: Any = None
        self.is_open = False
        self.why_not = "it is still being opened"
        self._name = name
        self._opener = opener
        self._environment = environment
        self._tried = asyncio.Event()
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"resource-{name}")

    async def opened_or_failed(self) -> None:
        try:
            await asyncio.wait_for(self._tried.wait(), _OPEN_S)
        except TimeoutError:
            log.error("the resource of the action %s is not open after %g s", self._name, _OPEN_S)

    async def close(self) -> None:
        self._stop.set()
        if not self.is_open:
            self._task.cancel()
        _, pending = await asyncio.wait((self._task,), timeout=_CLOSE_S)
        if pending:
            log.error("the resource of the action %s did not close within %g s", self._name, _CLOSE_S)
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=_CLOSE_S)

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                await self._hold()
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                self.why_not = f"{type(error).__name__}: {error}"
                log.error("the resource of the action %s: %s", self._name, self.why_not)
            self._tried.set()
            try:
                await asyncio.wait_for(self._stop.wait(), pause_s)
            except TimeoutError:
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _hold(self) -> None:
        async with self._opener(self._environment) as value:
            self.value, self.is_open = value, True
            self._tried.set()
            try:
                await self._stop.wait()
            finally:
                self.value, self.is_open = None, False
                self.why_not = "it was closed"
