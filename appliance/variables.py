"""Settings in environment variables and in ``.env``.

An empty variable counts as unset. Lists are JSON or separated by commas, mappings are JSON, or one variable per entry
(``APPLIANCE_SECRETS__SMS_TOKEN=…`` is the secret ``sms_token``). A secret's name with ``_FILE`` appended names a file.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream
from pydantic.fields import FieldInfo

from appliance.declarations import PLAIN_NAMES, PREFIX, KeyPath, is_list, is_mapping, is_secret, leaves, variable
from appliance.errors import Problem
from appliance.settings import Settings

OTHER_NAMES = frozenset({"APPLIANCE_URL", "APPLIANCE_FAULT"})
"""Read elsewhere: by the command line's client, and by the fault points of the tests."""
_SERVICE_LINK = re.compile(r"APPLIANCE_\w*SERVICE_(HOST|PORT)(_\w+)?")
"""What Kubernetes sets in every pod beside a service whose name begins with ``appliance``."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value came from."""

    name: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def problem(self, message: str, key: str) -> Problem:
        """A problem here; ``key`` names the setting when the place has no name of its own."""
        return Problem(message, key=self.name or key, file=self.file, line=self.line, column=self.column)


@dataclass(frozen=True, slots=True)
class Source:
    """Values as a tree, and the place of each key path in it."""

    values: dict[str, Any]
    places: dict[KeyPath, Place]


class Variables:
    """Reads the environment and ``.env``; gathers ``problems`` instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str], cwd: Path) -> None:
        self.problems: list[Problem] = []
        self._values: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        self._tree: dict[str, Any] = {}
        self._tree_places: dict[KeyPath, Place] = {}
        self._fields = {variable(path): (path, info) for path, info, _ in leaves(Settings)}
        self._read_dotenv(cwd / ".env")
        for name, value in environ.items():
            if value:
                self._values[name], self._places[name] = value, Place(name)

    def read(self) -> Source:
        """The tree of what the variables say."""
        for name in sorted(self._values, key=lambda name: name.startswith(PREFIX)):  # ours last: they win
            if name.removesuffix("_FILE") in PLAIN_NAMES:
                self._take(name, variable(PLAIN_NAMES[name.removesuffix("_FILE")]), name.endswith("_FILE"))
            elif name.startswith(PREFIX) and name not in OTHER_NAMES and not self._is_service_link(name):
                self._take(name, name, in_file=False)
        return Source(self._tree, self._tree_places)

    def _read_dotenv(self, path: Path) -> None:
        try:
            with path.open(encoding="utf-8") as file:
                bindings = list(parse_stream(file))
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(Problem(f"can't be read: {error}", file=str(path)))
            return
        for binding in bindings:
            text = binding.original.string
            line = binding.original.line + len(text) - len(text.lstrip("\n"))  # blank lines belong to what follows
            if binding.error:
                self.problems.append(Problem("not a line of the form NAME=value", file=str(path), line=line))
            elif binding.key and binding.value:
                self._values[binding.key] = binding.value
                self._places[binding.key] = Place(binding.key, str(path), line)

    def _is_service_link(self, name: str) -> bool:
        linked = _SERVICE_LINK.fullmatch(name) is not None or self._values[name].startswith(("tcp://", "udp://"))
        return linked and name not in self._fields

    def _take(self, name: str, target: str, in_file: bool) -> None:
        field = self._find(target)
        if field is None and target.endswith("_FILE"):
            in_file = True
            field = self._find(target.removesuffix("_FILE"))
        if field is None:
            self._unknown(name)
            return
        path, info = field
        if not in_file:
            self._put(path, _decoded(self._values[name], info, whole=path in self._paths()), self._places[name])
        elif not is_secret(info):
            self._problem(name, "only secrets can be read from a file")
        elif self._values.get(name.removesuffix("_FILE")):
            self._problem(name, f"{name.removesuffix('_FILE')} is set as well; set one of them")
        else:
            self._put_file(name, path)

    def _find(self, target: str) -> tuple[KeyPath, FieldInfo] | None:
        """The setting that a variable sets, or the entry of a mapping."""
        if target in self._fields:
            return self._fields[target]
        for known, (path, info) in self._fields.items():
            rest = target.removeprefix(f"{known}__")
            if rest not in (target, "") and is_mapping(info):
                if target.endswith("_FILE") and is_secret(info):
                    return None  # the entry's name without _FILE is the one meant
                return (*path, *rest.lower().split("__")), info
        return None

    def _paths(self) -> set[KeyPath]:
        return {path for path, _ in self._fields.values()}

    def _put_file(self, name: str, path: KeyPath) -> None:
        try:
            text = Path(self._values[name]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._problem(name, f"can't be read: {error}")
        else:
            self._put(path, text.rstrip("\r\n"), self._places[name])

    def _put(self, path: KeyPath, value: Any, place: Place) -> None:
        branch = self._tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = value
        self._tree_places[path] = place

    def _unknown(self, name: str) -> None:
        near = difflib.get_close_matches(name, self._fields, n=1)
        self._problem(name, "no such setting", near[0] if near else None)

    def _problem(self, name: str, message: str, expected: str | None = None) -> None:
        place = self._places[name]
        self.problems.append(Problem(message, key=name, file=place.file, line=place.line, expected=expected))


def _decoded(text: str, info: FieldInfo, *, whole: bool) -> Any:
    """A variable's text as the field wants it. What isn't JSON stays text: validation says what is wrong with it."""
    if not whole or not (is_mapping(info) or is_list(info)):
        return text
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return [part.strip() for part in text.split(",")] if is_list(info) else text
