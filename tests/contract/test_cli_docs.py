"""docs/cli.md names every command, option, choice and exit code that exists, and nothing that doesn't."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from appliance.cli.client import CONNECTION
from appliance.cli.exits import Exit
from appliance.cli.root import commands
from appliance.supervisor import EXIT_FAILED, EXIT_UNAVAILABLE

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")


def _walk(command: click.Command, context: click.Context, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _walk(found, context, f"{path} {name}")
    else:
        yield path, command


COMMANDS = dict(_walk(commands, click.Context(commands), "appliance"))
SECTIONS = {
    " ".join(word for word in heading.strip("`").split() if word.islower()): body
    for heading, body in re.findall(r"^### (`[^\n]+`)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
}


def _shared() -> set[str]:
    @click.command()
    def nothing() -> None:
        """Carries the options."""

    for option in CONNECTION:
        option(nothing)
    return {name for parameter in nothing.params for name in parameter.opts}


def test_the_commands_are_those_of_the_page() -> None:
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS)
def test_the_options_are_those_of_the_page(path: str) -> None:
    command = COMMANDS[path]
    options = [p for p in command.params if isinstance(p, click.Option)]
    own = {name for option in options for name in option.opts}
    connected = _shared() <= own
    documented = set(re.findall(r"^\| `(--[a-z-]+)", SECTIONS[path], re.MULTILINE))
    assert documented == (own - _shared() if connected else own)
    for option in options:
        choices = option.type.choices if isinstance(option.type, click.Choice) else ()
        assert [choice for choice in choices if f"`{choice}`" not in SECTIONS[path]] == []


def test_the_connection_options_are_on_the_page_with_the_commands_that_have_them() -> None:
    section = PAGE.partition("## Connection")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE)) == _shared()
    named = set(re.findall(r": `([a-z ]+)`\.", section)[0].split())
    having = {
        path.split()[1]
        for path, command in COMMANDS.items()
        if _shared() <= {o for p in command.params for o in p.opts}
    }
    assert named == having


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_but_run_speaks_json_and_every_option_has_a_help(path: str) -> None:
    options = [p for p in COMMANDS[path].params if isinstance(p, click.Option)]
    assert path == "appliance run" or any("--json" in option.opts for option in options)
    assert [option.opts for option in options if not option.help] == []
    assert COMMANDS[path].help


def test_the_exit_codes_are_those_of_the_page() -> None:
    section = PAGE.partition("## Exit codes")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == {
        *map(int, Exit),
        EXIT_UNAVAILABLE,
        EXIT_FAILED,
    }
