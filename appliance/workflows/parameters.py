"""Static check of a step's ``with`` against its action's parameters.

Literal values are validated by the action's own model. A value with an expression in it is known only when the step
runs: of it, the key is checked, and whatever the model says about it (or about the whole) now is ignored.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from appliance.errors import Problem
from appliance.templating import has_expression
from appliance.workflows.problems import details_of, existing, from_details

_ABOUT_KEYS = frozenset({"missing", "extra_forbidden"})


def check_parameters(model: type[BaseModel], values: dict[str, Any], key: str) -> list[Problem]:
    """What is wrong with ``values`` (JSON data with templates) as parameters of ``model``."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        dynamic = contains_expression(values)
        kept = [
            detail
            for detail in details_of(error)
            if not dynamic or detail["type"] in _ABOUT_KEYS or not _is_dynamic(detail, values)
        ]
        known = [field.alias or name for name, field in model.model_fields.items()]
        return from_details(kept, values, key, known)
    return []


def contains_expression(value: Any) -> bool:
    """Whether there is a template anywhere in ``value``."""
    if isinstance(value, dict):
        return any(contains_expression(item) for item in value.values())
    if isinstance(value, list):
        return any(contains_expression(item) for item in value)
    return has_expression(value)


def _is_dynamic(detail: ErrorDetails, values: Any) -> bool:
    for part in existing(detail, values):
        values = values[part]
    return contains_expression(values)
