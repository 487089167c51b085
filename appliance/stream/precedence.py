"""Which entries of a stream come before another and are not settled yet: in this replica's hands, and in the group.

A stream hands its entries out in order, but they are not finished with in order: an earlier one may wait for a lookup
here, or be in the hands of a replica that is slow, frozen or dead. Whoever has to keep an order asks here.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis.exceptions as rx
from redis.asyncio import Redis

from appliance.errors import StreamUnavailable
from appliance.stream.client import unavailable
from appliance.stream.entry import Entry
from appliance.stream.keys import Keys

PAGE = 1000

Rank = tuple[int, int]
"""An entry's place in its stream: its id as numbers."""


def rank_of(entry_id: bytes) -> Rank:
    """The rank of an id as Redis writes it; ValueError if it is none."""
    ms, _, seq = entry_id.partition(b"-")
    return int(ms), int(seq)


@dataclass(slots=True, eq=False)
class _Passing:
    """An entry in hand. ``keys`` is None until it is known whom it may hold up."""

    priority: str
    rank: Rank
    keys: tuple[str, ...] | None = None
    gone: bool = False
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def unknown(self) -> bool:
        return self.keys is None and not self.gone

    def tell(self) -> None:
        """Let those look again who wait for this one."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()


class Precedence:
    """The entries that this replica has in hand and that may still hold up later ones of their stream."""

    def __init__(self) -> None:
        self._here: dict[Entry, _Passing] = {}
        self._unknown: dict[str, list[tuple[Rank, int, _Passing]]] = {}
        """By priority, a heap: those of which it isn't known yet, and some that have become known."""
        self._by_key: dict[tuple[str, str], dict[_Passing, None]] = {}
        self._entered = 0

    def __len__(self) -> int:
        return len(self._here)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._here

    def enter(self, entry: Entry) -> None:
        """Take an entry in hand: until more is known, it may hold up every later one of its stream."""
        self.leave(entry)
        passing = self._here[entry] = _Passing(entry.priority, rank_of(entry.id))
        self._entered += 1
        unknown = self._unknown.setdefault(entry.priority, [])
        heapq.heappush(unknown, (passing.rank, self._entered, passing))
        if len(unknown) > 2 * len(self._here) + 100:  # behind one that takes long
            unknown[:] = [item for item in unknown if item[2].unknown]
            heapq.heapify(unknown)

    def know(self, entry: Entry, keys: Iterable[str]) -> None:
        """From now on an entry holds up only later ones with one of these keys, until it leaves. Said once."""
        if entry not in self._here:
            self.enter(entry)
        passing = self._here[entry]
        if passing.keys is not None:
            return
        passing.keys = tuple(keys)
        for key in passing.keys:
            self._by_key.setdefault((passing.priority, key), {})[passing] = None
        passing.tell()

    def leave(self, entry: Entry) -> None:
        """An entry holds up nobody any more; again does nothing."""
        passing = self._here.pop(entry, None)
        if passing is None:
            return
        passing.gone = True
        for key in passing.keys or ():
            same = self._by_key[passing.priority, key]
            same.pop(passing, None)
            if not same:
                del self._by_key[passing.priority, key]
        passing.tell()

    async def clear(self, entry: Entry) -> None:
        """Wait until no earlier entry here holds this one up, which is known. Only earlier ones are waited for."""
        passing = self._here[entry]
        while (other := self._blocker(passing)) is not None:
            waiter = asyncio.get_running_loop().create_future()
            other.waiters.append(waiter)
            await waiter

    def _blocker(self, passing: _Passing) -> _Passing | None:
        unknown = self._unknown.get(passing.priority, [])
        while unknown and not unknown[0][2].unknown:
            heapq.heappop(unknown)
        if unknown and unknown[0][0] < passing.rank:
            return unknown[0][2]
        for key in passing.keys or ():
            for other in self._by_key.get((passing.priority, key), ()):
                if other.rank < passing.rank:
                    return other
        return None


class Unsettled:
    """The entries of the group that nobody has settled, whoever has them. Everything raises StreamUnavailable."""

    def __init__(self, client: Redis, keys: Keys, group: str) -> None:
        self._client: Any = client
        self._keys = keys
        self._group = group

    async def page(self, priority: str, after: bytes, before: bytes) -> list[bytes]:
        """The ids between two others, in order, at most PAGE."""
        try:
            rows = await self._client.xpending_range(
                self._keys.stream(priority), self._group, b"(" + after, b"(" + before, PAGE
            )
        except (rx.RedisError, OSError) as error:
            raise unavailable(error) or StreamUnavailable(f"Redis: {error}") from error
        return [row["message_id"] for row in rows]

    async def contents(self, priority: str, ids: Sequence[bytes]) -> list[Mapping[bytes, bytes] | None]:
        """The fields of each; None for those that are not in the stream any more."""
        pipeline = self._client.pipeline(transaction=False)
        for entry_id in ids:
            pipeline.xrange(self._keys.stream(priority), entry_id, entry_id, 1)
        try:
            replies = await pipeline.execute() if ids else []
        except (rx.RedisError, OSError) as error:
            raise unavailable(error) or StreamUnavailable(f"Redis: {error}") from error
        return [rows[0][1] if rows else None for rows in replies]
