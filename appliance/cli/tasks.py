"""``appliance tasks``: what people are asked, and their answers."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.listing import emit_page, paged
from appliance.cli.tables import emit, fields
from appliance.cli.values import settable, value_of

_PATH = f"{API}/tasks"
_STATUSES = ("open", "answered", "expired", "cancelled")
_SHOWN = (
    "id", "title", "description", "workflow", "run_id", "step", "status", "assignee", "group", "created_at", "due_at",
    "form", "link", "answer", "answered_by", "closed_at",
)  # fmt: skip


@click.group()
def tasks() -> None:
    """The tasks of people that runs wait for."""


@tasks.command("list")
@click.option(
    "--status", type=click.Choice(_STATUSES), default="open", show_default=True, help="Only tasks in this state."
)
@click.option("--assignee", metavar="NAME", help="Only tasks of this person.")
@click.option("--group", metavar="NAME", help="Only tasks of this group.")
@click.option("--workflow", metavar="NAME", help="Only tasks of this workflow.")
@click.option("--run-id", metavar="ID", help="Only tasks of this run.")
@paged
@json_option
@connected
def list_(client: Client, /, status: str, limit: int, cursor: str | None, as_json: bool, **filters: str | None) -> None:
    """List tasks, newest first."""
    page = client.page(_PATH, limit, cursor, status=status, **filters)
    columns = ["id", "title", "workflow", "assignee", "group", "created_at", "due_at"]
    emit_page(page, columns, empty=f"no {status} tasks", as_json=as_json)


@tasks.command("show")
@click.argument("task_id")
@json_option
@connected
def show(client: Client, task_id: str, as_json: bool) -> None:
    """Show one task with its form and, while it is open, the link that answers it."""
    task = client.get(f"{_PATH}/{quoted(task_id)}")
    emit(task, fields((name, task.get(name)) for name in _SHOWN), as_json=as_json)


@tasks.command("answer")
@click.argument("task_id")
@settable("--data", "The answer")
@click.option("--by", metavar="NAME", help="Who answers. [api]")
@json_option
@connected
def answer(
    client: Client, task_id: str, whole: str | None, pairs: tuple[str, ...], by: str | None, as_json: bool
) -> None:
    """Answer a task; its run goes on.

    \b
    appliance tasks answer 0197… --set approved=true --set note="Well done" --by ann
    """
    body: dict[str, Any] = {"answer": value_of("--data", whole, pairs)}
    if by is not None:
        body["by"] = by
    _report(client.post(f"{_PATH}/{quoted(task_id)}/answer", body), as_json)


@tasks.command("assign")
@click.argument("task_id")
@click.option("--assignee", metavar="NAME", help="The person that it is for; an empty text: nobody.")
@click.option("--group", metavar="NAME", help="The group that it is for; an empty text: none.")
@json_option
@connected
def assign(client: Client, task_id: str, assignee: str | None, group: str | None, as_json: bool) -> None:
    """Give a task to somebody else."""
    given = {"assignee": assignee, "group": group}
    body = {name: value or None for name, value in given.items() if value is not None}
    if not body:
        raise click.UsageError("give --assignee, --group, or both")
    _report(client.post(f"{_PATH}/{quoted(task_id)}/assign", body), as_json)


def _report(found: dict[str, Any], as_json: bool) -> None:
    emit(found, fields(found.items()), as_json=as_json)
