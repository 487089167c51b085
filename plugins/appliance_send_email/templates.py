"""Mail templates: ``<name>.txt`` and ``<name>.html`` in ``<config-dir>/templates``, at least one of them.

The text may begin with a line ``Subject: …`` and an empty line. They see ``data`` (the parameter), ``event`` and
``run``; what an HTML template puts in is escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance_send_email.addresses import CONTROL

MAX_RENDERED = 1_000_000
"""Longest rendered text, in characters."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template gave."""

    subject: str | None
    body: str | None
    html: str | None


class TemplateRefused(Exception):
    """There is no such template, or it can't be rendered; the text says which and why."""


class Templates:
    """The templates of one folder; a changed file is noticed."""

    def __init__(self, folder: Path) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            loader=FileSystemLoader(folder),
            autoescape=lambda name: name is not None and name.endswith(".html"),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
        )
        self._environment.globals.pop("lipsum", None)

    def render(self, name: str, context: dict[str, Any]) -> Rendered:
        """Render both forms of ``name``; raises TemplateRefused."""
        body, html = self._one(f"{name}.txt", context), self._one(f"{name}.html", context)
        if body is None and html is None:
            raise TemplateRefused(f"there is no template {name}.txt or {name}.html in <config-dir>/templates")
        subject = None
        if body is not None and body.lower().startswith("subject:"):
            head, _, body = body.partition("\n")
            subject, body = " ".join(head[len("subject:") :].split()), body.lstrip("\r\n")
        if CONTROL.search(subject or "") or "\0" in (body or "") + (html or ""):
            raise TemplateRefused(f"{name}: it renders to control characters that can't stand in a mail")
        return Rendered(subject, body, html)

    def _one(self, file: str, context: dict[str, Any]) -> str | None:
        try:
            parts, size = [], 0
            for part in self._environment.get_template(file).generate(context):
                parts.append(part)
                size += len(part)
                if size > MAX_RENDERED:
                    raise TemplateRefused(f"{file}: more than {MAX_RENDERED} characters")
            return "".join(parts)
        except TemplateNotFound as error:
            if error.name == file:
                return None
            raise TemplateRefused(f"{file}: no template {error.name}") from None
        except TemplateError as error:
            raise TemplateRefused(f"{file}: {error.message or type(error).__name__}") from None
        except (ArithmeticError, LookupError, TypeError, ValueError, UnicodeDecodeError) as error:
            raise TemplateRefused(f"{file}: {type(error).__name__}: {error}") from None
