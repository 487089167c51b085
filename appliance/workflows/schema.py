"""The JSON Schema of the language, with the parameters of the actions that are installed: for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.plugin import Action
from appliance.workflows.models import WorkflowModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A parameter may always be a template instead of what the action's model says.
_TEMPLATE = {"type": "string", "pattern": r"\{\{|\{%"}


def json_schema(actions: Mapping[str, Action]) -> dict[str, Any]:
    """A schema of workflow files: every step's ``with`` as its ``action`` wants it."""
    schema = WorkflowModel.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
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
    return {"$schema": DIALECT, "title": "Workflow", **schema}


def _or_templates(own: dict[str, Any]) -> dict[str, Any]:
    properties = {key: {"anyOf": [value, _TEMPLATE]} for key, value in own.get("properties", {}).items()}
    return {**own, "properties": properties}
