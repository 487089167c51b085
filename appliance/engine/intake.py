"""Taking events in with ``ingest.durability = postgres``: a row of the outbox first, then the stream.

An event is accepted once its row is committed; the commits of concurrent requests share a transaction. This process
puts it into its stream right behind, and when Redis is away some replica does so later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from appliance.batching import Batcher
from appliance.engine.outbox import OutboxLoop
from appliance.errors import Overloaded, StoreUnavailable, StreamUnavailable
from appliance.events import Event
from appliance.settings import IngestSettings
from appliance.store.outbox import First, Outbox
from appliance.stream.producer import Accepted, Producer, Send, checked

_LIMIT = 512
"""Events in one transaction, and entries in one pipeline."""
_MOST_QUEUED = 10_000
"""Entries that wait for Redis in this process. What comes beyond it is left to the outbox's loop."""
_SAMPLE_S = 0.1
"""How old the known backlog may get; what this process accepts in between is counted on top."""

log = logging.getLogger("appliance.engine.intake")


class Intake:
    """Has the interface of :class:`~appliance.stream.producer.Producer` for events."""

    def __init__(self, outbox: Outbox, loop: OutboxLoop, producer: Producer, settings: IngestSettings) -> None:
        self._outbox = outbox
        self._loop = loop
        self._producer = producer
        self._settings = settings
        self._accepts: Batcher[tuple[Event, str], First | None] = Batcher(self._accept, limit=_LIMIT, name="intake")
        self._sends: Batcher[Send, None] = Batcher(self._send, limit=_LIMIT, name="outbox")
        self._length = 0
        self._since_sample = 0
        self._sampled_at = -1e9
        self._sampling: asyncio.Task[None] | None = None

    async def submit(self, event: Event, priority: str = "normal") -> Accepted:
        """Accept an event; returns once PostgreSQL has it.

        Raises Malformed when it is too large or the priority unknown, Overloaded when the backlog is full,
        StoreUnavailable when PostgreSQL can't be reached (nobody knows then whether the event was accepted).
        """
        fields = checked(event, priority, self._settings.max_event_bytes)
        if await self.backlog() >= self._settings.max_backlog:
            raise Overloaded(
                f"{self._settings.max_backlog} entries are waiting already (ingest.max_backlog)", retry_after_s=5
            )
        self._since_sample += 1
        accepted = await self._take_in(event, priority, fields)
        if accepted.duplicate:
            self._since_sample = max(0, self._since_sample - 1)
        return accepted

    async def publish(self, event: Event, priority: str = "normal") -> None:
        """Accept an event that an action publishes, whatever the backlog."""
        await self._take_in(event, priority, event.to_entry())

    async def backlog(self) -> int:
        """Entries in the streams and rows on their way there. While Redis is away, only the latter are known."""
        if time.monotonic() - self._sampled_at >= _SAMPLE_S and self._sampling is None:
            self._sampling = asyncio.create_task(self._sample(), name="backlog")
        if self._sampled_at < 0 and self._sampling is not None:
            await asyncio.wait({self._sampling})
        return self._length + self._since_sample

    async def drain(self) -> None:
        """Wait until what was accepted is in Redis, or was tried to be put there."""
        await self._accepts.drain()
        await self._sends.drain()
        await self._producer.drain()

    async def _take_in(self, event: Event, priority: str, fields: dict[bytes, bytes]) -> Accepted:
        first = await self._accepts.submit((event, priority))
        if first is not None:
            return Accepted(event_id=first.id, uid=first.uid, duplicate=first.uid != event.uid)
        if len(self._sends) < _MOST_QUEUED:
            self._sends.submit(Send(priority, fields, event.uid))
        return Accepted(event_id=event.id, uid=event.uid)

    async def _accept(self, batch: list[tuple[Event, str]]) -> list[First | None]:
        return await self._outbox.accept(batch)

    async def _send(self, batch: list[Send]) -> list[None]:
        for send, answer in zip(batch, await self._producer.put(batch), strict=True):
            if isinstance(answer, str):
                self._loop.note(send.marker, answer)
            else:
                log.debug("%s waits in the outbox: %s", send.marker, answer)
        return [None] * len(batch)

    async def _sample(self) -> None:
        try:
            self._length = await self._producer.backlog()
            self._since_sample = len(self._accepts) + len(self._sends)
        except StreamUnavailable:
            with contextlib.suppress(StoreUnavailable):  # the commit will say so
                self._length = await self._outbox.unsent(self._settings.max_backlog + 1)
                self._since_sample = len(self._accepts)
        self._sampled_at = time.monotonic()
        self._sampling = None
