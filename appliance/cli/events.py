"""``appliance events``: what came in and what became of it."""

from __future__ import annotations

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.listing import emit_page, paged, spanned
from appliance.cli.tables import emit, fields, table


@click.group()
def events() -> None:
    """The events that came in."""


@events.command("list")
@click.option("--type", metavar="TYPE", help="Only events of this type.")
@click.option("--source", metavar="URI", help="Only events from this source.")
@click.option("--subject", metavar="TEXT", help="Only events about this.")
@click.option("--outcome", type=click.Choice(["handled", "unmatched", "dead"]), help="Only events that ended so.")
@spanned
@paged
@json_option
@connected
def list_(client: Client, /, limit: int, cursor: str | None, as_json: bool, **filters: str | None) -> None:
    """List events, newest first."""
    page = client.page(f"{API}/events", limit, cursor, **filters)
    columns = ["id", "type", "source", "subject", "time", "outcome"]
    emit_page(page, columns, empty="no events", as_json=as_json)


@events.command("show")
@click.argument("event_id")
@json_option
@connected
def show(client: Client, event_id: str, as_json: bool) -> None:
    """Show one event with its data and the runs that it started."""
    event = client.get(f"{API}/events/{quoted(event_id)}")
    known = ("id", "uid", "type", "source", "subject", "time", "received_at", "outcome", "stream", "entry_id")
    parts = [fields((name, event.get(name)) for name in (*known, "attributes", "data"))]
    if not as_json:
        runs = client.page(f"{API}/runs", 100, event_id=event["uid"])["items"]
        parts.append(table(runs, ["id", "workflow", "revision", "status", "finished_at"], empty="no runs"))
    emit(event, "\n\n".join(parts), as_json=as_json)
