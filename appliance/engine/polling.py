"""Polling sources: each new row of somebody's table becomes an event, once.

A source's row in our database says how far it has been read; a claim on it, numbered and with a time limit, lets one
replica read at a time, and its number is the fence for whoever was frozen. Nothing stays locked while the other
database is waited for. A page of rows becomes one transaction of ours: events into the outbox, each under the key of
its row (``event_keys`` decides about repeats), what was seen, and the new place. So a crash loses and repeats nothing.
How far back it looks is decided in ``scan.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from appliance import faultpoints
from appliance.engine.scan import Scan
from appliance.errors import Fenced, Overloaded, StoreUnavailable, Unavailable
from appliance.events import Event
from appliance.observe.metrics import METRICS
from appliance.settings import Settings
from appliance.sources.definition import Source, SourceError
from appliance.sources.folder import SourceFolder
from appliance.store.foreign import Reader
from appliance.store.sources import Claim, SourceState, SourceStore, Step
from appliance.stream.producer import Send

_PAGES = 20
"""Pages of one claim; then others have their turn."""
_CHUNK = 500
"""Entries in one pipeline."""
_MARGIN_S = 15.0
"""What a hold has beyond the time limits of the other database: our own commits."""
_MAX_PAUSE_S = 600.0
"""Longest time between two tries of a source that fails, unless ``every`` is longer."""
_STATES_EVERY_S = 5.0
_MAX_ERROR = 500
_MOST_LOGGED = 10
"""Refused rows of one page that are logged one by one; all are in the list."""
_STOP_S = 3.0

log = logging.getLogger(__name__)


class Sending(NamedTuple):
    """The way of accepted events into the streams. What fails here is put in by the outbox's loop later."""

    backlog: Callable[[], Awaitable[int]]
    put: Callable[[Sequence[Send]], Awaitable[Sequence[object]]]
    note: Callable[[str, str], None]


class Poller:
    """The loop over all sources of ``config/sources``."""

    def __init__(
        self, store: SourceStore, sending: Sending, settings: Settings, secrets: Mapping[str, str], holder: str
    ) -> None:
        self.folder = SourceFolder(settings.config_dir / "sources")
        self.states: Mapping[str, SourceState] = {}
        """How the sources were some seconds ago, by name."""
        self._store = store
        self._sending = sending
        self._settings = settings
        self._secrets = secrets
        self._holder = holder
        self._poll_s = settings.engine.timer_poll.total_seconds()
        own = settings.sources
        self._hold_s = own.connect_timeout.total_seconds() + 2 * own.statement_timeout.total_seconds() + _MARGIN_S
        self._turns: dict[str, asyncio.Task[None]] = {}
        self._kept: frozenset[str] = frozenset()
        self._asked_at = -1e9
        self._wake = asyncio.Event()
        self._stopping = False

    def stop(self) -> None:
        """End :meth:`run_forever` after the pages in hand."""
        self._stopping = True
        self._wake.set()

    def health(self) -> dict[str, str]:
        """Each source in a word, for anybody to read: ok, failing, new, off, or refused for its file."""
        words = {name: "off" for name, source in self.folder.sources.items() if not source.enabled}
        words |= {name: "failing" if state.failures else "ok" for name, state in self.states.items()}
        return {name: words.get(name, "new") for name in self.folder.sources} | dict.fromkeys(
            self.folder.broken, "refused"
        )

    async def run_forever(self) -> None:
        """Read what is due until :meth:`stop`, looking every ``engine.timer_poll`` at least."""
        while not self._stopping:
            self._wake.clear()
            wait_s = self._poll_s
            try:
                wait_s = await self.look()
            except StoreUnavailable as error:
                log.warning("sources wait: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._poll_s, max(0.01, wait_s))):
                    await self._wake.wait()
        if self._turns:
            _, late = await asyncio.wait(self._turns.values(), timeout=_STOP_S)
            for task in late:
                task.cancel()

    async def look(self) -> float:
        """Begin with what is due; returns the seconds until it is worth looking again. Raises StoreUnavailable."""
        await asyncio.to_thread(self.folder.scan)
        names = frozenset(name for name, source in self.folder.sources.items() if source.enabled)
        if names - self._kept:
            await self._store.keep(sorted(names))
        self._kept = names
        if not names:
            self.states = {}
            return self._poll_s
        if time.monotonic() - self._asked_at > _STATES_EVERY_S:
            await self._ask(names)
        idle = sorted(names - self._turns.keys())
        free = self._settings.sources.concurrency - len(self._turns)
        if free <= 0 or not idle:
            return self._poll_s
        asked_at = time.monotonic()
        for claim in await self._store.claim(idle, self._holder, self._hold_s, free):
            task = asyncio.create_task(self._turn(claim, asked_at), name=f"source {claim.name}")
            self._turns[claim.name] = task
            task.add_done_callback(lambda _, name=claim.name: self._turned(name))  # type: ignore[misc]
        left = sorted(names - self._turns.keys())
        due_s = await self._store.due_in_s(left) if left else None
        return self._poll_s if due_s is None else due_s

    async def _ask(self, names: frozenset[str]) -> None:
        self._asked_at = time.monotonic()
        self.states = {state.name: state for state in await self._store.states(sorted(names))}
        for name, state in self.states.items():
            METRICS.source_failures.labels(name).set(state.failures)
            if state.polled_at is not None:
                METRICS.source_polled.labels(name).set(state.polled_at.timestamp())

    def _turned(self, name: str) -> None:
        del self._turns[name]
        self._wake.set()

    async def _turn(self, claim: Claim, asked_at: float) -> None:
        """One claim, asked for at ``asked_at``: some pages, and the word to our database how it went."""
        name = claim.name
        source = self.folder.sources.get(name)
        began = time.perf_counter()
        try:
            if source is None:
                return  # its file went a moment ago
            try:
                due_s = await self.read(source, claim, asked_at)
            except Overloaded as error:
                log.warning("source %s waits: %s", name, error)
                due_s = error.retry_after_s
            await self._store.release(claim, due_s, self._settings.store.retention.total_seconds())
            METRICS.source_polls.labels(name, "ok").inc()
        except (Fenced, Unavailable) as error:
            log.warning("source %s waits: %s", name, error)
        except SourceError as error:
            await self._failed(source, claim, str(error))
        except Exception as error:
            log.exception("source %s", name)
            await self._failed(source, claim, f"{type(error).__name__}: a bug, see the log")
        finally:
            METRICS.source_poll_seconds.labels(name).observe(time.perf_counter() - began)

    async def _failed(self, source: Source | None, claim: Claim, error: str) -> None:
        """Try again later: after ``every``, then twice as long each time, with jitter."""
        every_s = source.every_s if source is not None else self._poll_s
        pause_s = max(every_s, min(_MAX_PAUSE_S, max(1.0, every_s) * 2 ** min(claim.failures, 20)))
        (log.error if claim.failures == 0 else log.warning)("source %s: %s", claim.name, error)
        METRICS.source_polls.labels(claim.name, "error").inc()
        with contextlib.suppress(Unavailable):
            await self._store.fail(claim, error[:_MAX_ERROR], pause_s * random.uniform(0.75, 1.0))

    async def read(self, source: Source, claim: Claim, asked_at: float) -> float:
        """Read some pages; returns the seconds until the source is due again.

        ``asked_at`` is a reading of the monotonic clock before the claim.

        Raises SourceError, Overloaded, StoreUnavailable, and Fenced if somebody else has it.
        """
        async with Reader(source, source.url(self._secrets), self._settings.sources) as reader:
            shape = await reader.shape()
            scan = Scan(source, reader, shape, self._settings, lambda: claim.now_s + time.monotonic() - asked_at)
            claim, missed = await scan.begin(claim, self._store, self._hold_s)
            sent = 0  # the known backlog may be a moment old
            for _ in range(_PAGES):
                if sent + await self._sending.backlog() >= self._settings.ingest.max_backlog:
                    raise Overloaded("the backlog is full (ingest.max_backlog)", retry_after_s=5)
                step = await scan.step(claim, self._store)
                step.missed, missed = missed, 0
                faultpoints.hit("before_rows")
                claim, accepted = await self._store.commit(step, self._hold_s)
                faultpoints.hit("after_rows")
                sent += len(accepted)
                _count(source, step, accepted)
                await self._send(source, [event for event in step.events if event.uid in accepted])
                if not claim.scanning:
                    return scan.pause_s
                if self._stopping:
                    break
        return 0.0

    async def _send(self, source: Source, events: Sequence[Event]) -> None:
        for start in range(0, len(events), _CHUNK):
            chunk = [Send(source.priority, event.to_entry(), event.uid) for event in events[start : start + _CHUNK]]
            for send, answer in zip(chunk, await self._sending.put(chunk), strict=True):
                if isinstance(answer, str):
                    self._sending.note(send.marker, answer)
                else:
                    log.debug("%s waits in the outbox: %s", send.marker, answer)


def _count(source: Source, step: Step, accepted: set[str]) -> None:
    """Tell what became of a page's rows."""
    outcomes = {
        "event": len(accepted),
        "repeat": len(step.events) - len(accepted),
        "refused": len(step.refused),
        "missed": step.missed,
    }
    for outcome, number in outcomes.items():
        if number:
            METRICS.source_rows.labels(source.name, outcome).inc(number)
    for refusal in step.refused[:_MOST_LOGGED]:
        log.warning("source %s: the row %s is refused: %s", source.name, refusal.row_key, refusal.error)
    if (more := len(step.refused) - _MOST_LOGGED) > 0:
        log.warning("source %s: %d more rows are refused", source.name, more)
