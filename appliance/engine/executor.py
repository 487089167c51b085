"""What becomes of an entry: decoded, told from duplicates, matched, its runs driven, its outcome committed."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from appliance.batching import Batcher
from appliance.engine.drive import Backoff, Drive, DriveEnd, Driver, Ended, Parked
from appliance.engine.state import RETRYING, RUNNING, TERMINAL, TIMER, WAITING, Resumed, Started
from appliance.errors import Malformed
from appliance.events import FIELD_WORK, Event, decode_entry, dumps, entry_ms, loads
from appliance.identifiers import derived_uuid7, milliseconds_of, run_id_for
from appliance.observe.metrics import METRICS
from appliance.rules.matcher import Matcher
from appliance.store.recorder import Recorder, Refused
from appliance.store.rows import Change, DeathRow, DuplicateRow, EventRow, LetterRow, OutcomeRow
from appliance.store.runs import Prior, Runs, StoredRun
from appliance.stream.entry import DEAD, DUPLICATE, HANDLED, INTERNAL, UNMATCHED, Entry, Later, Settled, Verdict
from appliance.stream.keys import Keys
from appliance.stream.leases import Leases
from appliance.stream.work import REDO, WAKE, Work, decode_work
from appliance.workflows.revision import Revision

_LOOKUP_LIMIT = 500
_COPY_MS = 5000
"""How far an event's uid and its entry's id may lie apart: the time in the producer, and the clocks' difference."""
_DIED = f"{HANDLED}>{DEAD}"


class Definitions(Protocol):
    """What the executor needs of the catalog."""

    @property
    def matcher(self) -> Matcher:
        """The rules in force."""
        ...

    async def revision(self, revision_id: int) -> Revision:
        """A revision by its id; NotFound."""
        ...


class Executor:
    """The consumer's handler."""

    def __init__(
        self, definitions: Definitions, runs: Runs, recorder: Recorder, driver: Driver, leases: Leases, keys: Keys
    ) -> None:
        self._definitions = definitions
        self._runs = runs
        self._recorder = recorder
        self._driver = driver
        self._leases = leases
        self._keys = keys
        self._lookups: Batcher[str, Prior | None] = Batcher(runs.prior, limit=_LOOKUP_LIMIT, name="lookups")
        self._outcomes: Batcher[str, str | None] = Batcher(runs.outcomes, limit=_LOOKUP_LIMIT, name="outcomes")
        self._claims: Batcher[tuple[str, str], tuple[str, bool]] = Batcher(
            runs.claim_keys, limit=_LOOKUP_LIMIT, name="claims"
        )

    async def handle(self, entry: Entry) -> Verdict:
        """Work on an entry until everything that it touches is finished, parked or dead-lettered."""
        try:
            raw = entry.fields.get(FIELD_WORK)
            if raw is not None:
                return await self._work(entry, decode_work(raw))
            return await self._event(entry, self._decode(entry))
        except (Malformed, Refused) as error:
            return await self._set_aside(entry, str(error), None)

    async def set_aside(self, entry: Entry, reason: str) -> Verdict:
        """Keep an entry that can't be handled as a dead letter, byte for byte."""
        try:
            event = None if _work_of(entry) is not None else self._decode(entry)
        except Malformed:
            event = None
        try:
            return await self._set_aside(entry, reason, event)
        except Refused:
            return await self._set_aside(entry, reason, None)

    def _decode(self, entry: Entry) -> Event:
        return decode_entry(self._keys.stream(entry.priority), entry.id, entry.fields)

    async def _set_aside(self, entry: Entry, reason: str, event: Event | None) -> Verdict:
        if (work := _work_of(entry)) is not None:
            return await self._set_work_aside(entry, reason, work)
        change = self._change(entry)
        stream = self._keys.stream(entry.priority)
        letter = _entry_letter(entry.priority, stream, entry.id, entry.fields, reason)
        if event is not None:
            letter = letter._replace(event_uid=event.uid)
            change.events = [_event_row(entry, event, DEAD)]
            change.outcomes = [OutcomeRow(event.uid, DEAD)]  # it may stand there from an earlier delivery
        change.letters = [letter]
        await self._recorder.record(change)
        METRICS.dead_letters.labels("entry").inc()
        return Settled(DEAD)

    async def _set_work_aside(self, entry: Entry, reason: str, work: Work) -> Verdict:
        """Keep internal work as a dead letter of the run that it was for; a redrive goes back to where it came from."""
        change, uid = self._change(entry), None
        letter = _entry_letter(entry.priority, self._keys.stream(entry.priority), entry.id, entry.fields, reason)
        if work.kind == REDO and (kept := await self._runs.letter(work.letter)) is not None:
            letter, uid = letter._replace(id=kept.id, event_uid=kept.event_uid), kept.event_uid
        elif work.kind == WAKE and (run := await self._runs.load(work.run)) is not None:
            letter, uid = letter._replace(event_uid=run.event_uid, run_id=run.id, step=work.key), run.event_uid
        change.letters = [letter]
        if uid is not None and work.reopens:
            change.outcomes = [OutcomeRow(uid, HANDLED)]
        elif uid is not None:
            change.deaths = [DeathRow(uid, letter.id)]
        await self._recorder.record(change)
        METRICS.dead_letters.labels("entry").inc()
        return await self._set_aside_as(work, letter.id)

    async def _set_aside_as(self, work: Work, letter_id: str) -> Verdict:
        if work.reopens:
            return Settled(DEAD)
        return Settled(_DIED if await self._runs.letter_moved(letter_id) else INTERNAL)

    async def _event(self, entry: Entry, event: Event, *, again: bool = False) -> Verdict:
        """``again``: although it is dead, because its dead letter was redriven."""
        known = entry.redelivered or _is_copy(entry, event)
        if event.key is not None:
            first, fresh = await self._claims.submit((event.key, event.uid))
            if first != event.uid:
                return await self._duplicate(entry, event, first)
            known = known or not fresh
        prior = await self._lookups.submit(event.uid) if known else None
        if prior is not None and prior.outcome is not None and not (again and prior.outcome == DEAD):
            return Settled(prior.outcome)
        view = event.view()
        rules = self._definitions.matcher.match(view)
        if not rules and prior is None:
            change = self._change(entry)
            change.events = [_event_row(entry, event, UNMATCHED)]
            await self._recorder.record(change)
            return Settled(UNMATCHED)
        revisions = [rule.payload for rule in rules]
        return await self._drive_all(entry, event, await self._drives(entry, event, view, revisions, prior), prior)

    async def _duplicate(self, entry: Entry, event: Event, first: str) -> Verdict:
        change = self._change(entry)
        change.duplicates = [DuplicateRow(event.uid, first, entry.priority, entry.id.decode())]
        await self._recorder.record(change)
        return Settled(DUPLICATE)

    async def _drives(
        self, entry: Entry, event: Event, view: dict[str, Any], revisions: list[Revision], prior: Prior | None
    ) -> list[Drive]:
        """A run for each workflow that matches, and those that were begun before, whatever matches now."""
        begun = {run.id: run for run in prior.runs} if prior is not None else {}
        drives = [await self._stored_drive(run, event, view) for run in begun.values() if _unfinished(run)]
        now = time.time()
        for revision in revisions:
            run_id = run_id_for(event.uid, revision.workflow.name)
            if run_id not in begun:
                priority = revision.workflow.priority or entry.priority
                drive = Drive(
                    run_id=run_id, revision=revision, event=event, view=view, priority=priority, started_at=now
                )
                drives.append(drive)
        return drives

    async def _stored_drive(
        self, run: StoredRun, event: Event, view: dict[str, Any], holder: str | None = None
    ) -> Drive:
        return Drive(
            run_id=run.id,
            revision=await self._definitions.revision(run.revision_id),
            event=event,
            view=view,
            priority=run.priority,
            started_at=run.started_at,
            state=run.state,
            stored=run.state,
            version=run.version,
            delivered=dict(run.delivered),
            holder=holder,
            claimed=run.holder == holder,
        )

    async def _drive_all(self, entry: Entry, event: Event, drives: list[Drive], prior: Prior | None) -> Verdict:
        sole = len(drives) == 1

        def prepare(change: Change, drive: Drive, end: DriveEnd | None) -> None:
            over = sole and end is not None and not isinstance(end, Backoff)
            if prior is None and drive.version == 0:
                outcome = (DEAD if _is_dead(end) else HANDLED) if over else None
                change.events = [_event_row(entry, event, outcome)]
            elif over:
                change.outcomes = [OutcomeRow(event.uid, HANDLED)]

        async def run(drive: Drive) -> DriveEnd:
            given = Started() if drive.version == 0 else Resumed()
            return await self._driver.run(drive, given, prepare, _place(entry), lambda: self._leases.holds(entry))

        ends = [await run(drives[0])] if sole else await _together([run(drive) for drive in drives])
        delays = [end.delay_s for end in ends if isinstance(end, Backoff)]
        if delays:
            return Later(min(delays))
        if prior is None and sole:
            return Settled(DEAD if _is_dead(ends[0]) else HANDLED)
        if not sole:
            change = self._change(entry)
            idle = not drives and (prior is None or not prior.runs)
            change.outcomes = [OutcomeRow(event.uid, UNMATCHED if idle else HANDLED)]
            await self._recorder.record(change)
        if prior is None and not any(_is_dead(end) or isinstance(end, Parked) for end in ends):
            return Settled(HANDLED)
        return Settled(await self._outcomes.submit(event.uid) or HANDLED)  # people and timers may have been faster

    async def _work(self, entry: Entry, work: Work, before: tuple[str, ...] = ()) -> Verdict:
        """``before``: where this work stood in a stream before it was set aside and redriven."""
        if work.kind == REDO:
            return await self._redo(entry, work, before)
        run = await self._runs.load(work.run)
        found = await self._runs.event(run.event_uid) if run is not None and run.event_uid is not None else None
        if run is None or found is None:
            return Settled(HANDLED if work.reopens else INTERNAL)
        event, _ = found
        if not _wakes(work, run, (entry.name, *before)):
            return await self._settled_work(entry, work, run, event.uid)
        drive = await self._stored_drive(run, event, event.view(), entry.name)

        def prepare(change: Change, _: Drive, end: DriveEnd | None) -> None:
            if work.reopens and end is not None and not isinstance(end, Backoff):
                change.outcomes = [OutcomeRow(event.uid, HANDLED)]
            elif _is_dead(end):
                change.deaths = [DeathRow(event.uid, letter.id) for letter in change.letters]

        end = await self._driver.run(drive, Resumed(), prepare, _place(entry), lambda: self._leases.holds(entry))
        if isinstance(end, Backoff):
            return Later(end.delay_s)
        if work.reopens:
            return Settled(await self._outcomes.submit(event.uid) or HANDLED)
        return await self._died(run.id, entry) if _is_dead(end) else Settled(INTERNAL)

    async def _settled_work(self, entry: Entry, work: Work, run: StoredRun, uid: str) -> Verdict:
        """Nothing is left to do: the entry was delivered before, the run was cancelled or has moved on."""
        if not work.reopens:
            return await self._died(run.id, entry)
        outcome = await self._outcomes.submit(uid)
        if outcome is None and run.state.status in TERMINAL:
            change = self._change(entry)
            change.outcomes = [OutcomeRow(uid, HANDLED)]
            await self._recorder.record(change)
            outcome = await self._outcomes.submit(uid)
        return Settled(outcome or HANDLED)

    async def _died(self, run_id: str, entry: Entry) -> Verdict:
        """What internal work is counted as: it may have moved an event that was handled to the dead ones."""
        return Settled(_DIED if await self._runs.moved(run_id, *_place(entry)) else INTERNAL)

    async def _redo(self, entry: Entry, work: Work, before: tuple[str, ...]) -> Verdict:
        """Handle the entry that a dead letter keeps once more; its ids are derived from where it first stood."""
        letter = await self._runs.letter(work.letter)
        if letter is None or letter.fields is None or letter.entry_id is None or letter.stream is None:
            return Settled(DEAD if work.reopens else INTERNAL)
        if letter.status == "open":  # this entry was delivered before, and set aside again
            return await self._set_aside_as(work, letter.id)
        fields = {base64.b64decode(name): base64.b64decode(value) for name, value in loads(letter.fields.encode())}
        origin = (self._keys.stream(letter.stream), letter.entry_id.encode())
        entry.redelivered = True
        try:
            if FIELD_WORK in fields:
                inner = replace(decode_work(fields[FIELD_WORK]), reopens=work.reopens)
                return await self._work(entry, inner, (*before, f"{letter.stream}-{letter.entry_id}"))
            verdict = await self._event(entry, decode_entry(*origin, fields), again=True)
        except (Malformed, Refused) as error:
            change = self._change(entry)
            change.letters = [_entry_letter(letter.stream, *origin, fields, str(error))._replace(id=letter.id)]
            if letter.event_uid is not None:
                change.outcomes = [OutcomeRow(letter.event_uid, HANDLED)]
            await self._recorder.record(change)
            verdict = Settled(DEAD)
        return verdict if isinstance(verdict, Later) or work.reopens else Settled(INTERNAL)

    def _change(self, entry: Entry) -> Change:
        """An empty change that is only committed while the entry is ours."""
        return Change(valid=lambda: self._leases.holds(entry))


async def _together(runs: list[Awaitable[DriveEnd]]) -> list[DriveEnd]:
    """Run several at once; one that fails does not cut the others off, its error is raised when all are over."""
    ends = await asyncio.gather(*runs, return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return [end for end in ends if not isinstance(end, BaseException)]


def _work_of(entry: Entry) -> Work | None:
    """The internal work of ours that an entry holds: only that was counted as such when it was added."""
    raw = entry.fields.get(FIELD_WORK)
    try:
        return None if raw is None else decode_work(raw)
    except Malformed:
        return None


def _is_dead(end: DriveEnd | None) -> bool:
    return isinstance(end, Ended) and end.dead


def _unfinished(run: StoredRun) -> bool:
    """Whether the entry of its event is what moves the run on. One that was ever parked belongs to its timers."""
    return run.holder is None and run.state.status in (RUNNING, RETRYING)


def _is_copy(entry: Entry, event: Event) -> bool:
    """Whether the entry may be a copy that somebody made of an earlier one: its event is of another time."""
    return abs(entry_ms(entry.id) - milliseconds_of(event.uid)) > _COPY_MS


def _wakes(work: Work, run: StoredRun, names: tuple[str, ...]) -> bool:
    """Whether work, by the names of its entry, has a run to go on with: one that it took up before, or a parked one.

    A timer may fire twice: the second entry finds the run taken up, or gone on.
    """
    if run.holder == TIMER:
        return run.state.status in (RETRYING, WAITING) and run.state.at == work.key
    return run.holder in names and run.state.status in (RUNNING, RETRYING)


def _place(entry: Entry) -> tuple[str, str]:
    """(priority, entry id), as the database keeps them."""
    return entry.priority, entry.id.decode()


def _event_row(entry: Entry, event: Event, outcome: str | None) -> EventRow:
    return EventRow(
        uid=event.uid,
        id=event.id if event.id != event.uid else None,
        source=event.source,
        type=event.type,
        subject=event.subject,
        time=event.time,
        received_at=time.time(),
        attributes=dumps(event.attributes).decode() if event.attributes else None,
        data=dumps(event.data).decode() if event.data is not None else None,
        key=event.key,
        stream=entry.priority,
        entry_id=entry.id.decode(),
        outcome=outcome,
    )


def _entry_letter(priority: str, stream: str, entry_id: bytes, fields: Mapping[bytes, bytes], reason: str) -> LetterRow:
    """The id is derived, so setting the same entry aside again (after a crash) opens the same letter."""
    parts = [part for pair in fields.items() for part in pair]
    kept = [[base64.b64encode(name).decode(), base64.b64encode(value).decode()] for name, value in fields.items()]
    return LetterRow(
        id=derived_uuid7(entry_ms(entry_id), "letter", stream, entry_id, *parts),
        kind="entry",
        event_uid=None,
        run_id=None,
        step=None,
        stream=priority,
        entry_id=entry_id.decode(),
        fields=dumps(kept).decode(),
        error=reason,
        attempts=1,
        created_at=time.time(),
    )
