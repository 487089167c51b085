"""YAML (or JSON) text to plain data, with the line and column of every key.

YAML 1.2: ``on`` and ``no`` are texts. What JSON can't hold is refused or stays text (a timestamp). Duplicate keys,
which most parsers let pass, are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from appliance.errors import DefinitionError, Problem

MAX_BYTES = 1_048_576
"""Largest definition file."""
MAX_NODES = 100_000
"""Values in one file, aliases expanded: nine lines of nested aliases would otherwise fill the memory."""
MAX_DEPTH = 100
_SUFFIXES = (".yaml", ".yml", ".json")
_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + name for name in ("null", "bool", "int", "float"))
_TEXTS = frozenset(_TAG + name for name in ("str", "timestamp", "value"))


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file. ``lines`` gives line and column (from 1) of each dotted key: ``steps[0].with.to``."""

    data: Any
    lines: dict[str, tuple[int, int]]
    file: str | None


def read_document(path: Path, *, name: str | None = None) -> Document:
    """Read and parse a file; raises DefinitionError. ``name`` stands in messages instead of the path."""
    file = name or str(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DefinitionError(Problem(f"can't be read: {error.strerror}", file=file)) from None
    return parse_document(raw, file=file)


def parse_document(raw: bytes, *, file: str | None = None) -> Document:
    """Parse YAML or JSON; raises DefinitionError with the position of what is wrong."""
    if len(raw) > MAX_BYTES:
        raise DefinitionError(Problem(f"larger than {MAX_BYTES} bytes", file=file))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DefinitionError(Problem("not UTF-8", file=file, line=line)) from None
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = {} if mark is None else {"line": mark.line + 1, "column": mark.column + 1}
        raise DefinitionError(Problem(f"not YAML: {error.problem or error.context}", file=file, **place)) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise DefinitionError(Problem(f"not YAML: {str(error).splitlines()[0]}", file=file)) from None
    if root is None:
        raise DefinitionError(Problem("empty", file=file, expected="a workflow"))
    builder = _Builder(yaml.constructor)
    data = builder.build(root, "", 0)
    if builder.problems:
        raise DefinitionError(
            *(Problem(message, key, file, line, column) for message, key, line, column in builder.problems)
        )
    return Document(data, builder.lines, file)


class _Builder:
    """Builds the data of one document from its nodes."""

    def __init__(self, constructor: SafeConstructor) -> None:
        self.lines: dict[str, tuple[int, int]] = {}
        self.problems: list[tuple[str, str, int, int]] = []
        self._constructor = constructor
        self._left = MAX_NODES

    def build(self, node: Node, key: str, depth: int) -> Any:
        self.lines.setdefault(key, _place(node))
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            if self._left == -1 or depth > MAX_DEPTH:
                self._left = min(self._left, -2)
                self._refuse(node, key, "too large once its aliases are expanded, or nested too deeply")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, key, depth)
        if isinstance(node, SequenceNode):
            return [self.build(item, f"{key}[{i}]", depth + 1) for i, item in enumerate(node.value) if self._left >= 0]
        return self._scalar(node, key)

    def _mapping(self, node: MappingNode, key: str, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        merged: list[Node] = []
        for name_node, value_node in node.value:
            if self._left < 0:
                break
            if name_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                continue
            name = name_node.value
            if not isinstance(name_node, ScalarNode):
                self._refuse(name_node, key, "a key must be a text")
                continue
            inner = f"{key}.{name}" if key else name
            if name in data:
                self._refuse(name_node, inner, f"the key {name!r} appears twice")
                continue
            self.lines[inner] = _place(name_node)
            data[name] = self.build(value_node, inner, depth + 1)
        for other in merged:
            self._merge(other, data, key, depth)
        return data

    def _merge(self, node: Node, data: dict[str, Any], key: str, depth: int) -> None:
        """``<<: *defaults``: the keys that aren't there yet."""
        if not isinstance(node, MappingNode):
            self._refuse(node, key, "<< wants an object")
            return
        for name, value in self._mapping(node, key, depth + 1).items():
            data.setdefault(name, value)

    def _scalar(self, node: Node, key: str) -> Any:
        tag = str(node.tag)
        if tag in _TEXTS:
            if "\0" in node.value:
                self._refuse(node, key, "contains NUL, which can't be stored")
            return node.value
        if tag not in _SCALARS:
            self._refuse(node, key, f"the tag {tag.removeprefix(_TAG)} is not available here")
            return None
        value = self._constructor.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(node, key, "neither infinity nor NaN can be stored")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            self._refuse(node, key, "the number is too large")
        return value

    def _refuse(self, node: Node, key: str, message: str) -> None:
        self.problems.append((message, key, *_place(node)))


def _place(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def definition_files(folder: Path) -> Iterator[Path]:
    """The definition files of a folder and its subfolders, sorted; names that begin with a dot or _ are left out."""
    for name, _ in definition_entries(folder):
        yield folder / name


def definition_entries(folder: Path | str, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Like :func:`definition_files`, as names below ``folder`` with their directory entries: a look costs little."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return  # no such folder, or gone since it was listed
    for entry in entries:
        if entry.name[0] in "._":
            continue
        if entry.is_dir():
            yield from definition_entries(entry.path, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIXES) and entry.is_file():
            yield prefix + entry.name, entry
