"""What one look reads of a polling source, and how far back.

A *scan* reads from the floor to the end, page by page; whoever has the claim goes on at its place. Rows appear when
their transaction commits, not in the order of their cursors. So the floor stays behind: a scan that began at ``t``
raises it to the cursor value of ``t - lag`` (by the clock of the source; for whole numbers, the greatest value that was
there then). A transaction shorter than ``lag`` that took its cursor value before has committed before the scan, which
has read it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from appliance.errors import Malformed
from appliance.events import Event
from appliance.identifiers import key_uuid
from appliance.settings import Settings
from appliance.sources.definition import Source
from appliance.sources.mapping import Mapper, Row, event_key
from appliance.store.foreign import Page, Place, Reader, Shape
from appliance.store.sources import Claim, Refusal, SourceStore, Step

_MOST_AUDITED = 100_000
"""Rows of a stretch beyond which it isn't counted again."""
_MAX_ERROR = 500
"""Characters of a row's key, and of the reason why it can't be an event."""

log = logging.getLogger(__name__)


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
