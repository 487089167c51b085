"""What people hand in is checked against a schema, within bounds; and which schemas are taken."""

from __future__ import annotations

import time
from typing import Any

import pytest

from appliance.errors import Malformed
from appliance.workflows.forms import resolved, schema_mistakes
from appliance.workflows.inputs import InputRefused, check, mistakes

FORM: dict[str, Any] = {
    "type": "object",
    "required": ["reply", "lines"],
    "additionalProperties": False,
    "properties": {
        "reply": {"type": "string", "minLength": 3},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "uniqueItems": True},
        "colour": {"enum": ["red", "blue", 3]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "size": {"oneOf": [{"const": "S", "title": "Small"}, {"const": "M"}]},
        "day": {"type": "string", "format": "date"},
        "mail": {"type": "string", "format": "email"},
    },
    "$defs": {"line": {"type": "object", "required": ["amount"], "properties": {"amount": {"type": "number"}}}},
}


def said(schema: Any, data: Any) -> list[str]:
    return [str(mistake) for mistake in mistakes(schema, data)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"day": "2028-02-29", "mail": "a@b.example", "code": "DE", "colour": 3}, []),
        ({"reply": "no"}, ["reply: expected at least 3 characters"]),
        ({"reply": 5}, ["reply: expected a text"]),
        ({"lines": [{"amount": 1}, {"amount": "2"}]}, ["lines[1].amount: expected a number"]),
        ({"lines": [{}]}, ["lines[0].amount: is missing"]),
        ({"lines": [{"amount": 1}, {"amount": 1}]}, ["lines: expected items that differ from each other"]),
        ({"colour": "green"}, ["colour: expected one of red, blue, 3"]),
        ({"code": "de"}, ["code: expected a text that matches ^[A-Z]{2}$"]),
        ({"day": "tomorrow"}, ["day: expected a date such as 2030-01-31"]),
        ({"mail": "nobody"}, ["mail: expected an e-mail address"]),
        ({"size": "L"}, ["size: expected one of S, M"]),
        ({"rest": 1}, ["rest: unknown; expected one of reply, lines, colour, code, size, day, mail"]),
    ],
)
def test_each_mistake_names_its_path_and_what_was_expected(change: dict[str, Any], expected: list[str]) -> None:
    assert schema_mistakes(FORM) == []
    assert said(FORM, {"reply": "yes", "lines": [], **change}) == expected


def test_what_is_missing_is_named_one_by_one() -> None:
    assert said(FORM, {}) == ["reply: is missing", "lines: is missing"]
    with pytest.raises(InputRefused, match=r"answer\.reply: is missing; answer\.lines: is missing"):
        check("answer", FORM, {})
    with pytest.raises(InputRefused, match="input: expected an object"):
        check("input", FORM, [])
    check("input", None, [])


def test_a_pattern_takes_linear_time() -> None:
    schema = {"properties": {"a": {"pattern": "^(a+)+$"}}, "patternProperties": {"^(b+)+$": {"type": "string"}}}
    started = time.monotonic()
    assert len(said(schema, {"a": "a" * 50_000 + "!", "b" * 50_000: 1, "b" * 50_000 + "!": 1})) == 2
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        ({"$ref": "#"}, 1),
        ({"items": {"properties": {"a": {"type": "integer"}}}}, [{"a": 1}] * 300_000),
        (
            {
                "$ref": "#/$defs/0",
                "$defs": {
                    **{str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)},
                    "40": {"type": "string"},
                },
            },
            "x",
        ),
    ],
)
def test_a_check_that_would_take_too_long_is_given_up(schema: dict[str, Any], data: Any) -> None:
    assert schema_mistakes(schema) == []
    with pytest.raises(Malformed, match="too large"):
        mistakes(schema, data)


@pytest.mark.parametrize(
    ("schema", "place", "words"),
    [
        ([], "", "expected a JSON Schema"),
        ({"type": "strin"}, "type", "expected string, number"),
        ({"required": "a"}, "required", "expected a list"),
        ({"properties": {"a": 3}}, "properties.a", "expected an object or true or false"),
        ({"properties": {"a": {"$ref": "https://example.com/s"}}}, "properties.a.$ref", "into the same schema"),
        ({"$ref": "other.json#/a"}, "$ref", "into the same schema"),
        ({"items": {"$ref": "#/$defs/none"}}, "items.$ref", "there is no #/$defs/none"),
        ({"$id": "https://example.com/s"}, "$id", "not supported"),
        ({"allOf": [{"$dynamicRef": "#a"}]}, "allOf[0].$dynamicRef", "not supported"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties", "not supported"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "$schema", "2020-12"),
        ({"pattern": "(?=a)b"}, "pattern", "no pattern of RE2"),
        ({"patternProperties": {"(a": {}}}, "patternProperties", "no pattern of RE2"),
        ({"description": "x" * 70_000}, "", "at most 65536 bytes"),
    ],
)
def test_a_schema_that_cant_be_used_is_refused(schema: Any, place: str, words: str) -> None:
    (mistake,) = schema_mistakes(schema)
    assert mistake.place == place
    assert words in mistake.expected


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    assert "inside each other" in schema_mistakes(schema)[0].expected


def test_names_and_data_may_look_like_keywords() -> None:
    assert schema_mistakes({"properties": {"$id": {}, "pattern": {"enum": [{"$ref": "https://x"}]}}}) == []


def test_a_reference_is_resolved_with_what_stands_beside_it() -> None:
    root = {"$defs": {"a/b": {"type": "string", "title": "A"}, "loop": {"$ref": "#/$defs/loop"}}}
    assert resolved({"$ref": "#/$defs/a~1b", "title": "B"}, root) == {"type": "string", "title": "B"}
    assert resolved({"$ref": "#/$defs/loop"}, root) == {}
    assert resolved(True, root) == {}
