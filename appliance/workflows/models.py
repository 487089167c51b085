"""The workflow language as pydantic models: which keys there are and what may stand behind each.

What needs more than one place to check (names of steps, actions' parameters, conditions, templates) is in ``compile``
and the modules that it calls.
"""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from appliance.settings import Duration

EventType = Annotated[str, Field(min_length=1, max_length=1024)]


def _refuse_switches(value: Any) -> Any:
    """``true`` is no duration, although Python would take it for 1."""
    if isinstance(value, bool):
        raise ValueError("expected a duration such as 10m")
    return value


def _list_or_template(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise ValueError('expected a list, or a template that gives one: "{{ event.data.lines }}"')
    return value


def _word_or_number(value: Any) -> Any:
    if value not in ("all", "any") and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError("expected all, any, or how many branches must succeed")
    return value


def _written_as(pattern: str, words: str) -> tuple[Any, Any]:
    """A check of a text by a regular expression, and the pattern for the JSON Schema; ``words`` say what it wants."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueError(words)
        return value

    return AfterValidator(check), WithJsonSchema({"type": "string", "pattern": pattern})


def _kind_of(value: Any) -> str:
    """Which of several forms a value is in. The brackets keep a form's name from being taken for a key."""
    if isinstance(value, str):
        return "<text>"
    return "<list>" if isinstance(value, list) else "<object>"


_ID = _written_as(
    r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$", "expected a letter or _, then letters, digits, _ and -: at most 64"
)
_NAME = _written_as(
    r"^[^\s/\x00-\x1f\x7f]([^/\x00-\x1f\x7f]{0,198}[^\s/\x00-\x1f\x7f])?$",
    "expected 1 to 200 characters, no / and no line break, no space at the ends",
)
_VARIABLE = _written_as(
    r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", "expected a letter or _, then letters, digits and _: at most 64"
)
StepId = Annotated[str, *_ID]
Name = Annotated[str, *_NAME]
Variable = Annotated[str, *_VARIABLE]
Moment = Annotated[str | int | float | None, BeforeValidator(_refuse_switches)]
"""A duration as it is written; may be a template."""
ListOrTemplate = Annotated[str | list[Any], BeforeValidator(_list_or_template)]
WrittenDuration = Annotated[Duration, BeforeValidator(_refuse_switches)]


class Model(BaseModel):
    """Base: unknown keys are refused; a key is written as its alias only."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, model_title_generator=lambda model: model.__name__.removesuffix("Model")
    )


# --- what starts a run -----------------------------------------------------------------------------------------------


class TriggerModel(Model):
    """Events that start a run."""

    event: EventType | Annotated[list[EventType], Field(min_length=1)] = Field(
        description="Type of the event, exact or a glob (order.*); a list for several."
    )
    when: Any = Field(None, description="Criteria: {path, op, value}, {all|any|not: ...}, JSON Logic, or a list: all.")


class ScheduleModel(Model):
    """Times at which a run starts."""

    schedule: str = Field(description="A cron expression of five fields (0 9 * * 1), or a name such as @daily.")
    timezone: str = Field("UTC", description="Whose clocks the expression is about: Europe/Berlin.")
    misfire: Literal["skip", "once", "all"] = Field(
        "once", description="What becomes of times that nobody was there for: skip them, run once, or run all."
    )
    misfire_limit: int = Field(10, ge=1, le=1000, description="With misfire: all, how many of the latest are run.")


def _trigger_kind(value: Any) -> str:
    return "<schedule>" if isinstance(value, dict) and "schedule" in value else "<event>"


OneTrigger = Annotated[
    Annotated[TriggerModel, Tag("<event>")] | Annotated[ScheduleModel, Tag("<schedule>")],
    Discriminator(_trigger_kind),
]
AnyTrigger = Annotated[
    Annotated[Literal["manual"], Tag("<text>")]
    | Annotated[list[OneTrigger], Field(min_length=1), Tag("<list>")]
    | Annotated[OneTrigger, Tag("<object>")],
    Discriminator(_kind_of),
]


# --- parts of steps --------------------------------------------------------------------------------------------------


class BackoffModel(Model):
    """How often a failed attempt is repeated, and when."""

    max_attempts: int = Field(5, ge=1, le=1000, description="Attempts in all, the first one included.")
    initial: Duration = Field(timedelta(seconds=1), description="Wait after the first failure.")
    factor: float = Field(2.0, ge=1, le=100, description="By how much each wait is longer than the one before.")
    max: Duration = Field(timedelta(minutes=10), description="Longest wait.")
    jitter: bool = Field(True, description="Shorten each wait by up to a half, by chance.")
    max_elapsed: Duration | None = Field(None, description="No attempt starts later than this after the first one.")


class RetryModel(BackoffModel):
    """How often a failed attempt is repeated, and when."""

    by_error: dict[str, BackoffModel] = Field(
        default_factory=dict,
        description="Other values for kinds of failure (timeout, retry, error) or names of exception classes.",
    )


DEFAULT_RETRY = RetryModel()
"""Shared by all steps that say nothing: thousands of workflows are read at a start."""


class EffectModel(Model):
    """An action beside a step: what undoes it, or tells people of it."""

    action: str = Field(min_length=1, description="Name of the action.")
    with_: dict[str, Any] = Field(
        default_factory=dict, alias="with", description="Parameters of the action; texts may be templates."
    )
    retry: RetryModel = Field(
        default_factory=lambda: DEFAULT_RETRY, description="How often a failed attempt is repeated."
    )
    timeout: Duration | None = Field(None, description="Time limit of one attempt.")


class BusinessHoursModel(Model):
    """The hours that count."""

    days: str | list[str] = Field("mon-fri", description="Days of the week: mon-fri, or [mon, wed].")
    from_: str = Field(alias="from", description='When they begin: "09:00".')
    to: str = Field(description='When they end, on the same day: "17:00".')
    timezone: str = Field("UTC", description="Whose clocks are meant: Europe/Berlin.")
    holidays: list[str] = Field([], description="Days that don't count: [2030-12-25].")


class DelayModel(Model):
    """A pause: for a time, or until a moment."""

    for_: Moment = Field(None, alias="for", description="A duration, such as 10m.")
    until: str | None = Field(None, description="A time with an offset (RFC 3339).")
    business_hours: BusinessHoursModel | None = Field(None, description="Only these hours count.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.for_ is None) == (self.until is None):
            raise ValueError("give either for or until")
        return self


class DeadlineModel(Model):
    """A time limit of a step that waits."""

    after: Moment = Field(None, description="A duration from the step's beginning, such as 2d.")
    until: str | None = Field(None, description="Or a time with an offset (RFC 3339).")
    next: str | None = Field(None, description="The later step to go on with, or end; without it the step fails.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.after is None) == (self.until is None):
            raise ValueError("give either after or until")
        return self


class BranchModel(Model):
    """A way out of a choose: the first that holds is taken."""

    when: Any = Field(None, description="A condition, as in if; without it the branch is always taken.")
    next: str | None = Field(None, description="The later step to go on with, or end.")
    steps: Annotated[list[StepModel], Field(min_length=1)] | None = Field(None, description="Or steps to run.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.next is None) == (self.steps is None):
            raise ValueError("give either next or steps")
        return self


class ParallelModel(Model):
    """Branches that run side by side."""

    branches: Annotated[
        dict[StepId, Annotated[list[StepModel], Field(min_length=1)]], Field(min_length=1, max_length=100)
    ] = Field(description="The steps of each branch, by its name.")
    join: Annotated[Literal["all", "any"] | int, BeforeValidator(_word_or_number)] = Field(
        "all", description="How many branches must succeed before it goes on: all, any (one), or a number."
    )


class ForEachModel(Model):
    """The same steps for each item of a list."""

    items: ListOrTemplate = Field(description="A list, or a template that gives one; at most 1000 items.")
    as_: Variable = Field("item", alias="as", description="What templates call the item.")
    concurrency: int = Field(1, ge=1, le=1000, description="How many items are under way at once.")
    steps: Annotated[list[StepModel], Field(min_length=1)] = Field(description="What to do with each.")


class MatchModel(Model):
    """A value that an event must have."""

    path: str = Field(min_length=1, description="Where in the event: data.order_id.")
    value: Any = Field(description="What must stand there; may be a template.")


class WaitModel(Model):
    """Which events are waited for."""

    event: EventType | Annotated[list[EventType], Field(min_length=1)] = Field(
        description="Type of the event, exact or a glob (order.*); a list for several."
    )
    match: (
        Annotated[
            Annotated[MatchModel, Tag("<object>")]
            | Annotated[list[MatchModel], Field(min_length=1, max_length=10), Tag("<list>")],
            Discriminator(_kind_of),
        ]
        | None
    ) = Field(None, description="Values by which the event is known to be this run's: {path, value}, or a list.")
    when: Any = Field(None, description="Criteria that the event must fulfil besides.")


class HumanTaskModel(Model):
    """A question to people."""

    title: str = Field(min_length=1, max_length=1000, description="What is asked, in a line; may be a template.")
    description: str | None = Field(None, max_length=10_000, description="More about it; may be a template.")
    assignee: str | None = Field(None, max_length=1000, description="Who is to answer; may be a template.")
    group: str | None = Field(None, max_length=1000, description="Of which group somebody is to; may be a template.")
    form: dict[str, Any] = Field({"type": "object"}, description="JSON Schema of the answer, of the type object.")
    notify: EffectModel | None = Field(None, description="The action that tells people; it sees task.link.")
    reminders: Annotated[list[WrittenDuration], Field(max_length=100)] = Field(
        [], description="When notify runs again, counted from the beginning: [1d, 2d]."
    )


class CallModel(Model):
    """A call of another workflow."""

    name: Name = Field(description="The workflow that is called.")
    input: Any = Field({}, description="Its input; texts may be templates.")


class EndModel(Model):
    """How the run ends."""

    outcome: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="What came of it, in a word of your own."
    )
    output: Any = Field(None, description="The run's output; texts may be templates.")
    status: Literal["succeeded", "failed"] = Field("succeeded", description="As what the run ends.")


# --- steps -----------------------------------------------------------------------------------------------------------

KINDS = (
    "action", "delay", "choose", "parallel", "for_each", "wait", "human_task", "workflow", "transform", "end",
)  # fmt: skip
_MAY_BE_NULL = frozenset({"transform", "end"})
_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "with_": ("action",),
    "retry": ("action",),
    "timeout": ("action",),
    "effects": ("action",),
    "compensate": ("action", "workflow"),
    "deadline": ("wait", "human_task", "workflow"),
    "forever": ("wait", "human_task"),
    "next": tuple(kind for kind in KINDS if kind != "end"),
    "on_error": tuple(kind for kind in KINDS if kind not in ("delay", "choose", "end")),
}
"""Which kinds of steps a key is for, where it isn't for all."""


class StepModel(Model):
    """One step: an action, or one of the other kinds."""

    id: StepId = Field(description="Name of the step within the workflow.")
    description: str = Field("", max_length=10_000, description="For people.")
    action: str | None = Field(None, min_length=1, description="Name of the action.")
    with_: dict[str, Any] = Field(
        default_factory=dict, alias="with", description="Parameters of the action; texts may be templates."
    )
    delay: Annotated[str | int | float | DelayModel | None, BeforeValidator(_refuse_switches)] = Field(
        None, description="A pause, such as 10m."
    )
    choose: Annotated[list[BranchModel], Field(min_length=1, max_length=100)] | None = Field(
        None, description="Branches: the first whose condition holds is taken; if none does, it goes on behind."
    )
    parallel: ParallelModel | None = Field(None, description="Branches that run side by side.")
    for_each: ForEachModel | None = Field(None, description="The same steps for each item of a list.")
    wait: WaitModel | None = Field(None, description="Wait for an event.")
    human_task: HumanTaskModel | None = Field(None, description="Ask people, and wait for the answer.")
    workflow: (
        Annotated[Annotated[Name, Tag("<text>")] | Annotated[CallModel, Tag("<object>")], Discriminator(_kind_of)]
        | None
    ) = Field(None, description="Call another workflow, and wait for its end: its name, or {name, input}.")
    transform: Any = Field(None, description="Data with templates in its texts, or {logic: JSON Logic}.")
    end: (
        Annotated[
            Annotated[str, Field(min_length=1, max_length=200), Tag("<text>")] | Annotated[EndModel, Tag("<object>")],
            Discriminator(_kind_of),
        ]
        | None
    ) = Field(None, description="End the run here: an outcome, or {outcome, output, status}.")
    if_: Any = Field(None, alias="if", description="A condition; when it doesn't hold, the step is skipped.")
    retry: RetryModel = Field(
        default_factory=lambda: DEFAULT_RETRY, description="How often a failed attempt is repeated."
    )
    timeout: Duration | None = Field(None, description="Time limit of one attempt.")
    effects: Literal["at_least_once", "at_most_once"] = Field(
        "at_least_once", description="at_most_once: an attempt is never repeated; a person settles what is unknown."
    )
    compensate: EffectModel | None = Field(None, description="The action that undoes this step if the run fails later.")
    deadline: DeadlineModel | None = Field(None, description="How long to wait at most.")
    forever: bool = Field(False, description="A wait without a deadline says so.")
    next: str | None = Field(None, description="The step to go on with, or end; without it, the following one.")
    on_error: str | None = Field(
        None,
        description="Where to go after the last failed attempt: a step, continue or end; without it the run fails.",
    )

    @cached_property
    def kind(self) -> str:
        """Which of KINDS the step is."""
        return self._kinds()[0]

    def _kinds(self) -> list[str]:
        said = self.model_fields_set
        return [kind for kind in KINDS if kind in said and (kind in _MAY_BE_NULL or getattr(self, kind) is not None)]

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = self._kinds()
        if len(kinds) != 1:
            named = f"this has {' and '.join(kinds)}" if kinds else "this has none of them"
            raise ValueError(f"a step has exactly one of {', '.join(KINDS)}; {named}")
        return self

    def misplaced(self) -> list[str]:
        """Keys that are not for steps of this kind, as they are written."""
        kind = self.kind
        return [key.rstrip("_") for key in sorted(self.model_fields_set) if kind not in _ONLY_FOR.get(key, KINDS)]


class StateStepModel(StepModel):
    """A step of a state machine: it needn't have an id."""

    id: StepId | None = Field(None, description="Name of the step within the workflow.")  # type: ignore[assignment]


# --- state machines --------------------------------------------------------------------------------------------------


class TransitionModel(Model):
    """What a state does with an event."""

    next: str | None = Field(None, description="The next state; without it the machine stays where it is.")
    when: Any = Field(None, description="Criteria that the event must fulfil.")
    do: list[StateStepModel] = Field([], description="Steps to run on the way.")


class StateDeadlineModel(Model):
    """How long a machine stays in a state at most."""

    after: Moment = Field(None, description="A duration from when the state was entered, such as 2d.")
    until: str | None = Field(None, description="Or a time with an offset (RFC 3339).")
    next: str = Field(description="The state that follows then.")
    do: list[StateStepModel] = Field([], description="Steps to run on the way.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.after is None) == (self.until is None):
            raise ValueError("give either after or until")
        return self


class StateModel(Model):
    """A state of a state machine."""

    description: str = Field("", max_length=10_000, description="For people.")
    enter: list[StateStepModel] = Field([], description="Steps to run whenever the state is entered.")
    on: dict[
        EventType,
        Annotated[
            Annotated[TransitionModel, Tag("<object>")]
            | Annotated[list[TransitionModel], Field(min_length=1), Tag("<list>")],
            Discriminator(_kind_of),
        ],
    ] = Field({}, description="By type of event (or glob): what happens then. Of several the first that holds.")
    deadline: StateDeadlineModel | None = Field(None, description="How long the machine stays here at most.")
    final: bool = Field(False, description="The run ends here.")
    outcome: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Of a final state: the run's outcome; the state's name, if not given."
    )


# --- flow control ----------------------------------------------------------------------------------------------------

_Key = Annotated[str, Field(min_length=1, max_length=10_000)]
_KEY = "A template of the event: each value of its own is counted for itself. Without it, all events are one."
_Limit = Annotated[int, Field(ge=1, le=100_000)]
_Period = Annotated[WrittenDuration, Field(ge=timedelta(milliseconds=100), le=timedelta(days=31))]


class LimitModel(Model):
    """How many runs may be at work at once; parked ones don't count."""

    limit: _Limit = Field(description="Runs at once.")
    key: _Key | None = Field(None, description=_KEY)


class RateLimitModel(Model):
    """How many runs begin within a period; events beyond that start none."""

    limit: _Limit = Field(description="Runs in a period.")
    period: _Period = Field(description="From the first of these runs on.")
    key: _Key | None = Field(None, description=_KEY)


class ThrottleModel(Model):
    """How fast runs begin; events beyond that wait for their turn."""

    limit: _Limit = Field(description="Runs in a period, spread evenly.")
    period: _Period = Field(description="The period.")
    burst: int = Field(0, ge=0, le=100_000, description="Runs that may begin at once on top of limit.")
    key: _Key | None = Field(None, description=_KEY)


class DebounceModel(Model):
    """One run for the last of several events in quick succession."""

    period: _Period = Field(description="How long no event may come before the run begins.")
    timeout: _Period | None = Field(None, description="How long after the first event it begins at the latest.")
    key: _Key | None = Field(None, description=_KEY)


class BatchModel(Model):
    """One run for several events, which it sees as `events`."""

    size: int = Field(ge=1, le=1000, description="Events at most.")
    timeout: _Period = Field(description="How long after the first event the run begins at the latest.")
    key: _Key | None = Field(None, description=_KEY)


class SingletonModel(Model):
    """One run at a time."""

    mode: Literal["skip", "replace"] = Field(description="What an event does meanwhile: start none, or end the other.")
    key: _Key | None = Field(None, description=_KEY)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _concurrency_kind(value: Any) -> str:
    return "<number>" if _is_number(value) else _kind_of(value)


def _one_limit(value: Any) -> Any:
    if not (_is_number(value) or isinstance(value, dict)):
        raise ValueError("expected a whole number, or {key, limit}")
    return value


def _limits(value: Any) -> Any:
    if not (value is None or _is_number(value) or isinstance(value, dict | list)):
        raise ValueError("expected a whole number, {key, limit}, or a list of two of these")
    return value


def _mode(value: Any) -> Any:
    if not (value is None or isinstance(value, str | dict)):
        raise ValueError("expected skip, replace, or {mode, key}")
    return value


_Limits = Annotated[_Limit, Tag("<number>")] | Annotated[LimitModel, Tag("<object>")]


class WorkflowModel(Model):
    """A workflow: steps, or states."""

    name: Name
    description: str = Field("", max_length=10_000)
    enabled: bool = Field(True, description="Whether events start runs of it.")
    trigger: AnyTrigger | None = Field(
        None, description="What starts a run: {event}, {schedule}, a list of such, or the word manual."
    )
    priority: Literal["high", "normal", "low"] | None = Field(None, description="Stream of the work it causes.")
    order: int = Field(
        0, ge=-1_000_000, le=1_000_000, description="Of the workflows that an event starts, the higher comes first."
    )
    inputs: dict[str, Any] | None = Field(None, description="JSON Schema of what a run may be started with.")
    output: Any = Field(None, description="The run's output; texts may be templates.")
    steps: Annotated[list[StepModel], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="What to do, one after the other."
    )
    initial: str | None = Field(None, description="Of a state machine: the state to begin with.")
    states: Annotated[dict[StepId, StateModel], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="Of a state machine: its states, by name."
    )
    correlate: str | None = Field(
        None, description="Of a state machine: the business key, a template of the event; one machine for each."
    )
    forever: bool = Field(False, description="Of a state machine: it need not be able to end.")
    on_error: Annotated[list[StepModel], Field(min_length=1)] | None = Field(
        None, description="Steps to run when the run fails, after what was done is undone."
    )
    revisions: Literal["pin", "follow"] = Field(
        "pin", description="follow: a parked run goes on in the newest revision that has the steps at which it stands."
    )
    concurrency: Annotated[
        Annotated[
            _Limits
            | Annotated[
                list[Annotated[_Limits, Discriminator(_concurrency_kind), BeforeValidator(_one_limit)]],
                Field(min_length=1, max_length=2),
                Tag("<list>"),
            ],
            Discriminator(_concurrency_kind),
        ]
        | None,
        BeforeValidator(_limits),
    ] = Field(None, description="How many runs may be at work at once: a number, {key, limit}, or two of these.")
    ordering_key: _Key | None = Field(
        None, description="A template of the event: events with the same value are worked on one after the other."
    )
    rate_limit: RateLimitModel | None = Field(None, description="How many runs begin in a period; others don't.")
    throttle: ThrottleModel | None = Field(None, description="How fast runs begin; others wait.")
    debounce: DebounceModel | None = Field(None, description="One run for the last of several events.")
    batch: BatchModel | None = Field(None, description="One run for several events.")
    singleton: Annotated[
        Annotated[
            Annotated[Literal["skip", "replace"], Tag("<text>")] | Annotated[SingletonModel, Tag("<object>")],
            Discriminator(_kind_of),
        ]
        | None,
        BeforeValidator(_mode),
    ] = Field(None, description="One run at a time: skip, replace, or {mode, key}.")
    editor: dict[str, Any] | None = Field(
        None, description="What a visual editor keeps beside the steps (a React Flow graph); it has no effect."
    )
