"""What other systems call their actions and these actions' parameters, and what that is here.

A name that isn't in the table is taken as it is: if no plugin has such an action, compiling says so. The tables are
documented in ``docs/dialects.md``; a test compares both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from appliance.settings import format_duration, parse_duration
from appliance.templating import has_expression
from appliance.workflows.dialects.draft import Draft, Object

Text = Callable[[str, str], str]
"""Makes a text (with its key in the source) a template."""

ACTIONS: Mapping[str, tuple[str, ...]] = {
    "send_email": ("email", "mail", "send_mail", "email_notification", "send_email_notification"),
    "webhook": ("http", "http_request", "http_call", "api_call", "call_webhook", "send_webhook", "trigger_webhook"),
    "log": ("logger", "log_message", "log_activity"),
    "publish": ("publish_event", "emit", "emit_event", "send_event"),
    "delay": ("wait", "sleep", "pause"),
    "transform": ("data_transform", "transform_data", "set_data"),
    "workflow": ("shared_flow", "sub_workflow", "subworkflow", "execute_workflow", "run_workflow", "start_workflow",
                 "trigger_workflow", "execute_shared_flow"),
}  # fmt: skip
"""Our name (of an action, or of a kind of step) and what else it is called."""

PARAMETERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "send_email": {
        "to": ("to_email", "recipient", "recipients"),
        "from": ("from_email", "sender"),
        "reply_to": ("replyTo",),
        "subject": ("title",),
        "body": ("message", "content", "text"),
        "html": ("html_body", "htmlBody"),
        "template": ("template_id", "templateId", "template_name", "emailTemplate"),
        "data": ("template_data", "templateData", "variables"),
    },
    "webhook": {
        "url": ("endpoint", "webhook_url", "webhookUrl"),
        "method": ("http_method", "httpMethod"),
        "json": ("body", "payload", "data"),
    },
    "log": {"message": ("text", "msg"), "fields": ("data",)},
    "publish": {"type": ("event_type", "eventType", "event"), "data": ("payload",)},
    "workflow": {
        "name": ("workflow", "workflow_name", "workflowName", "workflow_id", "flowName", "flow_name"),
        "input": ("input_data", "inputData", "payload", "data"),
    },
    "transform": {"transform": ("mapping", "fields", "output", "template", "data"), "logic": ("json_logic",)},
}
"""Our parameters, and what else each is called."""

CHANNELS: Mapping[str, str] = {"email": "send_email", "webhook": "webhook", "sms": "send_sms"}
"""The action of a ``notification``, by its type."""
_CHANNEL_KEYS = ("notification_type", "channel")

_UNITS = {"ms": 0.001, "second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2592000}
_UNIT_KEYS = {f"{unit}s": size for unit, size in _UNITS.items() if unit != "ms"} | {
    "ms": 0.001, "milliseconds": 0.001, "delayMs": 0.001, "delay_ms": 0.001,
    "duration_seconds": 1, "delay_seconds": 1, "duration_minutes": 60, "delay_minutes": 60,
}  # fmt: skip
_DURATION_KEYS = ("duration", "delay", "for", "delayType", "delay_type")
_NAMED = re.compile(r"(\d+)[_ ](minute|hour|day|week|month)s?")
DURATION = "a duration such as 30s, 10m or 2d, seconds, or minutes, hours, days"


@dataclass(frozen=True, slots=True)
class Given:
    """An action as the source has it. ``key`` is where its parameters stand; ``places`` say it of single ones."""

    name: str
    name_key: str
    values: Object
    key: str
    places: Mapping[str, str] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """Where a parameter stands."""
        return self.places.get(name) or f"{self.key}.{name}".lstrip(".")


def translate_action(given: Given, draft: Draft, text: Text) -> Object:
    """What makes a step of it: ``{"action", "with"}``, ``{"delay"}``, ``{"workflow"}`` or ``{"transform"}``."""
    name = meaning_of(given.name)
    if name == "notification":
        return _notification(given, draft, text)
    if name == "delay":
        return draft.at({"delay": duration(given, draft)}, given.key, delay=given.key)
    if name == "workflow":
        return _call(given, draft, text)
    if name == "transform":
        return _transform(given, draft, text)
    return _action(name if name in PARAMETERS else given.name, given, draft, text)


def meaning_of(name: str) -> str:
    """The name of ours that an action or a kind of step has; ``name`` itself if there is none."""
    plain = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
    if plain in ACTIONS or plain == "notification":
        return plain
    return next((ours for ours, theirs in ACTIONS.items() if plain in theirs), name)


def is_known(name: str) -> bool:
    """Whether the source's name of an action means something here by itself."""
    return meaning_of(name) in (*ACTIONS, "notification")


def texts(value: Any, key: str, text: Text) -> Any:
    """A value with every text in it made a template."""
    if isinstance(value, str):
        return text(value, key)
    if isinstance(value, list):
        return [texts(item, f"{key}[{index}]", text) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {name: texts(inner, f"{key}.{name}", text) for name, inner in value.items()}
    return value


def _action(name: str, given: Given, draft: Draft, text: Text) -> Object:
    values, places = _renamed(name, given, draft)
    if name == "webhook":
        values, places = _request(values, places)
    params = {own: texts(value, places[own], text) for own, value in values.items()}
    step: Object = {"action": name}
    if params:
        step["with"] = draft.at(params, given.key, **places)
    return draft.at(step, given.name_key, action=given.name_key)


def _request(values: Object, places: dict[str, str]) -> tuple[Object, dict[str, str]]:
    """A request's body is JSON unless it is a text; its method is written in capitals."""
    if isinstance(values.get("json"), str):
        values = {("body" if name == "json" else name): value for name, value in values.items()}
        places = {("body" if name == "json" else name): place for name, place in places.items()}
    if isinstance(values.get("method"), str):
        values["method"] = values["method"].upper()
    return values, places


def _renamed(name: str, given: Given, draft: Draft) -> tuple[Object, dict[str, str]]:
    """The parameters under our names, and where each stood."""
    ours = {theirs: own for own, others in PARAMETERS.get(name, {}).items() for theirs in others}
    values: Object = {}
    places: dict[str, str] = {}
    for key, value in given.values.items():
        own = ours.get(key, key)
        if own in values:
            message = f"{key} is {own} here, which is given already"
            draft.complain(message, given.place(key), f"only one of {', '.join(_called(name, own))}")
        values[own], places[own] = value, given.place(key)
    return values, places


def _called(name: str, own: str) -> tuple[str, ...]:
    return (own, *PARAMETERS[name].get(own, ()))


def _notification(given: Given, draft: Draft, text: Text) -> Object:
    named = next((key for key in _CHANNEL_KEYS if key in given.values), None)
    channel = given.values.get(named) if named is not None else None
    if not isinstance(channel, str) or channel not in CHANNELS:
        message = "a notification of no known type" if named is None else f"there are no notifications by {channel!r}"
        expected = f"notification_type: {', '.join(CHANNELS)}"
        draft.complain(message, given.place(named) if named is not None else given.name_key, expected)
        return {}
    values = {key: value for key, value in given.values.items() if key not in _CHANNEL_KEYS}
    inner = Given(CHANNELS[channel], given.place(str(named)), values, given.key, given.places)
    return _action(inner.name, inner, draft, text)


def _call(given: Given, draft: Draft, text: Text) -> Object:
    values, places = _renamed("workflow", given, draft)
    name = values.pop("name", None)
    if not isinstance(name, str) or not name:
        draft.complain("no workflow is named", places.get("name", given.key), "the name of a workflow")
        return {}
    if has_expression(name):
        draft.complain("the called workflow can't be a template", places["name"], "its name")
    for other in values:
        if other != "input":
            draft.complain(f"unknown key {other!r}", places[other], "name and input")
    # A called workflow sees there what its caller was started with, unless it is told otherwise.
    input_ = texts(values["input"], places["input"], text) if "input" in values else "{{ input }}"
    call = draft.at({"name": name, "input": input_}, given.key, **places)
    return draft.at({"workflow": call}, given.name_key)


def _transform(given: Given, draft: Draft, text: Text) -> Object:
    values, places = _renamed("transform", given, draft)
    if len(values) != 1 or not {"transform", "logic"} & values.keys():
        expected = "one of mapping, fields, output, template, data (data with templates) or logic (JSON Logic)"
        draft.complain("what is to be built isn't said", given.key, expected)
        return {}
    [(name, value)] = values.items()
    if name == "logic":
        from appliance.workflows.dialects.conditions import below_input  # that module needs this one, too

        return draft.at({"transform": {"logic": below_input(value)}}, given.name_key, transform=places[name])
    built = draft.at({"transform": texts(value, places[name], text)}, given.name_key, transform=places[name])
    return built if isinstance(built, dict) else {}


# --- durations -------------------------------------------------------------------------------------------------------


def duration(given: Given, draft: Draft) -> str | int | float:
    """A delay's length: ``{"duration": 2}`` (seconds), ``{"hours": 1}``, ``{"delayType": "1_day"}``, ``"10m"``."""
    values = dict(given.values)
    unit = values.pop("unit", None)
    if values.get("type") == "random":
        draft.complain("a delay of a random length can't be translated", given.place("type"), "a fixed duration")
        return 0
    if values.get("type") == "fixed" or (values.get("type") and len(values) > 1):
        values.pop("type")
    unknown = [key for key in values if key not in (*_DURATION_KEYS, *_UNIT_KEYS, "type")]
    for key in unknown:
        draft.complain(f"unknown key {key!r}", given.place(key), DURATION)
    if unknown:
        return 0
    if values and all(key in _UNIT_KEYS for key in values):
        return _summed(values, given, draft)
    if len(values) != 1:
        draft.complain("the length of the delay isn't clear", given.key, DURATION)
        return 0
    [(key, value)] = values.items()
    return length(value, given.place(key), draft, unit)


def length(value: Any, key: str, draft: Draft, unit: Any = None) -> str | int | float:
    """One duration: seconds (or of the ``unit``), or a text such as ``10m`` and ``2_days``."""
    if unit is not None and not isinstance(value, bool) and isinstance(value, int | float):
        size = _UNITS.get(str(unit).lower().rstrip("s")) or (_UNITS["ms"] if unit == "ms" else None)
        if size is None:
            draft.complain(f"unknown unit {unit!r}", key, ", ".join(_UNITS))
            return 0
        return format_duration(timedelta(seconds=value * size))
    if isinstance(value, str) and (named := _NAMED.fullmatch(value)) is not None:
        return format_duration(timedelta(seconds=int(named[1]) * _UNITS[named[2]]))
    if isinstance(value, str) and has_expression(value):
        return value
    try:
        parse_duration(value)
    except ValueError:
        draft.complain(f"no duration: {value!r:.80}", key, DURATION)
        return 0
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    draft.complain(f"no duration: {value!r:.80}", key, DURATION)
    return 0


def _summed(values: Object, given: Given, draft: Draft) -> str:
    total = 0.0
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            draft.complain(f"no number: {value!r:.80}", given.place(key), DURATION)
        else:
            total += value * _UNIT_KEYS[key]
    return format_duration(timedelta(seconds=total))
