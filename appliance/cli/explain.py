"""``appliance explain``: why each workflow did or did not take an event."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.ingest import read_json
from appliance.cli.tables import emit, table


@click.command()
@click.argument("event_id", required=False)
@click.option("--file", metavar="FILE", help="Explain this event (JSON) instead of a stored one; - is standard input.")
@click.option("--workflow", metavar="NAME", help="Only this workflow.")
@json_option
@connected
def explain(client: Client, event_id: str | None, file: str | None, workflow: str | None, as_json: bool) -> None:
    """Show each workflow's verdict on an event, by the matcher that decides about real ones.

    Under WITH stands the smallest change of the event with which a workflow would take it, tried out beforehand.
    EVENT_ID is a stored event; - reads one from standard input, --file from a file. Nothing is started.
    """
    pasted = "-" if event_id == "-" and file is None else file
    if (event_id is None or event_id == "-") == (pasted is None):
        raise click.UsageError("give either an EVENT_ID or --file FILE (or - for standard input)")
    if pasted is None:
        answer = client.get(f"{API}/events/{quoted(event_id or '')}/explain", workflow=workflow)
    else:
        query = f"?workflow={quoted(workflow)}" if workflow else ""
        answer = client.post(f"{API}/explain{query}", read_json(pasted, "--file"))
    emit(answer, _describe(answer), as_json=as_json)


def _describe(answer: dict[str, Any]) -> str:
    verdicts = answer.get("verdicts") or []
    rows = [
        {**v, "verdict": "matched" if v.get("matched") else "not matched", "with": changes_text(v)} for v in verdicts
    ]
    return table(rows, ["workflow", "verdict", "reason", "with"], empty="no workflow is loaded")


def changes_text(verdict: dict[str, Any]) -> str | None:
    """The changes with which an event would be taken, or why there are none."""
    changes = verdict.get("changes") or []
    return "; and ".join(change["text"] for change in changes) if changes else verdict.get("note")
