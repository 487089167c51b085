"""``appliance start``: a run of a workflow, begun by hand."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.exits import Exit, Failure
from appliance.cli.tables import cell, emit, fields
from appliance.cli.values import settable, value_of

_OVER = ("succeeded", "failed", "cancelled")
_LONGEST_PAUSE_S = 2.0
_BEGINS_WITHIN_S = 60.0
"""A start that is in the stream becomes a run within moments; later than this something is wrong."""


@click.command()
@click.argument("workflow")
@settable("--input", "The input")
@click.option("--idempotency-key", metavar="KEY", help="Starting again with the same key does nothing more.")
@click.option("--wait", is_flag=True, help="Wait until the run is over, and print its output.")
@json_option
@connected
def start(
    client: Client,
    workflow: str,
    whole: str | None,
    pairs: tuple[str, ...],
    idempotency_key: str | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Start a workflow by its name, with an input that fits its inputs.

    \b
    appliance start welcome --set customer=c-17 --wait
    """
    body: dict[str, Any] = {"input": value_of("--input", whole, pairs)}
    if idempotency_key is not None:
        body["idempotency_key"] = idempotency_key
    answer = client.post(f"{API}/workflows/{quoted(workflow)}/runs", body)
    if not wait:
        emit(answer, fields((name, answer.get(name)) for name in ("run_id", "status")), as_json=as_json)
        return Exit.OK
    return _told(_finished(client, answer["run_id"]), as_json)


def _finished(client: Client, run_id: str) -> dict[str, Any]:
    """The run, once it is over; asked for ever more rarely."""
    pause_s, since = 0.05, time.monotonic()
    path = f"{API}/runs/{quoted(run_id)}"
    while True:
        answer = client.ask("GET", path)
        if answer.status == 404 and time.monotonic() - since < _BEGINS_WITHIN_S:
            pass  # the run is made by whoever takes the start out of the stream
        else:
            run: dict[str, Any] = answer.body if answer.status == 200 else client.get(path)
            if run["status"] in _OVER:
                return run
        time.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)


def _told(run: dict[str, Any], as_json: bool) -> int:
    """Print the output, and what became of the run where it doesn't mix with it; returns the exit code."""
    emit(run, json.dumps(run.get("output"), ensure_ascii=False, indent=2), as_json=as_json)
    outcome = f" ({run['outcome']})" if run.get("outcome") else ""
    if run["status"] != "succeeded":
        raise Failure(cell(f"run {run['id']}: {run['status']}{outcome}: {run.get('error') or 'no reason given'}"))
    click.echo(cell(f"run {run['id']}: succeeded{outcome}"), err=True)
    return Exit.OK
