"""The JSON Schema of the language, with the parameters of the actions that are installed: for editors."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from appliance.plugin import Action
from appliance.settings import format_duration
from appliance.workflows.models import RetryModel, StepModel, WorkflowModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A parameter may always be a template instead of what the action's model says.
_TEMPLATE = {"type": "string", "pattern": r"\{\{|\{%"}


def json_schema(actions: Mapping[str, Action]) -> dict[str, Any]:
    """A schema of workflow files: every step's ``with`` as its ``action`` wants it."""
    schema = WorkflowModel.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    for model in (RetryModel, StepModel):
        _show_durations(definitions[model.__name__], model)
    for name, action in sorted(actions.items()):
        own = action.params.model_json_schema(by_alias=True, ref_template=f"#/$defs/{name}.{{model}}")
        for inner, value in own.pop("$defs", {}).items():
            definitions[f"{name}.{inner}"] = value
        definitions[f"with.{name}"] = _or_templates(own)
    step = definitions["StepModel"]
    if actions:
        step["properties"]["action"] = {"enum": sorted(actions), "description": "Name of the action."}
    step["allOf"] = [
        {
            "if": {"properties": {"action": {"const": name}}, "required": ["action"]},
            "then": {"properties": {"with": {"$ref": f"#/$defs/with.{name}"}}},
        }
        for name in sorted(actions)
    ]
    step["oneOf"] = [{"required": ["action"]}, {"required": ["delay"]}]
    return {"$schema": DIALECT, **schema}


def _show_durations(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Durations as they are written (10m), where pydantic would say ISO 8601 (PT10M)."""
    for name, field in model.model_fields.items():
        shown = schema["properties"][field.alias or name]
        for one in (shown, *shown.get("anyOf", ())):
            if one.pop("format", None) == "duration":
                one["type"] = ["string", "number"]
        if isinstance(field.default, timedelta):
            shown["default"] = format_duration(field.default)
        elif isinstance(field.default, BaseModel):
            shown.pop("default", None)


def _or_templates(own: dict[str, Any]) -> dict[str, Any]:
    properties = {key: {"anyOf": [value, _TEMPLATE]} for key, value in own.get("properties", {}).items()}
    return {**own, "properties": properties}
