"""``appliance runs``: the executions of workflows."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.listing import emit_page, paged, spanned
from appliance.cli.tables import emit, fields, table

STATUSES = ("running", "waiting", "retrying", "paused", "succeeded", "failed", "cancelled")


@click.group()
def runs() -> None:
    """The runs of workflows."""


@runs.command("list")
@click.option("--event-id", metavar="ID", help="Only runs for this event.")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs in this state.")
@spanned
@paged
@json_option
@connected
def list_(client: Client, /, limit: int, cursor: str | None, as_json: bool, **filters: str | None) -> None:
    """List runs, newest first."""
    page = client.page(f"{API}/runs", limit, cursor, **filters)
    columns = ["id", "workflow", "revision", "event_id", "status", "started_at", "finished_at"]
    emit_page(page, columns, empty="no runs", as_json=as_json)


@runs.command("show")
@click.argument("run_id")
@json_option
@connected
def show(client: Client, run_id: str, as_json: bool) -> None:
    """Show one run with its steps, attempts and deliveries."""
    run = client.get(f"{API}/runs/{quoted(run_id)}")
    emit(run, _describe(run), as_json=as_json)


@runs.command("retry")
@click.argument("run_id")
@json_option
@connected
def retry(client: Client, run_id: str, as_json: bool) -> None:
    """Try a failed run again from the step that failed."""
    _act(client, run_id, "retry", as_json)


@runs.command("cancel")
@click.argument("run_id")
@json_option
@connected
def cancel(client: Client, run_id: str, as_json: bool) -> None:
    """Cancel a run that is not finished; what it already did stays done."""
    _act(client, run_id, "cancel", as_json)


def _act(client: Client, run_id: str, verb: str, as_json: bool) -> None:
    answer = client.post(f"{API}/runs/{quoted(run_id)}/{verb}")
    status = answer.get("status") if isinstance(answer, dict) else None
    emit(answer, fields((("id", run_id), ("status", status or "accepted"))), as_json=as_json)


def _describe(run: dict[str, Any]) -> str:
    known = ("id", "workflow", "revision", "event_id", "status", "started_at", "finished_at", "error")
    parts = [fields((name, run.get(name)) for name in known)]
    steps = run.get("steps") or []
    parts.append(table(steps, ["id", "status", "attempt", "finished_at", "output", "error"], empty="no steps yet"))
    attempts = [{"step": s.get("id"), **a} for s in steps for a in s.get("attempts") or ()]
    if attempts:
        parts.append(table(attempts, ["step", "attempt", "finished_at", "error"]))
    if run.get("deliveries"):
        parts.append(table(run["deliveries"], ["step", "channel", "recipient", "status", "attempts", "message_id"]))
    return "\n\n".join(parts)
