"""The workflow language as pydantic models: which keys there are and what may stand behind each.

What needs more than one place to check (names of steps, actions' parameters, conditions, templates) is in ``compile``.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
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


def _written_as(pattern: str, words: str) -> tuple[Any, Any]:
    """A check of a text by a regular expression, and the pattern for the JSON Schema; ``words`` say what it wants."""
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueError(words)
        return value

    return AfterValidator(check), WithJsonSchema({"type": "string", "pattern": pattern})


_ID = _written_as(
    r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$", "expected a letter or _, then letters, digits, _ and -: at most 64"
)
_NAME = _written_as(
    r"^[^\s/\x00-\x1f\x7f]([^/\x00-\x1f\x7f]{0,198}[^\s/\x00-\x1f\x7f])?$",
    "expected 1 to 200 characters, no / and no line break, no space at the ends",
)
StepId = Annotated[str, *_ID]
Name = Annotated[str, *_NAME]


class Model(BaseModel):
    """Base: unknown keys are refused; a key is written as its alias only."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, model_title_generator=lambda model: model.__name__.removesuffix("Model")
    )


class TriggerModel(Model):
    """What starts a run."""

    event: EventType | Annotated[list[EventType], Field(min_length=1)] = Field(
        description="Type of the event, exact or a glob (order.*); a list for several."
    )
    when: Any = Field(None, description="Criteria: {path, op, value}, {all|any|not: ...}, JSON Logic, or a list: all.")


class RetryModel(Model):
    """How often a failed attempt is repeated, and when."""

    max_attempts: int = Field(5, ge=1, le=1000, description="Attempts in all, the first one included.")
    initial: Duration = Field(timedelta(seconds=1), description="Wait after the first failure.")
    factor: float = Field(2.0, ge=1, le=100, description="By how much each wait is longer than the one before.")
    max: Duration = Field(timedelta(minutes=10), description="Longest wait.")
    jitter: bool = Field(True, description="Shorten each wait by up to a half, by chance.")
    max_elapsed: Duration | None = Field(None, description="No attempt starts later than this after the first one.")


class DelayModel(Model):
    """A pause: for a time, or until a moment."""

    for_: Annotated[str | int | float | None, BeforeValidator(_refuse_switches)] = Field(
        None, alias="for", description="A duration, such as 10m."
    )
    until: str | None = Field(None, description="A time with an offset (RFC 3339).")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.for_ is None) == (self.until is None):
            raise ValueError("give either for or until")
        return self


class StepModel(Model):
    """One step: an action or a delay."""

    id: StepId = Field(description="Name of the step within the workflow.")
    action: str | None = Field(None, min_length=1, description="Name of the action.")
    with_: dict[str, Any] = Field({}, alias="with", description="Parameters of the action; texts may be templates.")
    delay: Annotated[str | int | float | DelayModel | None, BeforeValidator(_refuse_switches)] = Field(
        None, description="A pause, such as 10m."
    )
    if_: Any = Field(None, alias="if", description="A condition; when it doesn't hold, the step is skipped.")
    retry: RetryModel = RetryModel()
    timeout: Duration | None = Field(None, description="Time limit of one attempt.")
    next: str | None = Field(None, description="The step to go on with, or end; without it, the following one.")
    on_error: str | None = Field(
        None,
        description="Where to go after the last failed attempt: a step, continue or end; without it the run fails.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.action is None) == (self.delay is None):
            raise ValueError("a step is either an action or a delay")
        if self.delay is not None:
            misplaced = self.model_fields_set & {"with_", "retry", "timeout", "on_error"}
            if misplaced:
                raise ValueError(f"a delay takes no {' and no '.join(sorted(k.rstrip('_') for k in misplaced))}")
        return self


class WorkflowModel(Model):
    """A workflow."""

    name: Name
    description: str = Field("", max_length=10_000)
    enabled: bool = Field(True, description="Whether events start runs of it.")
    trigger: TriggerModel | Annotated[list[TriggerModel], Field(min_length=1)]
    priority: Literal["high", "normal", "low"] | None = Field(None, description="Stream of the work it causes.")
    steps: Annotated[list[StepModel], Field(min_length=1, max_length=1000)]
