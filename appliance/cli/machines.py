"""``appliance machines``: the state machines that are live, by their business keys."""

from __future__ import annotations

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.listing import emit_page, paged
from appliance.cli.tables import emit, fields, table

_PATH = f"{API}/machines"


@click.group()
def machines() -> None:
    """The state machines that are live."""


@machines.command("list")
@click.option("--workflow", metavar="NAME", help="Only machines of this workflow.")
@click.option("--key", metavar="KEY", help="Only machines of this business key.")
@paged
@json_option
@connected
def list_(client: Client, /, limit: int, cursor: str | None, as_json: bool, **filters: str | None) -> None:
    """List machines by workflow and key."""
    page = client.page(_PATH, limit, cursor, **filters)
    columns = ["workflow", "key", "state", "since", "deadline", "run_id"]
    emit_page(page, columns, empty="no state machines", as_json=as_json)


@machines.command("show")
@click.argument("workflow")
@click.argument("key")
@json_option
@connected
def show(client: Client, workflow: str, key: str, as_json: bool) -> None:
    """Show one machine: its state, the events that it would take now, and what it went through."""
    machine = client.get(f"{_PATH}/{quoted(workflow)}/{quoted(key)}")
    known = ("workflow", "key", "state", "since", "deadline", "status", "run_id", "revision", "started_at")
    parts = [fields((name, machine.get(name)) for name in known)]
    parts.append(table(machine.get("events") or [], ["event", "when", "next"], empty="it takes no events now"))
    columns = ["at", "kind", "state", "type", "taken", "event_id"]
    parts.append(table(machine.get("history") or [], columns, empty="no history yet"))
    emit(machine, "\n\n".join(parts), as_json=as_json)
