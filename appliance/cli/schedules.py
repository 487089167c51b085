"""``appliance schedules``: when workflows start by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option
from appliance.cli.listing import emit_page
from appliance.cli.tables import cell

_COLUMNS = ["workflow", "schedule", "timezone", "misfire", "next_at", "last_slot"]


@click.command()
@click.option("--workflow", metavar="NAME", help="Only schedules of the workflow of this name.")
@click.option(
    "--preview", type=click.IntRange(0, 100), default=0, metavar="N", help="Tell the next N starts of each as well."
)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Most schedules to list.")
@click.option("--cursor", metavar="TEXT", help="Go on where an earlier list ended.")
@json_option
@connected
def schedules(
    client: Client, workflow: str | None, preview: int, limit: int, cursor: str | None, as_json: bool
) -> None:
    """List schedules by their workflow, with the next and the last time of each."""
    page = client.page(f"{API}/schedules", limit, cursor, workflow=workflow, preview=str(preview) if preview else None)
    emit_page(page, _COLUMNS, empty="no schedules", as_json=as_json)
    if preview and not as_json:
        for line in _upcoming(page["items"]):
            click.echo(line)


def _upcoming(items: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """The starts to come, in the schedule's own time, under a line for each schedule."""
    for item in items:
        yield ""
        yield cell(f"{item['workflow']}: {item['schedule']} ({item['timezone']})")
        for slot in item["upcoming"]:
            yield f"  {cell(slot)}"
