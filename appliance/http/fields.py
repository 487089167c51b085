"""A task's form, as the fields of an HTML form: made from its JSON Schema, and turned back into an answer.

Texts, numbers, choices and switches have fields of their own; what is nested is written as JSON. Whatever comes back is
checked against the whole schema afterwards, so a field may be lenient.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import Malformed
from appliance.http.body import decode_json
from appliance.workflows.forms import resolved
from appliance.workflows.inputs import Mistake

WHOLE = "answer"
"""The name of the one field of a form that has no properties to make fields of."""
_LONG = 120
"""Characters: a longer text gets several lines. So does one without a limit, unless something tells its form."""
_SMALL_FORMATS = {"email": "email", "uri": "url", "date": "date", "date-time": "text", "time": "text"}
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_BOUNDS = {"minimum": "min", "maximum": "max", "minLength": "minlength", "maxLength": "maxlength"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    ``kind`` is ``line``, ``text``, ``number``, ``switch``, ``choice``, ``json``, or ``whole`` (the answer as JSON).
    ``options`` are the values of a choice, each with its label; ``attributes`` those of the HTML element; ``initial``
    is what the field shows at first, as text.
    """

    name: str
    label: str
    hint: str
    kind: str
    required: bool
    options: tuple[tuple[Any, str], ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    initial: str = ""


def fields_of(form: Mapping[str, Any]) -> list[Field]:
    """The fields of a form; one for the whole answer, if it is no object with properties."""
    root = resolved(form, form)
    properties = root.get("properties")
    if root.get("type", "object") != "object" or not isinstance(properties, Mapping) or not properties:
        return [Field(WHOLE, "Answer", f"{_text(root.get('description'))} Written as JSON.".strip(), "whole", True)]
    required = root.get("required", ())
    return [_field(name, resolved(schema, form), name in required) for name, schema in properties.items()]


def answer_of(fields: Sequence[Field], posted: Mapping[str, Any], max_depth: int) -> tuple[Any, list[Mistake]]:
    """What was posted as an answer, and the fields that could not be read.

    An empty field is left out of the answer, an unticked switch is false. What no field is for is kept as it is.
    """
    mistakes: list[Mistake] = []
    answer: dict[str, Any] = {}
    names = {field.name for field in fields}
    for field in fields:
        value = posted.get(field.name)
        if field.kind == "switch":
            answer[field.name] = value is not None
        elif value not in (None, ""):
            try:
                answer[field.name] = _read(field, value, max_depth)
            except Malformed as error:
                mistakes.append(Mistake(() if field.kind == "whole" else (field.name,), str(error)))
    answer |= {name: value for name, value in posted.items() if name not in names}
    return (answer.get(WHOLE) if fields[0].kind == "whole" else answer), mistakes


def _read(field: Field, value: Any, max_depth: int) -> Any:
    if not isinstance(value, str):
        return value  # sent repeatedly: a list
    if field.kind in ("json", "whole"):
        return decode_json(value.encode(), max_depth)
    if field.kind == "number":
        return _number(value.strip())
    if field.kind == "choice":
        return next((option for option, _ in field.options if option_text(option) == value), value)
    return value.replace("\r\n", "\n")


def _number(text: str) -> Any:
    """The number in a text; the text itself if there is none, for the schema to refuse."""
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def option_text(option: Any) -> str:
    """An option as the browser sends it: texts as they are, other values as JSON."""
    return option if isinstance(option, str) else json.dumps(option)


def _field(name: str, schema: Mapping[str, Any], required: bool) -> Field:
    options = _options(schema)
    kind = "choice" if options else _kind(schema)
    hint = _text(schema.get("description"))
    if kind == "json":
        hint = f"{hint} Written as JSON.".strip()
    default = schema.get("default")
    initial = "" if default is None else json.dumps(default, indent=2) if kind == "json" else option_text(default)
    label = _text(schema.get("title")) or name
    return Field(name, label, hint, kind, required, options, _attributes(kind, schema), initial)


def _options(schema: Mapping[str, Any]) -> tuple[tuple[Any, str], ...]:
    """The values that a field may have: of ``enum``, or of a ``oneOf`` of constants with titles."""
    if isinstance(schema.get("enum"), list):
        return tuple((value, option_text(value)) for value in schema["enum"])
    choices = schema.get("oneOf")
    if isinstance(choices, list) and choices and all(isinstance(c, Mapping) and "const" in c for c in choices):
        return tuple((c["const"], _text(c.get("title")) or option_text(c["const"])) for c in choices)
    return ()


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = schema.get("type")
    kind = next((k for k in kinds if k != "null"), None) if isinstance(kinds, list) else kinds
    if kind in ("integer", "number"):
        return "number"
    if kind == "boolean":
        return "switch"
    if kind in ("object", "array") or (kind is None and schema.keys() & {"properties", "items", "$ref", "anyOf"}):
        return "json"
    limit = schema.get("maxLength")
    short = limit <= _LONG if isinstance(limit, int) else bool(schema.keys() & {"pattern", "format", "const"})
    return "line" if short and schema.get("format") not in ("textarea", "multiline") else "text"


def _attributes(kind: str, schema: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    found = {"type": _SMALL_FORMATS.get(str(schema.get("format")), "text")} if kind == "line" else {}
    if kind == "number":
        # Any step: the browser would refuse 0.5 otherwise. The schema says what is whole.
        found = {"type": "number", "step": "1" if schema.get("type") == "integer" else "any"}
    if kind in ("line", "text", "number"):
        found |= {
            name: str(schema[bound])
            for bound, name in _BOUNDS.items()
            if isinstance(schema.get(bound), int | float) and (kind == "number") == bound.endswith("imum")
        }
    return tuple(found.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
