"""The page of a task: what is asked, and a plain form for the answer. It works without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from appliance.http.fields import Field, option_text
from appliance.http.pages import filled, page_headers
from appliance.http.reply import Reply
from appliance.workflows.inputs import Mistake

_REQUIRED = ' <span class="required">(required)</span>'


def task_page(
    task: Mapping[str, Any],
    fields: Sequence[Field],
    posted: Mapping[str, Any] | None = None,
    mistakes: Sequence[Mistake] = (),
) -> Reply:
    """The open task with its form; with what was ``posted`` and its ``mistakes``, if that was refused (422)."""
    due = task.get("due_at")
    own = {field.name for field in fields}
    elsewhere = [mistake for mistake in mistakes if not mistake.path or mistake.path[0] not in own]
    by_field = {name: [m._replace(path=m.path[1:]) for m in mistakes if m.path and m.path[0] == name] for name in own}
    values = {
        "title": escape(task["title"]),
        "description": f'<p class="lead lines">{escape(task["description"])}</p>' if task.get("description") else "",
        "due": f'<p class="hint">Please answer by {_time(due)}.</p>' if due else "",
        "mistakes": _summary(elsewhere, bool(mistakes)),
        "fields": "\n".join(
            _field_html(f"f{index}", field, posted, by_field[field.name]) for index, field in enumerate(fields)
        ),
    }
    return Reply(422 if mistakes else 200, filled("task.html", values), page_headers("same-origin"))


def _summary(elsewhere: Iterable[Mistake], wrong: bool) -> str:
    if not wrong:
        return ""
    items = "".join(f"<li>{escape(str(mistake))}</li>" for mistake in elsewhere)
    listed = f"<ul>{items}</ul>" if items else ""
    return f'<div class="error" role="alert"><p>The answer was not taken. Please correct it below.</p>{listed}</div>'


def _field_html(ident: str, field: Field, posted: Mapping[str, Any] | None, mistakes: Sequence[Mistake]) -> str:
    notes = [(f"{ident}-hint", "hint lines", field.hint)] if field.hint else []
    notes += [(f"{ident}-error-{n}", "error", _sentence(mistake)) for n, mistake in enumerate(mistakes)]
    attributes = {"id": ident, "name": field.name, **dict(field.attributes)}
    if notes:
        attributes["aria-describedby"] = " ".join(note for note, _, _ in notes)
    if mistakes:
        attributes["aria-invalid"] = "true"
    if field.required and field.kind != "switch":
        attributes["required"] = ""
    shown = _shown(field, posted)
    label = escape(field.label) + (_REQUIRED if field.required and field.kind != "switch" else "")
    told = "".join(f'<p class="{kind}" id="{note}">{escape(text)}</p>' for note, kind, text in notes)
    if field.kind == "switch":
        ticked = {"checked": ""} if shown in ("true", "on") else {}
        box = _tag("input", {"type": "checkbox", "value": "true", **attributes, **ticked})
        return f'<div class="field"><label class="switch">{box} {label}</label>{told}</div>'
    return f'<div class="field"><label for="{ident}">{label}</label>{told}{_control(field, attributes, shown)}</div>'


def _sentence(mistake: Mistake) -> str:
    text = str(mistake)
    return f"{text[:1].upper()}{text[1:]}"


def _shown(field: Field, posted: Mapping[str, Any] | None) -> str:
    """What stands in the field: what was typed, else the default."""
    if posted is None:
        return field.initial
    typed = posted.get(field.name, "")
    return typed if isinstance(typed, str) else ", ".join(map(str, typed))


def _control(field: Field, attributes: Mapping[str, str], shown: str) -> str:
    if field.kind == "choice":
        options = "".join(_option(option_text(value), label, shown) for value, label in field.options)
        return f"{_tag('select', attributes)}{_option('', 'Choose …', shown)}{options}</select>"
    if field.kind in ("text", "json", "whole"):
        code = {} if field.kind == "text" else {"class": "code", "spellcheck": "false"}
        # The parser drops a line break right behind the tag: this one, so that none of the text is lost.
        return f"{_tag('textarea', {**attributes, **code})}\n{escape(shown)}</textarea>"
    return _tag("input", {**attributes, "value": shown})


def _option(value: str, label: str, shown: str) -> str:
    chosen = {"selected": ""} if value == shown else {}
    return f"{_tag('option', {'value': value, **chosen})}{escape(label)}</option>"


def _tag(name: str, attributes: Mapping[str, str]) -> str:
    written = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{written}>"


def _time(text: str) -> str:
    moment = datetime.fromisoformat(text)
    return f'<time datetime="{escape(text)}">{moment.day} {moment:%B %Y, %H:%M} UTC</time>'
