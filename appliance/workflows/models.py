"""The workflow language as pydantic models: which keys there are and what may stand behind each.

What needs more than one place to check (names of steps, actions' parameters, conditions, templates) is in ``compile``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance.settings import Duration

EventType = Annotated[str, Field(min_length=1, max_length=1024)]
StepId = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]


class Model(BaseModel):
    """Base: unknown keys are refused; a key is written as its alias only."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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

    for_: str | int | float | None = Field(None, alias="for", description="A duration, such as 10m.")
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
    delay: str | int | float | DelayModel | None = Field(None, description="A pause, such as 10m.")
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

    name: str = Field(
        min_length=1, max_length=200, pattern=r"^[^\s/\x00-\x1f\x7f]([^/\x00-\x1f\x7f]*[^\s/\x00-\x1f\x7f])?$"
    )
    description: str = Field("", max_length=10_000)
    enabled: bool = Field(True, description="Whether events start runs of it.")
    trigger: TriggerModel | Annotated[list[TriggerModel], Field(min_length=1)]
    priority: Literal["high", "normal", "low"] | None = Field(None, description="Stream of the work it causes.")
    steps: Annotated[list[StepModel], Field(min_length=1, max_length=1000)]
