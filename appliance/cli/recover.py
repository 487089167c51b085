"""``appliance recover``: put back to work what was lost with Redis's data."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option
from appliance.cli.tables import emit, fields

KINDS = (
    ("held", "runs whose entries were gone"),
    ("parked", "parked runs without a timer"),
    ("events", "events whose entries were gone"),
    ("resent", "accepted events that had not arrived"),
    ("adopted", "entries that were pending with nobody"),
)


@click.command()
@json_option
@connected
def recover(client: Client, as_json: bool) -> None:
    """Look for runs and events whose entries have vanished from Redis, and put them back to work.

    The process does so by itself at its start and every minute; this looks at once, and also at what is young.
    """
    report = client.post(f"{API}/recover")
    emit(report, report_text(report), as_json=as_json)


def report_text(report: dict[str, Any]) -> str:
    """How many of each kind were put back."""
    if not report["recovered"]:
        return "nothing was lost"
    return fields((what, report[name]) for name, what in KINDS)
