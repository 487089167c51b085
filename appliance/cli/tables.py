"""Plain text for people: aligned tables and lists of fields.

What is shown comes from events that anybody may send, so every character that a terminal would act on (escape
sequences, line breaks, direction marks) is shown as its escape instead.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

_GAP = "  "


def emit(document: Any, text: str, *, as_json: bool) -> None:
    """Print ``document`` as JSON or ``text`` for people."""
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False, indent=2, default=str))
    elif text:
        click.echo(text)


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, empty: str = "nothing to show") -> str:
    """``rows`` under ``columns`` (their keys, dots reach into objects); numbers stand to the right."""
    lines = list(rows)
    if not lines:
        return empty
    cells = [[cell(_reach(row, column)) for column in columns] for row in lines]
    numeric = [all(isinstance(_reach(row, c), int | float | None) for row in lines) for c in columns]
    heads = [column.rsplit(".", 1)[-1].replace("_", " ").upper() for column in columns]
    widths = [max(map(display_width, stack)) for stack in zip(heads, *cells, strict=True)]
    return "\n".join(
        _GAP.join(_pad(text, width, right) for text, width, right in zip(line, widths, numeric, strict=True)).rstrip()
        for line in [heads, *cells]
    )


def fields(pairs: Iterable[tuple[str, Any]]) -> str:
    """``name  value`` lines, the values aligned; a pair whose value is None is left out."""
    shown = [(name, cell(value)) for name, value in pairs if value is not None]
    width = max((display_width(name) for name, _ in shown), default=0)
    return "\n".join(f"{_pad(name, width, False)}{_GAP}{value}".rstrip() for name, value in shown)


def cell(value: Any) -> str:
    """One value on one line: texts as they are (but harmless), None as nothing, the rest as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def display_width(text: str) -> int:
    """How many columns a terminal needs: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - display_width(text))
    return space + text if right else text + space


def _reach(row: Mapping[str, Any], column: str) -> Any:
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
