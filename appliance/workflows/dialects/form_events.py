"""The dialect of an event-driven form system.

::

    {"name": …, "definition": {"trigger": {"type": …, "conditions": …}, "initial_step_id": …, "steps": [
        {"id": …, "name": …, "type": "auto_action", "transitions": [{"to": …, "condition": …}],
         "actions": [{"type": …, "config": {"to_path": "data.email", "subject": "Hello {name}"}}]}]}}

Its texts have ``{name}`` placeholders. A parameter ``x_path`` is the path of the value of ``x``; beside an ``x`` it
comes first. Each action of a step becomes a step (``step``, ``step_2`` …), and so does the question of a
``human_task``, behind its actions. A transition without a condition becomes ``next``; those with conditions become a
``choose`` of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.errors import DefinitionError
from appliance.workflows.dialects.actions import Given, length, texts, translate_action
from appliance.workflows.dialects.draft import Draft, Object, Translation, plain_id
from appliance.workflows.dialects.heads import body_of, head
from appliance.workflows.dialects.texts import braces, lookup, quoted
from appliance.workflows.revision import END

NAME = "a form system's workflow"
MARKS = "trigger with type and conditions, initial_step_id, steps with actions and transitions"
_TARGETS = ("to", "next", "target", "next_step_id", "to_step_id", "step_id")
_CONDITIONS = ("condition", "conditions", "when")
_TYPES = ("auto_action", "human_task")
_STEP = ("id", "name", "description", "type", "actions", "transitions")
_TASK = ("assignee", "assignee_path", "group", "form", "timeout")


def recognises(document: Object) -> bool:
    """Whether ``document`` is in this dialect."""
    definition, _ = body_of(document)
    trigger = definition.get("trigger")
    typed = isinstance(trigger, dict) and "type" in trigger and not trigger.keys() & {"event", "event_type", "schedule"}
    return "initial_step_id" in definition or (typed and "steps" in definition and _is_known(definition["steps"]))


def translate(document: Object) -> Translation:
    """The workflow in our own language; raises DefinitionError."""
    definition, prefix = body_of(document)
    draft = Draft(prefix)
    native = head(document, draft, ("trigger", "initial_step_id", "steps"))
    native["trigger"] = _trigger(definition.get("trigger"), draft)
    native["steps"] = draft.at(_Steps(definition, draft).translated(), f"{prefix}steps")
    if draft.problems:
        raise DefinitionError(*draft.problems)
    return draft.done(native, NAME)


def _is_known(steps: Any) -> bool:
    """Whether no step says otherwise: a form system's steps have no ``config`` of their own."""
    return not isinstance(steps, list) or not any(isinstance(step, dict) and "config" in step for step in steps)


def _trigger(trigger: Any, draft: Draft) -> Object:
    key = f"{draft.prefix}trigger"
    if not isinstance(trigger, dict) or not isinstance(trigger.get("type"), str):
        draft.complain("no trigger", key, '{"type": …, "conditions": …}')
        return {}
    draft.refuse_unknown(trigger, key, ("type", "conditions"))
    native = {"event": trigger["type"]}
    if trigger.get("conditions"):
        native["when"] = trigger["conditions"]
    return draft.at(native, key, event=f"{key}.type", when=f"{key}.conditions")


class _Steps:
    """The translation of one definition's steps."""

    def __init__(self, definition: Object, draft: Draft) -> None:
        self._draft = draft
        self._steps: dict[str, Object] = {}
        self._keys: dict[str, str] = {}
        self._initial = definition.get("initial_step_id")
        before = len(draft.problems)
        steps = definition.get("steps")
        for index, step in enumerate(steps if isinstance(steps, list) else []):
            key = f"{draft.prefix}steps[{index}]"
            if not isinstance(step, dict) or not isinstance(step.get("id"), str | int):
                draft.complain("a step without an id", key)
            elif str(step["id"]) in self._steps:
                draft.complain(f"{step['id']!r} appears twice", f"{key}.id")
            else:
                self._steps[str(step["id"])] = step
                self._keys[str(step["id"])] = key
        if not self._steps:
            draft.complain("no steps", f"{draft.prefix}steps", "a list of steps")
        self._broken = len(draft.problems) > before

    def translated(self) -> list[Object]:
        """All steps that can be reached, each before those that it leads to."""
        if self._broken:
            return []
        first = str(self._initial) if self._initial is not None else next(iter(self._steps))
        if first not in self._steps:
            self._draft.complain(f"there is no step {first!r}", f"{self._draft.prefix}initial_step_id")
            return []
        native: list[Object] = []
        for name in self._ordered(first):
            native += self._step(name)
        return native

    def _ordered(self, first: str) -> list[str]:
        """A topological order from ``first``."""
        done: dict[str, None] = {}
        open_: dict[str, Iterator[str]] = {first: self._targets(first)}
        while open_:
            name = next(reversed(open_))
            target = next(open_[name], None)
            if target is None:
                done[name] = None
                del open_[name]
            elif target in open_:
                way = [*open_][[*open_].index(target) :]
                expected = "a way forward: a workflow with states may go back"
                message = f"loops aren't supported: {' → '.join([*way, target])}"
                self._draft.complain(message, f"{self._keys[target]}.transitions", expected)
            elif target not in done:
                open_[target] = self._targets(target)
        return [*done][::-1]

    def _targets(self, name: str) -> Iterator[str]:
        return iter([target for target, _ in reversed(self._transitions(name))])

    def _transitions(self, name: str) -> list[tuple[str, Any]]:
        """(target, condition) of each transition."""
        found = []
        transitions = self._steps[name].get("transitions") or []
        expected = '{"to": step, "condition": …}'
        for index, transition in enumerate(transitions if isinstance(transitions, list) else [transitions]):
            key = f"{self._keys[name]}.transitions" + (f"[{index}]" if isinstance(transitions, list) else "")
            if isinstance(transition, str):
                transition = {"to": transition}
            if not isinstance(transition, dict):
                self._draft.complain("not a transition", key, expected)
                continue
            self._draft.refuse_unknown(transition, key, (*_TARGETS, *_CONDITIONS))
            target = next((str(transition[word]) for word in _TARGETS if transition.get(word) is not None), "")
            if target not in self._steps:
                self._draft.complain(f"there is no step {target!r}", key, expected)
                continue
            found.append((target, next((transition[word] for word in _CONDITIONS if transition.get(word)), None)))
        return found

    def _step(self, name: str) -> list[Object]:
        step, key = self._steps[name], self._keys[name]
        type_ = step.get("type", "auto_action")
        if type_ not in _TYPES:
            self._draft.complain(f"steps of type {type_!r} aren't available", f"{key}.type", " or ".join(_TYPES))
            return []
        self._draft.refuse_unknown(step, key, _STEP if type_ == "auto_action" else (*_STEP, *_TASK))
        native: list[Object] = []
        actions = step.get("actions") or []
        for index, action in enumerate(actions if isinstance(actions, list) else [actions]):
            inner = f"{key}.actions[{index}]" if isinstance(actions, list) else f"{key}.actions"
            if not isinstance(action, dict) or not isinstance(action.get("type"), str):
                self._draft.complain("not an action", inner, '{"type": …, "config": {…}}')
                continue
            self._draft.refuse_unknown(action, inner, ("type", "config", "name"))
            native.append(self._placed(name, native, self._action(action, inner), inner))
        if type_ == "human_task":
            native.append(self._placed(name, native, self._task(step, key), key))
        return self._leave(name, native, self._transitions(name))

    def _placed(self, name: str, before: list[Object], kind: Object, key: str) -> Object:
        """The next of the steps that a step of the source becomes."""
        own = self._draft.step_id(name) if not before else self._draft.fresh_id(_numbered(name, len(before)))
        return self._draft.joined({"id": own}, kind, key, id=f"{self._keys[name]}.id")

    def _action(self, action: Object, key: str) -> Object:
        config = action.get("config") or {}
        if not isinstance(config, dict):
            self._draft.complain("not an object", f"{key}.config", "the action's parameters")
            return {}
        values, places = _config(config, f"{key}.config")
        given = Given(action["type"], f"{key}.type", values, f"{key}.config", places)
        return translate_action(given, self._draft, lambda text, _: text)

    def _task(self, step: Object, key: str) -> Object:
        """The question: its title is the step's name."""
        asked = {word: step[word] for word in (*_TASK, "description") if step.get(word) is not None}
        deadline = asked.pop("timeout", None)
        values, places = _config({name: value for name, value in asked.items() if name != "form"}, key)
        values = {"title": braces(str(step.get("name") or step["id"])), **values}
        if "form" in asked:
            values["form"] = asked["form"]
        native: Object = {"human_task": self._draft.at(values, key, title=f"{key}.name", **places)}
        if deadline is not None:
            native["deadline"] = {"after": length(deadline, f"{key}.timeout", self._draft)}
        return native

    def _leave(self, name: str, native: list[Object], transitions: list[tuple[str, Any]]) -> list[Object]:
        """Make the last of ``native`` lead where the transitions say: the first that holds is taken."""
        key = self._keys[name]
        if not any(condition is not None for _, condition in transitions[:1]):
            native = native or [self._placed(name, native, {"transform": None}, key)]
            native[-1]["next"] = self._draft.step_id(transitions[0][0]) if transitions else END
            return native
        branches: list[Object] = []
        for index, (target, condition) in enumerate(transitions):
            place = f"{key}.transitions[{index}]"
            asked = {} if condition is None else {"when": condition}
            branches.append(self._draft.at({**asked, "next": self._draft.step_id(target)}, place))
            if condition is None:
                break
        else:
            branches.append({"next": END})
        return [*native, self._placed(name, native, {"choose": branches}, key)]


def _numbered(name: str, index: int) -> str:
    return f"{plain_id(name)}_{index + 1}"


def _config(config: Object, key: str) -> tuple[Object, dict[str, str]]:
    """Parameters, with their placeholders and paths as templates, and where each stands."""
    native: Object = {}
    places: dict[str, str] = {}
    for name, value in config.items():
        own = name.removesuffix("_path")
        if own != name and isinstance(value, str):
            otherwise = config.get(own)
            native[own] = "{{ " + lookup(value) + (f"|default({quoted(otherwise)})" if otherwise else "") + " }}"
            places[own] = f"{key}.{name}"
        elif f"{name}_path" not in config:
            native[name], places[name] = texts(value, f"{key}.{name}", lambda text, _: braces(text)), f"{key}.{name}"
    return native, places
