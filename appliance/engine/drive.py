"""Driving one run from where it stands to where it ends, parks or waits: the shell around the pure core.

Each step's result is durable before the next step's effect begins. A run that goes through in one piece is written
once, at its end.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from appliance import faultpoints
from appliance.engine import storable
from appliance.engine.actions import ActionRunner, DeliveryRecord, Failed, Succeeded
from appliance.engine.changes import (
    CANCEL,
    PAUSE,
    RETRY,
    Announce,
    Backoff,
    Called,
    Drive,
    DriveEnd,
    Ended,
    Parked,
    change_of,
)
from appliance.engine.core import advance, postponed, scope
from appliance.engine.redaction import Redaction
from appliance.engine.state import (
    FAILED,
    RETRYING,
    TERMINAL,
    UNKNOWN,
    WAITING,
    ActionFailed,
    ActionSucceeded,
    Call,
    Cancelled,
    Finish,
    Input,
    Resumed,
    Retried,
    RunAction,
    Signal,
    base_key,
    path_of,
    step_of,
)
from appliance.engine.turn import StepError
from appliance.errors import ApplianceError, LeaseLost, Malformed, NotFound, StoreUnavailable
from appliance.identifiers import task_id_for
from appliance.observe.metrics import METRICS
from appliance.plugin import RunInfo
from appliance.store.recorder import Recorder
from appliance.store.rows import AttemptRow, Change, DeliveryRow
from appliance.templating import TemplateError
from appliance.workflows import inputs
from appliance.workflows.inputs import InputRefused
from appliance.workflows.revision import Revision, Step, Workflow

_MAX_AT_ONCE = 100
"""Attempts of one run under way at once; more branches than that take turns."""
_LOOK_EVERY_S = 1.0
"""How often to look for what came in for a run while attempts of it are under way."""
_RESULTS = frozenset({*TERMINAL, WAITING, UNKNOWN})
_CANCELLED = "cancelled on request"


def gives_back(workflow: Workflow) -> bool:
    """Whether a run has places only while it is at work: then it doesn't hold its entry while it backs off."""
    return workflow.control is not None and any(not slots.keeps for slots in workflow.control.slots)


class CallRefused(ApplianceError):
    """A workflow can't be called."""


Prepare = Callable[[Change, Drive, DriveEnd | None], None]
"""Completes a change of a run with what belongs to the run's entry: the event's row, its outcome."""


class Definitions(Protocol):
    """What this needs of the catalog."""

    def current(self, name: str) -> Revision:
        """The revision in force of a workflow; NotFound."""
        ...


class Driver:
    """Carries out the core's commands. One per process."""

    def __init__(
        self,
        actions: ActionRunner,
        recorder: Recorder,
        definitions: Definitions,
        *,
        secrets: dict[str, str],
        park_after_s: float,
        may_hold: Callable[[], bool],
        on_timer: Callable[[float], None],
        max_depth: int = 8,
        task_link: Callable[[str], str] = str,
        announce: Announce | None = None,
        incoming: Callable[[str], Awaitable[tuple[Signal, ...]]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._actions = actions
        self._recorder = recorder
        self._definitions = definitions
        self._secrets = secrets
        self._redaction = Redaction(secrets.values())
        self._park_after_s = park_after_s
        self._may_hold = may_hold
        self._on_timer = on_timer
        self._max_depth = max_depth
        self._task_link = task_link
        self._announce = announce
        self._incoming = incoming
        self._clock = clock

    async def run(
        self, drive: Drive, given: Input, prepare: Prepare, entry: tuple[str, str], valid: Callable[[], bool]
    ) -> DriveEnd:
        """Go on with ``drive`` until it ends, parks or backs off; what is reached is durable when this returns.

        ``entry`` is (priority, entry id), for dead letters; ``valid`` says whether the entry's lease is still ours.
        Raises Fenced, and what the recorder raises.
        """

        async def record(end: DriveEnd | None) -> None:
            change = change_of(drive, end, self._clock(), entry, self._announce)
            change.valid = valid
            prepare(change, drive, end)
            await self._recorder.record(change)
            drive.recorded(change.asked)
            if (due := _soonest(change)) is not None:
                self._on_timer(due)

        asked = await self._begin(drive, given)
        while asked := self._obey(drive, asked):
            if _needs_record(drive, asked):
                await record(None)
                if drive.asked is not None:
                    continue
            if not valid():
                raise LeaseLost("the lease was lost")
            if len(asked) > 1 or _waits_beside(drive):
                await self._together(drive, asked, record, valid)
                asked = []
            else:
                asked = await self._advance(drive, await self._act(drive, asked[0]))
        end = self._end(drive)
        await record(end)
        return end

    async def _begin(self, drive: Drive, given: Input) -> list[RunAction]:
        if drive.asked == PAUSE:
            drive.noticed = PAUSE
            drive.paused = True
            drive.asked = None
            return []
        if drive.asked == CANCEL:
            await self._advance(drive, Cancelled(_CANCELLED))
            given = given if isinstance(given, Resumed) else Resumed()  # nobody makes the attempts under way any more
        elif drive.asked == RETRY:
            drive.state = drive.state._replace(status=FAILED)
            await self._advance(drive, Retried())  # which makes due what is to be begun anew
        drive.noticed = drive.asked or drive.noticed
        drive.asked = None
        return await self._advance(drive, given)

    async def _advance(self, drive: Drive, given: Input) -> list[RunAction]:
        """Work in what happened; returns the attempts to be made."""
        if isinstance(given, Resumed) and given.signals:
            drive.seen |= {(signal.id, signal.key) for signal in given.signals}
        workflow = drive.revision.workflow
        drive.state, commands = advance(workflow, drive.facts, drive.state, given, self._clock())
        asked: list[RunAction] = []
        for command in commands:
            if isinstance(command, RunAction):
                asked.append(command)
            elif isinstance(command, Finish):
                drive.dead = command.dead
            elif isinstance(command, Call):
                asked += await self._call(drive, command)
            else:
                drive.pending.append(command)
        return asked

    async def _call(self, drive: Drive, command: Call) -> list[RunAction]:
        """Find the workflow that a step calls; a call that can't be made fails the step."""
        depth = (drive.details or {}).get("depth", 0) + 1
        try:
            if depth > self._max_depth:
                raise CallRefused(f"workflows call each other deeper than {self._max_depth} levels (engine.max_depth)")
            revision = self._definitions.current(command.flow)
            if revision.workflow.machine is not None:
                raise CallRefused(f"{command.flow} is a state machine, which events begin: it can't be called")
            await asyncio.to_thread(inputs.check, "input", revision.workflow.inputs, command.input)
        except (NotFound, CallRefused, InputRefused, Malformed) as error:
            return await self._advance(drive, ActionFailed(command.key, str(error), False, kind="call"))
        drive.calls.append(Called(command, revision, depth))
        return []

    def _obey(self, drive: Drive, asked: list[RunAction]) -> list[RunAction]:
        """Take notice of what a person asked: attempts that were not begun yet are not made for now."""
        if drive.asked is None and not drive.paused:
            return asked
        now = self._clock()
        if asked:
            drive.state = postponed(drive.state, [command.key for command in asked], now)
        if drive.asked is not None:
            drive.noticed = drive.asked
            drive.paused = drive.asked == PAUSE
        if drive.asked != CANCEL:
            drive.asked = None
            return []
        drive.asked = None
        workflow = drive.revision.workflow
        drive.state, commands = advance(workflow, drive.facts, drive.state, Cancelled(_CANCELLED), now)
        drive.pending += [c for c in commands if not isinstance(c, RunAction | Finish)]
        return [c for c in commands if isinstance(c, RunAction)]

    async def _together(
        self,
        drive: Drive,
        asked: list[RunAction],
        record: Callable[[DriveEnd | None], Awaitable[None]],
        valid: Callable[[], bool],
    ) -> None:
        """Make several attempts at once, and those that follow from them, until none is under way or to be made."""
        under_way: dict[asyncio.Task[Input], RunAction] = {}
        try:
            while asked or under_way:
                asked = self._obey(drive, asked)
                if asked and _needs_record(drive, asked):
                    await record(None)
                    if drive.asked is not None:
                        continue
                if asked and not valid():
                    raise LeaseLost("the lease was lost")
                room = _MAX_AT_ONCE - len(under_way)
                for command in asked[:room]:
                    name = f"step {command.key} of run {drive.run_id}"
                    under_way[asyncio.create_task(self._act(drive, command), name=name)] = command
                asked = asked[room:]
                if under_way:
                    asked += await self._results(drive, under_way)
        finally:
            for task in under_way:
                task.cancel()
            if under_way:
                await asyncio.wait(under_way)

    async def _results(self, drive: Drive, under_way: dict[asyncio.Task[Input], RunAction]) -> list[RunAction]:
        """Wait for an attempt, or for what falls due or comes in beside them; returns the attempts that follow."""
        listens = not drive.paused and _listens(drive)
        due = None if drive.paused else drive.state.next_due()  # a paused run begins nothing, whatever falls due
        wait_s = None if due is None else max(0.0, due - self._clock())
        if listens:
            wait_s = _LOOK_EVERY_S if wait_s is None else min(wait_s, _LOOK_EVERY_S)
        done, _ = await asyncio.wait(under_way, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        asked: list[RunAction] = []
        for task in [task for task in under_way if task in done]:
            del under_way[task]
            asked += await self._advance(drive, task.result())
        due = None if drive.paused else drive.state.next_due()
        is_due = due is not None and due <= self._clock()
        signals = await self._came_in(drive) if listens and (is_due or not done) else ()
        if is_due or signals:
            asked += await self._advance(drive, Resumed(signals, lost=False))
        return asked

    async def _came_in(self, drive: Drive) -> tuple[Signal, ...]:
        """What came in since the run was taken up: of an answer and a deadline the one that came first counts."""
        if self._incoming is None:
            return ()
        try:
            signals = await self._incoming(drive.run_id)
        except StoreUnavailable:  # attempts are under way: it is looked at later
            return ()
        return tuple(s for s in signals if (s.id, s.key) not in drive.seen)

    def _end(self, drive: Drive) -> DriveEnd:
        state = drive.state
        if state.status in TERMINAL:
            return Ended(dead=drive.dead is not None and "parent" not in (drive.details or {}))
        if drive.paused:
            return Parked(paused=True)
        due = state.next_due()
        if state.status == RETRYING and due is not None:
            delay_s = due - self._clock()
            holds = not gives_back(drive.revision.workflow)
            if delay_s <= self._park_after_s and holds and self._may_hold():
                return Backoff(max(0.0, delay_s))
        return Parked()

    async def _act(self, drive: Drive, command: RunAction) -> Input:
        workflow = drive.revision.workflow
        step = workflow.steps[workflow.by_id[command.step]]
        began = self._clock()
        try:
            params = self._params(drive, step, command, began)
        except (TemplateError, StepError) as error:
            why = self._redaction.text(storable.text(str(error)))  # it may name a key that was looked up
            return self._failed(drive, command, Failed(why, False, "invalid-params"), began)
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

    def _params(self, drive: Drive, step: Step, command: RunAction, now: float) -> Any:
        if step.params is None:
            return {}
        if step.params.is_literal:
            return step.params.render({})
        names = scope(drive.revision.workflow, drive.facts, drive.state, command.key, now)
        names["secrets"] = self._secrets
        if step.id.endswith(".notify"):
            names["task"] = self._task(drive, command.key)
        return step.params.render(names)

    def _task(self, drive: Drive, key: str) -> dict[str, Any]:
        """What a notice sees of the task that it is about."""
        step_id = step_of(key).removesuffix(".notify")
        path = path_of(key)
        base = base_key(step_id, path)
        asked = [s for s in drive.state.steps.values() if s.step == step_id and s.key.partition("#")[0] == base]
        task_key = asked[-1].key if asked else base
        task_id = task_id_for(drive.run_id, task_key)
        return {"id": task_id, "link": self._task_link(task_id), "title": self._title(drive, step_id, task_key)}

    def _title(self, drive: Drive, step_id: str, key: str) -> str:
        """The task's title, as it was when the task was asked: a reminder may come from another process."""
        workflow = drive.revision.workflow
        task = workflow.steps[workflow.by_id[step_id]].task
        if task is None or key not in drive.state.steps:
            return step_id
        about = task.about.render(scope(workflow, drive.facts, drive.state, key, self._clock()))
        return str(about.get("title") or step_id)

    def _failed(self, drive: Drive, command: RunAction, result: Failed, began: float) -> ActionFailed:
        METRICS.attempts_failed.labels(result.kind).inc()
        row = AttemptRow(drive.run_id, command.key, command.attempt, began, self._clock(), result.error)
        drive.fresh_attempts.append(row)
        return ActionFailed(
            command.key, result.error, result.retryable, result.after_s, random.random(), result.kind, result.classes
        )

    def _delivered(self, drive: Drive, key: str, records: tuple[DeliveryRecord, ...]) -> None:
        now = self._clock()
        drive.fresh_deliveries += [
            DeliveryRow(drive.run_id, key, r.channel, r.recipient, r.status, 1, r.message_id, r.error, now)
            for r in records
        ]
        sent = {(r.channel, r.recipient): r.message_id for r in records if r.status == "sent"}
        drive.delivered[key] = {**drive.delivered.get(key, {}), **sent}


def idempotency_key(run_id: str, key: str) -> str:
    """What every attempt of step ``key`` of a run hands to what it calls: readable, and unique for ever."""
    return f"{run_id}:{key}"


def _soonest(change: Change) -> float | None:
    """When the first timer of a change is due, those of other runs that it wakes counted in (Unix seconds)."""
    if change.more is not None and "cancelled_children" in change.more:
        return 0.0
    return min((timer.due_at for timer in change.timers), default=None) if change.timers else None


def _listens(drive: Drive) -> bool:
    """Whether the run waits for something that may come in."""
    workflow = drive.revision.workflow
    waiting = [s for s in drive.state.steps.values() if s.status == WAITING]
    return any(workflow.steps[workflow.by_id[s.step]].kind != "delay" for s in waiting)


def _waits_beside(drive: Drive) -> bool:
    """Whether there is something to look at while an attempt is under way."""
    return len(drive.state.steps) > 1 and (drive.state.next_due() is not None or _listens(drive))


def _needs_record(drive: Drive, asked: Sequence[RunAction]) -> bool:
    """Whether something has to be durable before the attempts begin: results, what was asked for, an intent, a key."""
    if not drive.claimed or drive.pending or drive.calls or (drive.machine_key is not None and drive.version == 0):
        return True
    workflow, stored = drive.revision.workflow, drive.stored.steps
    at_most_once = [c.key for c in asked if workflow.steps[workflow.by_id[c.step]].at_most_once]
    if any(stored.get(key) is not drive.state.steps[key] for key in at_most_once):  # not twice for the same attempt
        return True
    if len(drive.state.steps) == 1:
        return False
    return any(s.status in _RESULTS and stored.get(k) is not s for k, s in drive.state.steps.items())
