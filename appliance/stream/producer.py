"""Events and internal work into the streams. Concurrent calls share a pipeline.

A stream that isn't there was lost, or is new: it is found, which begins a life of its ledger, before anything is added.

There are no retries here: when a reply is lost nobody knows whether the entry is there, so the caller is told 503 and
its own retry is told apart by its key. Without a key the sender accepts that a retry may be a second event.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.exceptions as rx
from redis.asyncio import Redis

from appliance import faultpoints
from appliance.batching import Batcher
from appliance.errors import Malformed, Overloaded, StreamUnavailable
from appliance.events import PRIORITIES, Event
from appliance.settings import IngestSettings
from appliance.stream.client import Script, unavailable
from appliance.stream.keys import Keys
from appliance.stream.work import Work

_PIPELINE_LIMIT = 512
"""Entries in one pipeline: beyond it the first caller waits longer than the saved round trips are worth."""
_BACKLOG_SAMPLE_S = 0.1
"""How old the known length of the streams may get; what this process adds in between is counted on top."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a submitted event; a duplicate names the event that came first."""

    event_id: str
    uid: str
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class _Addition:
    event: Event
    priority: str
    fields: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Send:
    """An entry that is to be in a stream once, although several may put it there, or one twice.

    For ``remembered_ms`` the ``marker`` tells that it was added. ``counted``: its event was counted as accepted
    when it was added before; now only its outcome is. With the name of a ``life`` of the stream that holds only while
    this goes on; else the entry isn't added.
    """

    priority: str
    fields: dict[bytes, bytes]
    marker: str
    remembered_ms: int = 120_000
    counted: bool = False
    life: str = ""


class Producer:
    """The way into the streams."""

    def __init__(
        self,
        client: Redis,
        keys: Keys,
        settings: IngestSettings,
        found: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """``found`` makes the streams that are missing, with all that belongs to them; without it, empty ones."""
        self._client = client
        self._found = found or self._make
        self._keys = keys
        self._settings = settings
        self._window_ms = int(settings.dedupe_window.total_seconds() * 1000)
        self._submit = Script("submit")
        self._enqueue = Script("enqueue")
        self._resend = Script("resend")
        self._batcher: Batcher[_Addition, Accepted] = Batcher(self._flush, limit=_PIPELINE_LIMIT, name="ingest")
        self._length = 0
        self._sampled_at = -1e9
        self._since_sample = 0

    async def submit(self, event: Event, priority: str = "normal") -> Accepted:
        """Add an event; returns once Redis confirmed it.

        Raises Malformed when it is too large or the priority unknown, Overloaded when the backlog is full,
        StreamUnavailable when Redis can't be reached or refuses (nobody knows then whether the entry was added).
        """
        fields = checked(event, priority, self._settings.max_event_bytes)
        await self._check_backlog()
        self._since_sample += 1
        return await self._batcher.submit(_Addition(event, priority, fields))

    async def publish(self, event: Event, priority: str = "normal") -> None:
        """Add an event that an action publishes. The backlog limit doesn't apply: refusing would only make retries."""
        await self._batcher.submit(_Addition(event, priority, event.to_entry()))

    async def enqueue(
        self, priority: str, works: Sequence[Work], *, reopened: int = 0, places: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Add internal work. Raises StreamUnavailable.

        ``reopened`` of it puts dead events back to work; ``places`` are the (priority, entry id) of these events.
        """
        keys = [self._keys.stream(priority), *(self._keys.ledger(p) for p in (priority, *PRIORITIES))]
        stood = [part for place, entry_id in places for part in (1 + PRIORITIES.index(place), entry_id)]
        args = [reopened, len(places), *stood, *(work.encode() for work in works)]
        try:
            if await self._run(self._enqueue, keys, args) is None:
                raise _gone(priority)
        except (rx.RedisError, OSError) as error:
            raise unavailable(error) or error from None

    async def put(self, sends: Sequence[Send]) -> list[str | StreamUnavailable]:
        """Add entries, each once for its ``marker``; answers an entry id, or why it is not known to be there."""
        commands = [
            ("EVALSHA", self._resend.sha, 3, *self._places(send), *_arguments(send)) for send in sends
        ]  # fmt: skip
        try:
            replies = await self._added(commands)
        except (rx.RedisError, OSError, StreamUnavailable) as error:
            return [unavailable(error) or StreamUnavailable(f"Redis: {error}")] * len(sends)
        return [await self._answered(send, reply) for send, reply in zip(sends, replies, strict=True)]

    async def _answered(self, send: Send, reply: Any) -> str | StreamUnavailable:
        try:
            if isinstance(reply, rx.NoScriptError):  # it did not run
                reply = await self._run(self._resend, self._places(send), _arguments(send))
            if isinstance(reply, BaseException):
                raise reply
        except (rx.RedisError, OSError, StreamUnavailable) as error:
            return unavailable(error) or StreamUnavailable(f"Redis: {error}")
        return str(reply.decode()) if reply else _gone(send.priority)

    async def _added(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies to commands that add an entry each; where there was no stream they are sent again. Not raised."""
        replies = await self._pipelined(commands)
        if missed := [n for n, reply in enumerate(replies) if reply is None]:
            await self._found()
            for n, reply in zip(missed, await self._pipelined([commands[n] for n in missed]), strict=True):
                replies[n] = reply
        return replies

    async def _pipelined(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """A script that adds; once more when there was no stream."""
        reply = await script.call(self._client, keys, args)
        if reply is None:
            await self._found()
            reply = await script.call(self._client, keys, args)
        return reply

    async def _make(self) -> None:
        for stream in self._keys.streams.values():
            if not await self._client.exists(stream):
                await self._client.xgroup_create(stream, "new", mkstream=True)
                await self._client.xgroup_destroy(stream, "new")

    def _places(self, send: Send) -> list[str]:
        return [
            self._keys.stream(send.priority), self._keys.ledger(send.priority), self._keys.marker(send.marker)
        ]  # fmt: skip

    async def backlog(self) -> int:
        """Entries in the streams, as of less than a tenth of a second ago. Raises StreamUnavailable."""
        now = time.monotonic()
        if now - self._sampled_at >= _BACKLOG_SAMPLE_S:
            self._sampled_at = now  # before the wait: one sampler at a time
            try:
                pipeline = self._client.pipeline(transaction=False)
                for stream in self._keys.streams.values():
                    pipeline.xlen(stream)
                self._length = sum(await pipeline.execute())
            except (rx.RedisError, OSError) as error:
                self._sampled_at = -1e9
                raise unavailable(error) or error from None
            self._since_sample = len(self._batcher)
        return self._length + self._since_sample

    async def drain(self) -> None:
        """Wait until what was submitted is in Redis."""
        await self._batcher.drain()

    async def _check_backlog(self) -> None:
        if await self.backlog() >= self._settings.max_backlog:
            raise Overloaded(
                f"{self._settings.max_backlog} entries are waiting already (ingest.max_backlog)", retry_after_s=5
            )

    async def _flush(self, batch: list[_Addition]) -> list[Accepted | BaseException]:
        faultpoints.hit("before_xadd")
        try:
            replies = await self._added([self._command(addition) for addition in batch])
        except (rx.RedisError, OSError) as error:
            raise unavailable(error) or StreamUnavailable(f"Redis: {error}") from error
        faultpoints.hit("after_xadd")
        return [await self._answer(a, reply) for a, reply in zip(batch, replies, strict=True)]

    def _command(self, addition: _Addition) -> tuple[Any, ...]:
        stream = self._keys.stream(addition.priority)
        event = addition.event
        if event.key is None:
            return ("XADD", stream, "NOMKSTREAM", "*", *_flat(addition.fields))
        remembered = f"{event.uid} {event.id}"
        keys = (stream, self._keys.dedupe(event.key))
        return ("EVALSHA", self._submit.sha, 2, *keys, remembered, self._window_ms, *_flat(addition.fields))

    async def _answer(self, addition: _Addition, reply: Any) -> Accepted | BaseException:
        event = addition.event
        if isinstance(reply, rx.NoScriptError):  # it did not run, so running it now adds nothing twice
            keys = [self._keys.stream(addition.priority), self._keys.dedupe(event.key or "")]
            args = [f"{event.uid} {event.id}", self._window_ms, *_flat(addition.fields)]
            try:
                reply = await self._run(self._submit, keys, args)
            except (rx.RedisError, OSError, StreamUnavailable) as error:
                reply = error
        if isinstance(reply, BaseException):
            return unavailable(reply) or StreamUnavailable(f"Redis: {reply}")
        if reply is None:
            return _gone(addition.priority)
        if isinstance(reply, list) and reply[0] == 0:
            uid, _, event_id = reply[1].decode().partition(" ")
            return Accepted(event_id=event_id, uid=uid, duplicate=True)
        return Accepted(event_id=event.id, uid=event.uid)


def checked(event: Event, priority: str, max_event_bytes: int) -> dict[bytes, bytes]:
    """The fields of the event's entry; raises Malformed when it is too large or the priority unknown."""
    if priority not in PRIORITIES:
        raise Malformed(f"priority: expected one of {', '.join(PRIORITIES)}, got {priority!r}", code="priority")
    fields = event.to_entry()
    if sum(map(len, fields.values())) > max_event_bytes:
        raise Malformed(f"the event is larger than {max_event_bytes} bytes", code="too-large")
    return fields


def _arguments(send: Send) -> list[Any]:
    counted = send.life if send.counted and send.life else int(send.counted)
    return [send.remembered_ms, counted, *_flat(send.fields)]


def _gone(priority: str) -> StreamUnavailable:
    return StreamUnavailable(f"Redis: the stream of priority {priority} was lost just now")


def _flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]
