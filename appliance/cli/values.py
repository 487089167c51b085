"""JSON data from options: ``--data JSON`` with ``--set NAME=VALUE`` put over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from appliance.cli.ingest import json_value

F = TypeVar("F", bound=Callable[..., Any])


def settable(option: str, what: str) -> Callable[[F], F]:
    """Add ``option`` (``--data``, ``--input``) and ``--set``; ``what`` says what the data is."""

    def decorate(command: F) -> F:
        whole = click.option(
            option, "whole", metavar="JSON", help=f"{what} as JSON; @FILE reads a file, - standard input."
        )
        single = click.option(
            "--set",
            "pairs",
            metavar="NAME=VALUE",
            multiple=True,
            help="One member; JSON such as 5 or true, anything else is a text. Repeatable.",
        )
        return whole(single(command))

    return decorate


def value_of(option: str, whole: str | None, pairs: tuple[str, ...]) -> Any:
    """What the two options say; an empty object if neither was given."""
    data = {} if whole is None else json_value(whole, option)
    if not pairs:
        return data
    if not isinstance(data, dict):
        raise click.UsageError(f"--set needs {option} to be a JSON object")
    return {**data, **dict(map(_member, pairs))}


def _member(pair: str) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--set: expected NAME=VALUE, got {pair!r}")
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text
