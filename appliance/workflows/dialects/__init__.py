"""Definition formats of other systems, recognised and translated into our own language.

Each dialect is a module: ``NAME`` and ``MARKS`` (what it is known by) for messages, ``recognises`` and ``translate``.
No document is in two of them: what looks like two is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from appliance.errors import DefinitionError, Problem
from appliance.plugin import Action
from appliance.workflows.compile import Lines, compile_workflow
from appliance.workflows.dialects import (
    automation_rules,
    automations,
    form_events,
    logic_rules,
    react_flow,
    step_lists,
    transitions,
)
from appliance.workflows.dialects.draft import Object, Translation, around, keys_of
from appliance.workflows.models import WorkflowModel
from appliance.workflows.revision import Workflow

COLLECTIONS = ("workflows", "rules", "definitions")
"""Keys under which a file may hold several definitions."""
_OURS = frozenset(field.alias or name for name, field in WorkflowModel.model_fields.items())
_MARKS = frozenset({"trigger", "steps", "states", "inputs"})


class Dialect(Protocol):
    """A module of this package."""

    NAME: str
    MARKS: str

    def recognises(self, document: Object) -> bool:
        """Whether ``document`` is in this dialect."""

    def translate(self, document: Object) -> Translation:
        """The same in our own language; raises DefinitionError."""


DIALECTS = cast(
    "tuple[Dialect, ...]",
    (transitions, form_events, step_lists, automations, automation_rules, logic_rules, react_flow),
)


def to_native(document: Any) -> Object:
    """``document`` in our own language: itself when it is, else its translation.

    Raises DefinitionError for what is in no format that is known, and for what a dialect has but our language hasn't.
    """
    return translate(document).native


def translate(document: Any) -> Translation:
    """The same, with the places in the source."""
    if isinstance(document, list) or (isinstance(document, dict) and collection_of(document) is not None):
        expected = "one; `appliance import` makes a workflow of each"
        raise DefinitionError(Problem("several definitions in one document", expected=expected))
    if not isinstance(document, dict):
        raise DefinitionError(Problem("not a workflow", expected="an object with name, trigger and steps"))
    found = [dialect for dialect in DIALECTS if dialect.recognises(document)]
    if len(found) > 1:
        seen = " and ".join(f"{dialect.NAME} ({dialect.MARKS})" for dialect in found)
        raise DefinitionError(Problem(f"this is written in several formats at once: {seen}", expected="one of them"))
    if found:
        return found[0].translate(document)
    if document.keys() <= _OURS or document.keys() & _MARKS:
        return Translation(document)
    looked_for = "; ".join(f"{dialect.NAME}: {dialect.MARKS}" for dialect in DIALECTS)
    expected = f"our own language: name, trigger and steps or states; {looked_for}"
    raise DefinitionError(Problem("no known format of a workflow", expected=expected))


def collection_of(document: Object) -> str | None:
    """The key under which a document holds several definitions and nothing else, if it does."""
    keys = [key for key in COLLECTIONS if isinstance(document.get(key), list)]
    return keys[0] if keys and document.keys() <= {*COLLECTIONS} else None


def parts_of(document: Any) -> list[tuple[str, Any]]:
    """Each definition in a document, and the key at which it stands (nothing if it is the only one)."""
    if isinstance(document, list):
        return [(f"[{index}]", part) for index, part in enumerate(document)]
    if not isinstance(document, dict) or collection_of(document) is None:
        return [("", document)]
    return [(f"{key}[{index}]", part) for key, parts in document.items() for index, part in enumerate(parts)]


def compile_document(
    document: Any,
    *,
    actions: Mapping[str, Action] | None,
    file: str | None = None,
    lines: Lines | None = None,
    key: str = "",
) -> tuple[Workflow, bool]:
    """The workflow in a document of any dialect, and whether it was translated.

    Raises DefinitionError; every problem names the key in ``document``, with the place that it has in ``lines`` (by
    ``key``, where the document is a part of a file).
    """
    translation = Translation(document)
    try:
        translation = translate(document)
        workflow = compile_workflow(translation.native, actions=actions, file=file)
    except DefinitionError as error:
        known = frozenset(keys_of(document))
        places = ((problem, translation.source_key(problem.key, known)) for problem in error.problems)
        problems = (_placed(problem, place, key, lines or {}, file) for problem, place in places)
        ordered = sorted(dict.fromkeys(problems), key=lambda problem: (problem.line or 0, problem.column or 0))
        raise DefinitionError(*ordered) from None
    return workflow, translation.dialect is not None


def _placed(problem: Problem, place: str, key: str, lines: Lines, file: str | None) -> Problem:
    whole = f"{key}.{place}".strip(".") if key else place
    near = whole
    while near and near not in lines:
        near = around(near)
    line, column = lines.get(near, (None, None))
    return Problem(problem.message, whole, file, line, column, problem.expected)
