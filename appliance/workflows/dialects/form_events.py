"""The dialect of an event-driven form system.

::

    {"name": …, "definition": {"trigger": {"type": …, "conditions": …}, "initial_step_id": …, "steps": [
        {"id": …, "name": …, "type": "auto_action", "transitions": [{"to": …, "condition": …}],
         "actions": [{"type": …, "config": {"to_path": "data.email", "subject": "Hello {name}"}}]}]}}

Its texts have ``{name}`` placeholders, looked up among the event's attributes and then in its data (a dotted name: from
the event); what isn't there stays as it is written. A parameter ``x_path`` is the path of the value of ``x``; beside an
``x`` it comes first. Each action of a step becomes a step (``step``, ``step_2`` …). A transition without a condition
becomes ``next``, one with a condition a pause of no length with ``if`` and ``next``.
"""

from __future__ import annotations

import re
from typing import Any

from appliance.errors import DefinitionError, Problem

_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*(?:\.\w+)*)\}")
_TARGETS = ("to", "next", "target", "next_step_id", "to_step_id", "step_id")
_CONDITIONS = ("condition", "conditions", "when")
_IGNORED = frozenset({"id", "org_id", "version", "status", "created_at", "updated_at", "created_by"})
_Object = dict[str, Any]


def recognises(document: _Object) -> bool:
    """Whether ``document`` is in this dialect."""
    definition = document.get("definition", document)
    return isinstance(definition, dict) and (
        "initial_step_id" in definition
        or (isinstance(trigger := definition.get("trigger"), dict) and "type" in trigger and "event" not in trigger)
    )


def translate(document: _Object) -> _Object:
    """The workflow in our own language; raises DefinitionError."""
    definition = document.get("definition", document)
    outer = {key: value for key, value in document.items() if key != "definition"} if definition is not document else {}
    native: _Object = {"name": document.get("name", definition.get("name"))}
    for key in ("description", "priority", "enabled"):
        if document.get(key, definition.get(key)) is not None:
            native[key] = document.get(key, definition.get(key))
    active = document.get("is_active", document.get("active"))
    if isinstance(active, bool):
        native["enabled"] = active
    known = {"name", "description", "priority", "enabled", "is_active", "active"} | _IGNORED
    problems = [Problem(f"unknown key {key!r}", key) for key in outer if key not in known]
    native["trigger"] = _trigger(definition.get("trigger"), problems)
    native["steps"] = _Steps(definition, problems).translated()
    if problems:
        raise DefinitionError(*problems)
    return native


def _trigger(trigger: Any, problems: list[Problem]) -> _Object:
    if not isinstance(trigger, dict) or not isinstance(trigger.get("type"), str):
        problems.append(Problem("no trigger", "definition.trigger", expected='{"type": …, "conditions": …}'))
        return {}
    native = {"event": trigger["type"]}
    conditions = trigger.get("conditions")
    if conditions:
        native["when"] = conditions
    problems += [
        Problem(f"unknown key {key!r}", f"definition.trigger.{key}", expected="type and conditions")
        for key in trigger
        if key not in ("type", "conditions")
    ]
    return native


class _Steps:
    """The translation of one definition's steps."""

    def __init__(self, definition: _Object, problems: list[Problem]) -> None:
        self._problems = problems
        self._steps: dict[str, _Object] = {}
        self._initial = definition.get("initial_step_id")
        steps = definition.get("steps")
        for index, step in enumerate(steps if isinstance(steps, list) else []):
            if not isinstance(step, dict) or not isinstance(step.get("id"), str | int):
                problems.append(Problem("a step without an id", f"definition.steps[{index}]"))
            elif str(step["id"]) in self._steps:
                problems.append(Problem(f"{step['id']!r} appears twice", f"definition.steps[{index}].id"))
            else:
                self._steps[str(step["id"])] = step
        if not self._steps:
            problems.append(Problem("no steps", "definition.steps", expected="a list of steps"))

    def translated(self) -> list[_Object]:
        """All steps that can be reached, each before those that it leads to."""
        if self._problems or not self._steps:
            return []
        first = str(self._initial) if self._initial is not None else next(iter(self._steps))
        if first not in self._steps:
            self._problems.append(Problem(f"there is no step {first!r}", "definition.initial_step_id"))
            return []
        native: list[_Object] = []
        for name in self._ordered(first):
            native += self._step(name)
        return native

    def _ordered(self, first: str) -> list[str]:
        """A topological order from ``first``."""
        done: list[str] = []
        open_: list[str] = []

        def visit(name: str) -> None:
            if name in open_:
                self._problems.append(Problem("loops aren't supported", f"{self._key(name)}.transitions"))
            elif name not in done:
                open_.append(name)
                for target, _ in reversed(self._transitions(name)):
                    visit(target)
                open_.pop()
                done.append(name)

        visit(first)
        return done[::-1]

    def _transitions(self, name: str) -> list[tuple[str, Any]]:
        """(target, condition) of each transition."""
        found = []
        transitions = self._steps[name].get("transitions") or []
        for index, transition in enumerate(transitions if isinstance(transitions, list) else [transitions]):
            key = f"{self._key(name)}.transitions[{index}]"
            if isinstance(transition, str):
                transition = {"to": transition}
            if not isinstance(transition, dict):
                self._complain("not a transition", key, '{"to": step, "condition": …}')
                continue
            target = next((str(transition[word]) for word in _TARGETS if transition.get(word) is not None), "")
            if target not in self._steps:
                self._complain(f"there is no step {target!r}", key, '{"to": step, "condition": …}')
                continue
            found.append((target, next((transition[word] for word in _CONDITIONS if transition.get(word)), None)))
        return found

    def _step(self, name: str) -> list[_Object]:
        step, key = self._steps[name], self._key(name)
        if step.get("type", "auto_action") != "auto_action":
            self._complain(f"steps of type {step['type']!r} aren't available", f"{key}.type", "auto_action")
            return []
        native: list[_Object] = []
        actions = step.get("actions") or []
        for index, action in enumerate(actions if isinstance(actions, list) else [actions]):
            if not isinstance(action, dict) or not isinstance(action.get("type"), str):
                self._complain("not an action", f"{key}.actions[{index}]", '{"type": …, "config": {…}}')
                continue
            one: _Object = {"id": _id(name, len(native)), "action": action["type"]}
            if config := _config(action.get("config") or {}):
                one["with"] = config
            native.append(one)
        transitions = self._transitions(name)
        if not native or (transitions and transitions[0][1] is not None):
            native.append({"id": _id(name, len(native)), "delay": 0})
        return self._leave(name, native, transitions)

    def _leave(self, name: str, native: list[_Object], transitions: list[tuple[str, Any]]) -> list[_Object]:
        """Make the last of ``native`` lead where the transitions say."""
        for target, condition in transitions:
            if condition is None:
                native[-1]["next"] = _id(target, 0)
                return native
            native[-1] |= {"if": condition, "next": _id(target, 0)}
            native.append({"id": _id(name, len(native)), "delay": 0})
        native[-1]["next"] = "end"
        return native

    def _key(self, name: str) -> str:
        return f"definition.steps[{[*self._steps].index(name)}]"

    def _complain(self, message: str, key: str, expected: str) -> None:
        problem = Problem(message, key, expected=expected)
        if problem not in self._problems:
            self._problems.append(problem)


def _id(name: str, index: int) -> str:
    own = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:56]
    own = own if own[:1].isalpha() or own[:1] == "_" else f"step_{own}"
    if own in ("end", "continue"):
        own += "_step"
    return own if index == 0 else f"{own}_{index + 1}"


def _config(config: Any) -> Any:
    """Parameters, with their placeholders and paths as templates."""
    if isinstance(config, list):
        return [_config(item) for item in config]
    if isinstance(config, str):
        return _text(config)
    if not isinstance(config, dict):
        return config
    native = {}
    for key, value in config.items():
        name = key.removesuffix("_path")
        if name != key and isinstance(value, str):
            otherwise = config.get(name)
            native[name] = "{{ " + _lookup(value) + (f"|default({_quoted(otherwise)})" if otherwise else "") + " }}"
        elif f"{key}_path" not in config:
            native[key] = _config(value)
    return native


def _text(text: str) -> str:
    """``Hello {name}`` as a template; braces that are no placeholder stay braces."""
    native, end = "", 0
    for found in _PLACEHOLDER.finditer(text):
        native += _literal(text[end : found.start()])
        name, end = found[1], found.end()
        tries = [_lookup(name), *([_lookup(f"data.{name}")] if "." not in name else []), _quoted(found[0])]
        native += "{{ " + tries[0] + "".join(f"|default({other})" for other in tries[1:]) + " ~ '' }}"
    return native + _literal(text[end:])


def _literal(text: str) -> str:
    # At its end, too: a placeholder may follow.
    return re.sub(r"\{(?=[{%#]|\Z)", "{{ '{' }}", text)


def _lookup(path: str) -> str:
    parts = path.removeprefix("event.").split(".")
    return "event" + "".join(f"[{part}]" if part.isdecimal() else f"[{_quoted(part)}]" for part in parts)


def _quoted(text: Any) -> str:
    return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"
