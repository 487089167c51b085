"""The folder of workflow files: which are there, which changed, and what each holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from appliance.errors import DefinitionError, Problem
from appliance.plugin import Action
from appliance.workflows.dialects import compile_document
from appliance.workflows.loader import definition_entries, read_document
from appliance.workflows.revision import Workflow


@dataclass(frozen=True, slots=True)
class DefinitionFile:
    """A file as it was last read: its workflow, or the error that it has. ``source`` is set for another dialect."""

    name: str
    stamp: tuple[int, int, int]
    workflow: Workflow | None
    error: DefinitionError | None
    source: str | None = None


class Folder:
    """The files of one folder. Reads only what changed since the last time."""

    def __init__(self, path: Path, actions: Mapping[str, Action]) -> None:
        self.path = path
        self._actions = actions
        self.files: Mapping[str, DefinitionFile] = {}
        """By path within the folder."""

    @property
    def exists(self) -> bool:
        """Without the folder, nothing can be said about what belongs into it."""
        return self.path.is_dir()

    def scan(self) -> tuple[list[DefinitionFile], list[str]]:
        """Look at the folder again: (files that are new or changed, names of those that are gone).

        Blocks: call it in a thread.
        """
        before, now, changed = self.files, {}, []
        entries = dict(definition_entries(self.path))
        gone = [name for name in before if name not in entries]
        for name, entry in entries.items():
            known, stamp = before.get(name), _stamp(entry)
            if stamp is None:
                gone += [name] if known is not None else []
                continue
            # Where a file has gone, one that was refused for having the same name may have its turn.
            if known is None or known.stamp != stamp or (gone and known.error is not None):
                known = self._read(self.path / name, name, stamp)
                changed.append(known)
            now[name] = known
        self.files = now
        return changed, gone

    def _read(self, path: Path, name: str, stamp: tuple[int, int, int]) -> DefinitionFile:
        try:
            workflow, source = read_definition(path, self._actions)
        except DefinitionError as error:
            return DefinitionFile(name, stamp, None, error)
        return DefinitionFile(name, stamp, workflow, None, source)


def read_definition(path: Path, actions: Mapping[str, Action]) -> tuple[Workflow, str | None]:
    """The workflow in a file, and the text of its original if that is of another dialect.

    Raises DefinitionError, every problem of which names the file.
    """
    try:
        document = read_document(path, name=str(path))
        workflow, translated = compile_document(document.data, actions=actions, file=str(path), lines=document.lines)
    except DefinitionError as error:
        placed = (Problem(p.message, p.key, p.file or str(path), p.line, p.column, p.expected) for p in error.problems)
        raise DefinitionError(*placed) from None
    return workflow, orjson.dumps(document.data).decode() if translated else None


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int, int] | None:
    try:
        status = entry.stat()
    except OSError:
        return None  # gone between the listing and now
    return status.st_mtime_ns, status.st_size, status.st_ino
