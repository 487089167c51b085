"""A definition (JSON data) as YAML that people like to read, and that :mod:`~appliance.workflows.loader` reads back.

Short objects and lists stand in one line, texts of several lines as blocks; whatever could be taken for something else
is quoted. Keys of the language come in the order in which one writes them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_WIDTH = 110
"""Longest object or list in one line."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]*[A-Za-z0-9_./])*")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"})
"""Texts that some reader of YAML takes for something else."""
_DURATION = re.compile(r"[0-9]+(?:ms|s|m|h|d|w)")
_LONGEST_KEY = 100
_UNSEEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Categories of characters that are shown as their escapes: controls, marks of direction, line breaks, the unknown."""
_ORDER = (
    "name", "id", "title", "description", "enabled", "priority", "order", "revisions", "trigger", "inputs",
    "ordering_key", "rate_limit", "throttle", "debounce", "batch", "singleton", "mode", "key", "limit", "size",
    "period", "burst", "correlate", "initial",
    "event", "schedule", "match", "when", "path", "op", "value", "for", "after", "until", "if", "action", "with",
    "delay", "choose", "parallel", "for_each", "wait", "human_task", "workflow", "transform", "end", "enter", "on",
    "items", "as", "branches", "join", "concurrency", "states", "steps", "do", "timeout", "retry", "effects",
    "compensate", "deadline", "forever", "next", "on_error", "output", "editor",
)  # fmt: skip
_FREE = frozenset({"with", "transform", "output", "input", "inputs", "form", "editor", "value"})
"""Keys below which everything is the author's own, and stays in the order that it has."""
_RANKS = {key: rank for rank, key in enumerate(_ORDER)}


def to_yaml(definition: Mapping[str, Any]) -> str:
    """The definition as a YAML document; reading it gives the same data."""
    lines = list(_object(_sorted(definition), 0))
    return "\n".join(lines) + "\n"


def _sorted(value: Any) -> Any:
    """The same with its objects in the language's own order; what isn't of the language stays where it is."""
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    keys = sorted(value, key=lambda key: _RANKS.get(key, len(_RANKS)))
    return {key: value[key] if key in _FREE else _sorted(value[key]) for key in keys}


# --- blocks ----------------------------------------------------------------------------------------------------------


def _object(value: Mapping[str, Any], depth: int) -> Iterable[str]:
    for key, inner in value.items():
        if len(key) > _LONGEST_KEY:  # a key in one line with its value may have 1024 characters
            yield f"{'  ' * depth}? {_text(key)}"
            yield from _member(f"{'  ' * depth}:", inner, depth)
        else:
            yield from _member(f"{'  ' * depth}{_key(key)}:", inner, depth)


def _member(head: str, value: Any, depth: int) -> Iterable[str]:
    """A key with its value: in one line, or with the value below."""
    if isinstance(value, str) and (block := _block(value, depth + 1)) is not None:
        yield f"{head} {block}"
    elif (line := _line(value)) is not None and (len(head) + len(line) <= _WIDTH or _is_single(value)):
        yield f"{head} {line}"
    elif isinstance(value, Mapping):
        yield head
        yield from _object(value, depth + 1)
    else:
        yield head
        yield from _list(value, depth + 1)


def _list(value: list[Any], depth: int) -> Iterable[str]:
    indent = "  " * depth
    for item in value:
        line = _line(item)
        if line is not None and (len(indent) + len(line) + 2 <= _WIDTH or _is_single(item)):
            yield f"{indent}- {line}"
        else:
            first, *rest = _object(item, depth + 1) if isinstance(item, Mapping) else _list(item, depth + 1)
            yield f"{indent}- {first[len(indent) + 2 :]}"
            yield from rest


def _block(text: str, depth: int) -> str | None:
    """A text of several lines as a literal block; None if it can't be one."""
    lines = text.split("\n")
    bare = text.rstrip("\n")
    if len(lines) < 2 or not bare or bare[0] in " \t\n" or len(text) - len(bare) > 1:
        return None
    if any(not _is_printable(line) or "\t" in line or line != line.rstrip() for line in lines):
        return None
    indent = "\n" + "  " * depth
    body = indent.join(bare.split("\n"))
    # Empty lines would otherwise hold nothing but blanks.
    return "|" + ("" if text != bare else "-") + re.sub(r"\n +(?=\n)", "\n", indent + body)


# --- in one line -----------------------------------------------------------------------------------------------------


def _line(value: Any) -> str | None:
    """The value in one line; None if it should stand in several. What is no object or list always fits in one."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        if value and (len(value) > 4 or not _is_flat(value.values())):
            return None
        if any(len(key) > _LONGEST_KEY for key in value):
            return None
        line = "{" + ", ".join(f"{_key(key)}: {_line(inner)}" for key, inner in value.items()) + "}"
        return line if len(line) <= _WIDTH else None
    if isinstance(value, list):
        parts = [_line(inner) for inner in value]
        if not _is_flat(value) or sum(len(part or "") + 2 for part in parts) > _WIDTH:
            return None
        return "[" + ", ".join(map(str, parts)) + "]"
    return _scalar(value)


def _is_flat(values: Iterable[Any]) -> bool:
    """Whether nothing in ``values`` holds anything, and no text has several lines."""
    return all(_is_single(value) and not (isinstance(value, str) and "\n" in value) for value in values)


def _is_single(value: Any) -> bool:
    return not isinstance(value, Mapping | list) or not value


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        written = repr(value)
        # 1e22 is a text to some readers.
        return written if "." in written or "e" not in written else written.replace("e", ".0e")
    return str(value)


def _key(key: str) -> str:
    """A key; that of a state's events needs no quotes in YAML 1.2, which is what is read here."""
    return key if key == "on" else _text(key)


def _text(text: str) -> str:
    if _DURATION.fullmatch(text):
        return text
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS and len(text) <= _WIDTH:
        return text
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    simple = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    if simple is not None:
        return simple
    if _is_printable(character):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_printable(text: str) -> bool:
    """Whether every character may stand as it is: none that a reader of YAML, or a terminal, would act on."""
    return all(
        " " <= character <= "~"
        or character == "\t"
        or (character > "\x7f" and unicodedata.category(character) not in _UNSEEN)
        for character in text
    )
