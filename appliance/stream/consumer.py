"""Reading, handing to the handler, acknowledging: the core loop of one replica.

Reads no more than there are free slots, the high stream first but never only it; each entry runs as a task of its own:
handler, then acknowledge. A read is never cancelled: entries of a cut-off reply would be stranded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import redis.exceptions as rx
from redis.asyncio import Redis

from appliance import faultpoints
from appliance.batching import Batcher
from appliance.errors import Fenced, StoreUnavailable, StreamUnavailable
from appliance.events import PRIORITIES, entry_ms
from appliance.observe.logs import RateLimited
from appliance.observe.metrics import METRICS
from appliance.settings import EngineSettings, StreamSettings
from appliance.stream.client import is_no_group, unavailable
from appliance.stream.entry import Entry, Later, Settled, Verdict
from appliance.stream.group import Foundation, Group
from appliance.stream.leases import Leases

WEIGHTS: Mapping[str, int] = {"high": 16, "normal": 4, "low": 1}
"""Shares of the free slots when several streams have a backlog: the low one gets at least a 21st of every read."""
_READ_LIMIT = 100
"""Entries of one read under load. With larger ones all slots move in step: nothing is worked on while they commit."""
_SETTLE_LIMIT = 500

log = logging.getLogger("appliance.stream.consumer")


class Handler(Protocol):
    """What the consumer calls for each entry."""

    async def handle(self, entry: Entry) -> Verdict:
        """Work on an entry. Fenced: drop it. StoreUnavailable: try again soon. Any other error is a bug of ours."""
        ...

    async def set_aside(self, entry: Entry, reason: str) -> Verdict:
        """Make a dead letter of an entry that can't be handled."""
        ...


def shares(free: int, hot: frozenset[str]) -> dict[str, int]:
    """How many entries to ask of each stream when ``free`` slots are free and the ``hot`` ones had more last time.

    A stream that is not hot is asked for one entry, so that it turns hot when something arrives. Never more than
    ``free`` in all, except that each stream is asked for at least one.
    """
    spare = max(0, free - (len(PRIORITIES) - len(hot)))
    total = sum(WEIGHTS[p] for p in hot) or 1
    return {p: max(1, spare * WEIGHTS[p] // total) if p in hot else 1 for p in PRIORITIES}


class Consumer:
    """Reads, hands to the handler, acknowledges."""

    def __init__(
        self,
        client: Redis,
        group: Group,
        leases: Leases,
        handler: Handler,
        settings: tuple[StreamSettings, EngineSettings],
        *,
        on_founded: Callable[[Foundation], Awaitable[None]],
        can_commit: Callable[[], bool],
    ) -> None:
        self._client = client
        self._group = group
        self._leases = leases
        self._handler = handler
        self._settings, self._engine = settings
        self._on_founded = on_founded
        self._active: dict[asyncio.Task[None], Entry] = {}
        self._ready: deque[Entry] = deque()
        self._held = 0
        self._kick = asyncio.Event()
        self._stopped = asyncio.Event()
        self._done_reading = asyncio.Event()
        self._done_reading.set()
        self._hot: frozenset[str] = frozenset()
        self._limited = RateLimited(log)
        self._store_back_at = 0.0
        self._can_commit = can_commit
        self._settlers: dict[str, Batcher[tuple[bytes, str], bool]] = {
            p: Batcher(self._settler(p), limit=_SETTLE_LIMIT, name=f"settle {p}") for p in PRIORITIES
        }

    @property
    def active(self) -> int:
        """Entries being worked on now."""
        return len(self._active)

    @property
    def stopping(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped.is_set()

    def paused(self) -> bool:
        """Whether reading waits, because PostgreSQL can't take commits or answer."""
        return not self._can_commit() or time.monotonic() < self._store_back_at

    def free_slots(self) -> int:
        """How many more entries may be read: held ones take slots too, where there are more than ``max_held``."""
        return self._spare() - max(0, self._held - self._engine.max_held)

    def reclaimable(self) -> int:
        """How many entries may be taken over: a few even when every slot is taken, or a busy replica never would.

        What is held doesn't count: it may wait for just these.
        """
        return self._spare() + max(1, self._engine.concurrency // 16)

    def _spare(self) -> int:
        return self._engine.concurrency - len(self._active) - len(self._ready)

    def may_hold(self) -> bool:
        """Whether one more entry may be held for a retry; otherwise the retry is to be parked as a timer."""
        return self._held < self._engine.max_held and not self.stopping

    async def found(self) -> None:
        """Make streams and groups that are missing. Raises StreamUnavailable."""
        try:
            foundation = await self._group.found()
        except (rx.RedisError, OSError) as error:
            raise unavailable(error) or StreamUnavailable(f"Redis: {error}") from error
        if foundation.made or foundation.lost:
            await self._on_founded(foundation)

    async def read_forever(self) -> None:
        """Read until :meth:`stop`; errors of Redis are waited out."""
        self._leases.start(self._lose)
        self._done_reading.clear()
        failures = 0
        try:
            while not self.stopping:
                try:
                    if failures:  # before anything is read: a failover may have undone what was settled
                        await self._group.suspect(reading=True)
                    await self._read_once()
                    failures = 0
                except (rx.RedisError, OSError) as error:
                    failures += 1
                    await self._recover(error, failures)
        finally:
            self._done_reading.set()

    async def stop(self, grace_s: float) -> None:
        """Stop reading, give what is under way ``grace_s`` seconds, release the rest, leave the group."""
        self._stopped.set()
        self._kick.set()
        try:
            await self._group.interrupt()
        except (rx.RedisError, OSError) as error:
            self.complain("interrupting the read", error)
        with contextlib.suppress(TimeoutError):  # what it still brings is ours, and has the grace as well
            async with asyncio.timeout(self._settings.block.total_seconds() + 1.0):
                await self._done_reading.wait()
        if self._active:
            await asyncio.wait(self._active, timeout=grace_s)
        abandoned = list(self._active)
        for task in abandoned:
            task.cancel()
        if abandoned:
            await asyncio.wait(abandoned, timeout=1.0)
        for settler in self._settlers.values():
            await settler.drain()
        await self._leave()

    async def _leave(self) -> None:
        try:
            held = self._leases.entries()
            await self._leases.stop()
            await self._leases.release(self._client, held)
            await self._group.leave()
        except (rx.RedisError, OSError) as error:
            self.complain("releasing", error)

    async def _read_once(self) -> None:
        free = await self._room()
        if self.stopping:
            return
        errors: list[rx.ResponseError] = []
        if self._hot:
            counts = shares(min(free, _READ_LIMIT), self._hot)
            entries, errors = await self._group.read(counts)
            got = dict.fromkeys(PRIORITIES, 0)
            for entry in entries:
                got[entry.priority] += 1
            self._hot = frozenset(p for p in PRIORITIES if got[p] >= counts[p])
        else:
            block_ms = int(self._settings.block.total_seconds() * 1000)
            entries = await self._group.wait(block_ms, max(1, free // len(PRIORITIES)))
            self._hot = frozenset(entry.priority for entry in entries)
        if entries:
            faultpoints.hit("after_read")
        for priority, number in Counter(entry.priority for entry in entries).items():
            METRICS.entries_read.labels(priority).inc(number)
        for entry in entries:
            self.accept(entry)
        if errors:
            raise errors[0]

    async def _room(self) -> int:
        """Wait until enough slots are free and commits are possible; starts what is ready meanwhile."""
        enough = max(1, min(self._engine.concurrency // 4, _READ_LIMIT))
        while not self.stopping:
            self._start_ready()
            free = self.free_slots()
            if not self.paused() and (free >= enough or (free > 0 and not self._hot)):
                return free
            self._kick.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.25 if self.paused() else 5.0):
                    await self._kick.wait()
        return 0

    def accept(self, entry: Entry) -> asyncio.Task[None] | None:
        """Start work on an entry that was read or claimed; None if we are at it already."""
        if (entry.priority, entry.id) in self._leases:
            return None  # a group that was made anew delivers again what we are working on
        self._leases.add(entry)
        return self._start(entry)

    async def set_aside(self, entry: Entry, reason: str) -> None:
        """Make a dead letter of an entry and acknowledge it. Raises Fenced, StoreUnavailable."""
        verdict = await self._handler.set_aside(entry, reason)
        if isinstance(verdict, Settled):
            await self._settle(entry, verdict)

    def _start(self, entry: Entry) -> asyncio.Task[None]:
        task = asyncio.create_task(self._work(entry), name=entry.name)
        self._active[task] = entry
        task.add_done_callback(self._finished)
        return task

    def _start_ready(self) -> None:
        while self._ready and len(self._active) < self._engine.concurrency:
            entry = self._ready.popleft()
            if self._leases.holds(entry):
                self._start(entry)
            else:
                self._leases.remove(entry)

    def _finished(self, task: asyncio.Task[None]) -> None:
        entry = self._active.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: its task ended with an error", entry.name, exc_info=error)
            self._leases.remove(entry)  # or it would be ours for ever, with nobody at work on it
        self._kick.set()

    async def _work(self, entry: Entry) -> None:
        try:
            verdict = await self._handler.handle(entry)
        except Fenced as error:
            if not self._leases.holds(entry):
                METRICS.leases_lost.inc()
                log.info("%s: dropped: %s", entry.name, error)
                self._leases.remove(entry)
                return
            entry.redelivered = True  # ours still, but the run was changed by somebody: look again
            verdict = Later(0.05)
        except StoreUnavailable as error:
            verdict = self._store_is_away(error)
        except asyncio.CancelledError:
            if entry.lost:
                self._leases.remove(entry)
            raise
        except Exception as error:
            verdict = await self._stumbled(entry, error)
        if isinstance(verdict, Later):
            self._hold(entry, verdict.delay_s)
        else:
            await self._settle(entry, verdict)

    async def _stumbled(self, entry: Entry, error: Exception) -> Verdict:
        """An error of our own: keep trying a while, then set the entry aside. Its text may hold what only logs mask."""
        entry.failures += 1
        log.exception("%s: handling failed (%d)", entry.name, entry.failures)
        METRICS.handler_errors.inc()
        if entry.failures < self._settings.max_deliveries:
            return Later(min(30.0, 2.0**entry.failures))
        try:
            reason = f"the appliance failed to handle it ({type(error).__name__}): see the log"
            return await self._handler.set_aside(entry, reason)
        except StoreUnavailable as away:
            return self._store_is_away(away)

    def _store_is_away(self, error: StoreUnavailable) -> Later:
        """No further reading until this entry has had another go: what is read now could only be held."""
        self.complain("PostgreSQL is away, reading pauses", error)
        self._store_back_at = time.monotonic() + error.retry_after_s
        return Later(error.retry_after_s * random.uniform(0.5, 1.0))

    async def _settle(self, entry: Entry, verdict: Settled) -> None:
        """Acknowledge; whatever happens, the entry leaves our hands: redelivered, it finds its outcome."""
        try:
            if not self._leases.holds(entry):
                METRICS.leases_lost.inc()
                return
            await self._settlers[entry.priority].submit((entry.id, verdict.outcome))
        except (rx.RedisError, OSError, StreamUnavailable) as error:
            self.complain("acknowledging", error)
        finally:
            self._leases.remove(entry)

    def _settler(self, priority: str) -> Callable[[list[tuple[bytes, str]]], Awaitable[list[bool | BaseException]]]:
        async def flush(batch: list[tuple[bytes, str]]) -> list[bool | BaseException]:
            faultpoints.hit("before_ack")
            lost = await self._acknowledge(priority, batch)
            faultpoints.hit("after_ack")
            settled = Counter(outcome.rpartition(">")[2] for entry_id, outcome in batch if entry_id not in lost)
            for outcome, number in settled.items():
                METRICS.entries_settled.labels(outcome).inc(number)
            now_ms = time.time() * 1000
            seconds = METRICS.event_seconds.series()
            for entry_id, _ in batch:
                seconds.observe(max(0.0, now_ms - entry_ms(entry_id)) / 1000)
            return [entry_id not in lost for entry_id, _ in batch]

        return flush

    async def _acknowledge(self, priority: str, batch: list[tuple[bytes, str]]) -> set[bytes]:
        """The ids that are not ours any more. What was deleted is delivered to nobody again: count it now or never."""
        try:
            return await self._group.settle(priority, batch, held=True)
        except rx.ResponseError as error:
            if not is_no_group(error):
                raise
        await self.found()
        return await self._group.settle(priority, batch, held=True)

    def _hold(self, entry: Entry, delay_s: float) -> None:
        self._held += 1
        entry.redelivered = True  # the next turn goes on from what stands recorded

        def due() -> None:
            self._held -= 1
            self._ready.append(entry)
            self._kick.set()
            if self.stopping:
                return
            self._start_ready()

        if not self.stopping:
            asyncio.get_running_loop().call_later(delay_s, due)

    def _lose(self, entry: Entry) -> None:
        METRICS.leases_lost.inc()
        for task, active in self._active.items():
            if active is entry:
                task.cancel()
                return
        self._leases.remove(entry)

    async def _recover(self, error: Exception, failures: int) -> None:
        """After an error of Redis: make missing groups, or wait a little (longer each time, with jitter)."""
        self._hot = frozenset()
        self.complain("reading", error)
        METRICS.stream_errors.inc()
        if is_no_group(error):
            try:
                await self.found()
            except StreamUnavailable as again:
                self.complain("making the groups", again)
            await self.pause(min(1.0, 0.05 * failures))
            return
        if unavailable(error) is None:
            log.error("Redis refused a read", exc_info=error)
        await self.pause(min(5.0, 0.1 * 2 ** min(failures, 6)) * random.uniform(0.5, 1.0))

    def complain(self, what: str, error: BaseException) -> None:
        """At most one line a second, however fast things fail."""
        self._limited.warning("trouble", "%s: %s", what, error)

    async def pause(self, seconds: float) -> None:
        """Sleep, or until the stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
