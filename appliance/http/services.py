"""What the HTTP side needs of the rest of the appliance, as protocols, and the bundle it is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from appliance.editor import Change, Outcome, Plan
    from appliance.engine.impact import Touches
    from appliance.engine.moves import Wanted
    from appliance.events import Event
    from appliance.links import Links
    from appliance.preconditions import Precondition
    from appliance.rules.matcher import Rule
    from appliance.settings import Settings
    from appliance.store.definitions import CurrentWorkflow, StoredRevision
    from appliance.store.history import History, Page
    from appliance.workflows.revision import Workflow


class AcceptedEvent(Protocol):
    """What became of an event that was handed in. For a duplicate, the ids are those of the first event."""

    @property
    def event_id(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def duplicate(self) -> bool: ...


class Submitter(Protocol):
    """The producer: an event is in the stream, durably, when ``submit`` returns; raises Unavailable otherwise."""

    async def submit(self, event: Event, priority: str = "normal") -> AcceptedEvent: ...


class Matched(Protocol):
    """A matcher's verdict on one workflow; ``failure`` is the first criterion that did not hold."""

    @property
    def workflow(self) -> str: ...
    @property
    def matched(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def failure(self) -> Any: ...


class Explainer(Protocol):
    """The matcher, asked for its reasons."""

    @property
    def rules(self) -> Sequence[Rule]: ...

    def explain(self, view: Mapping[str, Any], workflow: str | None = None) -> Sequence[Matched]: ...


class Definitions(Protocol):
    """The catalog: what is in force, and what is odd about it."""

    @property
    def matcher(self) -> Explainer: ...

    def warnings(self, name: str) -> Sequence[str]: ...


class Definers(Protocol):
    """The editor: ``make`` and ``plan`` raise NotFound, Conflict and DefinitionError, ``put`` the last."""

    def put(self, document: Any, name: str | None = None) -> Change: ...
    def switch(self, name: str, enabled: bool) -> Change: ...
    def rollback(self, name: str, number: int | None = None) -> Change: ...
    async def make(self, change: Change, actor: str, condition: Precondition = ...) -> Outcome: ...
    async def plan(self, change: Change, condition: Precondition = ...) -> Plan: ...
    async def revision(self, name: str, number: int | None = None) -> tuple[CurrentWorkflow, StoredRevision]: ...
    async def difference(self, name: str, first: int, second: int | None = None) -> str: ...


class Impacts(Protocol):
    """Which parked runs a new definition of a workflow touches."""

    async def of(self, name: str, new: Workflow | None) -> Touches: ...


class Controls(Protocol):
    """Interventions in runs, events and dead letters; each raises NotFound or Conflict. Answers are JSON data."""

    async def cancel_run(self, run_id: str, actor: str, *, force: bool = False) -> Any: ...
    async def pause_run(self, run_id: str, actor: str) -> Any: ...
    async def resume_run(self, run_id: str, actor: str) -> Any: ...
    async def retry_run(self, run_id: str, actor: str) -> Any: ...
    async def rerun(self, run_id: str, actor: str, *, start: str | None = None, current: bool = False) -> Any: ...
    async def replay(
        self, uids: Sequence[str], actor: str, *, workflow: str | None = None, priority: str | None = None
    ) -> Sequence[Mapping[str, Any]]: ...
    async def send_event(self, run_id: str, event: Event, actor: str) -> Any: ...
    async def settle_step(
        self, run_id: str, key: str, verdict: str, actor: str, *, output: Any = None, error: str | None = None
    ) -> Any: ...
    async def migrate(self, name: str, actor: str, wanted: Wanted, *, dry_run: bool = False) -> Any: ...
    async def redrive(self, letter_id: str, actor: str) -> Any: ...
    async def discard(self, letter_id: str, actor: str) -> Any: ...


class PeoplesTasks(Protocol):
    """Human tasks; all but the list raise NotFound, the interventions Conflict, ``answer`` InputRefused too."""

    async def list_tasks(
        self, filters: Mapping[str, str] | None = None, *, cursor: str | None = None, limit: int = 50
    ) -> Page: ...
    async def get_task(self, task_id: str) -> dict[str, Any]: ...
    async def answer(self, task_id: str, data: Any, by: str, actor: str = "api") -> dict[str, Any]: ...
    async def assign(self, task_id: str, changes: Mapping[str, str | None], actor: str = "api") -> dict[str, Any]: ...


class Timetables(Protocol):
    """When workflows start by themselves; raises Malformed for a cursor that no page gave."""

    async def list_schedules(
        self, workflow: str | None = None, *, preview: int = 0, cursor: str | None = None, limit: int = 50
    ) -> Page: ...


class HeldRuns(Protocol):
    """What flow control holds; raises NotFound for no workflow, Malformed for a cursor that no page gave."""

    async def list_queues(self, *, cursor: str | None = None, limit: int = 50) -> Page: ...
    async def get_queue(self, workflow: str, *, cursor: str | None = None, limit: int = 50) -> Mapping[str, Any]: ...


class PollingSources(Protocol):
    """Polling sources; raises NotFound for one that no file defines, Malformed for a cursor that no page gave."""

    async def list_sources(self) -> Sequence[Mapping[str, Any]]: ...
    async def preview(self, name: str, limit: int) -> Mapping[str, Any]: ...
    async def refused(self, name: str, *, cursor: str | None = None, limit: int = 50) -> Page: ...


class Actions(Protocol):
    """The registry: the actions that are there, and the plugins that failed to load (name -> reason)."""

    @property
    def broken(self) -> Mapping[str, str]: ...

    def describe(self) -> Sequence[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the process at one moment.

    ``dead`` are reasons to restart it (a loop died, the event loop stalls), ``unready`` are reasons not to send it
    traffic (PostgreSQL away, stopping). ``details`` is JSON data for people, and must not contain secrets: ``/health``
    is open.
    """

    started: bool
    dead: tuple[str, ...] = ()
    unready: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether to send it traffic."""
        return self.started and not self.dead and not self.unready


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the HTTP application is given."""

    settings: Settings
    producer: Submitter
    catalog: Definitions
    editor: Definers
    impact: Impacts
    history: History
    control: Controls
    tasks: PeoplesTasks
    links: Links
    schedules: Timetables
    sources: PollingSources
    queues: HeldRuns
    registry: Actions
    ledger: Callable[[], Awaitable[Mapping[str, Any]]]
    recover: Callable[[], Awaitable[Mapping[str, Any]]]
    """Put back to work what was lost, and say how much of each kind that was."""
    trace: Callable[[str], Awaitable[Mapping[str, Any]]]
    """The tree that an event belongs to; raises NotFound."""
    health: Callable[[], Health]
    schema: Callable[[], Mapping[str, Any]]
    """The JSON Schema of the workflow language, with the actions that are installed."""
    api_key: str
    metrics: CollectorRegistry
