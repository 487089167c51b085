"""The dialect of an automation service's rules, and of an execution engine's: an event, conditions, actions.

::

    {"name": …, "trigger": {"type": "event", "event_type": "user.created"},
     "conditions": [{"type": "field_check", "field": "user.email_verified", "operator": "equals", "value": true}],
     "actions": [{"type": "notification", "notification_type": "email", "template": …, "to": "{{user.email}}"}]}

The conditions may be JSON Logic as well. Paths lead into the event's data. All actions are run, one after the other;
the parameters of one stand beside its ``type``, or in ``config``.
"""

from __future__ import annotations

from typing import Any

from appliance.errors import DefinitionError
from appliance.workflows.dialects.actions import Given, translate_action
from appliance.workflows.dialects.automations import trigger_of
from appliance.workflows.dialects.conditions import condition
from appliance.workflows.dialects.draft import Draft, Object, Translation
from appliance.workflows.dialects.heads import body_of, head
from appliance.workflows.dialects.texts import mustache

NAME = "an automation service's rule"
MARKS = "trigger with type and event_type, conditions, actions, no steps"
_OWN = ("type", "id", "name", "description", "condition", "conditions")


def recognises(document: Object) -> bool:
    """Whether ``document`` is in this dialect."""
    body, _ = body_of(document)
    return isinstance(body.get("actions"), list) and not body.keys() & {"steps", "states", "transitions", "nodes"}


def translate(document: Object) -> Translation:
    """The workflow in our own language; raises DefinitionError."""
    body, prefix = body_of(document)
    draft = Draft(prefix)
    native = head(document, draft, ("trigger", "trigger_type", "trigger_config", "conditions", "actions"))
    native["trigger"] = trigger_of(body, draft)
    if not body["actions"]:
        draft.complain("no actions", f"{prefix}actions", "a list with at least one")
    steps = [_step(action, f"{prefix}actions[{index}]", index, draft) for index, action in enumerate(body["actions"])]
    native["steps"] = draft.at(steps, f"{prefix}actions")
    if draft.problems:
        raise DefinitionError(*draft.problems)
    return draft.done(native, NAME)


def _step(action: Any, key: str, index: int, draft: Draft) -> Object:
    if not isinstance(action, dict) or not isinstance(action.get("type"), str):
        draft.complain("not an action", key, '{"type": …} with its parameters')
        return {}
    named = next((word for word in ("id", "name") if isinstance(action.get(word), str) and action[word]), None)
    native: Object = {"id": draft.fresh_id(action[named] if named else f"action_{index + 1}")}
    if action.get("description"):
        native["description"] = action["description"]
    asked = next((word for word in ("conditions", "condition") if action.get(word)), None)
    if asked is not None:
        native["if"] = condition(action[asked], f"{key}.{asked}", draft, "input")
    values = {name: value for name, value in action.items() if name not in _OWN}
    place = key
    if isinstance(values.get("config"), dict) and len(values) == 1:
        values, place = values["config"], f"{key}.config"
    given = Given(action["type"], f"{key}.type", values, place)
    made = translate_action(given, draft, lambda text, where: mustache(text, where, draft))
    return draft.joined(native, made, key, id=f"{key}.{named}" if named else key, **({"if": f"{key}.{asked}"}))
