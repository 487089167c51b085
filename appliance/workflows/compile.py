"""From a definition to a :class:`Workflow`, with every check that can be made before an event comes."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import orjson
from pydantic import ValidationError

from appliance.errors import DefinitionError, Problem
from appliance.plugin import Action
from appliance.rules.conditions import Condition, compile_condition
from appliance.rules.matcher import Trigger
from appliance.templating import NAMES, Template, compile_template
from appliance.workflows import flow
from appliance.workflows.models import DelayModel, RetryModel, StepModel, WorkflowModel
from appliance.workflows.parameters import check_parameters
from appliance.workflows.problems import details_of, from_details
from appliance.workflows.revision import RetryPolicy, Step, Workflow

Lines = Mapping[str, tuple[int, int]]
"""Where each dotted key stands in its file: line and column, from 1."""

_DELAY_NAMES = ("event", "steps")
"""What a delay can see: the pure core renders it, which knows neither secrets nor who runs it."""


def compile_workflow(
    definition: Any,
    *,
    actions: Mapping[str, Action] | None,
    file: str | None = None,
    lines: Lines | None = None,
) -> Workflow:
    """Check ``definition`` (JSON data in our own language) and compile it.

    Raises DefinitionError with every problem found, placed by ``file`` and ``lines``. With ``actions`` None, actions
    and their parameters aren't checked: a stored revision must load even when its plugin has gone.
    """
    problems: list[Problem] = []
    try:
        model = WorkflowModel.model_validate(definition)
    except ValidationError as error:
        problems += from_details(details_of(error), definition)
        raise _placed(problems, file, lines) from None
    triggers = _triggers(model, problems)
    steps = tuple(_step(step, index, problems) for index, step in enumerate(model.steps))
    problems += flow.check(steps)
    known = {step.id: step.index for step in steps}
    steps = tuple(
        replace(
            step,
            after=after,
            follow=None if step.next == "end" else known.get(step.next, after) if step.next is not None else after,
        )
        for step in steps
        for after in [step.index + 1 if step.index + 1 < len(steps) else None]
    )
    if actions is not None:
        for index, step in enumerate(model.steps):
            if step.action is not None:
                _check_action(step, f"steps[{index}]", actions, problems)
    if problems:
        raise _placed(problems, file, lines)
    canonical = orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)
    return Workflow(
        name=model.name,
        description=model.description,
        priority=model.priority,
        triggers=triggers,
        steps=steps,
        by_id=MappingProxyType({step.id: step.index for step in steps}),
        definition=orjson.loads(canonical),
        digest=hashlib.blake2b(canonical, digest_size=16).hexdigest(),
        enabled=model.enabled,
    )


def _triggers(model: WorkflowModel, problems: list[Problem]) -> tuple[Trigger, ...]:
    several = isinstance(model.trigger, list)
    triggers = []
    for index, trigger in enumerate(model.trigger if isinstance(model.trigger, list) else [model.trigger]):
        key = f"trigger[{index}].when" if several else "trigger.when"
        condition = _condition(trigger.when, key, problems)
        for path in condition.paths if condition is not None else ():
            if path[0] in ("event", "steps") and len(path) > 1:
                shown = ".".join(path)
                problems.append(Problem(f"{shown} is not there yet", key, expected="a path in the event: data.email"))
        events = trigger.event if isinstance(trigger.event, list) else [trigger.event]
        triggers += [Trigger(event, condition) for event in dict.fromkeys(events)]
    return tuple(triggers)


def _step(model: StepModel, index: int, problems: list[Problem]) -> Step:
    key = f"steps[{index}]"
    return Step(
        id=model.id,
        index=index,
        kind="action" if model.action is not None else "delay",
        condition=_condition(model.if_, f"{key}.if", problems),
        next=model.next,
        on_error=model.on_error,
        retry=_retry(model.retry, f"{key}.retry", problems),
        timeout_s=_positive(model.timeout.total_seconds(), f"{key}.timeout", problems)
        if model.timeout is not None
        else None,
        action=model.action,
        params=_template(model.with_, f"{key}.with", problems) if model.action is not None else None,
        delay=_delay(model.delay, f"{key}.delay", problems) if model.delay is not None else None,
    )


def _condition(spec: Any, key: str, problems: list[Problem]) -> Condition | None:
    if spec is None:
        return None
    try:
        return compile_condition(spec, key=key)
    except DefinitionError as error:
        problems += error.problems
        return None


def _template(value: Any, key: str, problems: list[Problem], allowed: tuple[str, ...] = NAMES) -> Template | None:
    try:
        return compile_template(value, key=key, allowed=allowed)
    except DefinitionError as error:
        problems += error.problems
        return None


def _retry(model: RetryModel, key: str, problems: list[Problem]) -> RetryPolicy:
    return RetryPolicy(
        max_attempts=model.max_attempts,
        initial_s=_positive(model.initial.total_seconds(), f"{key}.initial", problems),
        factor=model.factor,
        max_s=_positive(model.max.total_seconds(), f"{key}.max", problems),
        jitter=model.jitter,
        max_elapsed_s=model.max_elapsed.total_seconds() if model.max_elapsed is not None else None,
    )


def _positive(seconds: float, key: str, problems: list[Problem]) -> float:
    if seconds <= 0:
        problems.append(Problem("not a positive duration", key, expected="a duration such as 500ms, 30s or 10m"))
    return seconds


def _delay(value: Any, key: str, problems: list[Problem]) -> Template | None:
    spec: dict[str, Any] = {"for": value}
    if isinstance(value, DelayModel):
        spec = {"until": value.until} if value.until is not None else {"for": value.for_}
    template = _template(spec, key, problems, _DELAY_NAMES)
    if template is not None and template.is_literal and (wrong := flow.wrong_delay(spec)) is not None:
        problems.append(Problem(wrong, key, expected="a duration such as 10m, or a time with an offset"))
    return template


def _check_action(step: StepModel, key: str, actions: Mapping[str, Action], problems: list[Problem]) -> None:
    action = actions.get(str(step.action))
    if action is not None:
        problems += check_parameters(action.params, step.with_, f"{key}.with")
        return
    near = difflib.get_close_matches(str(step.action), actions, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = ", ".join(sorted(actions)) or "an installed action (there is none)"
    problems.append(Problem(f"unknown action {step.action!r}{hint}", f"{key}.action", expected=known))


def _placed(problems: list[Problem], file: str | None, lines: Lines | None) -> DefinitionError:
    return DefinitionError(*(_place(problem, file, lines or {}) for problem in problems))


def _place(problem: Problem, file: str | None, lines: Lines) -> Problem:
    """The problem with the position of its key, or of the nearest key around it."""
    key = problem.key
    while key not in lines and key:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    line, column = lines.get(key, (None, None))
    return replace(problem, file=file, line=line, column=column)
