"""Driving one run from where it stands to where it ends, parks or waits: the shell around the pure core.

Each step's result is durable before the next step's effect begins. A run that goes through in one piece is written
once, at its end.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from appliance import faultpoints
from appliance.engine.actions import ActionRunner, DeliveryRecord, Failed, Succeeded
from appliance.engine.core import advance
from appliance.engine.state import (
    FAILED,
    RETRYING,
    TERMINAL,
    TIMER,
    WAITING,
    ActionFailed,
    ActionSucceeded,
    Finish,
    Input,
    RunAction,
    RunState,
    StepState,
    WaitUntil,
)
from appliance.errors import LeaseLost
from appliance.events import Event, dumps
from appliance.identifiers import uuid7
from appliance.observe.metrics import METRICS
from appliance.plugin import RunInfo
from appliance.store.recorder import Recorder
from appliance.store.rows import AttemptRow, Change, DeliveryRow, LetterRow, RunRow, RunUpdate, StepRow, TimerRow
from appliance.store.runs import Delivered
from appliance.templating import TemplateError
from appliance.workflows.revision import Revision


@dataclass(slots=True, kw_only=True)
class Drive:
    """One run in this replica's hands. ``version`` is the stored one; 0: nothing is stored yet."""

    run_id: str
    revision: Revision
    event: Event
    view: dict[str, Any]
    priority: str
    started_at: float
    origin: str | None = None
    state: RunState = field(default_factory=RunState)
    version: int = 0
    delivered: dict[str, Delivered] = field(default_factory=dict)
    fresh_attempts: list[AttemptRow] = field(default_factory=list)
    fresh_deliveries: list[DeliveryRow] = field(default_factory=list)
    stored: RunState = field(default_factory=RunState)
    """``state`` as it was last recorded: what is different is written."""
    holder: str | None = None
    """Whose the run is while it is not parked: None, its event's entry; else the entry that woke it."""
    claimed: bool = True
    """Whether ``holder`` is recorded. Of two entries that would wake a run the second then finds that it is taken."""


class Ended(NamedTuple):
    """The run is over."""

    dead: bool


@dataclass(frozen=True, slots=True)
class Parked:
    """The run waits for a timer, which is recorded: its entry may be acknowledged."""


class Backoff(NamedTuple):
    """The run waits for a moment, holding on to its entry."""

    delay_s: float


DriveEnd = Ended | Parked | Backoff

Prepare = Callable[[Change, Drive, DriveEnd | None], None]
"""Completes a change of a run with what belongs to the run's entry: the event's row, its outcome."""


class Driver:
    """Carries out the core's commands. One per process."""

    def __init__(
        self,
        actions: ActionRunner,
        recorder: Recorder,
        *,
        secrets: dict[str, str],
        park_after_s: float,
        may_hold: Callable[[], bool],
        on_timer: Callable[[float], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._actions = actions
        self._recorder = recorder
        self._secrets = secrets
        self._park_after_s = park_after_s
        self._may_hold = may_hold
        self._on_timer = on_timer
        self._clock = clock

    async def run(
        self, drive: Drive, given: Input, prepare: Prepare, entry: tuple[str, str], valid: Callable[[], bool]
    ) -> DriveEnd:
        """Go on with ``drive`` until it ends, parks or backs off; what is reached is durable when this returns.

        ``entry`` is (priority, entry id), for dead letters; ``valid`` says whether the entry's lease is still ours.
        Raises Fenced, and what the recorder raises.
        """
        workflow = drive.revision.workflow
        drive.state, command = advance(workflow, drive.view, drive.state, given, self._clock())
        while True:
            match command:
                case RunAction():
                    if not drive.claimed or (len(drive.state.steps) > 1 and _unrecorded(drive)):
                        await self._record(drive, None, prepare, entry, valid)
                    if not valid():
                        raise LeaseLost("the lease was lost")
                    result = await self._act(drive, command)
                    drive.state, command = advance(workflow, drive.view, drive.state, result, self._clock())
                case WaitUntil():
                    end = self._waiting(drive, command)
                    await self._record(drive, end, prepare, entry, valid)
                    if isinstance(end, Parked):
                        self._on_timer(command.due_at)
                    return end
                case Finish():
                    ended = Ended(dead=command.dead is not None)
                    await self._record(drive, ended, prepare, entry, valid, dead=command.dead)
                    return ended

    def _waiting(self, drive: Drive, command: WaitUntil) -> DriveEnd:
        delay_s = command.due_at - self._clock()
        if drive.state.status == RETRYING and delay_s <= self._park_after_s and self._may_hold():
            return Backoff(max(0.0, delay_s))
        return Parked()

    async def _act(self, drive: Drive, command: RunAction) -> Input:
        workflow = drive.revision.workflow
        step = workflow.steps[workflow.by_id[command.step]]
        began = self._clock()
        try:
            params = step.params.render(self._scope(drive)) if step.params is not None else {}
        except TemplateError as error:
            return self._failed(drive, command, Failed(str(error), False, "invalid-params"), began)
        faultpoints.hit("before_action")
        clock_began = time.monotonic()
        result = await self._actions.run(
            step.action or "",
            params,
            drive.event,
            RunInfo(drive.run_id, workflow.name, drive.revision.number),
            step.id,
            command.attempt,
            idempotency_key(drive.run_id, command.key),
            step.timeout_s,
            drive.delivered.get(command.key),
        )
        METRICS.action_seconds.series(step.action or "").observe(time.monotonic() - clock_began)
        faultpoints.hit("after_action")
        if result.deliveries:
            self._delivered(drive, command.key, result.deliveries)
        if isinstance(result, Succeeded):
            return ActionSucceeded(command.key, result.output)
        return self._failed(drive, command, result, began)

    def _scope(self, drive: Drive) -> dict[str, Any]:
        """What templates see."""
        run = {
            "id": drive.run_id,
            "workflow": drive.revision.workflow.name,
            "revision": drive.revision.number,
            "started_at": drive.started_at,
        }
        return {"event": drive.view, "steps": drive.state.outputs(), "run": run, "secrets": self._secrets}

    def _failed(self, drive: Drive, command: RunAction, result: Failed, began: float) -> ActionFailed:
        METRICS.attempts_failed.labels(result.kind).inc()
        row = AttemptRow(drive.run_id, command.key, command.attempt, began, self._clock(), result.error)
        drive.fresh_attempts.append(row)
        return ActionFailed(command.key, result.error, result.retryable, result.after_s, random.random())

    def _delivered(self, drive: Drive, key: str, records: tuple[DeliveryRecord, ...]) -> None:
        now = self._clock()
        drive.fresh_deliveries += [
            DeliveryRow(drive.run_id, key, r.channel, r.recipient, r.status, 1, r.message_id, r.error, now)
            for r in records
        ]
        sent = {(r.channel, r.recipient): r.message_id for r in records if r.status == "sent"}
        drive.delivered[key] = {**drive.delivered.get(key, {}), **sent}

    async def _record(
        self,
        drive: Drive,
        end: DriveEnd | None,
        prepare: Prepare,
        entry: tuple[str, str],
        valid: Callable[[], bool],
        *,
        dead: str | None = None,
    ) -> None:
        state, now = drive.state, self._clock()
        change = Change(valid=valid, attempts=drive.fresh_attempts, deliveries=drive.fresh_deliveries)
        _put_run(change, drive, now, TIMER if isinstance(end, Parked) else drive.holder)
        before = drive.stored.steps
        change.steps = [_step_row(drive.run_id, s) for k, s in state.steps.items() if before.get(k) is not s]
        if isinstance(end, Parked) and state.at is not None:
            due = state.steps[state.at].due_at
            change.timers = [TimerRow(drive.run_id, state.at, due if due is not None else now, drive.priority)]
        if dead is not None:
            change.letters = [_letter(drive, dead, entry, now)]
        prepare(change, drive, end)
        await self._recorder.record(change)
        drive.version += 1
        drive.claimed = True
        drive.stored = state
        drive.fresh_attempts, drive.fresh_deliveries = [], []


def idempotency_key(run_id: str, key: str) -> str:
    """What every attempt of step ``key`` of a run hands to what it calls: readable, and unique for ever."""
    return f"{run_id}:{key}"


def _unrecorded(drive: Drive) -> bool:
    """Whether a result stands in memory only: it has to be durable before the next effect begins."""
    stored = drive.stored.steps
    return any(s.status in (*TERMINAL, WAITING) and stored.get(k) is not s for k, s in drive.state.steps.items())


def _put_run(change: Change, drive: Drive, now: float, holder: str | None) -> None:
    state = drive.state
    kept = None
    if state.status not in TERMINAL or state.status == FAILED:
        first = {k: s.first_at for k, s in state.steps.items() if k == state.at and s.first_at is not None}
        kept = dumps({"at": state.at, "first_at": first, "by": holder}).decode()
    if drive.version == 0:
        row = RunRow(
            id=drive.run_id,
            event_uid=drive.event.uid,
            workflow_id=drive.revision.workflow_id,
            revision_id=drive.revision.id,
            status=state.status,
            version=1,
            started_at=drive.started_at,
            finished_at=state.finished_at,
            updated_at=now,
            priority=drive.priority,
            state=kept,
            error=state.error,
            origin=drive.origin,
        )
        change.runs = [row]
    else:
        update = RunUpdate(drive.run_id, state.status, drive.version + 1, state.finished_at, now, kept, state.error)
        change.run_updates = [update]


def _step_row(run_id: str, s: StepState) -> StepRow:
    output = dumps(s.output).decode() if s.output is not None else None
    return StepRow(run_id, s.key, s.seq, s.status, s.attempt, s.started_at, s.finished_at, s.due_at, output, s.error)


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
