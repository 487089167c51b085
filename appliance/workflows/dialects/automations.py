"""The dialect of an automation service: workflows with a type of trigger, and steps with conditions.

::

    {"name": …, "description": …, "trigger_type": "manual", "steps": [
        {"id": "validate", "type": "data_transform", "config": {"mapping": {…}}},
        {"id": "notify", "type": "notification", "conditions": [{"field", "operator", "value"}], "config": {…}}]}

What starts a run is in ``trigger_type`` and ``trigger_config``, or in ``trigger: {type, event_type}``. Texts have
``{{user.email}}``: paths in what the run was started with.
"""

from __future__ import annotations

from typing import Any

from appliance.errors import DefinitionError
from appliance.workflows.dialects.actions import Given, length, translate_action
from appliance.workflows.dialects.conditions import condition
from appliance.workflows.dialects.draft import Draft, Object, Translation
from appliance.workflows.dialects.heads import body_of, head
from appliance.workflows.dialects.texts import mustache

NAME = "an automation service's workflow"
MARKS = "trigger_type, steps with id, type and config"
TRIGGERS = ("event", "schedule", "manual")
_STEP = ("id", "name", "description", "type", "config", "condition", "conditions", "timeout", "max_retries",
         "retry_delay", "on_error", "branches")  # fmt: skip
_EVENT_KEYS = ("event_type", "event", "event_name")
_CRON_KEYS = ("cron", "schedule", "cron_expression", "expression")
_ON_ERROR = {"continue": "continue", "ignore": "continue", "stop": None, "fail": None}


def recognises(document: Object) -> bool:
    """Whether ``document`` is in this dialect."""
    body, _ = body_of(document)
    if "steps" not in body or "initial_step_id" in body:
        return False
    trigger = body.get("trigger")
    typed = isinstance(trigger, dict) and trigger.get("type") in TRIGGERS
    return "trigger_type" in body or (typed and not _has_actions(body["steps"]))


def translate(document: Object) -> Translation:
    """The workflow in our own language; raises DefinitionError."""
    body, prefix = body_of(document)
    draft = Draft(prefix)
    native = head(document, draft, ("trigger_type", "trigger_config", "trigger", "conditions", "steps"))
    native["trigger"] = trigger_of(body, draft)
    steps = body["steps"]
    if not isinstance(steps, list) or not steps:
        draft.complain("no steps", f"{prefix}steps", "a list of steps")
    else:
        native["steps"] = steps_of(steps, f"{prefix}steps", draft)
    if draft.problems:
        raise DefinitionError(*draft.problems)
    return draft.done(native, NAME)


def _has_actions(steps: Any) -> bool:
    return isinstance(steps, list) and any(isinstance(step, dict) and "actions" in step for step in steps)


# --- triggers --------------------------------------------------------------------------------------------------------


def trigger_of(body: Object, draft: Draft) -> Any:
    """What starts a run, of ``trigger`` or of ``trigger_type`` and ``trigger_config``; with the ``conditions``."""
    prefix = draft.prefix
    if "trigger" in body:
        given, key, type_key = body["trigger"], f"{prefix}trigger", f"{prefix}trigger.type"
        if not isinstance(given, dict):
            draft.complain("not a trigger", key, '{"type": "event", "event_type": …}')
            return "manual"
        type_, given = given.get("type"), {name: value for name, value in given.items() if name != "type"}
    else:
        type_, type_key = body.get("trigger_type"), f"{prefix}trigger_type"
        given, key = body.get("trigger_config") or {}, f"{prefix}trigger_config"
    if not isinstance(given, dict):
        draft.complain("not an object", key, "event_type, or cron")
        return "manual"
    conditions = [
        condition(asked, place, draft, "data")
        for asked, place in (
            (given.get("conditions"), f"{key}.conditions"),
            (body.get("conditions"), f"{prefix}conditions"),
        )
        if asked
    ]
    return _trigger(type_, type_key, given, key, conditions, draft)


def _trigger(type_: Any, type_key: str, given: Object, key: str, conditions: list[Any], draft: Draft) -> Any:
    place = f"{key}.conditions" if given.get("conditions") else f"{draft.prefix}conditions"
    if type_ == "event":
        draft.refuse_unknown(given, key, (*_EVENT_KEYS, "conditions"))
        named = next((name for name in _EVENT_KEYS if given.get(name) is not None), None)
        if named is None:
            draft.complain("no type of event", key, "event_type")
            return "manual"
        native = {"event": given[named]}
        if conditions:
            native["when"] = conditions[0] if len(conditions) == 1 else conditions
        return draft.at(native, key, event=f"{key}.{named}", when=place)
    if conditions:
        draft.complain("conditions without an event", place, "conditions at the steps")
    if type_ == "schedule":
        draft.refuse_unknown(given, key, (*_CRON_KEYS, "timezone"))
        named = next((name for name in _CRON_KEYS if given.get(name) is not None), None)
        if named is None:
            draft.complain("no schedule", key, "cron: five fields, such as 0 9 * * 1")
            return "manual"
        timezone = {"timezone": given["timezone"]} if "timezone" in given else {}
        return draft.at({"schedule": given[named], **timezone}, key, schedule=f"{key}.{named}")
    if type_ != "manual":
        expected = f"{', '.join(TRIGGERS)} (what comes over HTTP is an event: POST /api/v1/events)"
        draft.complain(f"unknown type of trigger {type_!r:.80}", type_key, expected)
    else:
        draft.refuse_unknown(given, key, ())
    return "manual"


# --- steps -----------------------------------------------------------------------------------------------------------


def steps_of(steps: list[Any], key: str, draft: Draft) -> list[Object]:
    """The steps in our own language, each in its place."""
    native = []
    for index, step in enumerate(steps):
        inner = f"{key}[{index}]"
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            draft.complain("not a step", inner, '{"id": …, "type": …, "config": {…}}')
        elif not isinstance(step.get("id", step.get("name")), str | int):
            draft.complain("a step without an id", inner, "id")
        else:
            native.append(_step(step, inner, draft))
    return draft.at(native, key)


def _step(step: Object, key: str, draft: Draft) -> Object:
    draft.refuse_unknown(step, key, _STEP)
    name = "id" if "id" in step else "name"
    if draft.knows(str(step[name])):
        draft.complain(f"{step[name]!r} appears twice", f"{key}.{name}", "an id of its own")
    native: Object = {"id": draft.step_id(str(step[name]))}
    if described := step.get("description") or (step.get("name") if name == "id" else None):
        native["description"] = described
    places = {"id": f"{key}.{name}"}
    if (asked := next((word for word in ("conditions", "condition") if step.get(word)), None)) is not None:
        native["if"] = condition(step[asked], f"{key}.{asked}", draft, "input")
        places["if"] = f"{key}.{asked}"
    return draft.joined(native | _limits(step, key, draft), _kind(step, key, draft), key, **places)


def _kind(step: Object, key: str, draft: Draft) -> Object:
    config = step.get("config", {})
    if not isinstance(config, dict):
        draft.complain("not an object", f"{key}.config", "the step's parameters")
        return {}
    if step["type"] == "parallel":
        return _parallel(step, config, key, draft)
    if step["type"] in ("condition", "conditional", "if"):
        draft.complain("a step that only asks can't be translated", f"{key}.type", "conditions at the steps behind it")
        return {}
    given = Given(step["type"], f"{key}.type", config, f"{key}.config")
    return translate_action(given, draft, lambda text, place: mustache(text, place, draft))


def _parallel(step: Object, config: Object, key: str, draft: Draft) -> Object:
    """``branches``: an object or a list of lists of steps."""
    place = f"{key}.branches" if "branches" in step else f"{key}.config.branches"
    branches = step.get("branches", config.get("branches"))
    if isinstance(branches, list):
        named = [(f"branch_{index + 1}", branch, f"{place}[{index}]") for index, branch in enumerate(branches)]
    else:
        named = [(name, b, f"{place}.{name}") for name, b in branches.items()] if isinstance(branches, dict) else []
    if not named or not all(isinstance(branch, list) for _, branch, _ in named):
        draft.complain("no branches", place, "branches: lists of steps")
        return {}
    native = {name: steps_of(branch, inner, draft) for name, branch, inner in named}
    return draft.at({"parallel": draft.at({"branches": native}, place)}, key)


def _limits(step: Object, key: str, draft: Draft) -> Object:
    """``timeout``, ``max_retries`` (repetitions: one less than attempts), ``retry_delay`` and ``on_error``."""
    native: Object = {}
    if step.get("timeout") is not None:
        native["timeout"] = length(step["timeout"], f"{key}.timeout", draft)
    retry: Object = {}
    retries = step.get("max_retries")
    if isinstance(retries, int) and not isinstance(retries, bool):
        retry["max_attempts"] = retries + 1
    elif retries is not None:
        draft.complain(f"no number: {retries!r:.80}", f"{key}.max_retries", "how often it is tried again")
    if step.get("retry_delay") is not None:
        retry["initial"] = length(step["retry_delay"], f"{key}.retry_delay", draft)
    if retry:
        native["retry"] = draft.at(retry, key, max_attempts=f"{key}.max_retries", initial=f"{key}.retry_delay")
    if (wish := step.get("on_error")) is not None:
        if not isinstance(wish, str) or wish not in _ON_ERROR:
            draft.complain(f"unknown wish {wish!r:.80}", f"{key}.on_error", ", ".join(_ON_ERROR))
        elif _ON_ERROR[wish] is not None:
            native["on_error"] = _ON_ERROR[wish]
    return native
