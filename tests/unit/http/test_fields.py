"""A form's fields, and the answer that is made of what they send."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.http.fields import Field, answer_of, fields_of
from appliance.workflows.inputs import Mistake


def field(schema: Any, **more: Any) -> Field:
    (made,) = fields_of({"type": "object", "properties": {"f": schema}, **more})
    return made


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string"}, "text"),
        ({"type": "string", "maxLength": 120}, "line"),
        ({"type": "string", "maxLength": 121}, "text"),
        ({"type": "string", "format": "email"}, "line"),
        ({"type": "string", "format": "textarea", "maxLength": 10}, "text"),
        ({"type": "string", "pattern": "^x$"}, "line"),
        ({"type": ["null", "number"]}, "number"),
        ({"type": "integer"}, "number"),
        ({"type": "boolean"}, "switch"),
        ({"enum": ["a", 1, None]}, "choice"),
        ({"oneOf": [{"const": 1, "title": "One"}, {"const": 2}]}, "choice"),
        ({"oneOf": [{"const": 1}, {"type": "string"}]}, "text"),
        ({"type": "object"}, "json"),
        ({"type": "array", "items": {"type": "string"}}, "json"),
        ({"properties": {}}, "json"),
        ({"$ref": "#/$defs/yes"}, "switch"),
        (True, "text"),
    ],
)
def test_the_kind_of_a_field_is_that_of_its_schema(schema: Any, kind: str) -> None:
    assert field(schema, **{"$defs": {"yes": {"type": "boolean"}}}).kind == kind


def test_a_field_has_the_schemas_words_and_bounds() -> None:
    schema = {
        "type": "integer",
        "title": "Amount",
        "description": "In euros.",
        "minimum": 1,
        "maximum": 5,
        "default": 2,
    }
    made = field(schema, required=["f"])
    assert (made.label, made.hint, made.required, made.initial) == ("Amount", "In euros.", True, "2")
    assert dict(made.attributes) == {"type": "number", "step": "1", "min": "1", "max": "5"}
    line = field({"type": "string", "format": "email", "minLength": 3, "maxLength": 50, "minimum": 9})
    assert dict(line.attributes) == {"type": "email", "minlength": "3", "maxlength": "50"}
    assert (line.label, line.required) == ("f", False)
    assert field({"type": "object", "default": {"a": 1}}).initial == '{\n  "a": 1\n}'
    choice = field({"oneOf": [{"const": 1, "title": "One"}, {"const": "b"}], "default": 1})
    assert (choice.options, choice.initial) == (((1, "One"), ("b", "b")), "1")


@pytest.mark.parametrize(
    ("schema", "typed", "read"),
    [
        ({"type": "string"}, "a\r\nb", "a\nb"),
        ({"type": "integer"}, " 12 ", 12),
        ({"type": "number"}, "-1.5e3", -1500.0),
        ({"type": "number"}, "much", "much"),
        ({"type": "number"}, "nan", "nan"),
        ({"type": "number"}, "١", 1.0),
        ({"type": "integer"}, "9" * 400, "9" * 400),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, None, False),
        ({"enum": ["a", 1, None, "1"]}, "1", 1),
        ({"enum": ["a", 1, None]}, "null", None),
        ({"enum": ["a"]}, "b", "b"),
        ({"type": "array"}, "[1, 2]", [1, 2]),
        ({"type": "string"}, ["sent", "twice"], ["sent", "twice"]),
    ],
)
def test_what_was_typed_becomes_data(schema: Any, typed: Any, read: Any) -> None:
    posted = {} if typed is None else {"f": typed}
    assert answer_of([field(schema)], posted, 5) == ({"f": read}, [])


def test_an_empty_field_is_left_out_and_what_has_no_field_is_kept() -> None:
    fields = fields_of({"properties": {"a": {"type": "string"}, "b": {"type": "number"}, "c": {"type": "object"}}})
    assert answer_of(fields, {"a": "", "b": "", "c": "", "more": "x"}, 5) == ({"more": "x"}, [])


def test_json_that_cant_be_read_is_a_mistake_of_its_field() -> None:
    answer, mistakes = answer_of([field({"type": "object"})], {"f": "{"}, 5)
    assert answer == {}
    assert [mistake.path for mistake in mistakes] == [("f",)]
    assert "not JSON" in mistakes[0].expected
    assert answer_of([field({"type": "array"})], {"f": "[" * 6 + "]" * 6}, 5)[1] == [
        Mistake(("f",), "nested deeper than 5 levels")
    ]


@pytest.mark.parametrize("form", [{}, {"type": "array"}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_a_form_without_properties_is_one_field_for_the_whole_answer(form: dict[str, Any]) -> None:
    fields = fields_of(form)
    assert [(f.name, f.kind) for f in fields] == [("answer", "whole")]
    assert answer_of(fields, {"answer": "[1]"}, 5) == ([1], [])
    assert answer_of(fields, {}, 5) == (None, [])
    assert [m.path for m in answer_of(fields, {"answer": "x"}, 5)[1]] == [()]
