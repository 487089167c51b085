"""``appliance validate``: settings and workflows, checked without starting anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.client import json_option
from appliance.cli.exits import Exit
from appliance.cli.local import config_dir_option, registry_here, settings_here
from appliance.cli.tables import emit
from appliance.errors import ConfigurationError, DefinitionError, Problem

if TYPE_CHECKING:
    from appliance.plugin import Action
    from appliance.workflows.revision import Workflow


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=Path))
@config_dir_option
@json_option
@click.pass_context
def validate(ctx: click.Context, paths: tuple[Path, ...], config_dir: Path | None, as_json: bool) -> None:
    """Check settings, workflows and sources; print every problem as file:line:column: key: message.

    PATH is a workflow file or a folder of them; without one, all of <config-dir>/workflows and <config-dir>/sources.
    Exits with 5 when there is a problem.
    """
    problems: list[Problem] = []
    names: list[str] = []
    warnings: list[str] = []
    sources: list[str] = []
    try:
        settings = settings_here(config_dir)
        actions = registry_here(settings).actions
    except ConfigurationError as error:
        problems += error.problems
    else:
        folder = settings.config_dir / "sources"
        of_sources = [path for path in paths if _within(path, folder)]
        if of_sources or not paths:
            sources, found = check_sources(_files(of_sources, folder))
            problems += found
        if len(of_sources) < len(paths) or not paths:
            others = [path for path in paths if path not in of_sources]
            names, found = check_workflows(_files(others, settings.config_dir / "workflows"), actions, warnings)
            problems += found
    found_here = {"workflows": names, "sources": sources}
    document = {"ok": not problems, **found_here, "problems": [_as_json(problem) for problem in problems]}
    counted = [f"{len(names)} workflow{'' if len(names) == 1 else 's'}"]
    counted += [f"{len(sources)} source{'' if len(sources) == 1 else 's'}"] if sources else []
    text = "\n".join(map(str, problems)) or f"ok: {', '.join(counted)}"
    text = "\n".join([*(f"warning: {warning}" for warning in warnings), text])
    emit({**document, "warnings": warnings}, text, as_json=as_json)
    if problems:
        ctx.exit(Exit.CONFIGURATION)


def check_sources(files: Iterable[Path]) -> tuple[list[str], list[Problem]]:
    """The names of the sources that are in order, and every problem of the others; no database is asked."""
    from appliance.sources.folder import check_files

    return check_files(files)


def _within(path: Path, folder: Path) -> bool:
    """Whether ``path`` is the folder or below it."""
    return path.resolve().is_relative_to(folder.resolve())


def check_workflows(
    files: Iterable[Path], actions: Mapping[str, Action], warnings: list[str] | None = None
) -> tuple[list[str], list[Problem]]:
    """The names of the workflows that are in order, and every problem of the others. One name belongs to one file.

    What is odd without being wrong is added to ``warnings``.
    """
    from appliance.workflows.folder import read_definition

    owners: dict[str, Path] = {}
    workflows: dict[str, Workflow] = {}
    problems: list[Problem] = []
    for path in files:
        try:
            workflow, _ = read_definition(path, actions)
        except DefinitionError as error:
            problems += error.problems
            continue
        owner = owners.setdefault(workflow.name, path)
        if owner is not path:
            problems.append(Problem(f"{workflow.name!r} is already defined in {owner}", key="name", file=str(path)))
        workflows.setdefault(workflow.name, workflow)
    if warnings is not None:
        warnings += _circles(workflows, owners)
    return sorted(owners), [*problems, *_cycles(workflows, owners)]


def _circles(workflows: Mapping[str, Workflow], owners: Mapping[str, Path]) -> Iterator[str]:
    """Workflows that trigger themselves, each with the file of the first."""
    from appliance.workflows.cycles import find_cycles

    for cycle in find_cycles(workflows.values()):
        yield f"{owners[cycle.names[0]]}: triggers itself: {cycle}"


def _cycles(workflows: Mapping[str, Workflow], owners: Mapping[str, Path]) -> Iterator[Problem]:
    """Workflows that call each other in a circle, each where it makes its call."""
    from appliance.workflows.flow import call_cycles, call_key
    from appliance.workflows.loader import read_document

    for name, way in call_cycles(workflows):
        key = call_key(workflows[name].definition, way[1]) or "steps"
        line, column = read_document(owners[name]).lines.get(key, (None, None))
        message = f"calls itself: {' → '.join(way)}"
        expected = "calls that don't come round"
        yield Problem(message, key, file=str(owners[name]), line=line, column=column, expected=expected)


def _files(paths: Iterable[Path], default: Path) -> Iterator[Path]:
    """The files that were named or are in the folders that were; a name that leads nowhere is a problem of its own."""
    from appliance.workflows.loader import definition_files

    for path in paths or (default,):
        if path.is_dir() or path is default:
            yield from definition_files(path)
        else:
            yield path


def _as_json(problem: Problem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("file", "line", "column", "key", "message", "expected")}
