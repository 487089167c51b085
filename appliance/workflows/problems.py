"""pydantic's errors as problems that name our keys and say what to write instead, never Python's names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from appliance.errors import Problem
from appliance.settings import format_duration
from appliance.workflows.models import Model

_PHRASES: Mapping[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_type": "expected a text",
    "string_too_short": "empty",
    "string_too_long": "longer than {max_length} characters",
    "too_short": "expected at least {min_length}, got {actual_length}",
    "too_long": "expected at most {max_length}, got {actual_length}",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "literal_error": "expected {expected}",
    "union_tag_invalid": "expected a mapping or a list",
    "ip_v4_network": "expected a network such as 10.0.0.0/8",
    "ip_v6_network": "expected a network such as 10.0.0.0/8",
}


_TIMEDELTA = re.compile(r"(days|seconds|microseconds)=(-?\d+)")
_STEP = "it in the step itself, beside its kind"
_HOMES: Mapping[str, str] = dict.fromkeys(
    ("deadline", "forever", "if", "next", "on_error", "retry", "timeout", "effects", "compensate"), _STEP
)
"""Where keys belong that are often written one level too deep."""


def phrase(detail: Mapping[str, Any]) -> str:
    """One finding (an item of ``ValidationError.errors()``, with its context) without the name of what is wrong."""
    known = _PHRASES.get(detail["type"])
    if known is not None:
        return known.format_map({name: _bound(value) for name, value in detail.get("ctx", {}).items()})
    message: str = detail["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _bound(value: Any) -> Any:
    """A bound as we write it: pydantic gives a duration as the text of its ``repr``."""
    text = str(value)
    if not text.startswith("datetime.timedelta("):
        return value
    return format_duration(timedelta(**{unit: int(number) for unit, number in _TIMEDELTA.findall(text)}))


def details_of(error: ValidationError) -> list[ErrorDetails]:
    """pydantic's findings, without what we don't show."""
    return error.errors(include_url=False)


def from_details(details: list[ErrorDetails], value: Any, key: str = "", known: Iterable[str] = ()) -> list[Problem]:
    """A problem for each place in ``value`` (below ``key``) that is wrong.

    Where one of several forms would do, pydantic complains about all of them: a complaint about the kind of value gives
    way to one about what is in it.
    """
    problems: dict[str, Problem] = {}
    about_kind: set[str] = set()
    for detail in details:
        place = dotted(key, existing(detail, value))
        kind = detail["type"].endswith("_type")
        if place not in problems or (place in about_kind and not kind):
            problems[place] = _problem(detail, place, tuple(known))
            (about_kind.add if kind else about_kind.discard)(place)
    within = {place for place in about_kind if any(other.startswith((f"{place}.", f"{place}[")) for other in problems)}
    return [problem for place, problem in problems.items() if place not in within]


def existing(detail: ErrorDetails, value: Any) -> tuple[str | int, ...]:
    """The part of an error's location that are keys of ``value``: pydantic adds names of union members to it.

    The last part is kept when it is a key that is missing.
    """
    place: list[str | int] = []
    for part in detail["loc"]:
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif detail["type"] == "missing" and part == detail["loc"][-1]:
            return (*place, part)
        else:
            continue
        place.append(part)
    return tuple(place)


def dotted(key: str, place: Sequence[str | int]) -> str:
    """``steps[0].with`` from ``("steps", 0, "with")``."""
    for part in place:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _problem(detail: ErrorDetails, place: str, known: tuple[str, ...]) -> Problem:
    name = str(detail["loc"][-1]) if detail["loc"] else ""
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known or _language(), 1)
        hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
        if near and near[0] == name:
            return Problem(f"{name} doesn't belong here", place, expected=_HOMES.get(name))
        return Problem(f"unknown key {name!r}{hint}", place, expected=("one of " + ", ".join(known)) if known else None)
    if detail["type"] == "missing":
        return Problem(f"{name} is missing", place)
    return Problem(phrase(detail), place)


@cache
def _language() -> frozenset[str]:
    """Every key of the workflow language."""
    words: set[str] = set()
    models = [*Model.__subclasses__()]
    for model in models:  # grows meanwhile
        models += model.__subclasses__()
        words |= {field.alias or name for name, field in model.model_fields.items()}
    return frozenset(words)
