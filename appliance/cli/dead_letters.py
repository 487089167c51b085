"""``appliance dlq``: what was set aside after its last attempt."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.exits import Exit, Failure
from appliance.cli.listing import emit_page, moment, paged
from appliance.cli.tables import cell, emit, fields

_PATH = f"{API}/dead-letters"
_PAGE = 200


@click.group()
def dlq() -> None:
    """The dead letters: events and steps set aside after their last attempt."""


@dlq.command("list")
@click.option(
    "--status",
    type=click.Choice(["open", "redriven", "discarded"]),
    default="open",
    show_default=True,
    help="Only dead letters in this state.",
)
@click.option("--event-id", metavar="ID", help="Only those of this event.")
@click.option("--run-id", metavar="ID", help="Only those of this run.")
@paged
@json_option
@connected
def list_(client: Client, /, status: str, limit: int, cursor: str | None, as_json: bool, **filters: str | None) -> None:
    """List dead letters, newest first."""
    page = client.page(_PATH, limit, cursor, status=status, **filters)
    columns = ["id", "kind", "status", "created_at", "attempts", "step", "error"]
    emit_page(page, columns, empty=f"no {status} dead letters", as_json=as_json)


@dlq.command("show")
@click.argument("letter_id")
@json_option
@connected
def show(client: Client, letter_id: str, as_json: bool) -> None:
    """Show one dead letter with its error and what it carried."""
    letter = client.get(f"{_PATH}/{quoted(letter_id)}")
    pairs = [(name, value) for name, value in letter.items() if name != "fields"]
    raw = [(f"field {cell(_text(name))}", _text(value)) for name, value in letter.get("fields") or ()]
    emit(letter, fields([*pairs, *raw]), as_json=as_json)


@dlq.command("redrive")
@click.argument("letter_ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every dead letter that is open now.")
@click.option("--workflow", metavar="NAME", help="With --all: only those of this workflow's runs.")
@click.option("--since", type=moment, metavar="TIME", help="With --all: only those from then on (as for lists).")
@click.option("--error", metavar="TEXT", help="With --all: only those whose error contains this.")
@json_option
@connected
def redrive(
    client: Client,
    letter_ids: tuple[str, ...],
    every: bool,
    workflow: str | None,
    since: str | None,
    error: str | None,
    as_json: bool,
) -> None:
    """Put dead letters back: the event is handled again, the step tried again.

    \b
    appliance dlq redrive --all --workflow invoice --since 2h --error "connection refused"
    """
    if every == bool(letter_ids):
        raise click.UsageError("name dead letters, or give --all")
    if not every and (workflow or since or error):
        raise click.UsageError("--workflow, --since and --error go with --all")
    if every:
        letter_ids = _open(client, workflow, since, error)
    _act(client, letter_ids, "redrive", "redriven", as_json)


@dlq.command("discard")
@click.argument("letter_ids", nargs=-1, required=True)
@json_option
@connected
def discard(client: Client, letter_ids: tuple[str, ...], as_json: bool) -> None:
    """Drop dead letters for good; they stay in the history as discarded."""
    _act(client, letter_ids, "discard", "discarded", as_json)


def _open(client: Client, workflow: str | None, since: str | None, error: str | None) -> tuple[str, ...]:
    """The ids of the open dead letters at this moment that fit, oldest first."""
    ids: list[str] = []
    cursor = None
    while True:
        page = client.page(_PATH, _PAGE, cursor, status="open")
        ids += [letter["id"] for letter in page["items"] if _fits(letter, workflow, since, error)]
        cursor = page.get("next_cursor")
        if cursor is None:
            return tuple(reversed(ids))


def _fits(letter: dict[str, Any], workflow: str | None, since: str | None, error: str | None) -> bool:
    return (
        workflow in (None, letter.get("workflow"))
        and (since is None or datetime.fromisoformat(letter["created_at"]) >= datetime.fromisoformat(since))
        and (error is None or error.casefold() in (letter.get("error") or "").casefold())
    )


def _text(raw: str) -> str:
    """What a field of the entry (base64) holds, as text; bytes that are none are shown as their escapes."""
    return base64.b64decode(raw).decode("utf-8", "backslashreplace")


def _act(client: Client, letter_ids: tuple[str, ...], verb: str, done: str, as_json: bool) -> None:
    """One after the other; one that can't be doesn't keep the others from it, and is told at the end."""
    answers: list[Any] = []
    failures = 0
    for letter_id in letter_ids:
        try:
            answers.append(client.post(f"{_PATH}/{quoted(letter_id)}/{verb}"))
        except Failure as failure:
            if failure.code != Exit.NOT_FOUND or len(letter_ids) == 1:
                raise
            failures += 1
            answers.append({"id": letter_id, "error": failure.message})
        if not as_json:
            click.echo(f"{letter_id}  {cell(answers[-1].get('error')) or done}")
    if as_json:
        emit({"items": answers}, "", as_json=True)
    if failures:
        raise Failure(f"{failures} of {len(letter_ids)} were not {done}", Exit.NOT_FOUND)
