"""Polling sources: each new row of somebody's table becomes an event, once.

A source's row in our database says how far it has been read; a claim on it, numbered and with a time limit, lets one
replica read at a time, and its number is the fence for whoever was frozen. Nothing stays locked while the other
database is waited for. A page of rows becomes one transaction of ours: events into the outbox, each under the key of
its row (``event_keys`` decides about repeats), what was seen, and the new place. So a crash loses and repeats nothing.

A *scan* reads from the floor to the end, page by page; whoever has the claim goes on at its place. Rows appear when
their transaction commits, not in the order of their cursors. So the floor stays behind: a scan that began at ``t``
raises it to the cursor value of ``t - lag`` (by the clock of the source; for whole numbers, the greatest value that was
there then). A transaction shorter than ``lag`` that took its cursor value before has committed before the scan, which
has read it.
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
from appliance.errors import Fenced, Malformed, Overloaded, StoreUnavailable, Unavailable
from appliance.events import Event
from appliance.identifiers import key_uuid
from appliance.observe.metrics import METRICS
from appliance.settings import Settings
from appliance.sources.definition import Source, SourceError
from appliance.sources.folder import SourceFolder
from appliance.sources.mapping import Mapper, Row, event_key
from appliance.store.foreign import Page, Place, Reader, Shape
from appliance.store.sources import Claim, Refusal, SourceState, SourceStore, Step
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
_MOST_AUDITED = 100_000
"""Rows of a stretch beyond which it isn't counted again."""
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


class Scan:
    """What one claim reads of a source. ``clock`` gives the time of our database, a little ahead if need be."""

    def __init__(
        self, source: Source, reader: Reader, shape: Shape, settings: Settings, clock: Callable[[], float]
    ) -> None:
        self.pause_s = source.every_s
        """When the source is due again once the scan is through."""
        self._source = source
        self._reader = reader
        self._shape = shape
        self._clock = clock
        self._retention_s = settings.store.retention.total_seconds()
        self._max_bytes = settings.ingest.max_event_bytes
        self._mapper = Mapper(source, shape.columns, shape.kind, self._max_bytes)

    async def begin(self, claim: Claim, store: SourceStore, hold_s: float) -> tuple[Claim, int]:
        """The claim with a scan under way, a new one if need be; and how many rows are known to be missed."""
        source = self._source
        basis = f"{source.cursor} {self._shape.kind}"
        if claim.basis != basis:
            if claim.basis is not None:
                log.warning("source %s: the cursor was %s and is %s: it starts anew", claim.name, claim.basis, basis)
            claim = claim._replace(basis=basis, digest=source.digest, newest=None, marks=[], audit={}, scanning=False)
            claim = claim._replace(floor=await self._start())
            await store.begin_anew(claim, hold_s)
        if claim.digest != source.digest:
            claim = claim._replace(digest=source.digest)
            first = await store.retry_refused(claim, self._retention_s / 2)
            if first is not None:
                low = first - 1 if claim.floor is None else min(claim.floor, first - 1)
                claim = claim._replace(floor=low, scanning=False, audit={})
        if claim.scanning:
            return claim, 0
        claim, missed = await self._audited(claim)
        return await self._bounded(claim), missed

    async def peek(self, claim: Claim) -> Claim:
        """The claim as :meth:`begin` would make it, as far as the next rows depend on it; nothing is written."""
        basis = f"{self._source.cursor} {self._shape.kind}"
        if claim.basis != basis:
            floor = await self._start()
            return claim._replace(floor=floor, place=floor, place_key=None, newest=None, scanning=True)
        return claim if claim.scanning else claim._replace(place=claim.floor, place_key=None, scanning=True)

    async def step(self, claim: Claim, store: SourceStore) -> Step:
        """Read and map the next page; nothing is changed yet."""
        place = Place(claim.place, claim.place_key)
        page = await self._reader.page(self._shape, place, self._source.batch, self._max_bytes)
        rows = {self.mark_of(row): row for row in page.rows}
        seen = await store.seen(claim.name, list(rows))
        fresh = {mark: row for mark, row in rows.items() if mark not in seen}
        events, refused = await asyncio.to_thread(self.mapped, list(fresh.values()))
        late = frozenset(event.uid for row, event in events if claim.newest is not None and row.cursor < claim.newest)
        above = {mark: row.cursor for mark, row in fresh.items() if claim.bound is None or row.cursor > claim.bound}
        return Step(
            self._behind(claim, page, len(fresh) - len(above)),
            self._source.priority,
            [event for _, event in events],
            above,
            refused,
            late,
        )

    def mark_of(self, row: Row) -> str:
        """What a row that was dealt with is known by. Of one key there may be several rows: later ones are repeats."""
        return key_uuid("row", self._source.name, row.key or "", str(row.cursor))

    def key_of(self, row: Row) -> str:
        """The key of the row's event; a row without a key has one to be known by."""
        if row.key is None:
            return key_uuid("source", self._source.name, "", str(row.cursor))
        return event_key(self._source.name, row.key)

    def mapped(self, rows: Sequence[Row]) -> tuple[list[tuple[Row, Event]], list[Refusal]]:
        """The rows' events, and the rows that can't be one. Takes some 50 µs a row: call it in a thread."""
        events, refused = [], []
        for row in rows:
            try:
                events.append((row, self._mapper.event(row)))
            except Malformed as error:
                row_key = row.key[:_MAX_ERROR] if row.key is not None else None
                refused.append(Refusal(self.key_of(row), row_key, row.cursor, str(error)[:_MAX_ERROR]))
        return events, refused

    async def _start(self) -> int | None:
        """The floor of a source that is read for the first time."""
        if self._source.start == "beginning":
            return None
        if self._shape.kind == "integer":
            return await self._reader.head(self._shape)
        return await self._reader.clock(self._shape.kind)

    async def _bounded(self, claim: Claim) -> Claim:
        """The claim at the beginning of a scan, with what the floor will be behind it."""
        if self._shape.kind == "integer":
            marks = await self._marked(claim)
            old = sum(at <= claim.now_s - self._source.lag_s for at, _ in marks)
            bound = marks[old - 1][1] if old else None
            marks = marks[max(0, old - 1) :]
        else:
            marks, bound = [], await self._reader.clock(self._shape.kind) - round(self._source.lag_s * 1e6)
        if claim.floor is not None:
            bound = max(bound, claim.floor) if bound is not None else claim.floor
        return claim._replace(marks=marks, bound=bound, place=claim.floor, place_key=None, scanning=True)

    async def _marked(self, claim: Claim) -> list[tuple[float, int]]:
        """The marks with one of this moment, unless the last is nearly as good: some twenty within the lag."""
        marks = claim.marks
        if not marks or marks[-1][0] <= claim.now_s - self._source.lag_s / 20:
            head = await self._reader.head(self._shape)
            marks = [*marks, (self._clock(), head)] if head is not None else marks
        return marks

    def _behind(self, claim: Claim, page: Page, closed: int) -> Claim:
        """Where the source stands behind a page of which ``closed`` rows will never be looked at again."""
        audit = {**claim.audit, "rows": claim.audit.get("rows", 0) + closed}
        newest = max((row.cursor for row in page.rows), default=None)
        if newest is None or (claim.newest is not None and claim.newest > newest):
            newest = claim.newest
        claim = claim._replace(newest=newest, audit=audit)
        if page.full and not (claim.bound is None and claim.marks):
            last = page.rows[-1]
            return claim._replace(place=last.cursor, place_key=last.key or "")
        if page.full:
            # Whole numbers from the beginning on: once the first mark is old enough, what lies below needn't be
            # remembered row by row.
            self.pause_s = max(0.1, claim.marks[0][0] + self._source.lag_s - claim.now_s)
        return claim._replace(floor=claim.bound, place=None, place_key=None, bound=None, scanning=False)

    async def _audited(self, claim: Claim) -> tuple[Claim, int]:
        """Now and then a stretch below the floor is counted again: what is more than was read had come too late."""
        audit, missed = claim.audit, 0
        period_s = 10 * max(self._source.lag_s, self._source.every_s)
        if claim.floor is None or 0 <= claim.now_s - audit.get("at", -1e9) < period_s:
            return claim, 0
        if (prev := audit.get("prev")) is not None and prev[2] < _MOST_AUDITED:
            found = await self._reader.count(self._shape, prev[0], prev[1], _MOST_AUDITED)
            missed = max(0, found - prev[2])
        if missed:
            log.error("source %s: %d rows came later than the lag and are no events", claim.name, missed)
        start = audit.get("from")
        prev = [start, claim.floor, audit.get("rows", 0)] if start is not None else None
        return claim._replace(audit={"from": claim.floor, "rows": 0, "prev": prev, "at": claim.now_s}), missed


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
