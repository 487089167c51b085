"""The rows that the recorder writes: one NamedTuple a table, its fields in the order of the table's columns.

Times are Unix seconds (float), ids are UUID texts, JSON is text: what turns into PostgreSQL's binary arrays fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class EventRow(NamedTuple):
    """A new row of ``events``."""

    uid: str
    id: str | None
    source: str
    type: str
    subject: str | None
    time: str
    received_at: float
    attributes: str | None
    data: str | None
    key: str | None
    stream: str
    entry_id: str
    outcome: str | None


class RunRow(NamedTuple):
    """A new row of ``runs``; its id is unique per (event, workflow)."""

    id: str
    event_uid: str | None
    workflow_id: int
    revision_id: int
    status: str
    version: int
    started_at: float
    finished_at: float | None
    updated_at: float
    priority: str
    state: str | None
    error: str | None
    origin: str | None
    details: str | None = None
    result: str | None = None


class RunUpdate(NamedTuple):
    """A change of a row of ``runs`` that must still have version ``version - 1``."""

    id: str
    status: str
    version: int
    finished_at: float | None
    updated_at: float
    state: str | None
    error: str | None
    result: str | None = None
    noticed: str | None = None
    """What was asked of the run and is done: ``asked`` is cleared if it is that, and not something else by now."""


class RevisionRow(NamedTuple):
    """A run that goes on in another revision; ``version`` is the one that is written with it."""

    id: str
    revision_id: int
    version: int


class StepRow(NamedTuple):
    """A row of ``steps``, new or changed."""

    run_id: str
    key: str
    seq: int
    status: str
    attempt: int
    started_at: float | None
    finished_at: float | None
    due_at: float | None
    output: str | None
    error: str | None


class AttemptRow(NamedTuple):
    """A failed attempt."""

    run_id: str
    key: str
    attempt: int
    started_at: float
    finished_at: float
    error: str


class TimerRow(NamedTuple):
    """A run to be woken."""

    run_id: str
    key: str
    due_at: float
    priority: str


class DeliveryRow(NamedTuple):
    """One message to one recipient, new or changed; ``attempts`` are added to what is there."""

    run_id: str
    key: str
    channel: str
    recipient: str
    status: str
    attempts: int
    message_id: str | None
    error: str | None
    updated_at: float


class LetterRow(NamedTuple):
    """A dead letter; one that is there already is opened again."""

    id: str
    kind: str
    event_uid: str | None
    run_id: str | None
    step: str | None
    stream: str | None
    entry_id: str | None
    fields: str | None
    error: str
    attempts: int
    created_at: float


class DuplicateRow(NamedTuple):
    """An entry that repeated an event."""

    uid: str
    first_uid: str
    stream: str
    entry_id: str


class DeathRow(NamedTuple):
    """A dead letter of an event whose entry may be settled already: it then moves from ``handled`` to ``dead``."""

    event_uid: str
    letter_id: str


class OutcomeRow(NamedTuple):
    """The outcome of an event that is in ``events`` already; ``handled`` with a dead letter means ``dead``."""

    uid: str
    outcome: str | None


class WaitRow(NamedTuple):
    """A run that listens for events with this digest, looking back to ``since`` (a UUID's time)."""

    run_id: str
    key: str
    digest: str
    since: str


class CorrelationRow(NamedTuple):
    """An event by what it may be waited for."""

    digest: str
    event_uid: str


class MachineRow(NamedTuple):
    """The live state machine of a business key; one that is there already is an error on purpose."""

    workflow_id: int
    business_key: str
    run_id: str


class TaskRow(NamedTuple):
    """A person's task."""

    id: str
    run_id: str
    key: str
    workflow_id: int
    title: str
    description: str | None
    assignee: str | None
    people: str | None
    form: str
    created_at: float
    due_at: float | None


class ChildRow(NamedTuple):
    """A run and the run that a step of it called."""

    parent_id: str
    key: str
    run_id: str


class SignalRow(NamedTuple):
    """Something that came in for a run."""

    run_id: str
    id: str
    key: str
    kind: str
    event_uid: str | None
    payload: str | None


class TakenRow(NamedTuple):
    """A signal that was looked at; somebody else must not have done so."""

    run_id: str
    id: str
    key: str
    taken: str
    by: str


class ClosedTaskRow(NamedTuple):
    """A task that is over without an answer; one that was answered meanwhile is an error on purpose.

    Not where ``status`` is ``dropped``: it is cancelled because its run ends, which an answer doesn't change.
    """

    run_id: str
    key: str
    status: str


class Mark(NamedTuple):
    """A run, or a step of it."""

    run_id: str
    key: str


class OutboxRow(NamedTuple):
    """An event to be put into a stream. ``entry`` is the entry's fields as a JSON object of texts.

    ``durable``: the row stays until the event is settled; otherwise only until it was put in.
    """

    uid: str
    priority: str
    entry: str
    durable: bool


def _always() -> bool:
    return True


@dataclass(slots=True)
class Change:
    """What is committed together for one entry, or not at all.

    ``valid`` is asked again right before each try: a change whose lease was lost is dropped (Fenced).
    """

    events: Sequence[EventRow] = ()
    runs: Sequence[RunRow] = ()
    run_updates: Sequence[RunUpdate] = ()
    steps: Sequence[StepRow] = ()
    attempts: Sequence[AttemptRow] = ()
    timers: Sequence[TimerRow] = ()
    deliveries: Sequence[DeliveryRow] = ()
    letters: Sequence[LetterRow] = ()
    duplicates: Sequence[DuplicateRow] = ()
    deaths: Sequence[DeathRow] = ()
    outcomes: Sequence[OutcomeRow] = ()
    valid: Callable[[], bool] = _always
    more: dict[str, list[Any]] | None = None
    """Rows that most changes have none of, by the name of their statement (``store/sql/parked.sql``)."""
    asked: str | None = None
    """Filled in by the recorder: what a person asked of the run, if it was updated."""

    def add(self, name: str, *rows: Any) -> None:
        """Put rows into ``more``."""
        if self.more is None:
            self.more = {}
        self.more.setdefault(name, []).extend(rows)
