"""Putting back to work what was lost with Redis's data: after FLUSHALL, a deleted stream, XDEL, XTRIM, DELCONSUMER.

The order of commit and acknowledgement makes it certain: an entry leaves its stream only after what it was for is over
or parked. So an event without an outcome, or a run that an entry holds, whose entry is not in its stream is lost; and a
parked run that has something to do, but no timer, and no work in a stream, as well. Each is put back once: an event by
its entry's name, a run by its version. Who is still at work on it meanwhile is fenced. What follows a commit and is no
commit itself is done here for those whose entries were taken away between the two: a run that has begun to listen is
told of what came before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from appliance.errors import StoreUnavailable, StreamUnavailable
from appliance.events import FIELD_AGAIN, FIELD_COUNTED, PRIORITIES, dumps
from appliance.observe.metrics import METRICS
from appliance.store.recovery import (
    STATUSES,
    Cursor,
    Life,
    Lost,
    Placed,
    RecoveryStore,
    Settling,
    Suspect,
    WaitCursor,
)
from appliance.stream.presence import Presence
from appliance.stream.producer import Producer, Send

GRACE_S = 60.0
"""What was changed more recently is left alone by the sweeps that nobody asked for."""
_EVERY_S = 60.0
_PAGE = 500
_PAGES = 4
"""Pages of unfinished runs of each status in a sweep when nothing seems wrong; the next sweep goes on there."""
_ALERT_S = 2.25 * GRACE_S
"""After a sign of loss everything is looked at for so long, so that what was young at first is found as well. A million
parked runs take 20 s of PostgreSQL's time each time; without a sign a sweep takes less than a tenth of a second."""
_REMEMBERED_MS = 3_600_000
_MOST_RESENT = 10
"""An event that gets lost so often is left alone: there is more wrong than a loss of data."""

log = logging.getLogger("appliance.engine.recovery")


@dataclass(slots=True)
class Report:
    """What a sweep put back: runs that an entry held, parked runs, events, accepted events that had not been seen yet,
    and entries that were pending with nobody. ``busy``: another replica was at it."""

    held: int = 0
    parked: int = 0
    events: int = 0
    resent: int = 0
    adopted: int = 0
    busy: bool = False

    @property
    def total(self) -> int:
        return self.held + self.parked + self.events + self.resent + self.adopted

    def as_dict(self) -> dict[str, int | bool]:
        """The counts, and their sum as ``recovered``."""
        return {"recovered": self.total, **asdict(self)}


@dataclass(slots=True)
class _Works:
    """The runs and dead letters for which work is in the streams; ``counting`` ones count an event by their outcome."""

    runs: set[str] = field(default_factory=set)
    letters: set[str] = field(default_factory=set)
    counting: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What recovery is told by the replica.

    ``ready`` makes missing groups and saves the ledger; ``signs`` changes when Redis may have lost something;
    ``in_hand`` says whether this replica works on the entry with a (priority, id). ``look_back`` tells a run of the
    events that it listens for and that came before it did; answers how many.
    """

    ready: Callable[[], Awaitable[object]]
    signs: Callable[[], Awaitable[object]]
    in_hand: Callable[[tuple[str, bytes]], bool]
    look_back: Callable[[str], Awaitable[int]]
    on_timer: Callable[[float], None]


class Recovery:
    """Sweeps."""

    def __init__(self, store: RecoveryStore, presence: Presence, producer: Producer, around: Surroundings) -> None:
        self._store = store
        self._presence = presence
        self._producer = producer
        self._around = around
        self._cursors = {status: Cursor() for status in STATUSES}
        self._waits = WaitCursor()
        self._seen: object = None
        self._alert_until = 0.0
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End :meth:`run_forever`."""
        self._stopped.set()

    async def run_forever(self) -> None:
        """Sweep at once, then every minute."""
        while not self._stopped.is_set():
            try:
                report = await self.sweep()
                if report.total:
                    log.warning("put back to work: %s", report)
            except (StoreUnavailable, StreamUnavailable) as error:
                log.warning("recovery waits: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S * random.uniform(0.8, 1.2)):
                    await self._stopped.wait()

    async def sweep(self, *, grace_s: float = GRACE_S, thorough: bool = False) -> Report:
        """Look for what was lost and put it back to work; ``thorough`` looks at everything, and waits for its turn.

        What was changed within ``grace_s`` is left alone. Raises StoreUnavailable and StreamUnavailable.
        """
        report = Report()
        async with self._store.alone(wait=thorough) as alone:
            if not alone:
                report.busy = True
                return report
            await self._around.ready()
            whole = await self._is_suspicious() or thorough
            lives = await self._store.lives()
            report.adopted = await self._presence.adopt()
            await self._sweep_runs(report, grace_s, whole)
            await self._sweep_waits(report, grace_s, whole)
            await self._sweep_events(report, grace_s, lives)
            await self._sweep_outbox(report, grace_s, lives, whole)
        for kind in ("held", "parked", "events", "resent", "adopted"):
            METRICS.recovered.labels(kind).inc(getattr(report, kind))
        if report.held or report.parked:
            self._around.on_timer(time.time())
        return report

    async def _is_suspicious(self) -> bool:
        """Whether there was a sign of loss lately; the first look is one."""
        signs = await self._around.signs()
        if signs != self._seen:
            self._seen = signs
            self._alert_until = time.monotonic() + _ALERT_S
        return time.monotonic() < self._alert_until

    async def _sweep_runs(self, report: Report, grace_s: float, whole: bool) -> None:
        works: _Works | None = None
        began = datetime.now(UTC)
        for status in STATUSES:
            cursor = Cursor() if whole else self._cursors[status]
            pages = 0
            while whole or pages < _PAGES:
                number, suspects = await self._store.suspects(status, cursor, grace_s, _PAGE)
                pages += 1
                if suspects := await self._unheld(suspects):
                    works = works or await self._works()
                    await self._wake(report, suspects, works)
                if number < _PAGE or cursor.at > began:
                    self._cursors[status] = Cursor()
                    break

    async def _unheld(self, suspects: list[Suspect]) -> list[Suspect]:
        """Without the runs whose entries are there, or in our own hands. That of an event that is over is not."""
        held = [(run, place) for run in suspects if (place := _place(run.holder or "")) is not None]
        gone = await self._presence.missing([place for _, place in held])
        lost = {run.id for (run, place), missing in zip(held, gone, strict=True) if missing and not self._ours(place)}
        return [run for run in suspects if run.due_at is not None or run.holder is None or run.id in lost]

    async def _wake(self, report: Report, suspects: list[Suspect], works: _Works) -> None:
        parked = [run for run in suspects if run.due_at is not None and run.id not in works.runs]
        held = [run for run in suspects if run.due_at is None]
        if parked:
            report.parked += await self._store.wake_parked(parked)
        if held:
            report.held += await self._store.free_held(held, list(works.letters))

    async def _sweep_waits(self, report: Report, grace_s: float, whole: bool) -> None:
        cursor, pages = WaitCursor() if whole else self._waits, 0
        while whole or pages < _PAGES:
            number, cursor, unheard = await self._store.unheard(cursor, grace_s, _PAGE)
            pages += 1
            for run_id in unheard:
                report.parked += bool(await self._around.look_back(run_id))
            if number < _PAGE:
                cursor = WaitCursor()
                break
        self._waits = cursor

    async def _sweep_events(self, report: Report, grace_s: float, lives: Sequence[Life]) -> None:
        """All events without an outcome: there are no more of them than entries in hand."""
        cursor, works = Cursor(), None
        while True:
            page = await self._store.open_events(cursor, grace_s, _PAGE)
            if gone := await self._gone(page):
                works = works or await self._works()
                report.events += await self._readd(gone, grace_s, works, lives)
            if len(page) < _PAGE:
                return

    async def _readd(self, gone: list[Placed], grace_s: float, works: _Works, lives: Sequence[Life]) -> int:
        counting = list(works.counting)
        async with self._store.transaction() as connection:
            lost = await self._store.lost_events(connection, gone, grace_s, counting, counting)
            await self._presence.fence(_places(lost))
            added = await self._put(lost, lives)
            if added:
                moved = [Settling(row.uid, row.priority, at, FIELD_COUNTED in row.fields) for row, at in added]
                await self._store.move_events(connection, moved)
        return len(added)

    async def _sweep_outbox(self, report: Report, grace_s: float, lives: Sequence[Life], whole: bool) -> None:
        """Oldest first: when nothing seems wrong, until a page of them has lost none."""
        cursor, began = Cursor(), datetime.now(UTC)
        while True:
            page = await self._store.sent_rows(cursor, grace_s, _PAGE)
            gone = await self._gone(page)
            if gone:
                report.resent += await self._resend(gone, lives)
            if len(page) < _PAGE or cursor.at > began or not (gone or whole):
                return

    async def _resend(self, gone: list[Placed], lives: Sequence[Life]) -> int:
        async with self._store.transaction() as connection:
            lost = [row for row in await self._store.lost_rows(connection, gone) if _times(row) < _MOST_RESENT]
            if not lost:
                return 0
            fenced = await self._presence.fence(_places(lost))
            # Somebody may have had one in hand, and recorded it meanwhile: does he settle it, or is he too late?
            still = {row.uid for row in await self._store.lost_rows(connection, gone)}
            lost = [row for row, late in zip(lost, fenced, strict=True) if late or row.uid in still]
            added = await self._put(lost, lives)
            if added:
                await self._store.move_rows(connection, [(row, at, _text(row.fields)) for row, at in added])
        return len(added)

    async def _gone(self, page: Sequence[Placed]) -> list[Placed]:
        missing = await self._presence.missing([(row.priority, row.entry_id) for row in page])
        return [
            row
            for row, gone in zip(page, missing, strict=True)
            if gone and not self._ours((row.priority, row.entry_id))
        ]

    async def _put(self, lost: Sequence[Lost], lives: Sequence[Life]) -> list[tuple[Lost, str]]:
        """Add entries again, each once for the entry that was lost; answers them with their new fields and ids."""
        rows, sends = [], []
        for row in lost:
            known = FIELD_COUNTED in row.fields
            counted, life = (True, "") if known else counting(row.priority, row.entry_id, lives)
            rows.append(row._replace(fields=_again(row, counted=counted)))
            marker = f"{row.uid}:{row.entry_id}"
            sends.append(Send(row.priority, rows[-1].fields, marker, _REMEMBERED_MS, counted=counted, life=life))
        answers = await self._producer.put(sends) if sends else []
        return [(row, answer) for row, answer in zip(rows, answers, strict=True) if isinstance(answer, str)]

    async def _works(self) -> _Works:
        works = _Works()
        async for work in self._presence.works():
            works.runs.add(work.run)
            works.letters.add(work.letter)
            if work.reopens:
                works.counting |= {work.run, work.letter}
        for names in (works.runs, works.letters, works.counting):
            names.discard("")
        return works

    def _ours(self, place: tuple[str, str]) -> bool:
        return self._around.in_hand((place[0], place[1].encode()))


def counting(priority: str, entry_id: str, lives: Sequence[Life]) -> tuple[bool, str]:
    """Whether the ledger counts this entry as accepted, and in which life of its stream, if that still goes on.

    A life that is over counts what had been added when its counters were saved for the last time.
    """
    position = _position(entry_id)
    known = [life for life in lives if life.stream == priority]
    mine = [life for life in known if _position(life.first_id) <= position]
    if not mine:
        return not known, ""  # a life that ended before it was saved at all
    life = max(mine, key=lambda life: _position(life.first_id))
    if not life.closed:
        return True, life.epoch
    return life.last_id is None or position <= _position(life.last_id), ""


def _position(entry_id: str) -> tuple[int, int]:
    head, _, tail = entry_id.partition("-")
    return int(head), int(tail or 0)


def _place(holder: str) -> tuple[str, str] | None:
    """The (priority, entry id) that a holder's name stands for."""
    priority, _, entry_id = holder.partition("-")
    return (priority, entry_id) if priority in PRIORITIES and entry_id else None


def _times(row: Lost) -> int:
    return int(row.fields.get(FIELD_AGAIN, b"0"))


def _again(row: Lost, *, counted: bool) -> dict[bytes, bytes]:
    fields = {**row.fields, FIELD_AGAIN: str(_times(row) + 1).encode()}
    return {**fields, FIELD_COUNTED: b"1"} if counted else fields


def _places(rows: Sequence[Lost]) -> list[tuple[str, str]]:
    return [(row.priority, row.entry_id) for row in rows]


def _text(fields: dict[bytes, bytes]) -> str:
    return dumps({name.decode(): value.decode() for name, value in fields.items()}).decode()
