"""Definition formats of other systems, recognised and translated into our own language."""

from __future__ import annotations

from typing import Any

from appliance.errors import DefinitionError, Problem
from appliance.workflows.dialects import form_events


def to_native(document: Any) -> dict[str, Any]:
    """``document`` in our own language: itself when it is, else its translation.

    Raises DefinitionError for what is no object, and for what a dialect has but our language hasn't.
    """
    if not isinstance(document, dict):
        raise DefinitionError(Problem("not a workflow", expected="an object with name, trigger and steps"))
    if form_events.recognises(document):
        return form_events.translate(document)
    return document
