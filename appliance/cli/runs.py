"""``appliance runs``: the executions of workflows."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.ingest import json_value
from appliance.cli.listing import emit_page, paged, spanned
from appliance.cli.tables import cell, emit, fields, table

ORIGINS = ("event", "manual", "schedule", "subflow", "replay", "rerun")
_PAGE = 200
"""Runs that one request to move runs may name."""
STATUSES = ("running", "waiting", "retrying", "paused", "succeeded", "failed", "cancelled")


@click.group()
def runs() -> None:
    """The runs of workflows."""


@runs.command("list")
@click.option("--event-id", metavar="ID", help="Only runs for this event.")
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs in this state.")
@click.option("--origin", type=click.Choice(ORIGINS), help="Only runs that were started so.")
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
    """Show one run: its steps and attempts, what it waits for, whom it asked or called, and what came in."""
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
@click.option("--force", is_flag=True, help="End it at once, without undoing what it did.")
@json_option
@connected
def cancel(client: Client, run_id: str, force: bool, as_json: bool) -> None:
    """Cancel a run that is not over; what it did is undone where its workflow says how."""
    _act(client, run_id, "cancel", as_json, {"force": True} if force else None)


@runs.command("pause")
@click.argument("run_id")
@json_option
@connected
def pause(client: Client, run_id: str, as_json: bool) -> None:
    """Stop a run where it stands, after the attempt that is under way."""
    _act(client, run_id, "pause", as_json)


@runs.command("resume")
@click.argument("run_id")
@json_option
@connected
def resume(client: Client, run_id: str, as_json: bool) -> None:
    """Let a paused run go on."""
    _act(client, run_id, "resume", as_json)


@runs.command("rerun")
@click.argument("run_id")
@click.option("--from", "start", metavar="STEP", help="The step to begin with; those before it are taken over.")
@click.option("--current", is_flag=True, help="On the workflow's current revision instead of the run's own.")
@json_option
@connected
def rerun(client: Client, run_id: str, start: str | None, current: bool, as_json: bool) -> None:
    """Run again, as a new run, what is over."""
    body: dict[str, Any] = {"revision": "current" if current else "same"}
    if start is not None:
        body["from"] = start
    answer = client.post(f"{API}/runs/{quoted(run_id)}/rerun", body)
    emit(answer, fields((("id", answer["run"]), ("revision", answer["revision"]))), as_json=as_json)


@runs.command("settle")
@click.argument("run_id")
@click.argument("step")
@click.option(
    "--as",
    "verdict",
    type=click.Choice(["succeeded", "failed", "retry"]),
    required=True,
    help="What became of it, or that it is to be tried again.",
)
@click.option("--output", metavar="JSON", help="The step's output, if it succeeded; @FILE reads a file.")
@click.option("--error", metavar="TEXT", help="What went wrong, if it failed.")
@json_option
@connected
def settle(
    client: Client, run_id: str, step: str, verdict: str, output: str | None, error: str | None, as_json: bool
) -> None:
    """Say what became of a step whose outcome is unknown."""
    body: dict[str, Any] = {"as": verdict}
    if output is not None:
        body["output"] = json_value(output, "--output")
    if error is not None:
        body["error"] = error
    _act(client, run_id, f"steps/{quoted(step)}/settle", as_json, body)


@runs.command("migrate")
@click.argument("workflow")
@click.option("--to", type=click.IntRange(1), metavar="N", help="The revision to move to. [the one in force]")
@click.option("--from", "source", type=click.IntRange(1), metavar="N", help="Only runs that are on this revision.")
@click.option("--run", "ids", multiple=True, metavar="ID", help="Only this run; may be given several times.")
@click.option("--dry-run", is_flag=True, help="Only say what would become of each run.")
@json_option
@connected
def migrate(
    client: Client,
    workflow: str,
    to: int | None,
    source: int | None,
    ids: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move parked and paused runs of a workflow to another revision, as far as they can go on there."""
    given = {"to": to, "from": source, "dry_run": dry_run or None}
    wanted = {name: value for name, value in given.items() if value is not None}
    unique = list(dict.fromkeys(ids))
    parts = [{"runs": unique[at : at + _PAGE]} for at in range(0, len(unique), _PAGE)] or [{}]
    answer = _migrated(client, f"{API}/workflows/{quoted(workflow)}/migrate", wanted, parts)
    emit(answer, _described_move(answer, dry_run), as_json=as_json)


def _migrated(client: Client, path: str, wanted: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All pages of a migration, counted; runs that stay are grouped by why."""
    total: dict[str, Any] = {"to": None, "moved": 0, "busy": 0}
    stayed: dict[tuple[Any, ...], dict[str, Any]] = {}
    while parts:
        page = client.post(path, wanted | parts.pop(0))
        wanted["to"] = total["to"] = page["to"]  # the one that was in force at the beginning
        total["moved"] += len(page["moved"])
        total["busy"] += len(page["busy"])
        for run in page["stayed"]:
            alike = {"revision": run["revision"], "runs": 0, "example": run["id"], "reasons": run["reasons"]}
            stayed.setdefault((run["revision"], *run["reasons"]), alike)["runs"] += 1
        if page["next_cursor"] is not None:
            parts.append({"cursor": page["next_cursor"]})
    return {**total, "stayed": list(stayed.values())}


def _described_move(answer: dict[str, Any], dry_run: bool) -> str:
    moved = "would move" if dry_run else "moved"
    known = fields((("to revision", answer["to"]), (moved, answer["moved"]), ("busy", answer["busy"])))
    if not answer["stayed"]:
        return known
    rows = [{**each, "why they stay": "; ".join(each["reasons"])} for each in answer["stayed"]]
    return known + "\n\n" + table(rows, ["revision", "runs", "example", "why they stay"])


def _act(client: Client, run_id: str, verb: str, as_json: bool, body: dict[str, Any] | None = None) -> None:
    answer = client.post(f"{API}/runs/{quoted(run_id)}/{verb}", body)
    status = answer.get("status") if isinstance(answer, dict) else None
    emit(answer, fields((("id", run_id), ("status", status or "accepted"))), as_json=as_json)


_KNOWN = (
    "id", "workflow", "revision", "event_id", "status", "asked", "origin", "parent", "rerun_of", "machine",
    "held", "started_at", "finished_at", "outcome", "output", "error",
)  # fmt: skip
_PARTS = {
    "waits": ["step", "since", "event", "match", "when"],
    "tasks": ["id", "step", "status", "title", "assignee", "group", "due_at"],
    "children": ["step", "run_id", "workflow", "status", "outcome"],
    "signals": ["at", "kind", "step", "type", "event_id", "by", "taken", "taken_by"],
    "deliveries": ["step", "channel", "recipient", "status", "attempts", "message_id"],
}
"""What a run may have besides steps, each as a table with these columns."""


def held_text(held: dict[str, Any] | None) -> str | None:
    """What flow control has a run wait for, in a line."""
    if held is None:
        return None
    key = f" of {held['key']!r}" if held["key"] else ""
    until = f" until {held['until']}" if held["until"] else ""
    position = f", position {held['position']}" if held["position"] else ""
    return f"by {held['for']}{key}{until}{position}"


def _describe(run: dict[str, Any]) -> str:
    parts = [fields((name, held_text(run.get("held")) if name == "held" else run.get(name)) for name in _KNOWN)]
    if events := run.get("events"):
        parts.append(f"{len(events)} events\n" + "\n".join(f"  {cell(uid)}" for uid in events))
    steps = run.get("steps") or []
    parts.append(table(steps, ["id", "status", "attempt", "finished_at", "output", "error"], empty="no steps yet"))
    attempts = [{"step": s.get("id"), **a} for s in steps for a in s.get("attempts") or ()]
    if attempts:
        parts.append(table(attempts, ["step", "attempt", "finished_at", "error"]))
    parts += [table(run[part], columns) for part, columns in _PARTS.items() if run.get(part)]
    return "\n\n".join(parts)
