"""What a workflow's author tests with: its story under a virtual clock, without servers, networks or waiting.

::

    from appliance.story import Story

    def test_the_boss_is_asked_again_after_two_days() -> None:
        story = Story("config/workflows/approval.yaml")
        story.event("expense.submitted", {"amount": 900, "by": "ada@example.org"})
        story.wait("2d")
        assert [did.action for did in story.done] == ["send_email", "send_email"]
        story.answer("approve", {"approved": True})
        assert story.status == "succeeded"

The life of a run is the engine's own pure function, so what happens here happens there: conditions, templates, delays,
retries, deadlines, tasks, calls. Actions do nothing but be written down; :meth:`Story.when` says what one gives or how
it fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.engine.core import advance, scope
from appliance.engine.gates import Decisions, Go, Join, Leave, Wait
from appliance.engine.listeners import Listeners, business_key, machine_digest, shapes_of, wait_digest, wait_shape
from appliance.engine.state import (
    CANCELLED,
    TERMINAL,
    UNKNOWN,
    WAITING,
    ActionFailed,
    ActionSucceeded,
    Ask,
    Call,
    Cancelled,
    Close,
    Facts,
    Finish,
    Input,
    Listen,
    Resumed,
    RunAction,
    RunState,
    Signal,
    Started,
    base_key,
    path_of,
)
from appliance.engine.turnstile import Turnstile, timeless
from appliance.events import Event, dumps, format_time, loads, new_event
from appliance.identifiers import uuid7
from appliance.plugin import Action, Reject, Retry
from appliance.rules.matcher import Matcher, Rule
from appliance.settings import parse_duration
from appliance.templating import TemplateError
from appliance.workflows import inputs
from appliance.workflows.dialects import compile_document
from appliance.workflows.flow_control import FlowControl
from appliance.workflows.loader import read_document
from appliance.workflows.revision import Workflow

__all__ = ["Done", "Story", "StoryRun", "Task"]

Behaviour = Callable[[dict[str, Any]], Any]
"""What an action does with its parameters: returns its output, or raises Retry or Reject."""

_MAX_TURNS = 100_000
"""Steps of one story, so that a workflow that goes round for ever ends its test."""


@dataclass(frozen=True, slots=True)
class Done:
    """One attempt of one action: when (RFC 3339), in which run and step, with which parameters."""

    at: str
    workflow: str
    step: str
    action: str
    params: dict[str, Any]
    attempt: int


@dataclass(slots=True)
class Task:
    """A person's task. ``status``: open, answered, expired or cancelled."""

    run: StoryRun
    step: str
    key: str
    title: str
    assignee: str | None
    group: str | None
    form: Mapping[str, Any]
    status: str = "open"


@dataclass(slots=True, eq=False)
class StoryRun:
    """A run of a story."""

    id: str
    workflow: Workflow
    facts: Facts
    state: RunState = field(default_factory=RunState)
    caller: tuple[StoryRun, str] | None = None
    event_uid: str = ""
    listens: dict[str, str] = field(default_factory=dict)
    machine_key: str | None = None
    held: str | None = None
    """What flow control let it wait for, or last did: ``debounce``, ``batch``, ``throttle``, ``ordering`` …"""
    number: int = 0
    """Which of the story's runs it is."""
    begun_at: float | None = None
    """When it began (Unix seconds); None: flow control holds it, or left it out."""

    @property
    def status(self) -> str:
        """The run's status."""
        return self.state.status

    @property
    def output(self) -> Any:
        """What the run gave."""
        return self.state.output

    @property
    def outcome(self) -> str | None:
        """How the run ended, in the workflow's own words."""
        return self.state.outcome

    @property
    def at(self) -> list[str]:
        """The steps at which it stands; of a state machine the state."""
        if self.workflow.machine is not None and self.state.place is not None:
            return [self.state.place["state"]]
        return [visit.step for visit in self.state.active()]

    def steps(self) -> dict[str, str]:
        """The status of each step that it came to; of several visits the last one's."""
        return {visit.step: visit.status for visit in self.state.steps.values()}


class Story:
    """Some workflows, the events that happen to them, and what comes of it."""

    def __init__(
        self,
        *workflows: str | Path | Mapping[str, Any] | Workflow,
        at: str = "2030-01-07T09:00:00Z",
        actions: Mapping[str, Action] | None = None,
        secrets: Mapping[str, str] | None = None,
        called: Iterable[Workflow] = (),
    ) -> None:
        """``workflows`` are files or definitions; with ``actions`` their parameters are checked as well.

        ``at`` is when the story begins (a Monday morning). Workflows that are only ``called`` are begun by no event.
        Raises DefinitionError.
        """
        self.now = datetime.fromisoformat(at).astimezone(UTC)
        self.done: list[Done] = []
        self.tasks: list[Task] = []
        self.runs: list[StoryRun] = []
        compiled = {w.name: w for w in (_compiled(given, actions) for given in workflows)}
        self.workflows = {w.name: w for w in called} | compiled
        self._matcher = Matcher(Rule(w.name, w.triggers, n, w) for n, w in enumerate(compiled.values()))
        self._listeners = Listeners(shape for w in self.workflows.values() for shape in shapes_of(w))
        self._secrets: Mapping[str, str] = secrets if secrets is not None else {}
        self._behave: dict[str, Behaviour] = {}
        self._heard: list[tuple[str, Event, float]] = []
        self._queue: deque[tuple[StoryRun, Input]] = deque()
        self._turnstile = Turnstile()
        self._controls = {w.name: (n, self._control(w)) for n, w in enumerate(self.workflows.values())}
        self._batches: dict[str, list[Any]] = {}
        self._by_id: dict[str, StoryRun] = {}
        self._dues: dict[str, float] = {}
        """Of runs that wait for a time: simulations have thousands that are over."""

    # --- what happens ------------------------------------------------------------------------------------------------

    def when(self, name: str, does: Behaviour | Any) -> Story:
        """What an action (by its name or its step's id) does: a function of its parameters, or what it gives."""
        self._behave[name] = does if callable(does) else lambda _: does
        return self

    def event(self, type: str, data: Any = None, *, subject: str | None = None, **attributes: Any) -> list[StoryRun]:
        """An event happens; returns the runs that it begins, or that flow control holds or leaves out."""
        event = new_event(type, loads(dumps(data)), source="/story", subject=subject, attributes=attributes)
        return self.happen(event._replace(time=format_time(self.now)))

    def events(self, type: str, *data: Any, every: str = "0s") -> list[StoryRun]:
        """Events with these data happen one after the other, with so much time between them; returns their runs."""
        begun: list[StoryRun] = []
        for number, each in enumerate(data):
            if number:
                self.wait(every)
            begun += self.event(type, each)
        return begun

    def happen(self, event: Event) -> list[StoryRun]:
        """The same with an event as it is."""
        digests = self._listeners.digests(event.view())
        self._tell(event, digests)
        begun = [self._begin(rule.payload, event, digests) for rule in self._matcher.match(event.view())]
        self._play()
        return [run for run in begun if run is not None and run.event_uid == event.uid]

    def start(self, workflow: str, given: Any = None) -> StoryRun:
        """A workflow is started by its name, which counts as an event; raises InputRefused if its inputs don't fit.

        Returns its run, or the batch that it joins.
        """
        found = self.workflows[workflow]
        inputs.check("input", found.inputs, given)
        event = new_event("workflow.requested", given, source="/story")._replace(time=format_time(self.now))
        run = self._begin(found, event, [])
        if run is None:
            raise ValueError(f"{workflow} has a live machine of this key already")
        self._play()
        return run

    def wait(self, duration: str) -> None:
        """Time passes, and with it delays, retries, reminders and deadlines, each at its own time."""
        self.wait_until(format_time(self.now + parse_duration(duration)))

    def wait_until(self, at: str) -> None:
        """The same until a moment (RFC 3339)."""
        until = datetime.fromisoformat(at)
        while (due := self._next_due()) is not None and due <= until.timestamp():
            self.now = max(self.now, datetime.fromtimestamp(due, UTC))
            self._fall_due(due)
            self._play()
        self.now = max(self.now, until.astimezone(UTC))

    def answer(self, task: str, data: Any, by: str = "somebody") -> None:
        """A person answers the open task of a step (by its id, or by its title).

        Raises InputRefused if the answer doesn't fit the form, LookupError if there is no such open task.
        """
        found = next((t for t in self.tasks if t.status == "open" and task in (t.step, t.title)), None)
        if found is None:
            raise LookupError(f"no open task {task!r}; there is {[t.step for t in self.tasks if t.status == 'open']}")
        inputs.check("answer", found.form, data)
        found.status = "answered"
        signal = Signal(uuid7(), found.key, "answer", {"answer": data, "by": by})
        self._queue.append((found.run, Resumed((signal,), lost=False)))
        self._play()

    def settle(self, step: str, status: str, output: Any = None) -> None:
        """A person says what became of an effect that nobody knows of: succeeded, failed or retry."""
        for run in self.runs:
            for visit in run.state.active():
                if visit.step == step and visit.status == UNKNOWN:
                    payload = {"status": status, "output": output}
                    self._queue.append((run, Resumed((Signal(uuid7(), visit.key, "settle", payload),), lost=False)))
        self._play()

    def cancel(self, run: StoryRun | None = None) -> None:
        """A person cancels a run (the last one)."""
        self._queue.append((run or self.run, Cancelled("cancelled on request")))
        self._play()

    # --- what came of it ---------------------------------------------------------------------------------------------

    @property
    def run(self) -> StoryRun:
        """The last run that an event or a start began."""
        return [run for run in self.runs if run.caller is None][-1]

    @property
    def status(self) -> str:
        """The last run's status."""
        return self.run.status

    def did(self, action: str) -> list[Done]:
        """The attempts of an action, by its name or its step's id."""
        return [done for done in self.done if action in (done.action, done.step)]

    # --- the engine --------------------------------------------------------------------------------------------------

    def _begin(self, workflow: Workflow, event: Event, digests: list[str]) -> StoryRun | None:
        view = event.view()
        machine_key = business_key(workflow.machine.correlate, view) if workflow.machine is not None else None
        if machine_key is not None and any(self._is_live(run, workflow, machine_key) for run in self.runs):
            return None
        run = self._new_run(workflow, view, event.data, event.uid)
        run.machine_key = machine_key
        if machine_key is not None:
            run.listens[""] = machine_digest(workflow.name, machine_key)
        return self._enter(run)

    def _is_live(self, run: StoryRun, workflow: Workflow, key: str) -> bool:
        return run.workflow is workflow and run.machine_key == key and run.status not in TERMINAL

    def _new_run(self, workflow: Workflow, view: Mapping[str, Any], given: Any, event_uid: str) -> StoryRun:
        run_id = uuid7()
        about = {"id": run_id, "workflow": workflow.name, "revision": 1, "started_at": self.now.timestamp()}
        if workflow.machine is not None:
            about["event"] = dict(view)
        facts = Facts(view, given, about, {})
        run = StoryRun(run_id, workflow, facts, event_uid=event_uid, number=len(self._by_id))
        self.runs.append(run)
        self._by_id[run_id] = run
        return run

    def _tell(self, event: Event, digests: list[str]) -> None:
        self._heard += [(digest, event, self.now.timestamp()) for digest in digests]
        for run in self.runs if digests else ():
            for key, digest in run.listens.items():
                if digest in digests and run.status not in TERMINAL:
                    self._hear(run, key, event)

    def _hear(self, run: StoryRun, key: str, event: Event) -> None:
        signal = Signal(event.uid, key, "event", event.view(), event.uid)
        self._queue.append((run, Resumed((signal,), lost=False)))

    def _play(self) -> None:
        turns = 0
        self._wake_held(self.now.timestamp())  # a batch that is full
        while self._queue:
            turns += 1
            if turns > _MAX_TURNS:
                raise RuntimeError(f"the story does not come to rest within {_MAX_TURNS} turns")
            run, given = self._queue.popleft()
            if run.status in TERMINAL:
                continue
            now = self.now.timestamp()
            run.state, commands = advance(run.workflow, run.facts, run.state, given, now)
            self._note_due(run)
            for command in commands:
                self._carry_out(run, command)

    def _note_due(self, run: StoryRun) -> None:
        due = run.state.next_due() if run.status not in TERMINAL else None
        if due is None:
            self._dues.pop(run.id, None)
        else:
            self._dues[run.id] = due

    def _carry_out(self, run: StoryRun, command: Any) -> None:
        match command:
            case RunAction():
                self._queue.append((run, self._act(run, command)))
            case Listen():
                self._listen(run, command)
            case Ask():
                self._ask(run, command)
            case Call():
                self._call(run, command)
            case Close():
                self._close(run, command)
            case Finish():
                self._finish(run)

    def _act(self, run: StoryRun, command: RunAction) -> ActionSucceeded | ActionFailed:
        step = run.workflow.steps[run.workflow.by_id[command.step]]
        now = self.now.timestamp()
        names = scope(run.workflow, run.facts, run.state, command.key, now) | {"secrets": self._secrets}
        if step.id.endswith(".notify"):
            names["task"] = self._task_of(run, command.key)
        try:
            params = step.params.render(names) if step.params is not None else {}
        except TemplateError as error:
            return ActionFailed(command.key, str(error), retryable=False, kind="invalid-params")
        action = step.action or ""
        did = Done(format_time(self.now), run.workflow.name, step.id, action, params, command.attempt)
        self.done.append(did)
        try:
            output = self._effect(run, command.key, did)
        except Reject as error:
            return ActionFailed(command.key, error.reason, retryable=False, kind="rejected")
        except Retry as error:
            return ActionFailed(command.key, error.reason, retryable=True, after_s=error.after_s, kind="retry")
        except TimeoutError:
            return ActionFailed(command.key, "the action did not finish in time", retryable=True, kind="timeout")
        except Exception as error:
            kind = type(error).__name__
            return ActionFailed(command.key, f"{kind}: {error}", retryable=True, classes=(kind,))
        return ActionSucceeded(command.key, loads(dumps(output)))

    def _effect(self, run: StoryRun, key: str, did: Done) -> Any:
        """What an attempt gives; raises as an action does."""
        behave = self._behave.get(did.step) or self._behave.get(did.action)
        return behave(did.params) if behave is not None else None

    def _task_of(self, run: StoryRun, key: str) -> dict[str, Any]:
        of = base_key(key.partition(".notify")[0].partition("[")[0], path_of(key))
        task = [t for t in self.tasks if t.run is run and t.key.partition("#")[0] == of][-1]
        return {
            "id": f"{run.id}:{task.key}",
            "title": task.title,
            "link": f"https://appliance.example/tasks/{task.key}",
        }

    def _listen(self, run: StoryRun, command: Listen) -> None:
        shape = wait_shape(run.workflow.steps[run.workflow.by_id[command.step]])
        digest = run.listens[command.key] = wait_digest(shape, command.values)
        for heard, event, at in list(self._heard):
            if heard == digest and at >= run.facts.run["started_at"]:
                self._hear(run, command.key, event)

    def _ask(self, run: StoryRun, command: Ask) -> None:
        task = run.workflow.steps[run.workflow.by_id[command.step]].task
        about = command.about
        title = str(about.get("title") or command.step)
        form = task.form if task is not None else {}
        self.tasks.append(Task(run, command.step, command.key, title, about.get("assignee"), about.get("group"), form))

    def _call(self, run: StoryRun, command: Call) -> None:
        called = self.workflows.get(command.flow)
        problem = None if called is not None else f"there is no workflow {command.flow!r}"
        try:
            inputs.check("input", called.inputs if called is not None else None, command.input)
        except inputs.InputRefused as error:
            problem = str(error)
        if called is None or problem is not None:
            self._queue.append((run, ActionFailed(command.key, str(problem), retryable=False, kind="call")))
            return
        child = self._new_run(called, run.facts.view, command.input, run.event_uid)
        child.caller = (run, command.key)
        self._enter(child)

    def _close(self, run: StoryRun, command: Close) -> None:
        run.listens.pop(command.key, None)
        for task in self.tasks:
            if task.run is run and task.key == command.key and task.status == "open":
                task.status = command.status
        for child in self.runs:
            if child.caller == (run, command.key) and child.status not in TERMINAL and command.status != "answered":
                self._queue.append((child, Cancelled("cancelled on request")))

    def _finish(self, run: StoryRun) -> None:
        run.listens.clear()
        if self._controls[run.workflow.name][1] is not None:
            for other in self._turnstile.over(run.id):
                self._decided(self._turnstile.wake(other, self.now.timestamp()))
        if run.caller is not None:
            state = run.state
            told = {"status": state.status, "outcome": state.outcome, "output": state.output, "error": state.error}
            signal = Signal(run.id, run.caller[1], "child", told)
            self._queue.append((run.caller[0], Resumed((signal,), lost=False)))

    def _fall_due(self, due: float) -> None:
        self._wake_held(due)
        found = [self._by_id[run_id] for run_id, at in self._dues.items() if at <= due]
        for run in sorted(found, key=lambda run: run.number):
            self._queue.append((run, Resumed(lost=False)))

    def _next_due(self) -> float | None:
        dues = (min(self._dues.values(), default=None), self._turnstile.next_due())
        return min((due for due in dues if due is not None), default=None)

    # --- flow control ------------------------------------------------------------------------------------------------

    def _control(self, workflow: Workflow) -> FlowControl | None:
        """What a workflow's flow control comes to here, where actions take no time."""
        return timeless(workflow.control)

    def _enter(self, run: StoryRun) -> StoryRun:
        """The run begins as soon as it may; returns it, or the batch to which its event belongs."""
        number, control = self._controls[run.workflow.name]
        if control is None:
            self._start(run)
            return run
        run.state = RunState(WAITING)
        names = {"event": run.facts.view, "input": run.facts.input}
        now, called = self.now.timestamp(), run.caller is not None
        decisions = self._turnstile.arrive(run.id, run.event_uid, number, control, names, now, called=called)
        for batch, _, _ in decisions.joins:
            self._batches.setdefault(batch, []).append(run.facts.view)
        self._decided(decisions)
        made = decisions.made[run.id]
        return self._by_id[made.run_id] if isinstance(made, Join) else run

    def _start(self, run: StoryRun) -> None:
        run.begun_at = self.now.timestamp()
        run.state = RunState()
        if run.workflow.control is not None and run.workflow.control.batch is not None:
            run.facts = run.facts._replace(events=self._batches.get(run.id, [run.facts.view]))
        self._queue.append((run, Started()))

    def _wake_held(self, due: float) -> None:
        for run_id in self._turnstile.due(due):
            self._decided(self._turnstile.wake(run_id, due))

    def _decided(self, decisions: Decisions) -> None:
        """Carry out what flow control decided."""
        for run_id in decisions.cancels:
            self._queue.append((self._by_id[run_id], Cancelled("cancelled on request")))
        for run_id, decision in {**decisions.made, **decisions.ended}.items():
            run = self._by_id[run_id]
            if isinstance(decision, Go):
                self._start(run)
            elif isinstance(decision, Wait):
                run.held = decision.part
            elif isinstance(decision, Leave) and run.caller is not None:
                self._queue.append((run, Cancelled(decision.error)))
            elif isinstance(decision, Leave):
                over = RunState(CANCELLED, error=decision.error, finished_at=self.now.timestamp())
                run.state = over._replace(outcome=decision.outcome)
            elif isinstance(decision, Join):
                self.runs.remove(run)

    def __iter__(self) -> Iterator[Done]:
        return iter(self.done)


def _compiled(given: str | Path | Mapping[str, Any] | Workflow, actions: Mapping[str, Action] | None) -> Workflow:
    if isinstance(given, Workflow):
        return given
    if isinstance(given, Mapping):
        return compile_document(dict(given), actions=actions)[0]
    document = read_document(Path(given))
    return compile_document(document.data, actions=actions, file=str(given), lines=document.lines)[0]
