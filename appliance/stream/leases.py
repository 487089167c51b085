"""The leases of the entries that this replica works on.

A lease is the entry's idle time in the pending list; whoever finds it longer than ``stream.lease`` may take the entry
over. Leases are renewed from a thread with a connection of its own, so an action that blocks the event loop does not
lose them, and through a script that checks ownership, so a replica that was away does not steal its entries back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable

import redis.exceptions as rx
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from appliance.stream.client import Script
from appliance.stream.entry import Entry
from appliance.stream.keys import Keys

_CHUNK = 500
_RELEASED_MS = 1_000_000_000
"""Idle time given to a released entry: longer than any lease, so that every other replica may take it at once."""

log = logging.getLogger("appliance.stream.leases")


class Leases:
    """The entries in this replica's hands. All methods but the renewing thread run in the event loop."""

    def __init__(
        self,
        keys: Keys,
        group: str,
        consumer: str,
        lease_s: float,
        connect: Callable[[], SyncRedis],
    ) -> None:
        self.lease_s = lease_s
        self._keys = keys
        self._group = group
        self._consumer = consumer
        self._connect = connect
        self._script = Script("renew")
        self._held: dict[tuple[str, bytes], Entry] = {}
        self._on_lost: Callable[[Entry], None] = lambda _entry: None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: tuple[str, bytes]) -> bool:
        return key in self._held

    def entries(self) -> list[Entry]:
        """The entries in our hands."""
        return list(self._held.values())

    def add(self, entry: Entry) -> None:
        """Hold an entry that was just read or claimed."""
        self._held[entry.priority, entry.id] = entry

    def remove(self, entry: Entry) -> None:
        """Forget an entry: it was settled, lost or released. Its next delivery, which is another object, stays."""
        key = (entry.priority, entry.id)
        if self._held.get(key) is entry:
            del self._held[key]

    def holds(self, entry: Entry) -> bool:
        """Whether the lease is certainly still ours: what is not may neither be committed nor acknowledged.

        The monotonic clock goes on while the process is frozen, so a zombie sees at once that its time is over.
        """
        return not entry.lost and time.monotonic() - entry.renewed_at < self.lease_s

    def start(self, on_lost: Callable[[Entry], None]) -> None:
        """Start renewing; ``on_lost`` is called in the event loop for each entry that turns out to be lost."""
        self._on_lost = on_lost
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._renew_forever, args=(loop,), name="leases", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Stop renewing."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def release(self, client: Redis, entries: Iterable[Entry]) -> None:
        """Give entries back, so that another replica may take them without waiting for the lease to run out."""
        for priority, ids in _by_stream(entries).items():
            for chunk in _chunks(ids):
                args = [self._group, self._consumer, _RELEASED_MS, *chunk]
                await self._script.call(client, self._keys_of(priority), args)

    def _renew_forever(self, loop: asyncio.AbstractEventLoop) -> None:
        client = self._connect()
        while not self._stopping.wait(self.lease_s / 3):
            try:
                lost = self._renew(client)
            except (rx.RedisError, OSError) as error:
                log.warning("leases could not be renewed: %s", error)
                continue
            except Exception:  # a thread that died would go unnoticed until every lease is lost
                log.exception("leases could not be renewed")
                continue
            if lost and not loop.is_closed():
                loop.call_soon_threadsafe(self._report, lost)
        client.close()

    def _renew(self, client: SyncRedis) -> list[Entry]:
        lost: list[Entry] = []
        for priority, ids in _by_stream(self.entries()).items():
            for chunk in _chunks(ids):
                began = time.monotonic()
                args = [self._group, self._consumer, 0, *chunk]
                gone, nobodys = map(set, self._script.call_sync(client, self._keys_of(priority), args))
                for entry_id in chunk:
                    entry = self._held.get((priority, entry_id))
                    if entry is None:
                        continue
                    if entry_id in gone or (entry_id in nobodys and not self.holds(entry)):
                        lost.append(entry)
                    else:
                        entry.renewed_at = began
        return lost

    def _keys_of(self, priority: str) -> list[str]:
        return [self._keys.stream(priority), self._keys.ledger(priority), self._keys.settled(priority)]

    def _report(self, lost: list[Entry]) -> None:
        for entry in lost:
            # Settled in the meantime means that it left the pending list by our own hand.
            if self._held.get((entry.priority, entry.id)) is entry:
                entry.lost = True
                self._on_lost(entry)


def _by_stream(entries: Iterable[Entry]) -> dict[str, list[bytes]]:
    streams: dict[str, list[bytes]] = {}
    for entry in entries:
        streams.setdefault(entry.priority, []).append(entry.id)
    return streams


def _chunks(ids: list[bytes]) -> Iterable[list[bytes]]:
    return (ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK))
