"""Loads the settings from all their sources and says, for each mistake, where it is.

Sources, strongest first: command line, environment, ``.env`` in the working directory,
``<config-dir>/appliance.yaml``, default.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from appliance.declarations import PREFIX, KeyPath, Setting, describe
from appliance.errors import ConfigurationError, Problem
from appliance.settings import Settings
from appliance.variables import DotEnvSource, EnvironmentSource, Place, VariablesSource
from appliance.workflows.problems import phrase

__all__ = ["FILE_NAME", "Setting", "describe", "load_settings", "secret_values"]

FILE_NAME = "appliance.yaml"
_OUT_OF_BOUNDS = frozenset({"greater_than_equal", "greater_than", "less_than_equal", "less_than"})


class LoadedSettings(Settings, BaseSettings):
    """Settings from all their sources; plain ``Settings`` know no source but their arguments."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Ours, which know where each value came from; strongest first."""
        origin: Origin = cast(InitSettingsSource, init_settings).init_kwargs["origin"]
        origin.sources = (
            CommandLineSource(settings_cls, origin.cli),
            EnvironmentSource(settings_cls, origin.environ),
            DotEnvSource(settings_cls, origin.cwd / ".env"),
            FileSource(settings_cls, origin.cwd),
        )
        return origin.sources


@dataclass(slots=True)
class Origin:
    """What the sources read from, and the sources once they are made."""

    cli: Mapping[str, Any]
    environ: Mapping[str, str]
    cwd: Path
    sources: tuple[CommandLineSource | VariablesSource | FileSource, ...] = ()

    @property
    def places(self) -> dict[KeyPath, Place]:
        """The place of each key path, in the strongest source that has it."""
        return {path: place for source in reversed(self.sources) for path, place in source.places.items()}

    @property
    def problems(self) -> list[Problem]:
        """What the variables have wrong before their values are looked at; the weaker source first."""
        variables = [source for source in self.sources if isinstance(source, VariablesSource)]
        return [problem for source in reversed(variables) for problem in source.problems]


class CommandLineSource(InitSettingsSource):
    """A tree of what the command line gave."""

    def __init__(self, settings_cls: type[BaseSettings], tree: Mapping[str, Any]) -> None:
        super().__init__(settings_cls, init_kwargs=dict(tree))
        self.places = _cli_places(tree)


class FileSource(PydanticBaseSettingsSource):
    """``appliance.yaml`` in the folder that the stronger sources name."""

    def __init__(self, settings_cls: type[BaseSettings], cwd: Path) -> None:
        super().__init__(settings_cls)
        self._cwd = cwd
        self.places: dict[KeyPath, Place] = {}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not asked for: the file is read as a whole."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """The file's tree; raises ConfigurationError when there is none in it."""
        folder = self.current_state.get("config_dir") or Settings.model_fields["config_dir"].default
        values, self.places = _read_file(self._cwd / Path(folder) / FILE_NAME)
        return values


def load_settings(*, cli: Mapping[str, Any], environ: Mapping[str, str], cwd: Path) -> Settings:
    """The settings; ``cli`` is a tree of what the command line gave. Raises ConfigurationError, with all problems."""
    origin = Origin(cli, environ, cwd)
    given: dict[str, Any] = {"origin": origin}
    try:
        settings = LoadedSettings(**given)
    except ValidationError as error:
        raise ConfigurationError(*origin.problems, *_explain(error, origin.places)) from None
    problems = [*origin.problems, *_missing_folder(settings, origin)]
    if problems:
        raise ConfigurationError(*problems)
    return settings


def _missing_folder(settings: Settings, origin: Origin) -> Iterator[Problem]:
    """A folder of definitions that was named must be there: without it everything would look like nothing to do."""
    place = origin.places.get(("config_dir",))
    if place is not None and not (origin.cwd / settings.config_dir).is_dir():
        yield place.problem(f"there is no folder {settings.config_dir}", "config_dir")


def secret_values(settings: Settings) -> list[str]:
    """Every secret text in the settings, with the passwords inside URLs: what logs must not show."""
    found: list[str] = []

    def visit(value: Any) -> None:
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
            password = urlsplit(text).password if "://" in text else text
            found.extend({password, unquote(password)} if password else ())
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                visit(getattr(value, name))
        elif isinstance(value, Mapping):
            for inner in value.values():
                visit(inner)

    visit(settings)
    return found


def _read_file(path: Path) -> tuple[dict[str, Any], dict[KeyPath, Place]]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(Problem(f"can't be read: {error}", file=str(path))) from None
    yaml = YAML(typ="safe", pure=True)
    try:
        node, values = yaml.compose(text), yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        message = (error.problem or "not YAML").splitlines()[0]
        raise ConfigurationError(Problem(message, file=str(path), line=line, column=column)) from None
    if values is None:
        return {}, {}
    if not isinstance(values, dict):
        raise ConfigurationError(Problem("expected a mapping", file=str(path), line=1, column=1))
    places = dict(_places(node, str(path), ()))
    if "config_dir" in values:
        problem = places[("config_dir",)].problem("can't be set in a file inside that folder", "config_dir")
        raise ConfigurationError(problem)
    return {str(name): value for name, value in values.items() if value is not None}, places


def _places(node: Node, file: str, path: KeyPath) -> Iterator[tuple[KeyPath, Place]]:
    """The places of all keys and items below a node; a key's place is where the key begins."""
    if isinstance(node, MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value if isinstance(key, ScalarNode)]
    elif isinstance(node, SequenceNode):
        children = [(str(index), value, value) for index, value in enumerate(node.value)]
    else:
        return
    for name, at, value in children:
        inner = (*path, name)
        yield inner, Place("", file, at.start_mark.line + 1, at.start_mark.column + 1)
        yield from _places(value, file, inner)


def _explain(error: ValidationError, places: Mapping[KeyPath, Place]) -> Iterator[Problem]:
    """One problem per key: pydantic reports every branch of a union, and names its branches in the path."""
    bounds = {setting.path: setting.bounds for setting in describe()}
    found: dict[KeyPath, list[str]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        path = tuple(str(part) for part in detail["loc"])
        known = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in places), path)
        message = phrase(detail)
        if detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], _siblings(path), n=1)
            message = "no such setting" + (f"; did you mean {near[0]}?" if near else "")
        elif detail["type"] in _OUT_OF_BOUNDS and path in bounds:
            message = f"expected a value {bounds[path]}"
        found.setdefault(known, []).append(message)
    for path, messages in found.items():
        yield places.get(path, Place()).problem("; ".join(dict.fromkeys(messages)), ".".join(path))


def _siblings(path: KeyPath) -> list[str]:
    model: Any = Settings
    for part in path[:-1]:
        info = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = info.annotation if info is not None else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _cli_places(tree: Mapping[str, Any], path: KeyPath = ()) -> dict[KeyPath, Place]:
    places: dict[KeyPath, Place] = {}
    for name, value in tree.items():
        places[(*path, name)] = Place(f"--{name.replace('_', '-')}")
        if isinstance(value, Mapping):
            places |= _cli_places(value, (*path, name))
    return places
