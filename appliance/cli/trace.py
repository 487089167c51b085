"""``appliance trace``: all that an event led to, as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.tables import cell, emit


@click.command()
@click.argument("event_id")
@json_option
@connected
def trace(client: Client, event_id: str, as_json: bool) -> None:
    """Show the tree that an event belongs to: its runs, the events that these published, their runs.

    EVENT_ID is any event of the tree; it is marked with a *.
    """
    answer = client.get(f"{API}/events/{quoted(event_id)}/trace")
    emit(answer, tree_text(answer), as_json=as_json)


def tree_text(answer: Mapping[str, Any]) -> str:
    """One line an event or run, indented by what it belongs to."""
    lines = [f"correlation  {cell(answer['correlation_id'])}"]
    for event in answer["events"]:
        lines += _event(event, answer["event"], 0)
    if answer["cut"]:
        lines.append(f"… cut after {answer['nodes']} events and runs")
    return "\n".join(lines)


def _event(event: Mapping[str, Any], marked: str, depth: int) -> Iterator[str]:
    mark = " *" if event["uid"] == marked else ""
    outcome = event["outcome"] or "in flight"
    yield _line(depth, "event", event["type"], event["id"], outcome, event["time"]) + mark
    for run in event["runs"]:
        yield from _run(run, marked, depth + 1)


def _run(run: Mapping[str, Any], marked: str, depth: int) -> Iterator[str]:
    duration = f"{run['duration_s']:.3f} s" if run["duration_s"] is not None else None
    by = f"called by {run['step']}" if run.get("step") else run.get("origin")
    if run.get("joined"):
        by = f"batch of event {run['joined']}"
    yield _line(depth, "run", run["workflow"], run["id"], run["status"], duration, by, run["error"])
    for event in run["events"]:
        yield from _event(event, marked, depth + 1)
    for child in run["runs"]:
        yield from _run(child, marked, depth + 1)


def _line(depth: int, *parts: Any) -> str:
    return "  " * depth + "  ".join(cell(part) for part in parts if part is not None)
