"""The dialect of a workflow automation platform: a list of steps, run one after the other when somebody asks for it.

::

    {"id": …, "name": …, "steps": [
        {"name": "delay", "type": "delay", "config": {"duration": 2}},
        {"name": "notify", "type": "webhook", "config": {"url": …, "method": "POST", "headers": {…}, "body": {…}}}]}

Such a workflow is started by its name; what it is started with is ``{{ payload.… }}`` in texts.
"""

from __future__ import annotations

from typing import Any

from appliance.errors import DefinitionError
from appliance.workflows.dialects.actions import Given, translate_action
from appliance.workflows.dialects.draft import Draft, Object, Translation
from appliance.workflows.dialects.heads import body_of, head
from appliance.workflows.dialects.texts import mustache
from appliance.workflows.models import KINDS

NAME = "an automation platform's list of steps"
MARKS = "no trigger, steps with name, type and config"
_STEP = ("name", "type", "config", "description")


def recognises(document: Object) -> bool:
    """Whether ``document`` is in this dialect."""
    body, _ = body_of(document)
    if body.keys() & {"trigger", "trigger_type", "initial_step_id", "inputs", "edges"}:
        return False
    steps = body.get("steps")
    return isinstance(steps, list) and any(_is_typed(step) for step in steps)


def translate(document: Object) -> Translation:
    """The workflow in our own language; raises DefinitionError."""
    body, prefix = body_of(document)
    draft = Draft(prefix)
    native = head(document, draft, ("steps",))
    native["trigger"] = "manual"
    native["steps"] = draft.at([], f"{prefix}steps")
    for index, step in enumerate(body["steps"]):
        native["steps"] += _step(step, f"{prefix}steps[{index}]", draft)
    if draft.problems:
        raise DefinitionError(*draft.problems)
    return draft.done(native, NAME)


def _is_typed(step: Any) -> bool:
    return isinstance(step, dict) and isinstance(step.get("type"), str) and not step.keys() & set(KINDS)


def _step(step: Any, key: str, draft: Draft) -> list[Object]:
    if not isinstance(step, dict) or not isinstance(step.get("type"), str):
        draft.complain("not a step", key, '{"name": …, "type": …, "config": {…}}')
        return []
    draft.refuse_unknown(step, key, _STEP)
    if not isinstance(step.get("name"), str) or not step["name"]:
        draft.complain("a step without a name", key, "name")
        return []
    config = step.get("config", {})
    if not isinstance(config, dict):
        draft.complain("not an object", f"{key}.config", "the step's parameters")
        return []
    native: Object = {"id": draft.fresh_id(step["name"])}
    if step.get("description"):
        native["description"] = step["description"]
    given = Given(step["type"], f"{key}.type", config, f"{key}.config")
    made = translate_action(given, draft, lambda text, place: mustache(text, place, draft))
    return [draft.joined(native, made, key, id=f"{key}.name")]
