"""``appliance sources``: the tables of other databases whose rows become events."""

from __future__ import annotations

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.exits import Exit
from appliance.cli.listing import emit_page
from appliance.cli.tables import cell, emit, table

_COLUMNS = ["name", "state", "cursor", "polled_at", "events", "refused", "late", "missed", "error"]


@click.group()
def sources() -> None:
    """Polling sources: tables of other databases whose new rows become events."""


@sources.command("list")
@json_option
@connected
def list_(client: Client, as_json: bool) -> None:
    """List sources by name: how far each was read, what came of its rows, and its last error."""
    page = client.get(f"{API}/sources")
    emit_page(page, _COLUMNS, empty="no sources", as_json=as_json)


@sources.command("test")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 100), default=10, show_default=True, help="Most events to show.")
@json_option
@connected
@click.pass_context
def test(ctx: click.Context, client: Client, name: str, limit: int, as_json: bool) -> None:
    """Show what the next look at a source would give, without moving anything.

    Exits with 1 when the source can't be read, or a row can't be an event.
    """
    found = client.get(f"{API}/sources/{quoted(name)}/preview", limit=limit)
    lines = [f"error: {cell(found['error'])}"] if found["error"] else []
    if not found["error"]:
        lines.append(f"columns: {cell(', '.join(found['columns']))}; {found['known']} rows have an event already")
        lines.append(table(found["events"], ["id", "type", "subject", "time", "data"], empty="no new rows"))
    if found["refused"]:
        lines.append(table(found["refused"], ["key", "error"]))
    emit(found, "\n".join(lines), as_json=as_json)
    if found["error"] or found["refused"]:
        ctx.exit(Exit.FAILED)


@sources.command("refused")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Most rows to list, latest first.")
@click.option("--cursor", metavar="TEXT", help="Go on where an earlier list ended.")
@json_option
@connected
def refused(client: Client, name: str, limit: int, cursor: str | None, as_json: bool) -> None:
    """List the rows of a source that can't be an event, with the reason."""
    page = client.page(f"{API}/sources/{quoted(name)}/refused", limit, cursor)
    emit_page(page, ["key", "cursor", "at", "error"], empty="no rows were refused", as_json=as_json)
