"""The JSON Schema for editors names every key of the language and every action."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.plugin import Action, Params
from appliance.workflows.models import RetryModel, StepModel, TriggerModel, WorkflowModel
from appliance.workflows.schema import json_schema


class Address(Params):
    street: str


class Parcel(Params):
    to: Address
    weight: int = 1


async def nothing(params: Any, ctx: Any) -> None:
    return None


SCHEMA = json_schema({"ship": Action(params=Parcel, run=nothing), "note": Action(params=Params, run=nothing)})


def parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(inner)


def resolve(reference: str) -> Any:
    found: Any = SCHEMA
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_every_key_is_there() -> None:
    assert SCHEMA["$schema"].endswith("2020-12/schema")
    assert {"name", "trigger", "steps"} <= {*SCHEMA["required"]}
    for model in (WorkflowModel, StepModel, RetryModel, TriggerModel):
        schema = SCHEMA if model is WorkflowModel else SCHEMA["$defs"][model.__name__]
        assert {*schema["properties"]} == {field.alias or name for name, field in model.model_fields.items()}
        assert schema["additionalProperties"] is False


def test_every_reference_leads_somewhere() -> None:
    references = [part["$ref"] for part in parts(SCHEMA) if isinstance(part.get("$ref"), str)]
    assert references
    assert all(isinstance(resolve(reference), dict) for reference in references)


def test_parameters_depend_on_the_action() -> None:
    step = SCHEMA["$defs"]["StepModel"]
    assert step["properties"]["action"]["enum"] == ["note", "ship"]
    [ship] = [rule for rule in step["allOf"] if rule["if"]["properties"]["action"]["const"] == "ship"]
    parameters = resolve(ship["then"]["properties"]["with"]["$ref"])
    assert parameters["required"] == ["to"]
    own, template = parameters["properties"]["weight"]["anyOf"]
    assert (own["type"], template["type"]) == ("integer", "string")
    assert resolve(parameters["properties"]["to"]["anyOf"][0]["$ref"])["required"] == ["street"]


def test_durations_are_shown_as_they_are_written() -> None:
    retry = SCHEMA["$defs"]["RetryModel"]["properties"]
    assert (retry["initial"]["default"], retry["max"]["default"]) == ("1s", "10m")
    assert not any(part.get("format") == "duration" for part in parts(SCHEMA))
