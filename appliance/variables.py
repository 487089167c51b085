"""Settings in environment variables and in ``.env``: what pydantic-settings reads, and what it doesn't.

The library nests, decodes and merges. Ours: the plain names, files with secrets, and saying which name is wrong, where.

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
from pydantic_settings import BaseSettings, EnvSettingsSource

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


class VariablesSource(EnvSettingsSource):
    """What variables say; gathers ``problems`` instead of stopping at the first, and the place of each setting."""

    def __init__(
        self, settings_cls: type[BaseSettings], values: Mapping[str, str], places: Mapping[str, Place]
    ) -> None:
        super().__init__(settings_cls)
        self.problems: list[Problem] = []
        self.places: dict[KeyPath, Place] = {}
        self._values, self._named_places = values, places
        self._fields = {variable(path): (path, info) for path, info, _ in leaves(Settings)}
        self._accepted: dict[str, str] = {}
        for name in sorted(values, key=lambda name: name.startswith(PREFIX)):  # ours last: they win
            if name.removesuffix("_FILE") in PLAIN_NAMES:
                self._take(name, variable(PLAIN_NAMES[name.removesuffix("_FILE")]), name.endswith("_FILE"))
            elif name.startswith(PREFIX) and name not in OTHER_NAMES and not self._is_service_link(name):
                self._take(name, name, in_file=False)
        self.env_vars = self._accepted

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """A list or mapping. What isn't JSON stays text: validation says what is wrong with it."""
        if value.lstrip()[:1] in ("[", "{"):
            try:
                return json.loads(value)
            except ValueError:
                return value
        return [part.strip() for part in value.split(",")] if field is not None and is_list(field) else value

    def _is_service_link(self, name: str) -> bool:
        linked = _SERVICE_LINK.fullmatch(name) is not None or self._values[name].startswith(("tcp://", "udp://"))
        return linked and name not in self._fields

    def _take(self, name: str, target: str, in_file: bool) -> None:
        field = self._find(target)
        if field is None and target.endswith("_FILE"):
            in_file, target = True, target.removesuffix("_FILE")
            field = self._find(target)
        if field is None:
            self._unknown(name)
            return
        path, info = field
        if not in_file:
            self._accept(name, target, path, self._values[name])
        elif not is_secret(info):
            self._problem(name, "only secrets can be read from a file")
        elif name.removesuffix("_FILE") in self._values:
            self._problem(name, f"{name.removesuffix('_FILE')} is set as well; set one of them")
        else:
            self._take_file(name, target, path)

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

    def _take_file(self, name: str, target: str, path: KeyPath) -> None:
        try:
            text = Path(self._values[name]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._problem(name, f"can't be read: {error}")
        else:
            self._accept(name, target, path, text.rstrip("\r\n"))

    def _accept(self, name: str, target: str, path: KeyPath, text: str) -> None:
        self._accepted[target.lower()] = text
        self.places[path] = self._named_places[name]

    def _unknown(self, name: str) -> None:
        near = difflib.get_close_matches(name, self._fields, n=1)
        self._problem(name, "no such setting", near[0] if near else None)

    def _problem(self, name: str, message: str, expected: str | None = None) -> None:
        place = self._named_places[name]
        self.problems.append(Problem(message, key=name, file=place.file, line=place.line, expected=expected))


class EnvironmentSource(VariablesSource):
    """The environment of the process."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str]) -> None:
        values = {name: value for name, value in environ.items() if value}
        super().__init__(settings_cls, values, {name: Place(name) for name in values})


class DotEnvSource(VariablesSource):
    """A file of variables, which may be missing. (The library's own knows no lines, and passes over broken ones.)"""

    def __init__(self, settings_cls: type[BaseSettings], path: Path) -> None:
        values: dict[str, str] = {}
        places: dict[str, Place] = {}
        problems: list[Problem] = []
        try:
            with path.open(encoding="utf-8") as file:
                bindings = list(parse_stream(file))
        except FileNotFoundError:
            bindings = []
        except (OSError, UnicodeDecodeError) as error:
            bindings = []
            problems.append(Problem(f"can't be read: {error}", file=str(path)))
        for binding in bindings:
            text = binding.original.string
            line = binding.original.line + len(text) - len(text.lstrip("\n"))  # blank lines belong to what follows
            if binding.error:
                problems.append(Problem("not a line of the form NAME=value", file=str(path), line=line))
            elif binding.key and binding.value:
                values[binding.key], places[binding.key] = binding.value, Place(binding.key, str(path), line)
        super().__init__(settings_cls, values, places)
        self.problems = problems + self.problems
