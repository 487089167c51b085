"""``appliance events``: what came in and what became of it."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.exits import Exit, Failure
from appliance.cli.ingest import data_option, gather, pairs_argument
from appliance.cli.listing import emit_page, paged, spanned
from appliance.cli.tables import emit, fields, table

_PAGE = 100
_BATCH = 100
"""Events of one request to replay, which is one transaction."""


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


@events.command("replay")
@click.argument("event_ids", nargs=-1)
@spanned
@click.option("--type", metavar="TYPE", help="With --since: only events of this type.")
@click.option("--source", metavar="URI", help="With --since: only events from this source.")
@click.option(
    "--outcome",
    type=click.Choice(["handled", "unmatched", "dead"]),
    help="Of those of a time: only those that ended so.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Most events to replay; if there are more, none is.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many events it would be.")
@click.option("--workflow", metavar="NAME", help="Run this workflow, whether it matches or not.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="The stream for the new runs.")
@json_option
@connected
def replay(
    client: Client,
    /,
    event_ids: tuple[str, ...],
    since: str | None,
    limit: int,
    dry_run: bool,
    workflow: str | None,
    priority: str | None,
    as_json: bool,
    **filters: str | None,
) -> None:
    """Begin new runs for stored events: named ones, or all since a time, oldest first.

    \b
    appliance events replay 0197f3c0-8a5e-7c41-9b0d-2f6a1c3e5d70
    appliance events replay --since 1h --type order.paid --priority low
    """
    if (since is not None) == bool(event_ids):
        raise click.UsageError("name events, or give --since")
    if event_ids and any(filters.values()):
        raise click.UsageError("--until, --type, --source and --outcome go with --since")
    uids = [client.get(f"{API}/events/{quoted(name)}")["uid"] for name in event_ids]
    if since is not None:
        uids = _uids(client, limit, since=since, **filters)
    named = {"workflow": workflow, "priority": priority}
    body = {name: value for name, value in named.items() if value is not None}
    items = [] if dry_run else _replayed(client, list(dict.fromkeys(uids)), body, as_json)
    if dry_run:
        emit({"events": len(uids)}, f"{len(uids)} events", as_json=as_json)
    elif as_json:
        emit({"items": items}, "", as_json=True)


def _uids(client: Client, limit: int, **filters: str | None) -> list[str]:
    """The uids of the events that fit, oldest first; Failure if they are more than ``limit``."""
    uids: list[str] = []
    cursor = None
    while True:
        page = client.page(f"{API}/events", _PAGE, cursor, **filters)
        uids += [event["uid"] for event in page["items"]]
        cursor = page["next_cursor"]
        if len(uids) > limit:
            raise Failure(f"there are more than {limit} such events: narrow it down, or raise --limit", Exit.FAILED)
        if cursor is None:
            return uids[::-1]


def _replayed(client: Client, uids: list[str], body: dict[str, Any], as_json: bool) -> list[Any]:
    """Replay in batches, and tell after each: what was answered stays done if a later one fails."""
    items: list[Any] = []
    for start in range(0, len(uids), _BATCH):
        items += client.post(f"{API}/events/replay", {"uids": uids[start : start + _BATCH], **body})["items"]
        if not as_json:
            runs = sum(len(item["runs"]) for item in items)
            click.echo(f"{len(items)} of {len(uids)} events  {runs} runs")
    return items


@events.command("send")
@click.argument("run_id")
@click.argument("type")
@pairs_argument
@data_option
@click.option("--id", metavar="ID", help="The sender's id; sending it to the run again does nothing more.")
@click.option("--subject", metavar="TEXT", help="What the event is about.")
@json_option
@connected
def send(
    client: Client,
    run_id: str,
    type: str,
    pairs: tuple[str, ...],
    data: str | None,
    id: str | None,
    subject: str | None,
    as_json: bool,
) -> None:
    """Send an event to one run, whatever it correlates by; it starts nothing and reaches no other run.

    \b
    appliance events send RUN_ID payment.received amount=5
    """
    named = {"id": id, "subject": subject}
    event = {"type": type, "data": gather(pairs, data)} | {k: v for k, v in named.items() if v is not None}
    answer = client.post(f"{API}/runs/{quoted(run_id)}/events", event)
    emit(answer, fields((("id", answer["id"]), ("status", answer["status"]))), as_json=as_json)
