"""What people and callers hand in (answers to tasks, inputs of runs), checked against a workflow's JSON Schema.

JSON Schema 2020-12, with bounds, because what is checked comes from strangers: patterns are RE2's, references lead
nowhere else, and the work of one check is counted, so that no schema and no data can hold up the process. What a
schema may be is checked by :mod:`appliance.workflows.forms` when its workflow is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import date, datetime
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import orjson
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry

from appliance.errors import ApplianceError, Malformed
from appliance.rules.logic import pattern as compile_pattern

MAX_MISTAKES = 20
"""Mistakes named at once: more help nobody."""
_MAX_WORK = 200_000
"""Keywords evaluated in one check, the large ones counted by their size: about a second."""
UNSUPPORTED = frozenset(
    {"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary"}
    | {"unevaluatedProperties", "unevaluatedItems"}
)
"""Keywords that a schema may not have: they reach beyond it, or would need patterns that are not RE2's."""


class Mistake(NamedTuple):
    """Something wrong: where (``path`` into the data or the schema) and what was expected there."""

    path: tuple[str | int, ...]
    expected: str

    @property
    def place(self) -> str:
        """The path as text: ``lines[0].amount``; empty for the whole."""
        return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path).removeprefix(".")

    def __str__(self) -> str:
        return f"{self.place}: {self.expected}" if self.path else self.expected


class InputRefused(ApplianceError):
    """What was handed in doesn't fit. ``mistakes`` is never empty; ``what`` names the whole (``answer``, ``input``)."""

    def __init__(self, what: str, mistakes: list[Mistake]) -> None:
        self.what = what
        self.mistakes = mistakes
        super().__init__("; ".join(str(m._replace(path=(what, *m.path))) for m in mistakes))


def mistakes(schema: Mapping[str, Any], data: Any) -> list[Mistake]:
    """Why JSON ``data`` doesn't fit ``schema``, at most MAX_MISTAKES reasons; empty if it does.

    Raises Malformed when checking takes too long.
    """
    validator = _checker_class()(schema, registry=Registry(), format_checker=_FORMATS)
    token = _left.set([_MAX_WORK])
    try:
        return [_mistake(error) for error in islice(validator.iter_errors(data), MAX_MISTAKES)]
    except RecursionError:
        raise _too_much() from None
    finally:
        _left.reset(token)


def check(what: str, schema: Mapping[str, Any] | None, data: Any) -> None:
    """Raise InputRefused unless ``data`` fits; no schema takes anything. May take a second: call it in a thread."""
    if schema is not None and (found := mistakes(schema, data)):
        raise InputRefused(what, found)


# --- the validator ---------------------------------------------------------------------------------------------------

_left: ContextVar[list[int]] = ContextVar("left")
"""How much work the check under way may still do."""

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


@cache
def _checker_class() -> Any:
    """Draft 2020-12 with RE2 for patterns, and each keyword counted."""
    own: dict[str, Keyword] = {
        **Draft202012Validator.VALIDATORS,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    counted = {name: _counted(keyword) for name, keyword in own.items() if name not in UNSUPPORTED}
    return extend(Draft202012Validator, counted)


def _counted(keyword: Keyword) -> Keyword:
    def count(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        left = _left.get()
        left[0] -= 1 + _size(value) // 8 + _size(instance) // 64
        if left[0] < 0:
            raise _too_much()
        return keyword(validator, value, instance, schema)

    return count


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | dict) else 0


def _too_much() -> Malformed:
    return Malformed("too large, or too deeply nested, to be checked against its schema", code="too-large")


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _found(pattern, instance):
        yield ValidationError(f"expected a text that matches {pattern}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, each in patterns.items():
            for name, value in instance.items():
                if _found(pattern, name):
                    yield from validator.descend(value, each, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in known or any(_found(pattern, name) for pattern in patterns):
            continue
        if allowed is False:
            yield ValidationError(f"unknown; {_one_of('expected', list(known) or ['nothing more'])}", path=[name])
        else:
            yield from validator.descend(value, allowed, path=name)


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if unique and isinstance(instance, list):
        seen = {orjson.dumps(_whole(each), option=orjson.OPT_SORT_KEYS) for each in instance}
        if len(seen) != len(instance):
            yield ValidationError("expected items that differ from each other")


def _whole(value: Any) -> Any:
    """1.0 and 1 are one number in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _found(pattern: str, text: str) -> bool:
    return compile_pattern(pattern).search(text) is not None


# --- words -----------------------------------------------------------------------------------------------------------

TYPES = {
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "nothing",
}
_FORMAT_WORDS: Mapping[str, str] = {
    "date": "a date such as 2030-01-31",
    "date-time": "a time such as 2030-01-31T09:00:00+01:00",
    "email": "an e-mail address",
    "uri": "a URL such as https://example.com",
}
_WORDS: Mapping[str, Callable[[Any], str]] = {
    "type": lambda value: "expected " + " or ".join(TYPES.get(t, str(t)) for t in _listed(value)),
    "enum": lambda value: _one_of("expected", value),
    "const": lambda value: _one_of("expected", [value]),
    "minLength": lambda value: "expected a text" if value == 1 else f"expected at least {value} characters",
    "maxLength": lambda value: f"expected at most {value} characters",
    "minimum": lambda value: f"expected {value} or more",
    "maximum": lambda value: f"expected {value} or less",
    "exclusiveMinimum": lambda value: f"expected more than {value}",
    "exclusiveMaximum": lambda value: f"expected less than {value}",
    "multipleOf": lambda value: f"expected a multiple of {value}",
    "minItems": lambda value: f"expected at least {value} items",
    "maxItems": lambda value: f"expected at most {value} items",
    "minProperties": lambda value: f"expected at least {value} members",
    "maxProperties": lambda value: f"expected at most {value} members",
    "format": lambda value: f"expected {_FORMAT_WORDS.get(value, value)}",
    "pattern": lambda value: f"expected a text that matches {value:.200}",
    "anyOf": lambda value: _alternative(value, "fits none of the alternatives of the schema"),
    "oneOf": lambda value: _alternative(value, "expected exactly one of the schema's alternatives to fit"),
    "not": lambda value: "is what the schema excludes",
    "None": lambda value: "expected nothing here",  # the schema `false`
    "dependentRequired": lambda value: "lacks what the schema wants beside the others",
}


def _mistake(error: ValidationError) -> Mistake:
    path = tuple(error.absolute_path)
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        named = next((name for name in missing if error.message.startswith(repr(name))), missing[0])
        return Mistake((*path, named), "is missing")
    return Mistake(path, expected_by(error))


def expected_by(error: ValidationError) -> str:
    """What the keyword that an error is of expects, in plain words."""
    words = _WORDS.get(str(error.validator))
    return words(error.validator_value) if words is not None else f"{error.message:.200}"


def _alternative(schemas: list[Any], otherwise: str) -> str:
    """The constants of a list of choices; other words for schemas that are more than that."""
    if all(isinstance(schema, dict) and "const" in schema for schema in schemas):
        return _one_of("expected", [schema["const"] for schema in schemas])
    return otherwise


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _one_of(verb: str, values: list[Any]) -> str:
    shown = [value if isinstance(value, str) else orjson.dumps(value).decode() for value in values[:20]]
    more = ", …" if len(values) > len(shown) else ""
    return f"{verb} " + (f"one of {', '.join(shown)}{more}" if len(shown) != 1 else shown[0])


_FORMATS: Any = FormatChecker(())
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,255}")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:\S{1,8000}")


def _is_date(text: str) -> bool:
    return len(text) == 10 and bool(date.fromisoformat(text))


def _is_time(text: str) -> bool:
    return len(text) > 10 and datetime.fromisoformat(text).tzinfo is not None


def _format(name: str, holds: Callable[[str], bool]) -> None:
    """Have ``format: name`` checked; other formats only describe."""
    _FORMATS.checks(name, ValueError)(lambda value: not isinstance(value, str) or holds(value))


_format("date", _is_date)
_format("date-time", _is_time)
_format("email", lambda text: _EMAIL.fullmatch(text) is not None)
_format("uri", lambda text: _URI.fullmatch(text) is not None)
