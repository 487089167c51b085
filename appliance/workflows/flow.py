"""Static checks of how steps follow and name each other."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from appliance.errors import Problem
from appliance.templating import TemplateError
from appliance.workflows.revision import CONTINUE, END, Step, due_at

RESERVED = (END, CONTINUE)


def check(steps: Sequence[Step]) -> list[Problem]:
    """Everything that is wrong with ids, jumps, references and reachability."""
    problems = [*_check_ids(steps)]
    if problems:
        return problems
    by_id = {step.id: step.index for step in steps}
    for step in steps:
        problems += _check_target(step, "next", step.next, by_id, (END,))
        problems += _check_target(step, "on_error", step.on_error, by_id, RESERVED)
        problems += _check_names(step, by_id)
    return problems or [*_check_reachable(steps, by_id)]


def wrong_delay(spec: dict[str, Any]) -> str | None:
    """What is wrong with a literal delay, or None."""
    try:
        due_at(spec, datetime.now(UTC))
    except TemplateError as error:
        return str(error).removeprefix("delay: ")
    return None


def _check_ids(steps: Sequence[Step]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for step in steps:
        key = f"steps[{step.index}].id"
        if step.id in RESERVED:
            yield Problem(f"{step.id!r} has a meaning of its own", key, expected="another id")
        elif step.id in seen:
            yield Problem(f"{step.id!r} is already the id of steps[{seen[step.id]}]", key, expected="an id of its own")
        seen.setdefault(step.id, step.index)


def _check_target(
    step: Step, name: str, target: str | None, by_id: dict[str, int], words: tuple[str, ...]
) -> Iterator[Problem]:
    key = f"steps[{step.index}].{name}"
    if target is None or target in words:
        return
    if target not in by_id:
        yield Problem(
            f"there is no step {target!r}{_hint(target, by_id)}", key, expected="a later step, or " + " or ".join(words)
        )
    elif by_id[target] <= step.index:
        yield Problem(
            f"{target!r} doesn't come later: loops aren't supported",
            key,
            expected="a later step, or " + " or ".join(words),
        )


def _check_names(step: Step, by_id: dict[str, int]) -> Iterator[Problem]:
    """Expressions and conditions may only name steps that come before."""
    places: list[tuple[str, Iterable[str]]] = []
    for key, template in (("with", step.params), ("delay", step.delay)):
        if template is not None:
            places.append((key, sorted(template.names)))
    if step.condition is not None:
        places.append(
            ("if", sorted({path[1] for path in step.condition.paths if path[0] == "steps" and len(path) > 1}))
        )
    for key, names in places:
        for name in names:
            if name not in by_id:
                yield Problem(f"there is no step {name!r}{_hint(name, by_id)}", f"steps[{step.index}].{key}")
            elif by_id[name] >= step.index:
                when = "this very step" if by_id[name] == step.index else "a later step"
                yield Problem(
                    f"names {name!r}, which is {when}", f"steps[{step.index}].{key}", expected="an earlier step"
                )


def _check_reachable(steps: Sequence[Step], by_id: dict[str, int]) -> Iterator[Problem]:
    reached = {0}
    for step in steps:  # jumps go forward only, so one pass in order is enough
        if step.index not in reached:
            yield Problem(
                f"nothing leads to {step.id!r}", f"steps[{step.index}]", expected="a next or on_error to name it"
            )
            continue
        if step.next is None or step.condition is not None:  # a skipped step leads to the following one
            reached.add(step.index + 1)
        reached |= {by_id[target] for target in (step.next, step.on_error) if target in by_id}


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
