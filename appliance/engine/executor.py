"""What becomes of an entry: decoded, told from duplicates, matched, its runs driven, its outcome committed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from appliance import faultpoints
from appliance.batching import Batcher
from appliance.engine.changes import (
    CANCEL,
    PAUSE,
    RETRY,
    Backoff,
    Drive,
    DriveEnd,
    Ended,
    Parked,
    correlation_rows,
    give_back,
)
from appliance.engine.drive import Driver, Prepare
from appliance.engine.entrance import Entrance, ordered_keys
from appliance.engine.following import Following
from appliance.engine.listeners import Listeners, business_key, machine_digest
from appliance.engine.order import Order
from appliance.engine.state import PAUSED, TERMINAL, TIMER, WAITING, Cancelled, Facts, Input, Resumed, Signal, Started
from appliance.errors import Fenced, Malformed, NotFound
from appliance.events import FIELD_WORK, Event, decode_entry, dumps, entry_ms, loads
from appliance.identifiers import derived_uuid7, milliseconds_of, range_start, run_id_for
from appliance.observe.metrics import METRICS
from appliance.rules.matcher import Matcher
from appliance.store.recorder import Recorder, Refused
from appliance.store.rows import Change, DeathRow, DuplicateRow, EventRow, LetterRow, OutcomeRow
from appliance.store.runs import MOST_SIGNALS, Prior, Runs, StoredRun, Waking
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

    @property
    def unusable(self) -> Sequence[str]:
        """Workflows in force that can't be read here."""
        ...

    @property
    def version(self) -> int:
        """Of the rules in force; another replica may have newer ones for a second."""
        ...

    async def catch_up(self, version: int) -> None:
        """Take over what another replica changed, up to ``version`` at least."""
        ...

    @property
    def listeners(self) -> Listeners:
        """What runs of any revision may listen for."""
        ...

    def current(self, name: str) -> Revision:
        """The revision in force of a workflow, disabled or not; NotFound."""
        ...

    async def revision(self, revision_id: int) -> Revision:
        """A revision by its id; NotFound."""
        ...


class Executor:
    """The consumer's handler."""

    def __init__(
        self,
        definitions: Definitions,
        runs: Runs,
        recorder: Recorder,
        driver: Driver,
        leases: Leases,
        keys: Keys,
        on_timer: Callable[[float], None],
        entrance: Entrance,
        order: Order,
    ) -> None:
        self._definitions = definitions
        self._entrance = entrance
        self._order = order
        self._following = Following(definitions)
        self._runs = runs
        self._recorder = recorder
        self._driver = driver
        self._leases = leases
        self._keys = keys
        self._on_timer = on_timer
        self._patient: dict[str, Entry] = {}
        """By run: the wake that waits until it is free."""
        self._lookups: Batcher[str, Prior | None] = Batcher(runs.prior, limit=_LOOKUP_LIMIT, name="lookups")
        self._outcomes: Batcher[str, str | None] = Batcher(runs.outcomes, limit=_LOOKUP_LIMIT, name="outcomes")
        self._wakings: Batcher[str, Waking | None] = Batcher(runs.to_wake, limit=_LOOKUP_LIMIT, name="wakings")
        self._claims: Batcher[tuple[str, str], tuple[str, bool]] = Batcher(
            runs.claim_keys, limit=_LOOKUP_LIMIT, name="claims"
        )

    async def handle(self, entry: Entry) -> Verdict:
        """Work on an entry until everything that it touches is finished, parked or dead-lettered."""
        if self._definitions.unusable:
            return Later(_patience_s(entry))  # it may be for a workflow that only a later release can read
        try:
            raw = entry.fields.get(FIELD_WORK)
            if raw is not None:
                return await self._work(entry, decode_work(raw))
            event = self._decode(entry)
            if self._order.needed:
                return await self._in_order(entry, event)
            return await self._event(entry, event)
        except (Malformed, Refused) as error:
            return await self._set_aside(entry, str(error), None)

    async def _in_order(self, entry: Entry, event: Event, *, again: bool = False) -> Verdict:
        """An event while some workflow keeps an order: later ones know that this one is in hand."""
        self._order.enter(entry)
        try:
            return await self._event(entry, event, again=again)
        finally:
            self._order.left(entry)

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
            at_ms = milliseconds_of(event.uid)
            change.add("aside_places", (event.uid, range_start(at_ms), range_start(at_ms + 1)))
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
            give_back(change, run.id, over=True)
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
            if entry.redelivered and (digests := self._definitions.listeners.digests(event.view())):
                await self._tell(entry, event, digests, prior)  # who recorded it may have had older workflows
            return Settled(prior.outcome)
        view = event.view()
        rules = self._definitions.matcher.match(view)
        told = False
        if digests := self._definitions.listeners.digests(view):
            prior, told = await self._tell(entry, event, digests, prior)
        if not rules and prior is None and event.start is None:
            change = self._change(entry)
            change.events = [_event_row(entry, event, UNMATCHED)]
            await self._recorder.record(change)
            await self._tell_newcomers(entry, event, view)
            return Settled(UNMATCHED)
        revisions = [rule.payload for rule in rules]
        drives = await self._drives(entry, event, view, revisions, prior)
        if self._order.needed and not await self._order.may_pass(entry, ordered_keys(drives)):
            return Later(_patience_s(entry))
        if any(drive.revision.workflow.control is not None for drive in drives):
            verdict = await self._pass_gates(entry, event, drives, prior, again=again)
        else:
            if self._order.needed:
                self._order.passed(entry)
            verdict = await self._drive_all(entry, event, drives, prior, told=told)
        await self._tell_newcomers(entry, event, view)
        return verdict

    async def _pass_gates(
        self, entry: Entry, event: Event, drives: list[Drive], prior: Prior | None, *, again: bool
    ) -> Verdict:
        """Drive what flow control lets go on; it records the rest, and the event with it."""
        row = _event_row(entry, event, None) if prior is None else None
        sole = len(drives) == 1 and prior is None

        async def passes(drive: Drive) -> bool:
            if drive.revision.workflow.control is None or (drive.version > 0 and not again):
                return True  # it was let go on when it was begun
            return await self._entrance.begin(entry, drive, row, self._held(entry), sole=sole)

        passed = await asyncio.gather(*(passes(drive) for drive in drives))
        self._order.passed(entry)
        go_on = [drive for drive, may in zip(drives, passed, strict=True) if may]
        if sole and not go_on:
            return Settled(HANDLED)
        return await self._drive_all(entry, event, go_on, prior or Prior(None), told=True, fresh=prior is None)

    def _held(self, entry: Entry) -> Callable[[], bool]:
        return lambda: self._leases.holds(entry)

    async def _tell(self, entry: Entry, event: Event, digests: list[str], prior: Prior | None) -> tuple[Prior, bool]:
        """Tell the runs that wait for the event; whether there are any.

        The event is recorded first: a run that begins to listen meanwhile finds it when it looks back, so that one of
        the two always sees the other.
        """
        change = self._change(entry)
        if prior is None:
            change.events = [_event_row(entry, event, None)]
        change.add("correlations", *correlation_rows(event.uid, digests))
        await self._recorder.record(change)
        faultpoints.hit("before_tell")
        if told := await self._runs.correlate(event.uid, digests):
            self._on_timer(time.time())
        return prior or Prior(None), told or await self._runs.is_listened_for(event.uid, digests)

    async def _tell_newcomers(self, entry: Entry, event: Event, view: dict[str, Any]) -> None:
        """Another replica has newer workflows than these: their runs may wait for the event already."""
        if self._recorder.catalog_version <= self._definitions.version:
            return
        await self._definitions.catch_up(self._recorder.catalog_version)
        if digests := self._definitions.listeners.digests(view):
            await self._tell(entry, event, digests, Prior(None))

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
        for run in begun.values():
            if _may_listen(run):  # who recorded that it does may not have got round to it
                await self._look_back(run.id)
        drives = [await self._stored_drive(run, event, view) for run in begun.values() if _unfinished(run)]
        if event.start is not None and all(r.workflow.name != event.start[0] for r in revisions):
            revisions = [*revisions, await self._wanted(event.start[0])]
        now = time.time()
        for revision in revisions:
            run_id = run_id_for(event.uid, revision.workflow.name)
            if run_id in begun:
                continue
            drive = Drive(
                run_id=run_id,
                revision=revision,
                event=event,
                facts=_facts(run_id, revision, view, event.data, now),
                priority=revision.workflow.priority or entry.priority,
                started_at=now,
            )
            if event.start is not None and event.start[0] == revision.workflow.name:
                drive.origin = event.start[1]
            if revision.workflow.machine is None or await self._is_first(drive, view):
                drives.append(drive)
        return drives

    async def _wanted(self, name: str) -> Revision:
        """The workflow that is to be started by its name; another replica may have put it just now."""
        with contextlib.suppress(NotFound):
            return self._definitions.current(name)
        await self._definitions.catch_up(self._definitions.version + 1)
        try:
            return self._definitions.current(name)
        except NotFound as error:
            raise Malformed(f"it is to start a workflow that isn't there: {error}") from None

    async def _is_first(self, drive: Drive, view: dict[str, Any]) -> bool:
        """Whether an event begins a state machine: not if its key has a live one, which was told of it.

        Raises Fenced if that one is the event's own: somebody else has begun it since we looked.
        """
        workflow = drive.revision.workflow
        drive.machine_key = business_key(workflow.machine.correlate, view) if workflow.machine is not None else None
        if drive.machine_key is None:
            return True
        live = await self._runs.machine(drive.revision.workflow_id, drive.machine_key)
        if live is None:
            return True
        if live == drive.run_id:
            raise Fenced(f"somebody else has begun the run {live}")
        if await self._runs.correlate(drive.event.uid, [machine_digest(workflow.name, drive.machine_key)]):
            self._on_timer(time.time())  # it began after we had looked for who listens
        return False

    async def _stored_drive(
        self, run: StoredRun, event: Event, view: dict[str, Any], holder: str | None = None
    ) -> Drive:
        own = revision = await self._definitions.revision(run.revision_id)
        if run.holder == TIMER and holder is not None:
            revision = await self._following.revision(run, own)
        return Drive(
            run_id=run.id,
            revision=revision,
            event=event,
            facts=_facts(run.id, revision, view, run.details.get("input", event.data), run.started_at),
            priority=run.priority,
            started_at=run.started_at,
            origin=run.origin,
            details=dict(run.details),
            state=run.state,
            stored=run.state,
            version=run.version,
            delivered=dict(run.delivered),
            holder=holder,
            claimed=run.holder == holder,
            moves=revision is not own,
            asked=run.asked,
        )

    async def _drive(self, entry: Entry, drive: Drive, given: Input, prepare: Prepare) -> DriveEnd:
        end = await self._driver.run(drive, given, prepare, _place(entry), self._held(entry))
        if drive.revision.workflow.control is not None and not isinstance(end, Backoff):
            self._entrance.left(drive)
        if (drive.listens or (drive.more_signals and drive.took)) and not isinstance(end, Ended):
            await self._look_back(drive.run_id)
        return end

    async def _look_back(self, run_id: str) -> None:
        """Events that a run waits for may have come before it did."""
        faultpoints.hit("before_look_back")
        if await self._runs.look_back(run_id):
            self._on_timer(time.time())

    async def _drive_all(
        self,
        entry: Entry,
        event: Event,
        drives: list[Drive],
        prior: Prior | None,
        *,
        told: bool = False,
        fresh: bool = False,
    ) -> Verdict:
        """``told``: it concerns some run, beside these. ``fresh``: it is here for the first time although it stands."""
        sole = len(drives) == 1

        def prepare(change: Change, drive: Drive, end: DriveEnd | None) -> None:
            over = sole and end is not None and not isinstance(end, Backoff)
            if prior is None and drive.version == 0:
                outcome = (DEAD if _is_dead(end) else HANDLED) if over else None
                change.events = [_event_row(entry, event, outcome)]
            elif over:
                change.outcomes = [OutcomeRow(event.uid, HANDLED)]

        async def run(drive: Drive) -> DriveEnd:
            given = _first_input(drive)
            if drive.version and not drive.begins and (waking := await self._wakings.submit(drive.run_id)) is not None:
                given = Resumed(waking.signals)  # of an answer and a deadline the one that came first counts
                drive.more_signals = len(waking.signals) >= MOST_SIGNALS
            return await self._drive(entry, drive, given, prepare)

        ends = [await run(drives[0])] if sole else await _together([run(drive) for drive in drives])
        delays = [end.delay_s for end in ends if isinstance(end, Backoff)]
        if delays:
            return Later(min(delays))
        if sole and (prior is None or fresh):
            return Settled(DEAD if _is_dead(ends[0]) else HANDLED)
        if not sole:
            change = self._change(entry)
            idle = not drives and not told and (prior is None or not prior.runs)
            change.outcomes = [OutcomeRow(event.uid, UNMATCHED if idle else HANDLED)]
            await self._recorder.record(change)
        if prior is None and not any(_is_dead(end) or isinstance(end, Parked) for end in ends):
            return Settled(HANDLED)
        return Settled(await self._outcomes.submit(event.uid) or HANDLED)  # people and timers may have been faster

    async def _work(self, entry: Entry, work: Work, before: tuple[str, ...] = ()) -> Verdict:
        """``before``: where this work stood in a stream before it was set aside and redriven."""
        if work.kind == REDO:
            return await self._redo(entry, work, before)
        spare = self._is_spare(entry, work.run) and not work.reopens and not before
        if spare and not entry.redelivered:  # one that was delivered before may hold the run itself
            return Settled(INTERNAL)
        waking = await self._wakings.submit(work.run)
        if waking is None:
            return Settled(HANDLED if work.reopens else INTERNAL)
        run, event = waking.run, waking.event
        if entry.redelivered and _may_listen(run):  # who recorded that it does may not have got round to it
            await self._look_back(run.id)
        if run.state.status in TERMINAL or (run.state.status == PAUSED and run.asked != CANCEL):
            return await self._settled_work(entry, work, run, event.uid)
        if run.holder not in (TIMER, entry.name, *before):
            if spare:
                return Settled(INTERNAL)
            self._patient[run.id] = entry
            return Later(_patience_s(entry))  # somebody else has it in hand
        drive = await self._woken_drive(waking, entry)
        if drive is None:
            return await self._settled_work(entry, work, run, event.uid)
        return await self._wake(entry, work, drive, waking.signals)

    async def _woken_drive(self, waking: Waking, entry: Entry) -> Drive | None:
        """A run that goes on because ``entry`` woke it; None if flow control lets it wait."""
        run, event = waking.run, waking.event
        drive = await self._stored_drive(run, event, event.view(), entry.name)
        workflow = drive.revision.workflow
        if workflow.machine is not None and (run.asked == RETRY or not run.state.steps):
            drive.listens = True  # a person made it listen, just now
        if workflow.control is not None:
            goes_on = run.holder == entry.name or run.asked in (CANCEL, PAUSE)
            returns = run.holder != TIMER
            if not (goes_on or await self._entrance.go_on(drive, waking.places, self._held(entry), returns=returns)):
                return None
            await self._entrance.events(drive)
        return drive

    def _is_spare(self, entry: Entry, run_id: str) -> bool:
        """Whether another wake for the same run waits here until it is free: that will see all that came in.

        A busy run is woken for everything that comes in.
        """
        other = self._patient.get(run_id)
        if other is None:
            return False
        if other is entry or not self._leases.holds(other) or (other.priority, other.id) not in self._leases:
            del self._patient[run_id]
            return False
        return True

    async def _wake(self, entry: Entry, work: Work, drive: Drive, signals: tuple[Signal, ...]) -> Verdict:
        uid = drive.event.uid
        drive.more_signals = len(signals) >= MOST_SIGNALS

        def prepare(change: Change, _: Drive, end: DriveEnd | None) -> None:
            if work.reopens and end is not None and not isinstance(end, Backoff):
                change.outcomes = [OutcomeRow(uid, HANDLED)]
            elif _is_dead(end):
                change.deaths = [DeathRow(uid, letter.id) for letter in change.letters]

        end = await self._drive(entry, drive, _given(drive, signals), prepare)
        if isinstance(end, Backoff):
            return Later(end.delay_s)
        if work.reopens:
            return Settled(await self._outcomes.submit(uid) or HANDLED)
        return await self._died(drive.run_id, entry) if _is_dead(end) else Settled(INTERNAL)

    async def _settled_work(self, entry: Entry, work: Work, run: StoredRun, uid: str) -> Verdict:
        """Nothing is left to do: the entry was delivered before, the run was cancelled or has moved on."""
        if not work.reopens:
            return await self._died(run.id, entry)
        outcome = await self._outcomes.submit(uid)
        if outcome is None:
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
            verdict = await self._in_order(entry, decode_entry(*origin, fields), again=True)
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
    return run.holder is None and run.state.status not in TERMINAL and run.state.status != PAUSED


def _may_listen(run: StoredRun) -> bool:
    """Whether events may be waited for: then some may have come that nobody told it of."""
    if run.state.status in TERMINAL:
        return False
    return run.state.place is not None or any(step.status == WAITING for step in run.state.steps.values())


def _facts(run_id: str, revision: Revision, view: dict[str, Any], given: Any, started_at: float) -> Facts:
    """What the run knows besides its steps."""
    workflow = revision.workflow
    run = {"id": run_id, "workflow": workflow.name, "revision": revision.number, "started_at": started_at}
    if workflow.machine is not None:
        run["event"] = view
    return Facts(view, given, run, {})


def _first_input(drive: Drive) -> Input:
    """What a run that its event's entry moves on is told first."""
    if drive.revision.workflow.machine is not None and drive.version == 0 and drive.machine_key is None:
        return Cancelled("correlate gives no business key for the event")
    return Started() if drive.version == 0 or drive.begins else Resumed()


def _given(drive: Drive, signals: tuple[Signal, ...]) -> Input:
    """What a run that was woken is told; a rerun begins at its step."""
    rerun = (drive.details or {}).get("rerun")
    if rerun is not None and drive.asked != RETRY and drive.state.ending is None and not drive.state.active():
        return Started(rerun.get("from"))
    return Resumed(signals)


def _patience_s(entry: Entry) -> float:
    """How long to wait before asking again for a run that somebody else has in hand: longer each time."""
    return min(2.0, max(0.05, (time.time() * 1000 - entry_ms(entry.id)) / 4000))


def _is_copy(entry: Entry, event: Event) -> bool:
    """Whether the entry may be a copy that somebody made of an earlier one: its event is of another time."""
    return abs(entry_ms(entry.id) - milliseconds_of(event.uid)) > _COPY_MS


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
