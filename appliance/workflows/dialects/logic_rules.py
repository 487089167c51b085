"""The dialect of an execution engine's JSON Logic rules: conditions, actions and delays in one expression.

::

    {"name": …, "jsonLogic": {"event": "user_buys_subscription", "rule": {"if": [
        {"product_package": "united"}, {"and": [{"action": "send_email", "actionDetails": {…}},
                                                {"delay": {"type": "fixed", "hours": 24}}, …]}, otherwise]}}}

``and`` is one thing after the other, ``if`` takes the first way whose condition holds, ``parallel`` takes all ways. A
condition ``{"name": value}`` whose name is no operator means that the name has the value. Variables are looked for in
what the run was started with.
"""

from __future__ import annotations

from typing import Any

from appliance.errors import DefinitionError
from appliance.rules.logic import DataLogicError, engine
from appliance.workflows.dialects.actions import Given, translate_action
from appliance.workflows.dialects.conditions import condition
from appliance.workflows.dialects.draft import Draft, Object, Translation
from appliance.workflows.dialects.heads import body_of, head
from appliance.workflows.dialects.texts import mustache

NAME = "an execution engine's JSON Logic rule"
MARKS = "jsonLogic or rule with if, and, action and delay"
_RULE = ("rule", "event", "trigger", "execute")
_ACTION = ("action", "actionName", "actionDetails", "actionData", "type")
_KINDS = ("if", "and", "action", "delay", "sharedFlow", "parallel", "always", "end", "trigger")
_MAX_DEPTH = 32
_EXPECTED = "if, and, parallel, action, delay, sharedFlow or end"


def recognises(document: Object) -> bool:
    """Whether ``document`` is in this dialect."""
    body, _ = body_of(document)
    if body.get("nodes") or "steps" in body or "actions" in body:
        return False
    return isinstance(body.get("jsonLogic"), dict) or isinstance(body.get("rule"), dict)


def translate(document: Object) -> Translation:
    """The workflow in our own language; raises DefinitionError."""
    body, prefix = body_of(document)
    draft = Draft(prefix)
    inner = isinstance(body.get("jsonLogic"), dict)
    given, key = (body["jsonLogic"], f"{prefix}jsonLogic.") if inner else (body, prefix)
    known = ("jsonLogic", "nodes", "edges", "viewport") if inner else (*_RULE, "nodes", "edges", "viewport")
    native = head(document, draft, known)
    if inner:
        draft.refuse_unknown(given, key.rstrip("."), _RULE)
    native["trigger"] = _trigger(given, key, draft)
    if given.get("execute") is False:
        native["enabled"] = False
    steps = _Rule(draft).steps(given.get("rule"), f"{key}rule")
    native["steps"] = draft.at(steps, f"{key}rule")
    if not steps:
        draft.complain("the rule does nothing", f"{key}rule", _EXPECTED)
    if draft.problems:
        raise DefinitionError(*draft.problems)
    return draft.done(native, NAME)


def _trigger(given: Object, key: str, draft: Draft) -> Any:
    """The event that ``event`` names; a rule without one is started by its name."""
    event = given.get("event")
    if event is None:
        return "manual"
    if not isinstance(event, str):
        draft.complain("no type of event", f"{key}event", "a text")
    return draft.at({"event": event}, key.rstrip("."), event=f"{key}event")


class _Rule:
    """The translation of one expression."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._depth = 0

    def steps(self, rule: Any, key: str) -> list[Object]:
        """What an expression does, as steps."""
        self._depth += 1
        try:
            return self._steps(rule, key)
        finally:
            self._depth -= 1

    def _steps(self, rule: Any, key: str) -> list[Object]:
        if self._depth > _MAX_DEPTH:
            self._draft.complain(f"nested deeper than {_MAX_DEPTH} levels", key, "several workflows")
            return []
        if not isinstance(rule, dict) or not rule:
            self._draft.complain(f"nothing to do: {rule!r:.80}", key, _EXPECTED)
            return []
        kind = next((word for word in _KINDS if word in rule), None)
        if kind is None:
            self._draft.complain(f"{next(iter(rule))!r} does nothing here", key, _EXPECTED)
            return []
        if kind not in ("action", "trigger"):
            self._draft.refuse_unknown(rule, key, (kind,))
        found = getattr(self, f"_{kind}")(rule, f"{key}.{kind}", key)
        assert isinstance(found, list)  # noqa: S101 - each of them returns steps
        return found

    def _if(self, rule: Object, key: str, _: str) -> list[Object]:
        parts = rule["if"]
        if not isinstance(parts, list) or len(parts) < 2:
            self._draft.complain("not a choice", key, "[condition, what to do, …, otherwise]")
            return []
        own = self._draft.fresh_id("choose")
        branches = []
        for index in range(0, len(parts) - 1, 2):
            branch: Object = {"when": self._condition(parts[index], f"{key}[{index}]")}
            branches.append(self._branch(branch, parts[index + 1], f"{key}[{index + 1}]", f"{key}[{index}]"))
        if len(parts) % 2 and parts[-1] != {"always": False}:
            branches.append(self._branch({}, parts[-1], f"{key}[{len(parts) - 1}]", ""))
        return [self._draft.at({"id": own, "choose": branches}, key)]

    def _branch(self, branch: Object, rule: Any, key: str, asked: str) -> Object:
        steps = self.steps(rule, key)
        # What does nothing goes on behind the choice: a step that does nothing says so.
        branch["steps"] = steps or [{"id": self._draft.fresh_id("nothing"), "transform": None}]
        return self._draft.at(branch, key, when=asked, steps=key)

    def _condition(self, spec: Any, key: str) -> Any:
        """A condition; ``{"name": value}`` where the name is no operator is a comparison."""
        if spec == {"always": True}:
            return {"==": [1, 1]}
        if isinstance(spec, dict) and len(spec) == 1:
            [(name, value)] = spec.items()
            if not _is_operator(name):
                return self._draft.at(self._named(name, value), key)
        return condition(spec, key, self._draft, "input")

    def _named(self, name: str, value: Any) -> Object:
        path = f"input.{name}"
        if isinstance(value, dict) and len(value) == 1:
            [(operator, operand)] = value.items()
            if operator in ("!", "not") and isinstance(operand, dict) and isinstance(operand.get("in"), list):
                return {"not": {"path": path, "op": "in", "value": operand["in"]}}
            return {"path": path, "op": operator, "value": operand}
        return {"path": path, "op": "==", "value": value}

    def _and(self, rule: Object, key: str, _: str) -> list[Object]:
        """One thing after the other; a condition among them holds for those behind it."""
        parts = rule["and"]
        if not isinstance(parts, list):
            self._draft.complain("not a list", key, "a list of what to do")
            return []
        steps: list[Object] = []
        for index, part in enumerate(parts):
            place = f"{key}[{index}]"
            if isinstance(part, dict) and part and not part.keys() & set(_KINDS):
                rest = parts[index + 1 :]
                if not rest:
                    self._draft.complain("a condition with nothing behind it", place, _EXPECTED)
                    return steps
                branch = {"when": self._condition(part, place), "steps": []}
                own = self._draft.fresh_id("choose")
                for number, inner in enumerate(rest, index + 1):
                    branch["steps"] += self.steps(inner, f"{key}[{number}]")
                return [*steps, self._draft.at({"id": own, "choose": [branch]}, place)]
            steps += self.steps(part, place)
        return steps

    def _action(self, rule: Object, key: str, whole: str) -> list[Object]:
        """``{"action", "actionName", "actionDetails"}``, or with the parameters beside ``action``."""
        draft = self._draft
        named = rule.get("actionName")
        own = draft.fresh_id(named if isinstance(named, str) and named else str(rule["action"]))
        word = next((word for word in ("actionDetails", "actionData") if isinstance(rule.get(word), dict)), None)
        if word is not None:
            draft.refuse_unknown(rule, whole, _ACTION)
        values = rule[word] if word else {name: value for name, value in rule.items() if name not in _ACTION}
        given = Given(str(rule["action"]), key, values, f"{whole}.{word}" if word else whole)
        made = translate_action(given, draft, lambda text, place: mustache(text, place, draft))
        return [draft.joined({"id": own}, made, whole, id=f"{whole}.actionName")]

    def _delay(self, rule: Object, key: str, whole: str) -> list[Object]:
        delay = rule["delay"]
        given = Given("delay", key, delay if isinstance(delay, dict) else {"duration": delay}, key)
        made = translate_action(given, self._draft, lambda text, _: text)
        return [self._draft.joined({"id": self._draft.fresh_id("delay")}, made, whole)]

    def _sharedFlow(self, rule: Object, key: str, whole: str) -> list[Object]:  # noqa: N802 - named as its key
        flow = rule["sharedFlow"]
        values = dict(flow) if isinstance(flow, dict) else {"name": flow}
        for word in ("description", "execute"):
            values.pop(word, None)
        made = translate_action(Given("shared_flow", key, values, key), self._draft, lambda text, _: text)
        return [self._draft.joined({"id": self._draft.fresh_id(str(values.get("name", "flow")))}, made, whole)]

    def _parallel(self, rule: Object, key: str, whole: str) -> list[Object]:
        given = rule["parallel"]
        branches = given.get("branches") if isinstance(given, dict) else given
        if not isinstance(branches, list) or not branches:
            self._draft.complain("no branches", key, "a list of what to do side by side")
            return []
        place = f"{key}.branches" if isinstance(given, dict) else key
        before = (
            self.steps(given["trigger"], f"{key}.trigger") if isinstance(given, dict) and "trigger" in given else []
        )
        own = self._draft.fresh_id("parallel")
        native = {f"branch_{n + 1}": self._branch({}, b, f"{place}[{n}]", "")["steps"] for n, b in enumerate(branches)}
        return [*before, self._draft.at({"id": own, "parallel": {"branches": native}}, whole)]

    def _always(self, rule: Object, key: str, _: str) -> list[Object]:
        if not isinstance(rule["always"], bool):
            self._draft.complain("neither always nor never", key, "true or false")
        return []

    def _end(self, rule: Object, key: str, whole: str) -> list[Object]:
        return [self._draft.at({"id": self._draft.fresh_id("finish"), "end": {}}, whole)]

    def _trigger(self, rule: Object, key: str, whole: str) -> list[Object]:
        """What the trigger of a drawing becomes there: it does nothing."""
        self._draft.refuse_unknown(rule, whole, ("trigger", "event", "execute"))
        return []


def _is_operator(name: str) -> bool:
    """Whether JSON Logic, or our criteria, know the name."""
    if name in ("all", "any", "not", "path", "op", "field", "operator"):
        return True
    try:
        return not any(found["severity"] == "error" for found in engine.check({name: [1, 1]}))
    except DataLogicError:
        return False
