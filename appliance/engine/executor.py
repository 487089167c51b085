"""What becomes of an entry: decoded, told from duplicates, matched, its runs driven, its outcome committed."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from appliance.batching import Batcher
from appliance.engine.drive import Backoff, Drive, DriveEnd, Driver, Ended
from appliance.engine.state import FAILED, RETRYING, RUNNING, WAITING, Resumed, Started
from appliance.errors import Malformed
from appliance.events import FIELD_WORK, Event, decode_entry, dumps, entry_ms, loads
from appliance.identifiers import derived_uuid7, run_id_for
from appliance.observe.metrics import METRICS
from appliance.rules.matcher import Matcher
from appliance.store.recorder import Recorder, Refused
from appliance.store.rows import Change, DuplicateRow, EventRow, LetterRow, OutcomeRow
from appliance.store.runs import Prior, Runs, StoredRun
from appliance.stream.entry import DEAD, DUPLICATE, HANDLED, INTERNAL, UNMATCHED, Entry, Later, Settled, Verdict
from appliance.stream.keys import Keys
from appliance.stream.leases import Leases
from appliance.stream.work import REDO, Work, decode_work
from appliance.workflows.revision import Revision

_LOOKUP_LIMIT = 500


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
        self._claims: Batcher[tuple[str, str], str] = Batcher(runs.claim_keys, limit=_LOOKUP_LIMIT, name="claims")

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
            event = None if _is_work(entry) else self._decode(entry)
        except Malformed:
            event = None
        try:
            return await self._set_aside(entry, reason, event)
        except Refused:
            return await self._set_aside(entry, reason, None)

    def _decode(self, entry: Entry) -> Event:
        return decode_entry(self._keys.stream(entry.priority), entry.id, entry.fields)

    async def _set_aside(self, entry: Entry, reason: str, event: Event | None) -> Verdict:
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
        return Settled(INTERNAL if _is_work(entry) else DEAD)

    async def _event(self, entry: Entry, event: Event) -> Verdict:
        prior = await self._lookups.submit(event.uid) if entry.redelivered else None
        if prior is not None and prior.outcome is not None:
            return Settled(prior.outcome)
        if event.key is not None:
            first = await self._claims.submit((event.key, event.uid))
            if first != event.uid:
                return await self._duplicate(entry, event, first)
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

    async def _stored_drive(self, run: StoredRun, event: Event, view: dict[str, Any]) -> Drive:
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
        )

    async def _drive_all(self, entry: Entry, event: Event, drives: list[Drive], prior: Prior | None) -> Verdict:
        dead_before = prior is not None and any(run.state.status == FAILED for run in prior.runs)
        sole = len(drives) == 1

        def prepare(change: Change, drive: Drive, end: DriveEnd | None) -> None:
            outcome = None
            if sole and end is not None and not isinstance(end, Backoff):
                outcome = DEAD if dead_before or _is_dead(end) else HANDLED
            if prior is None and drive.version == 0:
                change.events = [_event_row(entry, event, outcome)]
            elif outcome is not None:
                change.outcomes = [OutcomeRow(event.uid, outcome)]

        async def run(drive: Drive) -> DriveEnd:
            given = Started() if drive.version == 0 else Resumed()
            return await self._driver.run(drive, given, prepare, _place(entry), lambda: self._leases.holds(entry))

        ends = [await run(drives[0])] if sole else await _together([run(drive) for drive in drives])
        delays = [end.delay_s for end in ends if isinstance(end, Backoff)]
        if delays:
            entry.redelivered = True  # the next turn starts from what stands recorded
            return Later(min(delays))
        outcome = DEAD if dead_before or any(map(_is_dead, ends)) else HANDLED
        if not sole:
            change = self._change(entry)
            change.outcomes = [OutcomeRow(event.uid, outcome)]
            await self._recorder.record(change)
        return Settled(outcome)

    async def _work(self, entry: Entry, work: Work) -> Verdict:
        if work.kind == REDO:
            return await self._redo(entry, work)
        run = await self._runs.load(work.run)
        found = await self._runs.event(run.event_uid) if run is not None and run.event_uid is not None else None
        if run is None or found is None:
            return Settled(INTERNAL)
        event, outcome = found
        if not _wakes(entry, work, run):
            return await self._settled_work(entry, work, run.id, outcome)
        drive = await self._stored_drive(run, event, event.view())

        def prepare(change: Change, _: Drive, end: DriveEnd | None) -> None:
            if _is_dead(end):
                change.outcomes = [OutcomeRow(event.uid, DEAD)]
            elif work.reopens and end is not None and not isinstance(end, Backoff):
                change.outcomes = [OutcomeRow(event.uid, HANDLED)]

        end = await self._driver.run(drive, Resumed(), prepare, _place(entry), lambda: self._leases.holds(entry))
        if isinstance(end, Backoff):
            entry.redelivered = True
            return Later(end.delay_s)
        if work.reopens:
            return Settled(DEAD if _is_dead(end) else HANDLED)
        return Settled(f"{HANDLED}>{DEAD}" if _is_dead(end) and outcome == HANDLED else INTERNAL)

    async def _settled_work(self, entry: Entry, work: Work, run_id: str, outcome: str | None) -> Verdict:
        """Nothing is left to do: the entry was delivered before, the run was cancelled or has moved on."""
        if work.reopens:
            return Settled(outcome or HANDLED)
        counted = await self._runs.counted_letter(run_id, *_place(entry))
        return Settled(f"{HANDLED}>{DEAD}" if counted else INTERNAL)

    async def _redo(self, entry: Entry, work: Work) -> Verdict:
        """Handle the entry that a dead letter keeps once more; its ids are derived from where it first stood."""
        letter = await self._runs.letter(work.letter)
        if letter is None or letter.fields is None or letter.entry_id is None or letter.stream is None:
            return Settled(INTERNAL)
        fields = {base64.b64decode(name): base64.b64decode(value) for name, value in loads(letter.fields.encode())}
        origin = (self._keys.stream(letter.stream), letter.entry_id.encode())
        entry.redelivered = True
        try:
            if FIELD_WORK in fields:
                return await self._work(entry, decode_work(fields[FIELD_WORK]))
            verdict = await self._event(entry, decode_entry(*origin, fields))
        except (Malformed, Refused) as error:
            change = self._change(entry)
            change.letters = [_entry_letter(letter.stream, *origin, fields, str(error))]
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


def _is_work(entry: Entry) -> bool:
    """Whether the entry is internal work of ours: only that was counted as such when it was added."""
    raw = entry.fields.get(FIELD_WORK)
    try:
        return raw is not None and bool(decode_work(raw))
    except Malformed:
        return False


def _is_dead(end: DriveEnd | None) -> bool:
    return isinstance(end, Ended) and end.dead


def _unfinished(run: StoredRun) -> bool:
    """Whether the entry of its event is what moves the run on (a parked one has its timer)."""
    return run.state.status in (RUNNING, RETRYING)


def _wakes(entry: Entry, work: Work, run: StoredRun) -> bool:
    """Whether there is something to go on with.

    A timer may fire twice; then the run does not stand at its step any more, or runs in somebody's hands: only an entry
    that was delivered before may be the one whose handler died with the run.
    """
    if run.state.status == RUNNING:
        return entry.redelivered
    return run.state.status in (RETRYING, WAITING) and run.state.at == work.key


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
