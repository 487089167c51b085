"""Conditions, templates, durations and retries of a definition, compiled and noted for later checks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from appliance.errors import DefinitionError, Problem
from appliance.rules.conditions import Condition, compile_condition, compile_expression
from appliance.templating import Template, TemplateError, compile_template
from appliance.workflows.graph import Node
from appliance.workflows.hours import BusinessHours
from appliance.workflows.models import (
    DEFAULT_RETRY,
    BackoffModel,
    BusinessHoursModel,
    DeadlineModel,
    DelayModel,
    RetryModel,
    StateDeadlineModel,
)
from appliance.workflows.revision import Deadline, RetryPolicy, due_at

ERROR_KINDS = ("timeout", "retry", "error")
"""Kinds of failure that may be repeated."""


_DEFAULT = RetryPolicy()


class Use(NamedTuple):
    """An expression in the definition: which steps it names, and where it stands. ``roots`` only of conditions."""

    node: Node | None
    key: str
    steps: tuple[str, ...]
    roots: tuple[str, ...] = ()


class Values:
    """Compiles what stands in steps. ``problems`` and ``uses`` are added to."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.uses: list[Use] = []

    def template(self, value: Any, key: str, node: Node | None, allowed: tuple[str, ...]) -> Template | None:
        """``value`` as a template; None if there is something wrong with it."""
        try:
            template = compile_template(value, key=key, allowed=allowed)
        except DefinitionError as error:
            self.problems += error.problems
            return None
        if template.names:
            self.uses.append(Use(node, key, tuple(sorted(template.names))))
        return template

    def condition(self, spec: Any, key: str, node: Node | None) -> Condition | None:
        """``spec`` as a condition; None if there is none, or something wrong with it."""
        if spec is None:
            return None
        try:
            condition = compile_condition(spec, key=key)
        except DefinitionError as error:
            self.problems += error.problems
            return None
        self._note(node, key, condition.paths)
        return condition

    def logic(self, spec: Any, key: str, node: Node) -> Any:
        """JSON Logic that builds data."""
        try:
            expression = compile_expression(spec, key=key)
        except DefinitionError as error:
            self.problems += error.problems
            return None
        self._note(node, key, expression.paths)
        return expression

    def _note(self, node: Node | None, key: str, paths: Iterable[tuple[str, ...]]) -> None:
        deep = [path for path in paths if len(path) > 1]
        steps = sorted({path[1] for path in deep if path[0] == "steps"})
        self.uses.append(Use(node, key, tuple(steps), tuple(sorted({path[0] for path in deep}))))

    # --- durations ---------------------------------------------------------------------------------------------------

    def retry(self, model: RetryModel, key: str) -> RetryPolicy:
        """A retry policy; those by error inherit what they don't say."""
        if model is DEFAULT_RETRY:
            return _DEFAULT
        by_error = {}
        for name, own in model.by_error.items():
            inner = f"{key}.by_error.{name}"
            if name not in ERROR_KINDS and not (name[:1].isupper() and name.replace(".", "_").isidentifier()):
                expected = f"{', '.join(ERROR_KINDS)} or the name of an exception class such as ConnectError"
                self.problems.append(Problem(f"{name!r} is no kind of failure", inner, expected=expected))
            known = {field: getattr(model, field) for field in BackoffModel.model_fields}
            mixed = RetryModel.model_construct(**known | {f: getattr(own, f) for f in own.model_fields_set})
            by_error[name] = self._policy(mixed, inner)
        policy = self._policy(model, key)
        return policy if not by_error else _with(policy, by_error)

    def _policy(self, model: BackoffModel, key: str) -> RetryPolicy:
        return RetryPolicy(
            max_attempts=model.max_attempts,
            initial_s=self.positive(model.initial.total_seconds(), f"{key}.initial"),
            factor=model.factor,
            max_s=self.positive(model.max.total_seconds(), f"{key}.max"),
            jitter=model.jitter,
            max_elapsed_s=model.max_elapsed.total_seconds() if model.max_elapsed is not None else None,
        )

    def positive(self, seconds: float, key: str) -> float:
        """A duration that is no pause of no length."""
        if seconds <= 0:
            expected = "a duration such as 500ms, 30s or 10m"
            self.problems.append(Problem("not a positive duration", key, expected=expected))
        return seconds

    def delay(self, value: Any, key: str, node: Node, allowed: tuple[str, ...]) -> tuple[Template | None, Any]:
        """When a delay is over, and the business hours that it counts in."""
        spec: dict[str, Any] = {"for": value}
        hours = None
        if isinstance(value, DelayModel):
            spec = {"until": value.until} if value.until is not None else {"for": value.for_}
            hours = self.hours(value.business_hours, f"{key}.business_hours")
        template = self.template(spec, key, node, allowed)
        self._check_literal(template, spec, key)
        return template, hours

    def deadline(
        self, model: DeadlineModel | StateDeadlineModel, node: Node, allowed: tuple[str, ...]
    ) -> tuple[Template | None, str]:
        """When a time limit is over, and its key."""
        key = f"{node.key}.deadline"
        name, value = ("until", model.until) if model.until is not None else ("after", model.after)
        before = len(self.problems)
        template = self.template({"until" if name == "until" else "for": value}, key, node, allowed)
        if len(self.problems) > before:  # the compiled form says "for", the definition "after"
            self.problems[before:] = [_renamed(p, f"{key}.{name}") for p in self.problems[before:]]
        self._check_literal(template, {"until" if name == "until" else "for": value}, f"{key}.{name}")
        return template, key

    def _check_literal(self, template: Template | None, spec: dict[str, Any], key: str) -> None:
        if template is not None and template.is_literal and (wrong := _wrong_delay(spec)) is not None:
            self.problems.append(Problem(wrong, key, expected="a duration such as 10m, or a time with an offset"))

    def hours(self, model: BusinessHoursModel | None, key: str) -> BusinessHours | None:
        """The business hours that a delay counts in."""
        if model is None:
            return None
        try:
            return BusinessHours.parse(model.model_dump(by_alias=True))
        except ValueError as error:
            self.problems.append(keyed(error, key))
            return None


def deadline_of(due: Template | None, target: int | None) -> Deadline | None:
    """A compiled time limit; None if there is something wrong with it."""
    return Deadline(due, target) if due is not None else None


def keyed(error: ValueError, key: str) -> Problem:
    """A problem from an error that begins with the key that is wrong: ``timezone: expected …``."""
    name, _, rest = str(error).partition(": ")
    return Problem(rest, f"{key}.{name}" if key else name)


def _with(policy: RetryPolicy, by_error: dict[str, RetryPolicy]) -> RetryPolicy:
    return RetryPolicy(
        policy.max_attempts,
        policy.initial_s,
        policy.factor,
        policy.max_s,
        policy.jitter,
        policy.max_elapsed_s,
        by_error,
    )


def _renamed(problem: Problem, key: str) -> Problem:
    return Problem(problem.message, key, expected=problem.expected)


def _wrong_delay(spec: dict[str, Any]) -> str | None:
    """What is wrong with a literal delay, or None."""
    try:
        due_at(spec, datetime.now(UTC))
    except TemplateError as error:
        return str(error).removeprefix("delay: ")
    return None
