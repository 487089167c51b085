"""Placeholders of other systems as templates of ours: ``{name}`` and ``{{user.email}}``."""

from __future__ import annotations

import re
from typing import Any

from appliance.workflows.dialects.draft import Draft

_BRACE = re.compile(r"\{([A-Za-z_]\w*(?:\.\w+)*)\}")
_MUSTACHE = re.compile(r"\{\{\{?(.*?)\}?\}\}", re.DOTALL)
_PATH = re.compile(r"\s*([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)\s*((?:\|[^{}]*)?)", re.DOTALL)
ROOTS = ("event", "input", "steps", "run", "secrets")
"""Names at the beginning of a path that mean the same in templates of ours."""
INPUTS = ("input_data", "payload")
"""Other systems' names of what a run was started with."""
_WITHOUT_BLOCKS = "{{ path }}, or {{ path|filter }}; for more, a step of the kind transform in our own language"


def braces(text: str) -> str:
    """``Hello {name}`` as a template; braces that are no placeholder stay braces.

    A name is looked for among the event's attributes, then in its data; a dotted one in the event. What isn't there
    stays as it is written.
    """
    native, end = "", 0
    for found in _BRACE.finditer(text):
        native += literal(text[end : found.start()])
        name, end = found[1], found.end()
        tries = [lookup(name), *([lookup(f"data.{name}")] if "." not in name else []), quoted(found[0])]
        native += "{{ " + tries[0] + "".join(f"|default({other})" for other in tries[1:]) + " ~ '' }}"
    return native + literal(text[end:])


def mustache(text: str, key: str, draft: Draft) -> str:
    """``Hello {{user.name}}`` as a template; a path is looked for in the run's input.

    In the midst of a text what is missing is empty, as it is there. A text that is one placeholder has the value
    itself, and missing is an error. Blocks and expressions are problems.
    """
    if re.search(r"\{%|\{#", text):
        draft.complain("blocks in texts can't be translated", key, _WITHOUT_BLOCKS)
        return text
    found = list(_MUSTACHE.finditer(text))
    sole = len(found) == 1 and not (text[: found[0].start()] + text[found[0].end() :]).strip()
    native, end = "", 0
    for one in found:
        native += literal(text[end : one.start()])
        native += "{{ " + _expression(one[1], key, draft, sole=sole) + " }}"
        end = one.end()
    return native.strip() if sole else native + literal(text[end:])


def _expression(source: str, key: str, draft: Draft, *, sole: bool) -> str:
    found = _PATH.fullmatch(source)
    if found is None:
        draft.complain(f"{source.strip()!r} can't be translated", key, _WITHOUT_BLOCKS)
        return "''"
    path, filters = in_input(found[1].replace("[", ".").replace("]", ""), draft), found[2].strip()
    default = "" if sole or "default" in filters else "|default('')"
    return dotted(path) + default + filters


def in_input(path: str, draft: Draft | None = None) -> str:
    """A path of the source as a path of ours: below ``input``, unless it begins with a name that we share."""
    first, _, rest = path.partition(".")
    if first in INPUTS:
        return f"input.{rest}" if rest else "input"
    if first == "steps" and draft is not None and draft.knows(rest.partition(".")[0]):
        step, _, below = rest.partition(".")
        return f"steps.{draft.step_id(step)}" + (f".{below}" if below else "")
    return path if first in ROOTS else f"input.{path}"


def dotted(path: str) -> str:
    """A path as an expression of a template: ``input.user.email``, ``input.items[0]``."""
    first, *parts = path.split(".")
    return first + "".join(f".{part}" if part.isidentifier() else f"[{_index(part)}]" for part in parts)


def lookup(path: str) -> str:
    """A path in the event as an expression of a template."""
    return "event" + "".join(f"[{_index(part)}]" for part in path.removeprefix("event.").split("."))


def literal(text: str) -> str:
    """``text`` so that a template means just that."""
    # At its end, too: a placeholder may follow.
    return re.sub(r"\{(?=[{%#]|\Z)", "{{ '{' }}", text)


def quoted(text: Any) -> str:
    """A text within an expression."""
    return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _index(part: str) -> str:
    return part if part.isascii() and part.isdecimal() else quoted(part)
