"""Taking over what others left behind, and what was delivered to us without our ever seeing it.

An entry that was in the hands of two processes when they died is a suspect: from its third delivery on it runs alone,
so that the next death is the guilty one's only, and beyond ``stream.max_deliveries`` it is set aside.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque

import redis.exceptions as rx

from appliance.errors import Fenced, StoreUnavailable
from appliance.events import PRIORITIES
from appliance.observe.metrics import METRICS
from appliance.settings import StreamSettings
from appliance.stream.consumer import Consumer
from appliance.stream.entry import Entry
from appliance.stream.group import Claim, Group
from appliance.stream.leases import Leases

_SOLO_FROM = 3
"""Delivery from which on an entry runs alone."""
_TIDY_EVERY_S = 60.0

log = logging.getLogger("appliance.stream.reclaim")


class Reclaimer:
    """One loop: reclaim, look after our own, tidy up."""

    def __init__(self, group: Group, leases: Leases, consumer: Consumer, settings: StreamSettings) -> None:
        self._group = group
        self._leases = leases
        self._consumer = consumer
        self._settings = settings
        # A configured name may be another process's too, one that has not ended yet. It renews its entries every third
        # of a lease; what has been idle for longer is in nobody's hands.
        self._stranded_ms = int(leases.lease_s * 500) if settings.consumer else 0
        self._solo: deque[tuple[str, bytes]] = deque()
        self._solo_task: asyncio.Task[None] | None = None

    async def run_forever(self) -> None:
        """Until the consumer stops. The first look is at once: a replica that keeps its name may have entries left."""
        tidied_at = time.monotonic()
        while not self._consumer.stopping:
            try:
                for priority in PRIORITIES:
                    await self._reclaim(priority)
                if time.monotonic() - tidied_at > min(_TIDY_EVERY_S, self._leases.lease_s):
                    tidied_at = time.monotonic()
                    await self._group.tidy(int(self._settings.idle_consumer.total_seconds() * 1000))
            except (rx.RedisError, OSError) as error:
                self._consumer.complain("reclaiming", error)
            await self._consumer.pause(self._leases.lease_s / 3 * random.uniform(0.8, 1.2))

    async def _reclaim(self, priority: str) -> None:
        free = self._consumer.reclaimable()
        if free <= 0 or self._consumer.paused():
            return
        claims, vanished = await self._group.overdue(priority, int(self._leases.lease_s * 1000), free)
        if claims:
            METRICS.entries_reclaimed.inc(len(claims))
        claims += await self._stranded(priority, free - len(claims))
        vanished += await self._adopt(priority, claims)
        if vanished:
            METRICS.entries_vanished.inc(vanished)
            log.error("%d pending entries of %s have vanished from the stream", vanished, priority)

    async def _stranded(self, priority: str, limit: int) -> list[Claim]:
        """Entries pending under our name that are in nobody's hands: a reply that was lost, a restart under a name."""
        found: list[Claim] = []
        start = b"-"
        while len(found) < limit:
            page = await self._group.own(priority, start, self._stranded_ms)
            found += [c for c in page if (priority, c.id) not in self._leases and (priority, c.id) not in self._solo]
            if not page:
                break
            start = b"(" + page[-1].id
        return found[: max(0, limit)]

    async def _adopt(self, priority: str, claims: list[Claim]) -> int:
        """Start what was claimed; returns how many entries had vanished."""
        normal: dict[bytes, None] = {}
        for claim in claims:
            key = (priority, claim.id)
            if key in self._leases:
                continue
            if claim.deliveries < _SOLO_FROM - 1:
                normal[claim.id] = None
            elif key not in self._solo:
                self._solo.append(key)
        if self._solo and self._solo_task is None:
            self._solo_task = asyncio.create_task(self._run_solo(), name="solo")
        if not normal:
            return 0
        entries = await self._group.take(priority, list(normal))
        for entry in entries:
            self._consumer.accept(entry)
        return len(normal) - len(entries)

    async def _run_solo(self) -> None:
        """Run suspects one at a time."""
        try:
            while self._solo and not self._consumer.stopping:
                try:
                    await self._run_suspect(*self._solo[0])
                except (rx.RedisError, OSError) as error:
                    self._consumer.complain("taking a suspect", error)
                except Exception:
                    log.exception("a suspect could not be run")
                self._solo.popleft()  # whatever it was: pending under our name, it is found again at the next look
        finally:
            self._solo_task = None

    async def _run_suspect(self, priority: str, entry_id: bytes) -> None:
        if (priority, entry_id) in self._leases:
            return
        if not await self._group.renew(priority, entry_id):
            return  # it waited here for longer than its lease: another replica has it now
        entries = await self._group.take(priority, [entry_id])
        counted = [c for c in await self._group.own(priority, entry_id) if c.id == entry_id]
        if not entries or not counted:
            return
        entry = entries[0]
        entry.deliveries = counted[0].deliveries
        if entry.deliveries > self._settings.max_deliveries:
            await self._set_aside(entry)
        elif (task := self._consumer.accept(entry)) is not None:
            await asyncio.wait({task})

    async def _set_aside(self, entry: Entry) -> None:
        reason = f"delivered {entry.deliveries} times without an outcome: it seems to kill the process"
        log.error("%s: set aside: %s", entry.name, reason)
        self._leases.add(entry)
        try:
            await self._consumer.set_aside(entry, reason)
        except (Fenced, StoreUnavailable) as error:
            log.warning("%s: could not be set aside: %s", entry.name, error)
        finally:
            self._leases.remove(entry)
