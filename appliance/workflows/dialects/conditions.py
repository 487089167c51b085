"""Conditions of other systems as criteria of ours, or as JSON Logic that reads where our data are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from appliance.rules.criteria import OPERATORS
from appliance.workflows.dialects.draft import Draft, Object
from appliance.workflows.dialects.texts import INPUTS, ROOTS

_Test = Callable[[str, Any], Object]


def _plain(op: str) -> _Test:
    return lambda path, value: {"path": path, "op": op, "value": value}


def _not(op: str) -> _Test:
    return lambda path, value: {"not": {"path": path, "op": op, "value": value}}


TESTS: Mapping[str, _Test] = {
    "equals": _plain("=="), "eq": _plain("=="), "not_equals": _plain("!="), "ne": _plain("!="),
    "greater_than": _plain(">"), "gt": _plain(">"), "less_than": _plain("<"), "lt": _plain("<"),
    "greater_than_or_equal": _plain(">="), "gte": _plain(">="),
    "less_than_or_equal": _plain("<="), "lte": _plain("<="),
    "contains": _plain("contains"), "not_contains": _not("contains"),
    "in": _plain("in"), "not_in": _not("in"),
    "exists": lambda path, _: {"path": path, "op": "exists", "value": True},
    "not_exists": lambda path, _: {"path": path, "op": "exists", "value": False},
    "starts_with": lambda path, value: {"path": path, "op": "matches", "value": f"^{re.escape(str(value))}"},
    "ends_with": lambda path, value: {"path": path, "op": "matches", "value": f"{re.escape(str(value))}$"},
    "matches": _plain("matches"), "regex": _plain("matches"),
    **{op: _plain(op) for op in OPERATORS if not op.isalpha()},
}  # fmt: skip
"""What an operator of another system asks. Names are compared without regard to capitals."""

_WITHOUT_VALUE = ("exists", "not_exists")
_FIELD_KEYS = ("type", "field", "operator", "op", "value")
_FIELD_TYPES = ("field_check", "field", "comparison", "field_comparison")
_GROUPS = {"and": "all", "all": "all", "or": "any", "any": "any"}
CRITERIA = '{"field", "operator", "value"}, {"path", "op", "value"}, or JSON Logic'
_ITERATING = frozenset({"map", "filter", "all", "some", "none", "reduce"})
"""Operators of JSON Logic whose second argument reads the items of the first one."""


def condition(spec: Any, key: str, draft: Draft, root: str) -> Any:
    """A condition of the source at ``key``: criteria, or a list of them, which must all hold.

    ``root`` is what their paths lead into: ``data`` in a trigger, ``input`` in a step.
    """
    if isinstance(spec, list):
        found = [condition(item, f"{key}[{index}]", draft, root) for index, item in enumerate(spec)]
        return found[0] if len(found) == 1 else found
    if not isinstance(spec, dict) or not spec:
        draft.complain(f"not a condition: {spec!r:.80}", key, CRITERIA)
        return {}
    if "field" in spec or "operator" in spec:
        return draft.at(_field(spec, key, draft, root), key)
    if "path" in spec or "op" in spec:
        return draft.at(dict(spec), key)
    if len(spec) > 1:
        draft.complain(f"not a condition: {spec!r:.80}", key, CRITERIA)
        return {}
    [(name, body)] = spec.items()
    if name in _GROUPS and isinstance(body, list) and any(_is_field(item) for item in body):
        return {_GROUPS[name]: condition(body, f"{key}.{name}", draft, root)}
    if name == "not" and _is_field(body):
        return {"not": condition(body, f"{key}.{name}", draft, root)}
    return draft.at(below(spec, root), key)


def below_input(logic: Any) -> Any:
    """JSON Logic that reads the run's input."""
    return below(logic, "input")


def below(logic: Any, root: str) -> Any:
    """JSON Logic whose variables are looked for below ``root``, unless they begin with a name that we share."""
    if isinstance(logic, list):
        return [below(item, root) for item in logic]
    if not isinstance(logic, dict) or len(logic) != 1:
        return logic
    [(name, body)] = logic.items()
    if name == "var":
        first, *rest = body if isinstance(body, list) else [body]
        path = rooted(first, root) if isinstance(first, str) else first
        return {"var": [path, *rest] if isinstance(body, list) else path}
    if name in _ITERATING and isinstance(body, list) and body:
        # What is asked of each item reads the item; the value that a reduce begins with doesn't.
        return {name: [below(body[0], root), *body[1:2], *below(body[2:], root)]}
    return {name: below(body, root)}


def rooted(path: str, root: str) -> str:
    """A path of the source as one of ours."""
    first, _, rest = path.partition(".")
    if first in INPUTS:
        first, path = "input", f"input.{rest}" if rest else "input"
    if root == "data" and first in ("input", "data"):
        return path.replace("input", "data", 1) if first == "input" else path
    if first in (*ROOTS, "data"):
        return path
    return f"{root}.{path}" if path else root


def _is_field(spec: Any) -> bool:
    return isinstance(spec, dict) and ("field" in spec or "operator" in spec)


def _field(spec: Object, key: str, draft: Draft, root: str) -> Object:
    """``{"type": "field_check", "field", "operator", "value"}``."""
    draft.refuse_unknown(spec, key, _FIELD_KEYS)
    if spec.get("type", "field_check") not in _FIELD_TYPES:
        draft.complain(f"unknown type {spec['type']!r:.80}", f"{key}.type", " or ".join(_FIELD_TYPES))
    path, operator = spec.get("field"), spec.get("operator", spec.get("op"))
    if not isinstance(path, str) or not path:
        draft.complain("no field", f"{key}.field", "a dotted path, such as user.email")
        return {}
    name = operator.lower() if isinstance(operator, str) else ""
    if name not in TESTS:
        draft.complain(f"unknown operator {operator!r:.80}", f"{key}.operator", ", ".join(TESTS))
        return {}
    if "value" not in spec and name not in _WITHOUT_VALUE:
        draft.complain(f"{operator} wants a value", key, "a value beside it")
        return {}
    return TESTS[name](rooted(path, root), spec.get("value"))
