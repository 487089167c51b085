"""This replica's membership in the consumer group: reading, claiming, settling and tidying, one command each.

No loops here: :mod:`appliance.stream.consumer` decides when. Everything raises what redis-py raises.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis.exceptions as rx
from redis.asyncio import Redis

from appliance.events import FIELD_AGAIN, entry_ms
from appliance.identifiers import uuid7
from appliance.stream.client import Script
from appliance.stream.entry import Entry
from appliance.stream.keys import Keys

_SCAN_COUNT = 500


@dataclass(frozen=True, slots=True)
class Foundation:
    """What :meth:`Group.found` met: groups made anew, and the ledgers of streams that had lost their entries."""

    made: tuple[str, ...] = ()
    lost: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claim:
    """An entry to take over, and how often it was delivered so far."""

    id: bytes
    deliveries: int


class Group:
    """One consumer of the group on the three streams."""

    def __init__(self, commander: Redis, reader: Redis, keys: Keys, group: str, consumer: str) -> None:
        self.keys = keys
        self.group = group
        self.consumer = consumer
        # As Any: redis-py leaves execute_command and its replies untyped.
        self._commander: Any = commander
        self._reader: Any = reader
        self._reader_id: int | None = None
        self._found = Script("found")
        self._settle = Script("settle")
        self._tidy = Script("tidy")
        self._renew = Script("renew")
        self._leave = Script("leave")
        self._suspect_until_ms = 0
        self._new_until_ms = 0
        self._server = ""

    async def found(self) -> Foundation:
        """Make streams, groups and ledgers that are missing; what is in a stream then counts as delivered before."""
        made, lost = [], {}
        for priority, stream in self.keys.streams.items():
            keys = [stream, self.keys.ledger(priority)]
            new, gone, old = await self._found.call(self._commander, keys, [self.group, uuid7()])
            if new:
                made.append(priority)
            if gone:
                texts = [part.decode() for part in old]
                lost[priority] = dict(zip(texts[::2], texts[1::2], strict=True))
        await self.suspect()
        return Foundation(tuple(made), lost)

    async def suspect(self, *, reading: bool = False) -> None:
        """From now on treat entries older than this moment as perhaps handled before (after a lost connection).

        ``reading`` says that the caller is who reads: while somebody else asks, the reader's connection may be in use.
        """
        seconds, _ = await self._commander.time()
        self._suspect_until_ms = seconds * 1000 + 1000
        server = str((await self._commander.info("server"))["run_id"])
        if self._server not in ("", server):
            self._new_until_ms = self._suspect_until_ms
        self._server = server
        if reading or self._reader_id is None:
            self._reader_id = await self._reader.client_id()

    async def read(self, counts: Mapping[str, int]) -> tuple[list[Entry], list[rx.ResponseError]]:
        """New entries without waiting, at most ``counts[priority]`` of each stream.

        A stream whose group is missing does not keep the others from being read: its error is in the second list.
        """
        pipeline = self._reader.pipeline(transaction=False)
        for priority, count in counts.items():
            pipeline.execute_command(
                "XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count,
                "STREAMS", self.keys.stream(priority), ">",
            )  # fmt: skip
        began = time.monotonic()
        entries: list[Entry] = []
        errors: list[rx.ResponseError] = []
        for priority, reply in zip(counts, await pipeline.execute(raise_on_error=False), strict=True):
            if isinstance(reply, rx.ResponseError):
                errors.append(reply)
            elif isinstance(reply, BaseException):
                raise reply
            elif reply:
                entries += self._entries(priority, reply[0][1], began)
        return entries, errors

    async def wait(self, block_ms: int, count: int) -> list[Entry]:
        """New entries of any stream, at most ``count`` of each; waits up to ``block_ms`` for the first one."""
        streams = self.keys.streams
        asked = time.monotonic()
        reply = await self._reader.execute_command(
            "XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", count, "BLOCK", block_ms,
            "STREAMS", *streams.values(), *(">" for _ in streams),
        )  # fmt: skip
        began = time.monotonic()
        if began - asked > block_ms / 1000 + 1.0:
            began = asked  # the process was away meanwhile, and so the entries may be somebody else's by now
        priority_of = {stream.encode(): priority for priority, stream in streams.items()}
        return [e for stream, rows in reply or () for e in self._entries(priority_of[stream], rows, began)]

    async def interrupt(self) -> None:
        """End a blocking read of ours at once: its entries, if there are any, still arrive."""
        if self._reader_id is not None:
            await self._commander.client_unblock(self._reader_id)

    async def settle(self, priority: str, outcomes: list[tuple[bytes, str]], *, held: bool = False) -> set[bytes]:
        """Acknowledge and count; returns the ids that are not ours any more.

        With ``held`` the caller is certain that nobody else has these entries: then those count as well that somebody
        deleted meanwhile. Not those that came from another server than the present one: a failover may have lost them.
        """
        args: list[Any] = [self.group, self.consumer, self._new_until_ms if held else ""]
        for entry_id, outcome in outcomes:
            args += (entry_id, outcome)
        keys = [self.keys.stream(priority), self.keys.ledger(priority), self.keys.settled(priority)]
        return set(await self._settle.call(self._commander, keys, args))

    async def overdue(self, priority: str, lease_ms: int, limit: int) -> tuple[list[Claim], int]:
        """Take over entries whose lease ran out: at most ``limit``. Also says how many had vanished from the stream.

        With JUSTID: that makes the entries ours without counting a delivery, which happens in :meth:`take`.
        """
        stream, cursor = self.keys.stream(priority), "0-0"
        ids: list[bytes] = []
        vanished = 0
        while len(ids) < limit:
            # As bytes the name has no reply callback in redis-py: the one for JUSTID drops the cursor.
            cursor, claimed, gone = await self._commander.execute_command(
                b"XAUTOCLAIM", stream, self.group, self.consumer, lease_ms, cursor,
                "COUNT", min(limit - len(ids), _SCAN_COUNT), "JUSTID",
            )  # fmt: skip
            ids += claimed
            vanished += len(gone)
            cursor = cursor.decode()
            if cursor == "0-0":
                break
        return await self._counted(stream, ids), vanished

    async def own(self, priority: str, start: bytes = b"-", idle_ms: int = 0) -> list[Claim]:
        """Entries pending under our name from ``start`` on that were idle so long, at most 500."""
        rows = await self._commander.xpending_range(
            self.keys.stream(priority), self.group, start, "+", _SCAN_COUNT, self.consumer, idle_ms or None
        )
        return [Claim(row["message_id"], row["times_delivered"]) for row in rows]

    async def take(self, priority: str, ids: list[bytes]) -> list[Entry]:
        """Entries that are ours, with their fields; counts a delivery. Vanished ones are missing from the answer."""
        began = time.monotonic()
        rows = await self._commander.execute_command(
            "XCLAIM", self.keys.stream(priority), self.group, self.consumer, 0, *ids
        )
        entries = self._entries(priority, rows, began)
        for entry in entries:
            entry.redelivered = True
        return entries

    async def renew(self, priority: str, entry_id: bytes) -> bool:
        """Renew the lease of one entry; False if it is not ours any more."""
        args = [self.group, self.consumer, 0, entry_id]
        keys = [self.keys.stream(priority), self.keys.ledger(priority), self.keys.settled(priority)]
        return not any(await self._renew.call(self._commander, keys, args))

    async def tidy(self, idle_consumer_ms: int) -> tuple[int, int]:
        """Trim what no group needs, drop consumers that are gone; returns how many (entries, consumers)."""
        trimmed = removed = 0
        for priority, stream in self.keys.streams.items():
            keys = [stream, self.keys.ledger(priority)]
            t, r = await self._tidy.call(self._commander, keys, [self.group, idle_consumer_ms])
            trimmed, removed = trimmed + t, removed + r
        return trimmed, removed

    async def leave(self) -> None:
        """Remove this consumer from the groups where it has nothing pending."""
        for stream in self.keys.streams.values():
            await self._leave.call(self._commander, [stream], [self.group, self.consumer])

    async def _counted(self, stream: str, ids: list[bytes]) -> list[Claim]:
        if not ids:
            return []
        pipeline = self._commander.pipeline(transaction=False)
        for entry_id in ids:
            pipeline.xpending_range(stream, self.group, entry_id, entry_id, 1)
        rows = await pipeline.execute()
        return [Claim(row[0]["message_id"], row[0]["times_delivered"]) for row in rows if row]

    def _entries(self, priority: str, rows: list[Any], began: float) -> list[Entry]:
        until = self._suspect_until_ms
        return [
            Entry(priority, entry_id, fields, began, redelivered=entry_ms(entry_id) <= until or FIELD_AGAIN in fields)
            for entry_id, fields in rows
            if fields is not None
        ]
