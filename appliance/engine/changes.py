"""One run in this replica's hands, and what is committed of it: everything that follows from where it stands now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from appliance.engine import snapshot
from appliance.engine.listeners import machine_digest, wait_digest, wait_shape
from appliance.engine.state import (
    CANCELLED,
    PAUSED,
    TIMER,
    Ask,
    Call,
    Close,
    Command,
    Facts,
    Listen,
    RunState,
    StepState,
    Take,
    step_of,
)
from appliance.events import Event, dumps
from appliance.identifiers import derived_uuid7, milliseconds_of, range_start, task_id_for, uuid7
from appliance.store.rows import (
    AttemptRow,
    Change,
    ChildRow,
    ClosedTaskRow,
    CorrelationRow,
    DeliveryRow,
    LetterRow,
    MachineRow,
    Mark,
    RevisionRow,
    RunRow,
    RunUpdate,
    SignalRow,
    StepRow,
    TakenRow,
    TaskRow,
    TimerRow,
    WaitRow,
)
from appliance.store.runs import Delivered
from appliance.workflows.flow_control import Key
from appliance.workflows.revision import Revision

PAUSE, CANCEL, RETRY = "pause", "cancel", "retry"
"""What people ask of a run (``runs.asked``); whoever has it in hand, or takes it up next, takes notice."""
BEGUN_BY_OTHERS = frozenset({"replay", "rerun", "subflow"})
"""Origins of runs that no event's entry has begun."""
SIGNAL = "+signal"
"""Key of the timer that wakes a run because something came in; ``""`` is that of its own next time."""


class Called(NamedTuple):
    """A call of another workflow that can be made."""

    command: Call
    revision: Revision
    depth: int


@dataclass(slots=True, kw_only=True)
class Drive:
    """One run in this replica's hands. ``version`` is the stored one; 0: nothing is stored yet."""

    run_id: str
    revision: Revision
    event: Event
    facts: Facts
    priority: str
    started_at: float
    origin: str | None = None
    details: dict[str, Any] | None = None
    state: RunState = field(default_factory=RunState)
    version: int = 0
    delivered: dict[str, Delivered] = field(default_factory=dict)
    fresh_attempts: list[AttemptRow] = field(default_factory=list)
    fresh_deliveries: list[DeliveryRow] = field(default_factory=list)
    stored: RunState = field(default_factory=RunState)
    """``state`` as it was last recorded: what is different is written."""
    holder: str | None = None
    """Whose the run is while it is not parked: None, its event's entry; else the entry that woke it."""
    moves: bool = False
    """Its row names another revision than ``revision``, in which it goes on."""
    claimed: bool = True
    """Whether ``holder`` is recorded. Of two entries that would wake a run the second then finds that it is taken."""
    pending: list[Command] = field(default_factory=list)
    """What the core asked for beside attempts and calls, and is to be recorded."""
    calls: list[Called] = field(default_factory=list)
    asked: str | None = None
    """What a person asked of the run and it has not taken notice of: ``pause`` or ``cancel``."""
    noticed: str | None = None
    """What it has taken notice of since the last commit."""
    paused: bool = False
    listens: bool = False
    """It began to listen for events while it was in hand: some may have come before."""
    more_signals: bool = False
    """More may have come in than were loaded with it at once."""
    took: bool = False
    """Some of what came in was looked at."""
    begins: bool = False
    """It stands recorded, but has not begun yet."""
    keys: dict[str, Key] | None = None
    """Those of flow control, once they were asked for: rendering them costs more than all else at the gate."""
    machine_key: str | None = None
    """The business key of a state machine that begins."""
    seen: set[tuple[str, str]] = field(default_factory=set)
    """What came in and was handed to the core, by id and step key."""
    dead: str | None = None
    """Key of the step that failed for good, once the run is over for that reason."""

    def recorded(self, asked: str | None) -> None:
        """A change of it is durable; a person has ``asked`` this meanwhile."""
        self.version += 1
        self.claimed = True
        self.moves = False
        self.stored = self.state
        self.noticed = None
        self.asked = asked
        if self.fresh_attempts or self.fresh_deliveries:
            self.fresh_attempts, self.fresh_deliveries = [], []
        if self.pending or self.calls:
            self.pending, self.calls = [], []


class Ended(NamedTuple):
    """The run is over. ``dead``: it failed, and nobody else takes care of that: it gets a dead letter."""

    dead: bool


class Parked(NamedTuple):
    """The run waits, and its rows say for what: its entry may be acknowledged."""

    paused: bool = False


class Backoff(NamedTuple):
    """The run waits for a moment, holding on to its entry."""

    delay_s: float


DriveEnd = Ended | Parked | Backoff

Announce = Callable[[Drive, float], Any]
"""The outbox row of the event that a run's end is announced by, or None."""


def change_of(
    drive: Drive, end: DriveEnd | None, now: float, entry: tuple[str, str], announce: Announce | None
) -> Change:
    """What is to be committed: where the run stands, and all that follows from it. ``entry`` is (priority, id)."""
    state = drive.state
    change = Change(attempts=drive.fresh_attempts, deliveries=drive.fresh_deliveries)
    _put_run(change, drive, now, TIMER if isinstance(end, Parked) else drive.holder)
    before = drive.stored.steps
    change.steps = [_step_row(drive.run_id, s) for k, s in state.steps.items() if before.get(k) is not s]
    if drive.pending or drive.calls:
        _put_pending(change, drive, now)
    if drive.machine_key is not None and drive.version == 0:
        _put_machine(change, drive, drive.machine_key)
    if isinstance(end, Parked) and not end.paused:
        _put_timer(change, drive)
        if drive.more_signals and drive.took:  # what is kept for later must not make it go round
            change.timers = [*change.timers, TimerRow(drive.run_id, SIGNAL, now, drive.priority)]
    if isinstance(end, Ended):
        _put_end(change, drive, end, now, entry, announce)
    if drive.revision.workflow.control is None:
        if drive.moves:  # the revision that it was on may have had flow control
            give_back(change, drive.run_id, over=True)
    elif not isinstance(end, Backoff | None):
        give_back(change, drive.run_id, over=isinstance(end, Ended))
    return change


def give_back(change: Change, run_id: str, *, over: bool) -> None:
    """The places that flow control gave to a run: all when it is over, else those for while it is at work."""
    change.add("ended_places" if over else "parked_places", Mark(run_id, ""))


def machine_rows(drive: Drive, business_key: str) -> tuple[MachineRow, WaitRow]:
    """What makes a run the one machine of its key, and lets it hear of events from its own on."""
    workflow = drive.revision.workflow
    since = range_start(milliseconds_of(drive.event.uid))
    wait = WaitRow(drive.run_id, "", machine_digest(workflow.name, business_key), since)
    return MachineRow(drive.revision.workflow_id, business_key, drive.run_id), wait


def correlation_rows(uid: str, digests: list[str]) -> list[CorrelationRow]:
    """An event by what it may be waited for."""
    return [CorrelationRow(digest, uid) for digest in digests]


def run_row(drive: Drive, now: float, holder: str | None) -> RunRow:
    """The row of a run that is recorded for the first time."""
    state = drive.state
    return RunRow(
        id=drive.run_id,
        event_uid=drive.event.uid,
        workflow_id=drive.revision.workflow_id,
        revision_id=drive.revision.id,
        status=PAUSED if drive.paused else state.status,
        version=1,
        started_at=drive.started_at,
        finished_at=state.finished_at,
        updated_at=now,
        priority=drive.priority,
        state=_json(snapshot.pack(state, holder)),
        error=state.error,
        origin=drive.origin,
        details=_json(drive.details or None),
        result=_result(state),
    )


def _put_run(change: Change, drive: Drive, now: float, holder: str | None) -> None:
    if drive.version == 0:
        change.runs = [run_row(drive, now, holder)]
        return
    state = drive.state
    update = RunUpdate(
        drive.run_id,
        PAUSED if drive.paused and state.finished_at is None else state.status,
        drive.version + 1,
        state.finished_at,
        now,
        _json(snapshot.pack(state, holder)),
        state.error,
        _result(state),
        drive.noticed,
    )
    change.run_updates = [update]
    if drive.moves:
        change.add("revisions", RevisionRow(drive.run_id, drive.revision.id, drive.version + 1))


def _result(state: RunState) -> str | None:
    return _json(snapshot.result(state)) if state.finished_at is not None else None


def _json(data: Any) -> str | None:
    return None if data is None else dumps(data).decode()


def _step_row(run_id: str, s: StepState) -> StepRow:
    output = dumps(s.output).decode() if s.output is not None else None
    return StepRow(run_id, s.key, s.seq, s.status, s.attempt, s.started_at, s.finished_at, s.due_at, output, s.error)


def _put_timer(change: Change, drive: Drive) -> None:
    due = drive.state.next_due()
    if due is not None:
        change.timers = [*change.timers, TimerRow(drive.run_id, "", due, drive.priority)]
    elif drive.version:
        change.add("no_timers", Mark(drive.run_id, ""))


def _put_end(
    change: Change, drive: Drive, end: Ended, now: float, entry: tuple[str, str], announce: Announce | None
) -> None:
    """The run is over: its rows go, whoever called it is told, and the world, if it wants to know."""
    if drive.dead is not None and end.dead:
        change.letters = [_letter(drive, drive.dead, entry, now)]
    if drive.version:
        mark = Mark(drive.run_id, "")
        for name in ("ended_timers", "ended_waits", "ended_signals"):
            change.add(name, mark)
    if drive.revision.workflow.machine is not None:
        for name in ("ended_machines", "ended_waits"):
            change.add(name, Mark(drive.run_id, ""))
    if drive.details and (parent := drive.details.get("parent")):
        tell_parent(change, drive, parent, now)
    if announce is not None and (row := announce(drive, now)) is not None:
        change.add("outbox", row)


def tell_parent(change: Change, drive: Drive, parent: dict[str, str], now: float) -> None:
    """The run that called this one learns how it ended."""
    state = drive.state
    told = {"status": state.status, "outcome": state.outcome, "output": state.output, "error": state.error}
    signal = derived_uuid7(int(now * 1000), "child", drive.run_id)
    change.add("signals", SignalRow(parent["run"], signal, parent["key"], "child", None, dumps(told).decode()))
    change.timers = [*change.timers, TimerRow(parent["run"], SIGNAL, now, drive.priority)]


def _letter(drive: Drive, key: str, entry: tuple[str, str], now: float) -> LetterRow:
    failed = drive.state.steps[key]
    return LetterRow(
        id=uuid7(int(now * 1000)),
        kind="step",
        event_uid=drive.event.uid,
        run_id=drive.run_id,
        step=key,
        stream=entry[0],
        entry_id=entry[1],
        fields=None,
        error=failed.error or "",
        attempts=failed.attempt,
        created_at=now,
    )


# --- what the core asked for -----------------------------------------------------------------------------------------


def _put_pending(change: Change, drive: Drive, now: float) -> None:
    """What was asked for and closed again since the last commit leaves no trace."""
    fresh: dict[tuple[str, type], Command] = {}
    for command in drive.pending:
        if isinstance(command, Listen | Ask):
            fresh[command.key, type(command)] = command
        elif isinstance(command, Close):
            _close(change, drive, command, fresh)
        elif isinstance(command, Take):
            taken = "taken" if command.taken else "ignored"
            change.add("taken", TakenRow(drive.run_id, command.signal, command.key, taken, command.by))
            drive.took = True
    for command in fresh.values():
        if isinstance(command, Listen):
            _listen(change, drive, command)
        elif isinstance(command, Ask):
            _ask(change, drive, command, now)
    for called in drive.calls:
        _call(change, drive, called, now)


def _close(change: Change, drive: Drive, command: Close, fresh: dict[tuple[str, type], Command]) -> None:
    asked = {"wait": Listen, "human_task": Ask}.get(command.kind)
    if asked is not None and fresh.pop((command.key, asked), None) is not None:
        return
    if command.kind == "wait":
        change.add("closed_waits", Mark(drive.run_id, command.key))
    elif command.kind == "human_task" and command.status != "answered":
        status = command.status if drive.state.ending is None or command.status != CANCELLED else "dropped"
        change.add("closed_tasks", ClosedTaskRow(drive.run_id, command.key, status))
    elif command.kind == "workflow" and command.status != "answered":
        begun = [called for called in drive.calls if called.command.key == command.key]
        workflow = drive.revision.workflow
        undone = workflow.steps[workflow.by_id[step_of(command.key)]].compensate is not None
        if begun and not (undone and command.status == CANCELLED):  # the step stays, to hear how the called run ends
            drive.calls.remove(begun[0])
        else:
            change.add("cancelled_children", Mark(drive.run_id, command.key))


def _listen(change: Change, drive: Drive, command: Listen) -> None:
    workflow = drive.revision.workflow
    shape = wait_shape(workflow.steps[workflow.by_id[command.step]])
    change.add("waits", WaitRow(drive.run_id, command.key, wait_digest(shape, command.values), _listens_since(drive)))
    drive.listens = True


def _listens_since(drive: Drive) -> str:
    """From where on events count: from the run's own, however long that lay in its stream before the run began.

    A run that was begun for an event of long ago, or by another run, counts from its beginning.
    """
    if drive.origin in BEGUN_BY_OTHERS:
        return range_start(int(drive.started_at * 1000))
    return range_start(milliseconds_of(drive.event.uid))


def _ask(change: Change, drive: Drive, command: Ask, now: float) -> None:
    workflow = drive.revision.workflow
    task = workflow.steps[workflow.by_id[command.step]].task
    about = {name: _text(command.about.get(name)) for name in ("title", "description", "assignee", "group")}
    row = TaskRow(
        id=task_id_for(drive.run_id, command.key),
        run_id=drive.run_id,
        key=command.key,
        workflow_id=drive.revision.workflow_id,
        title=about["title"] or command.step,
        description=about["description"],
        assignee=about["assignee"],
        people=about["group"],
        form=dumps(dict(task.form) if task is not None else {}).decode(),
        created_at=now,
        due_at=command.due_at,
    )
    change.add("tasks", row)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:4000]


def _call(change: Change, drive: Drive, called: Called, now: float) -> None:
    """A run of its own, which a timer starts: it may run on any replica."""
    command, revision = called.command, called.revision
    child = derived_uuid7(milliseconds_of(drive.run_id), "call", drive.run_id, command.key)
    details = {"input": command.input, "parent": {"run": drive.run_id, "key": command.key}, "depth": called.depth}
    priority = revision.workflow.priority or drive.priority
    row = RunRow(
        id=child,
        event_uid=drive.event.uid,
        workflow_id=revision.workflow_id,
        revision_id=revision.id,
        status="running",
        version=1,
        started_at=now,
        finished_at=None,
        updated_at=now,
        priority=priority,
        state=dumps({"by": TIMER}).decode(),
        error=None,
        origin="subflow",
        details=dumps(details).decode(),
        result=None,
    )
    change.runs = [*change.runs, row]
    change.add("children", ChildRow(drive.run_id, command.key, child))
    change.timers = [*change.timers, TimerRow(child, "", now, priority)]


def _put_machine(change: Change, drive: Drive, business_key: str) -> None:
    machine, wait = machine_rows(drive, business_key)
    change.add("machines", machine)
    change.add("waits", wait)
    drive.listens = True
