"""The folder of source files: which sources there are, reloaded when a file changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DefinitionError, Problem
from appliance.sources.definition import Source, read_source
from appliance.workflows.loader import definition_entries

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, int, int] | None
    source: Source | None
    error: DefinitionError | None


class SourceFolder:
    """The sources of one folder. Names that begin with a dot or ``_`` are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sources: Mapping[str, Source] = {}
        """By name, disabled ones too. A file that is refused leaves what it held before."""
        self.broken: Mapping[str, DefinitionError] = {}
        """By file, within the folder."""
        self._files: dict[str, _File] = {}

    def scan(self) -> bool:
        """Look at the folder again, reading what changed; whether anything did. Blocks: call it in a thread."""
        before, now = self._files, {}
        for name, entry in definition_entries(self.path):
            known, stamp = before.get(name), _stamp(entry)
            now[name] = known if known is not None and known.stamp == stamp else self._read(name, stamp, known)
        if now == before:
            return False
        self._files = now
        self._take()
        return True

    def _read(self, name: str, stamp: tuple[int, int, int] | None, known: _File | None) -> _File:
        try:
            return _File(stamp, read_source(self.path / name), None)
        except DefinitionError as error:
            log.error("%s refused; what it held before stays in force:\n%s", name, error)
            return _File(stamp, known.source if known is not None else None, error)

    def _take(self) -> None:
        """A name belongs to the first file that has it."""
        sources: dict[str, Source] = {}
        broken: dict[str, DefinitionError] = {}
        owners: dict[str, str] = {}
        for name, file in self._files.items():
            if file.error is not None:
                broken[name] = file.error
            if file.source is None:
                continue
            owner = owners.setdefault(file.source.name, name)
            if owner == name:
                sources[file.source.name] = file.source
            else:
                problem = Problem(f"{file.source.name!r} is already the name of {owner}", "name", file=name)
                broken[name] = DefinitionError(problem)
                log.error("%s refused: %s", name, problem)
        self.sources, self.broken = sources, broken


def check_files(files: Iterable[Path]) -> tuple[list[str], list[Problem]]:
    """The names of the sources that are in order, and every problem of the others. One name belongs to one file."""
    owners: dict[str, Path] = {}
    problems: list[Problem] = []
    for path in files:
        try:
            source = read_source(path)
        except DefinitionError as error:
            problems += error.problems
            continue
        owner = owners.setdefault(source.name, path)
        if owner is not path:
            problems.append(Problem(f"{source.name!r} is already defined in {owner}", key="name", file=str(path)))
    return sorted(owners), problems


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int, int] | None:
    try:
        status = entry.stat()
    except OSError:
        return None  # gone between the listing and now; reading it will say so
    return status.st_mtime_ns, status.st_size, status.st_ino
