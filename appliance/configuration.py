"""Loads the settings from all their sources and says, for each mistake, where it is.

Sources, strongest first: command line, environment, ``.env`` in the working directory,
``<config-dir>/appliance.yaml``, default.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from appliance.declarations import KeyPath, Setting, describe
from appliance.errors import ConfigurationError, Problem
from appliance.settings import Settings
from appliance.variables import Place, Source, Variables

__all__ = ["FILE_NAME", "Setting", "describe", "load_settings", "secret_values"]

FILE_NAME = "appliance.yaml"


def load_settings(*, cli: Mapping[str, Any], environ: Mapping[str, str], cwd: Path) -> Settings:
    """The settings; ``cli`` is a tree of what the command line gave. Raises ConfigurationError, with all problems."""
    variables = Variables(environ, cwd)
    source = variables.read()
    told = {**source.values, **cli}.get("config_dir") or Settings.model_fields["config_dir"].default
    from_file = _read_file(cwd / Path(told) / FILE_NAME)
    merged = _merged(_merged(from_file.values, source.values), cli)
    places = {**from_file.places, **source.places, **_cli_places(cli)}
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigurationError(*variables.problems, *_explain(error, places)) from None
    if variables.problems:
        raise ConfigurationError(*variables.problems)
    return settings


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


def _read_file(path: Path) -> Source:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Source({}, {})
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
        return Source({}, {})
    if not isinstance(values, dict):
        raise ConfigurationError(Problem("expected a mapping", file=str(path), line=1, column=1))
    places = dict(_places(node, str(path), ()))
    if "config_dir" in values:
        problem = places[("config_dir",)].problem("can't be set in a file inside that folder", "config_dir")
        raise ConfigurationError(problem)
    return Source({name: value for name, value in values.items() if value is not None}, places)


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
    found: dict[KeyPath, list[str]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        path = tuple(str(part) for part in detail["loc"])
        known = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in places), path)
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], _siblings(path), n=1)
            message = "no such setting" + (f"; did you mean {near[0]}?" if near else "")
        found.setdefault(known, []).append(message[:1].lower() + message[1:])
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


def _merged(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(weak)
    for name, value in strong.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
