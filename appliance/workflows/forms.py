"""What a JSON Schema of a form, or of inputs, may be: small, closed in itself, with patterns of RE2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import orjson
import re2
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from appliance.rules.logic import pattern as compile_pattern
from appliance.workflows.inputs import MAX_MISTAKES, TYPES, UNSUPPORTED, Mistake, expected_by

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 32
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords behind which data stands, not schemas."""
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords behind which names stand, and schemas behind those."""


def schema_mistakes(schema: Any) -> list[Mistake]:
    """Why ``schema`` can't be used: not JSON Schema, too large, a ``$ref`` to elsewhere, a pattern that RE2 lacks."""
    if not isinstance(schema, dict):
        return [Mistake((), "expected a JSON Schema, an object such as {type: object, properties: ...}")]
    try:
        size = len(orjson.dumps(schema, option=orjson.OPT_NON_STR_KEYS))
    except (TypeError, ValueError):
        return [Mistake((), "expected JSON data")]
    if size > MAX_SCHEMA_BYTES:
        return [Mistake((), f"expected at most {MAX_SCHEMA_BYTES} bytes, got {size}")]
    found = list(islice(_walk(schema, schema, ()), MAX_MISTAKES))
    if found:
        return found
    checker = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    errors = (best_match([error]) for error in checker.iter_errors(schema))
    named = dict.fromkeys(Mistake(tuple(error.absolute_path), _of_schema(error)) for error in errors)
    return list(named)[:MAX_MISTAKES]


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """``schema``, or what its ``$ref`` into ``root`` stands for; an empty schema for what can't be found."""
    for _ in range(8):
        if not isinstance(schema, Mapping):
            return {}
        if "$ref" not in schema:
            return schema
        schema = {**_target(root, str(schema["$ref"])), **{k: v for k, v in schema.items() if k != "$ref"}}
    return {}


def _walk(schema: Any, root: Mapping[str, Any], path: tuple[str | int, ...]) -> Iterator[Mistake]:
    """The mistakes of a schema and of those in it that the meta-schema wouldn't find."""
    if len(path) > 2 * MAX_SCHEMA_DEPTH:
        yield Mistake((), f"expected at most {MAX_SCHEMA_DEPTH} schemas inside each other")
        return
    if isinstance(schema, list):
        for index, each in enumerate(schema):
            yield from _walk(each, root, (*path, index))
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        place = (*path, str(name))
        yield from (Mistake(place, expected) for expected in _keyword_mistakes(name, value, root))
        if name in _MAPS and isinstance(value, dict):
            for key, each in value.items():
                yield from _walk(each, root, (*place, str(key)))
        elif name not in _DATA:
            yield from _walk(value, root, place)


def _keyword_mistakes(name: str, value: Any, root: Mapping[str, Any]) -> Iterator[str]:
    if name in UNSUPPORTED:
        yield f"{name} is not supported here"
    elif name == "$schema" and value != _DIALECT:
        yield f"expected {_DIALECT}, or no $schema"
    elif name == "$ref":
        if not isinstance(value, str) or not value.startswith("#"):
            yield "expected a reference into the same schema, such as #/$defs/address"
        elif value != "#" and not _target(root, value):
            yield f"there is no {value}"
    elif name == "pattern" and isinstance(value, str):
        yield from _pattern_mistakes(value)
    elif name == "patternProperties" and isinstance(value, dict):
        for pattern in value:
            yield from _pattern_mistakes(str(pattern))


def _of_schema(error: ValidationError) -> str:
    if error.absolute_path and error.absolute_path[-1] == "type":
        return f"expected {', '.join(TYPES)}, or a list of these"
    return expected_by(error)


def _pattern_mistakes(pattern: str) -> Iterator[str]:
    try:
        compile_pattern(pattern)
    except re2.error as error:
        yield f"{pattern!r:.80} is no pattern of RE2: {_reason(error)}"


def _reason(error: re2.error) -> str:
    return error.args[0].decode("utf-8", "replace") if error.args and isinstance(error.args[0], bytes) else str(error)


def _target(root: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
