"""Stand-ins for what the HTTP side needs of the rest; they record what they were asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from appliance.editor import Draft, Outcome, Plan
from appliance.engine.impact import Touched, Touches
from appliance.engine.moves import Wanted
from appliance.errors import Conflict, DefinitionError, NotFound
from appliance.events import Event
from appliance.http.services import Health, Services
from appliance.links import Links
from appliance.preconditions import NOTHING_SAID, Precondition
from appliance.rules.conditions import compile_condition
from appliance.rules.matcher import Rule, Trigger
from appliance.settings import Settings
from appliance.store.definitions import CurrentWorkflow, StoredRevision
from appliance.store.history import Page
from appliance.workflows.inputs import check

API_KEY = "correct horse"


@dataclass
class Accepted:
    event_id: str
    uid: str
    duplicate: bool = False


@dataclass
class FakeProducer:
    """Accepts everything once per key; ``refusal`` is raised instead, for the events it is told of."""

    events: list[tuple[Event, str]] = field(default_factory=list)
    refusal: Exception | None = None
    refuse_only: str | None = None
    first: dict[str, Event] = field(default_factory=dict)

    async def submit(self, event: Event, priority: str = "normal") -> Accepted:
        if self.refusal is not None and self.refuse_only in (None, event.id):
            raise self.refusal
        if event.key is not None:
            first = self.first.setdefault(event.key, event)
            if first is not event:
                return Accepted(first.id, first.uid, duplicate=True)
        self.events.append((event, priority))
        return Accepted(event.id, event.uid)

    @property
    def last(self) -> Event:
        return self.events[-1][0]


@dataclass(frozen=True)
class FakeVerdict:
    workflow: str
    matched: bool
    reason: str
    failure: Any = None


@dataclass(frozen=True)
class FakeMismatch:
    path: str
    actual: Any


@dataclass
class FakeMatcher:
    asked: list[tuple[Mapping[str, Any], str | None]] = field(default_factory=list)
    rules = (Rule("b", (Trigger("t", compile_condition({"path": "template_id", "op": "==", "value": "b"})),), 0, None),)

    def explain(self, view: Mapping[str, Any], workflow: str | None = None) -> Sequence[FakeVerdict]:
        self.asked.append((view, workflow))
        verdicts = [
            FakeVerdict("a", True, "matched"),
            FakeVerdict("b", False, "no", FakeMismatch("template_id", view.get("template_id"))),
        ]
        return [verdict for verdict in verdicts if workflow in (None, verdict.workflow)]


@dataclass
class FakeCatalog:
    matcher: FakeMatcher = field(default_factory=FakeMatcher)

    def warnings(self, name: str) -> list[str]:
        return [f"{name} is odd"]


STANDING = CurrentWorkflow(7, "w", "api", None, True, 70, 2, "d", "e2")
STORED = StoredRevision(70, 7, 2, '{"name": "w"}', "d", datetime(2030, 1, 31, tzinfo=UTC))


@dataclass
class FakeEditor:
    """Makes or plans every change as a ``kind``; ``calls`` holds what was asked, ``refusal`` is raised instead."""

    kind: str = "change"
    refusal: Exception | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    standing: CurrentWorkflow = STANDING

    def put(self, document: Any, name: str | None = None) -> Any:
        if not isinstance(document, dict) or "name" not in document:
            raise DefinitionError("no name")
        return ("put", document, name)

    def switch(self, name: str, enabled: bool) -> Any:
        return ("switch", name, enabled)

    def rollback(self, name: str, number: int | None = None) -> Any:
        return ("rollback", name, number)

    async def make(self, change: Any, actor: str, condition: Precondition = NOTHING_SAID) -> Outcome:
        self._ask("make", change, actor, condition)
        return Outcome(self.kind, self.standing)

    async def plan(self, change: Any, condition: Precondition = NOTHING_SAID) -> Plan:
        self._ask("plan", change, condition)
        workflow: Any = "the new one"
        draft = Draft(self.kind, True, {"name": "w"}, workflow, None)
        return Plan("w", draft, self.standing, "-a\n+b\n", ["odd"], ["gone"], True)

    async def revision(self, name: str, number: int | None = None) -> tuple[CurrentWorkflow, StoredRevision]:
        self._ask("revision", name, number)
        return self.standing, STORED

    async def difference(self, name: str, first: int, second: int | None = None) -> str:
        self._ask("difference", name, first, second)
        return "-a\n+b\n"

    def _ask(self, *call: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append(call)


@dataclass
class FakeImpact:
    """``asked`` holds the names and definitions that it was asked about."""

    asked: list[tuple[str, Any]] = field(default_factory=list)

    async def of(self, name: str, new: Any) -> Touches:
        self.asked.append((name, new))
        return Touches([Touched(1, "waiting", ("ask",), 3, "r", ("there is no step ask",))])


@dataclass
class FakeHistory:
    """Answers every list with ``page`` and finds ``items`` by id; ``calls`` holds what was asked."""

    page: Page = field(default_factory=lambda: Page([{"id": "x"}], "next"))
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    refusal: Exception | None = None

    def _answer(self, *call: Any) -> Page:
        self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal
        return self.page

    def _item(self, id: str) -> dict[str, Any]:
        if id not in self.items:
            raise NotFound(f"no {id!r}")
        return self.items[id]

    async def list_events(self, filters: Any = None, **more: Any) -> Page:
        return self._answer("events", filters, more)

    async def list_runs(self, filters: Any = None, **more: Any) -> Page:
        return self._answer("runs", filters, more)

    async def list_dead_letters(self, filters: Any = None, **more: Any) -> Page:
        return self._answer("letters", filters, more)

    async def list_workflows(self, **more: Any) -> Page:
        return self._answer("workflows", more)

    async def list_machines(self, filters: Any = None, **more: Any) -> Page:
        return self._answer("machines", filters, more)

    async def get_machine(self, workflow: str, key: str) -> dict[str, Any]:
        return self._item(f"{workflow} {key}")

    async def find_events(self, event_id: str, limit: int = 100) -> list[dict[str, Any]]:
        return [self.items[event_id]] if event_id in self.items else []

    async def get_event(self, id: str) -> dict[str, Any]:
        return self._item(id)

    async def get_run(self, id: str) -> dict[str, Any]:
        return self._item(id)

    async def get_dead_letter(self, id: str) -> dict[str, Any]:
        return self._item(id)

    async def get_workflow(self, id: str) -> dict[str, Any]:
        return self._item(id)


@dataclass
class FakeControl:
    """``calls`` holds what was asked: (what, of which, by whom), and the options that were given."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    refusal: Exception | None = None

    def _act(self, *call: Any, **options: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        given = {name: value for name, value in options.items() if value not in (None, False)}
        self.calls.append((*call, given) if given else call)

    async def cancel_run(self, run_id: str, actor: str, *, force: bool = False) -> Any:
        self._act("cancel", run_id, actor, force=force)

    async def pause_run(self, run_id: str, actor: str) -> Any:
        self._act("pause", run_id, actor)

    async def resume_run(self, run_id: str, actor: str) -> Any:
        self._act("resume", run_id, actor)

    async def retry_run(self, run_id: str, actor: str) -> Any:
        self._act("retry", run_id, actor)
        return {"status": "retrying"}

    async def rerun(self, run_id: str, actor: str, *, start: str | None = None, current: bool = False) -> Any:
        self._act("rerun", run_id, actor, start=start, current=current)
        return {"run": "new", "revision": 1}

    async def replay(
        self, uids: Sequence[str], actor: str, *, workflow: str | None = None, priority: str | None = None
    ) -> Sequence[Mapping[str, Any]]:
        self._act("replay", list(uids), actor, workflow=workflow, priority=priority)
        return [{"event": uid, "runs": [{"id": "new", "workflow": "w"}]} for uid in uids]

    async def send_event(self, run_id: str, event: Event, actor: str) -> Any:
        self._act("event", run_id, actor, event=event)
        return {"id": event.id, "uid": event.uid, "status": "accepted"}

    async def settle_step(
        self, run_id: str, key: str, verdict: str, actor: str, *, output: Any = None, error: str | None = None
    ) -> Any:
        self._act("settle", run_id, key, verdict, actor, output=output, error=error)
        return {"step": key, "status": "accepted"}

    async def migrate(self, name: str, actor: str, wanted: Wanted, *, dry_run: bool = False) -> Any:
        self._act("migrate", name, actor, wanted=wanted, dry_run=dry_run)
        return {"to": 2, "moved": ["r"], "stayed": [], "busy": [], "next_cursor": None}

    async def redrive(self, letter_id: str, actor: str) -> Any:
        self._act("redrive", letter_id, actor)

    async def discard(self, letter_id: str, actor: str) -> Any:
        self._act("discard", letter_id, actor)


@dataclass
class FakeTasks:
    """Tasks by id, that are answered once; ``calls`` holds what was asked."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    refusal: Exception | None = None

    async def list_tasks(self, filters: Any = None, **more: Any) -> Page:
        self.calls.append(("list", filters, more))
        return Page([{"id": "x"}], "next")

    async def get_task(self, task_id: str) -> dict[str, Any]:
        if task_id not in self.tasks:
            raise NotFound(f"there is no task {task_id}")
        return dict(self.tasks[task_id])

    async def answer(self, task_id: str, data: Any, by: str, actor: str = "api") -> dict[str, Any]:
        task = await self.get_task(task_id)
        if self.refusal is not None:
            raise self.refusal
        if task["status"] != "open":
            raise Conflict(f"task {task_id} was {task['status']}")
        check("answer", task["form"], data)
        self.calls.append(("answer", task_id, data, by, actor))
        self.tasks[task_id] |= {"status": "answered", "answer": data, "closed_at": "2030-01-31T09:00:00.000Z"}
        return {"status": "answered", "run_id": "r", "step": "approve"}

    async def assign(self, task_id: str, changes: Mapping[str, str | None], actor: str = "api") -> dict[str, Any]:
        await self.get_task(task_id)
        self.calls.append(("assign", task_id, dict(changes), actor))
        return {"assignee": None, "group": None, **changes}


@dataclass
class FakeTimetable:
    """One schedule; ``calls`` holds what was asked."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    async def list_schedules(self, workflow: str | None = None, **more: Any) -> Page:
        self.calls.append((workflow, more))
        return Page([{"workflow": "digest", "schedule": "0 9 * * 1"}], "digest/0")


@dataclass
class FakeSources:
    """One source; ``calls`` holds what was asked."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    async def list_sources(self) -> list[dict[str, Any]]:
        return [{"name": "shop", "state": "ok"}]

    async def preview(self, name: str, limit: int) -> dict[str, Any]:
        self.calls.append((name, limit))
        return {"name": name, "error": None, "events": []}

    async def refused(self, name: str, **more: Any) -> Page:
        self.calls.append((name, more))
        return Page([{"key": "1", "error": "NaN"}], "next")


@dataclass
class FakeQueues:
    """``calls`` holds what was asked."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    async def list_queues(self, *, cursor: str | None = None, limit: int = 50) -> Page:
        self.calls.append((cursor, limit))
        return Page([{"workflow": "w", "waiting": 3}], "4")

    async def get_queue(self, workflow: str, *, cursor: str | None = None, limit: int = 50) -> Mapping[str, Any]:
        self.calls.append((workflow, cursor, limit))
        if workflow == "nobody":
            raise NotFound("no workflow 'nobody'")
        return {"workflow": workflow, "items": [], "meters": [], "next_cursor": None}


@dataclass
class FakeRegistry:
    broken: Mapping[str, str] = field(default_factory=lambda: {"fax": "ImportError: no fax"})

    def describe(self) -> Sequence[Mapping[str, Any]]:
        return [{"name": "log"}]


@dataclass
class Fakes:
    """Everything that a test wants to set up or look at."""

    producer: FakeProducer = field(default_factory=FakeProducer)
    catalog: FakeCatalog = field(default_factory=FakeCatalog)
    editor: FakeEditor = field(default_factory=FakeEditor)
    impact: FakeImpact = field(default_factory=FakeImpact)
    history: FakeHistory = field(default_factory=FakeHistory)
    control: FakeControl = field(default_factory=FakeControl)
    tasks: FakeTasks = field(default_factory=FakeTasks)
    links: Links = field(default_factory=lambda: Links("k" * 32, "http://appliance"))
    schedules: FakeTimetable = field(default_factory=FakeTimetable)
    sources: FakeSources = field(default_factory=FakeSources)
    queues: FakeQueues = field(default_factory=FakeQueues)
    health: Health = field(default_factory=lambda: Health(started=True, details={"redis": "ok"}))

    def services(self, settings: Settings | None = None) -> Services:
        metrics = CollectorRegistry()
        Counter("appliance_things", "Things.", registry=metrics)

        async def ledger() -> Mapping[str, Any]:
            return {"accepted": 3, "difference": 0}

        async def recover() -> Mapping[str, Any]:
            return {"recovered": 2, "held": 2}

        async def trace(event_id: str) -> Mapping[str, Any]:
            return {"event": event_id, "correlation_id": "c", "events": [], "nodes": 0, "cut": False}

        return Services(
            settings=settings or Settings(),
            producer=self.producer,
            catalog=self.catalog,
            editor=self.editor,
            impact=self.impact,
            history=self.history,  # type: ignore[arg-type]  # the real one needs a database
            control=self.control,
            tasks=self.tasks,
            links=self.links,
            schedules=self.schedules,
            sources=self.sources,
            queues=self.queues,
            registry=FakeRegistry(),
            ledger=ledger,
            recover=recover,
            trace=trace,
            health=lambda: self.health,
            schema=lambda: {"type": "object"},
            api_key=API_KEY,
            metrics=metrics,
        )
