"""The JSON Schema of the language, with the parameters of the actions that are installed: for editors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from appliance.plugin import Action
from appliance.settings import format_duration
from appliance.workflows.models import KINDS, EffectModel, Model, StateStepModel, StepModel, WorkflowModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A parameter may always be a template instead of what the action's model says.
_TEMPLATE = {"type": "string", "pattern": r"\{\{|\{%"}


def json_schema(actions: Mapping[str, Action]) -> dict[str, Any]:
    """A schema of workflow files: every ``with`` as the ``action`` beside it wants it."""
    schema = WorkflowModel.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    for model in _models(Model):
        if model.__name__ in definitions:
            _show_defaults(definitions[model.__name__], model)
    for part in _parts(schema):
        if part.get("format") == "duration":
            part["type"] = ["string", "number"]
            for word in ("format", "ge", "le"):  # JSON Schema has no bounds of durations as they are written
                part.pop(word, None)
    for name, action in sorted(actions.items()):
        own = action.params.model_json_schema(by_alias=True, ref_template=f"#/$defs/{name}.{{model}}")
        for inner, value in own.pop("$defs", {}).items():
            definitions[f"{name}.{inner}"] = value
        definitions[f"with.{name}"] = _or_templates(own)
    for acting in (StepModel, StateStepModel, EffectModel):
        _name_actions(definitions[acting.__name__], sorted(actions))
    for step in (StepModel, StateStepModel):
        definitions[step.__name__]["oneOf"] = [{"required": [kind]} for kind in KINDS]
    schema["oneOf"] = [{"required": ["steps"]}, {"required": ["states", "initial", "correlate"]}]
    schema["anyOf"] = [{"required": ["trigger"]}, {"required": ["inputs"]}]
    return {"$schema": DIALECT, **schema}


def _name_actions(schema: dict[str, Any], names: list[str]) -> None:
    """Which actions there are, and what each takes."""
    if names:
        schema["properties"]["action"] = {"enum": names, "description": "Name of the action."}
    schema["allOf"] = [
        {
            "if": {"properties": {"action": {"const": name}}, "required": ["action"]},
            "then": {"properties": {"with": {"$ref": f"#/$defs/with.{name}"}}},
        }
        for name in names
    ]


def _show_defaults(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Durations as they are written (10m), where pydantic would say ISO 8601 (PT10M); no models as defaults."""
    for name, field in model.model_fields.items():
        shown = schema["properties"][field.alias or name]
        if isinstance(field.default, timedelta):
            shown["default"] = format_duration(field.default)
        elif isinstance(field.default, BaseModel):
            shown.pop("default", None)


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for inner in model.__subclasses__():
        yield inner
        yield from _models(inner)


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema."""
    if isinstance(value, dict):
        yield value
        for inner in tuple(value.values()):
            yield from _parts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner)


def _or_templates(own: dict[str, Any]) -> dict[str, Any]:
    properties = {key: {"anyOf": [value, _TEMPLATE]} for key, value in own.get("properties", {}).items()}
    return {**own, "properties": properties}
