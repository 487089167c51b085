"""``appliance workflows``: what is in force, and switching it."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.exits import Failure
from appliance.cli.listing import emit_page
from appliance.cli.proposals import remarks
from appliance.cli.tables import cell, emit, fields, table

_COLUMNS = ["name", "revision", "enabled", "file", "updated_at"]
_dry_run = click.option("--dry-run", is_flag=True, help="Change nothing, and print what would happen.")


@click.group()
def workflows() -> None:
    """The workflows in force, and what they were before."""


@workflows.command("list")
@click.option("--all", "every", is_flag=True, help="Also those that are disabled.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Most workflows to list, by name."
)
@click.option("--cursor", metavar="TEXT", help="Go on where an earlier list ended.")
@json_option
@connected
def list_(client: Client, every: bool, limit: int, cursor: str | None, as_json: bool) -> None:
    """List workflows by name. FILE is the file that owns a workflow, below config/workflows."""
    page = client.page(f"{API}/workflows", limit, cursor, all="true" if every else None)
    emit_page(page, _COLUMNS, empty="no workflows", as_json=as_json)


@workflows.command()
@click.argument("name")
@click.option("--revision", type=click.IntRange(1), metavar="NUMBER", help="Show this revision, in force or not.")
@json_option
@connected
def show(client: Client, name: str, revision: int | None, as_json: bool) -> None:
    """Show a workflow with its definition in force, or an earlier one."""
    from appliance.workflows.writing import to_yaml  # slow to import

    path = f"{API}/workflows/{quoted(name)}"
    found = client.get(path if revision is None else f"{path}/revisions/{revision}")
    told = ("name", "revision", "in_force", "enabled", "file", "updated_at", "created_at", "etag")
    head = fields((part, found.get(part)) for part in told)
    warnings = [f"warning: {cell(warning)}" for warning in found.get("warnings") or ()]
    emit(found, "\n".join([head, *warnings, "", to_yaml(found["definition"]).rstrip("\n")]), as_json=as_json)


@workflows.command()
@click.argument("name")
@json_option
@connected
def revisions(client: Client, name: str, as_json: bool) -> None:
    """List the latest revisions of a workflow, newest first."""
    found = client.get(f"{API}/workflows/{quoted(name)}")
    items = [{**item, "in_force": item["revision"] == found["revision"]} for item in found["revisions"]]
    emit({"items": items}, table(items, ["revision", "in_force", "created_at"], empty="no revisions"), as_json=as_json)


@workflows.command()
@click.argument("name")
@_dry_run
@json_option
@connected
def enable(client: Client, name: str, dry_run: bool, as_json: bool) -> None:
    """Let events and schedules start runs of a workflow, whatever its definition says, until that is put again."""
    _change(client, name, "enable", None, dry_run, as_json)


@workflows.command()
@click.argument("name")
@_dry_run
@json_option
@connected
def disable(client: Client, name: str, dry_run: bool, as_json: bool) -> None:
    """Keep events and schedules from starting runs of a workflow. Those that it has go on."""
    _change(client, name, "disable", None, dry_run, as_json)


@workflows.command()
@click.argument("name")
@click.option("--to", type=click.IntRange(1), metavar="NUMBER", help="The revision. [the one before the present one]")
@_dry_run
@json_option
@connected
def rollback(client: Client, name: str, to: int | None, dry_run: bool, as_json: bool) -> None:
    """Put an earlier revision of a workflow in force again."""
    _change(client, name, "rollback", None if to is None else {"revision": to}, dry_run, as_json)


def _change(client: Client, name: str, verb: str, body: Any, dry_run: bool, as_json: bool) -> None:
    answer = client.post(f"{API}/workflows/{quoted(name)}/{verb}{'?dry_run=true' if dry_run else ''}", body)
    if not isinstance(answer, dict):
        raise Failure(f"not an answer: {answer!r:.80}")
    emit(answer, _told(answer, dry_run), as_json=as_json)


def _told(answer: dict[str, Any], dry_run: bool) -> str:
    """What happened, or would."""
    name = cell(answer["name"])
    state = f"{'' if answer['enabled'] else 'not '}enabled"
    if not dry_run:
        same = " already" if answer["change"] == "none" else ""
        return f"{name}: revision {answer['revision']} is in force{same}, {state}"
    lines = [f"{name}: revision {answer['becomes']} would be in force instead of {answer['revision']}, {state}"]
    if answer["becomes"] == answer["revision"]:
        lines = [f"{name}: revision {answer['revision']} would stay in force, {state}"]
    return "\n".join([*lines, *remarks(answer), *map(cell, answer["diff"].splitlines())])
