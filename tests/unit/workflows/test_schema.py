"""The JSON Schema for editors names every key of the language and every action."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from appliance.plugin import Action, Params
from appliance.workflows.models import BackoffModel, Model, RetryModel, StepModel, WorkflowModel
from appliance.workflows.schema import json_schema


class Address(Params):
    street: str


class Parcel(Params):
    to: Address
    weight: int = 1


async def nothing(params: Any, ctx: Any) -> None:
    return None


def models(model: type[Model]) -> Iterator[type[Model]]:
    for inner in model.__subclasses__():
        yield inner
        yield from models(inner)


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
    assert SCHEMA["required"] == ["name"]
    for model in models(Model):
        schema = SCHEMA if model is WorkflowModel else SCHEMA["$defs"][model.__name__]
        assert {*schema["properties"]} == {field.alias or name for name, field in model.model_fields.items()}
        assert schema["additionalProperties"] is False
        assert model in (WorkflowModel, StepModel) or schema["description"]


def test_every_key_is_described() -> None:
    for model in models(Model):
        for name, field in model.model_fields.items():
            plain = model is WorkflowModel and name in ("name", "description")
            assert field.description or plain or name == "retry", f"{model.__name__}.{name}"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    validator = Draft202012Validator(SCHEMA)
    good = {"name": "w", "trigger": "manual", "steps": [{"id": "a", "end": None}]}
    assert validator.is_valid(good)
    refused: list[dict[str, Any]] = [
        good | {"trigger": "by hand"},
        good | {"steps": [{"id": "a"}]},
        good | {"steps": [{"id": "a", "delay": "1s", "end": None}]},
        good | {"states": {}},
        good | {"steps": [{"id": "a", "parallel": {"branches": {"b": [{"id": "c"}]}}}]},
        good | {"steps": [{"id": "a", "action": "ship", "with": {}}]},
        good | {"steps": [{"id": "a", "delay": "1s", "compensate": {"action": "ship", "with": {"weight": 1}}}]},
    ]
    for wrong in refused:
        assert not validator.is_valid(wrong), wrong


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
    retry = SCHEMA["$defs"][BackoffModel.__name__]["properties"]
    assert SCHEMA["$defs"][RetryModel.__name__]["properties"]["initial"]["default"] == "1s"
    assert (retry["initial"]["default"], retry["max"]["default"]) == ("1s", "10m")
    assert not any(part.get("format") == "duration" for part in parts(SCHEMA))
