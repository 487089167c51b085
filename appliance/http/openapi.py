"""The OpenAPI 3.1 document, made from the operations and the schemas of bodies and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from appliance.http.operations import Operation, Parameter
from appliance.http.problems import MEDIA_TYPE
from appliance.http.schemas import SCHEMAS, TEXT

_PATH_PARAMETER = re.compile(r"{(\w+)}")


def document_of(operations: Iterable[Operation]) -> dict[str, Any]:
    """The document, JSON data."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Appliance", "version": _version(), "description": "Event-driven workflows."},
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "security": [] if operation.open else [{"bearer": []}, {"key": []}],
        "parameters": [
            *(_path_parameter(name) for name in _PATH_PARAMETER.findall(operation.path)),
            *(_parameter(parameter, "query") for parameter in operation.parameters),
            *(_parameter(header, "header") for header in operation.headers),
        ],
        "responses": {
            **{str(status): _answer(operation, status) for status in operation.statuses},
            "default": {
                "description": "A problem (RFC 9457)",
                "content": {MEDIA_TYPE: {"schema": _reference("Problem")}},
            },
        },
    }
    if operation.body is not None:
        content = {media_type: {"schema": _reference(operation.body)} for media_type in operation.media_types}
        described["requestBody"] = {"required": not operation.body_optional, "content": content}
    return described


def _operation_id(operation: Operation) -> str:
    words = re.sub(r"\W+", "_", operation.path).strip("_")
    return f"{operation.method.lower()}_{words or 'index'}"


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": TEXT}


def _parameter(parameter: Parameter, place: str) -> dict[str, Any]:
    schema = {**TEXT, **({"enum": list(parameter.choices)} if parameter.choices else {})}
    return {"name": parameter.name, "in": place, "description": parameter.description, "schema": schema}


def _answer(operation: Operation, status: int) -> dict[str, Any]:
    if status == 304:
        return {"description": "It is what the client has"}
    content = {operation.answer_type: {"schema": _reference(operation.answer)}}
    return {"description": operation.summary, "content": content}


def _reference(name: str) -> dict[str, str]:
    if name not in SCHEMAS:
        raise KeyError(name)
    return {"$ref": f"#/components/schemas/{name}"}


def _version() -> str:
    try:
        return version("appliance")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"
