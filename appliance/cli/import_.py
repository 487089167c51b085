"""``appliance import``: definitions of any dialect, as workflows in our own language."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.client import json_option
from appliance.cli.exits import Exit, Failure
from appliance.cli.export import write
from appliance.cli.local import config_dir_option, registry_here, settings_here
from appliance.cli.tables import emit
from appliance.errors import DefinitionError, Problem

if TYPE_CHECKING:
    from appliance.plugin import Action
    from appliance.workflows.loader import Document


@click.command("import")
@click.argument("file", metavar="FILE")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write the workflow to this file; several, to files in this folder.",
)
@config_dir_option
@json_option
def import_(file: str, out: Path | None, config_dir: Path | None, as_json: bool) -> None:
    """Translate definitions of other systems into our own language, and print them as YAML.

    FILE is YAML or JSON, - is standard input. It may hold several definitions, as a list or below workflows, rules or
    definitions: each becomes a workflow. Nothing is written when one of them has a problem.
    """
    document = _read(file)
    actions = registry_here(settings_here(config_dir)).actions
    definitions = translated(document, actions)
    if out is not None:
        names = _write(definitions, out)
        emit({"files": names}, "\n".join(names), as_json=as_json)
        return
    from appliance.workflows.writing import to_yaml

    text = "---\n".join(to_yaml(definition) for definition in definitions)
    emit(definitions if len(definitions) > 1 else definitions[0], text.removesuffix("\n"), as_json=as_json)


def translated(document: Document, actions: Any) -> list[dict[str, Any]]:
    """Every definition of a document in our own language; raises DefinitionError with the problems of all of them."""
    from appliance.workflows.dialects import compile_document, parts_of

    known: dict[str, Action] = dict(actions)
    definitions: list[dict[str, Any]] = []
    owners: dict[str, str] = {}
    problems: list[Problem] = []
    for key, part in parts_of(document.data):
        try:
            workflow, _ = compile_document(part, actions=known, file=document.file, lines=document.lines, key=key)
        except DefinitionError as error:
            problems += error.problems
            continue
        owner = owners.setdefault(workflow.name, key)
        if owner != key:
            line, column = document.lines.get(f"{key}.name", (None, None))
            message = f"{workflow.name!r} is already defined in {owner}"
            problems.append(Problem(message, f"{key}.name", document.file, line, column, "a name of its own"))
        definitions.append(_ours(part))
    if problems:
        raise DefinitionError(*problems)
    if not definitions:
        raise DefinitionError(Problem("no definition", file=document.file, expected="a workflow"))
    return definitions


def _ours(part: Any) -> dict[str, Any]:
    from appliance.workflows.dialects import to_native

    return to_native(part)


def _read(file: str) -> Document:
    from appliance.workflows.loader import parse_document, read_document

    if file == "-":
        return parse_document(sys.stdin.buffer.read(), file="standard input")
    return read_document(Path(file))


def _write(definitions: list[dict[str, Any]], out: Path) -> list[str]:
    """Write one workflow to a file, several to a folder; returns the files."""
    from appliance.workflows.writing import to_yaml

    if len(definitions) == 1 and not out.is_dir():
        paths = [out]
    elif out.exists() and not out.is_dir():
        raise Failure(f"{out} is a file, and there are {len(definitions)} workflows: name a folder", Exit.USAGE)
    else:
        out.mkdir(parents=True, exist_ok=True)
        paths = [out / name for name in _file_names(definitions)]
    for path, definition in zip(paths, definitions, strict=True):
        write(path, to_yaml(definition))
    return [str(path) for path in paths]


def _file_names(definitions: Iterable[dict[str, Any]]) -> list[str]:
    """A name for each file: the workflow's, without what file systems don't like."""
    names: list[str] = []
    for definition in definitions:
        stem = re.sub(r"[^A-Za-z0-9-]+", "-", definition["name"]).strip("-").lower() or "workflow"
        number = 1
        while (name := f"{stem}.yaml" if number == 1 else f"{stem}-{number}.yaml") in names:
            number += 1
        names.append(name)
    return names
