"""``appliance queue``: what flow control holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.listing import emit_page
from appliance.cli.tables import emit, table

_MOST = 1000
"""As far as the process counts."""


@click.command()
@click.argument("workflow", required=False)
@click.option(
    "--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="Most workflows or keys to list."
)
@click.option("--cursor", metavar="TEXT", help="Go on where an earlier list ended.")
@json_option
@connected
def queue(client: Client, workflow: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List the workflows of which runs wait for places; of one WORKFLOW, who waits for what, key by key."""
    path = f"{API}/queues" if workflow is None else f"{API}/workflows/{quoted(workflow)}/queue"
    page = client.get(path, limit=limit, cursor=cursor)
    if as_json:
        emit(page, "", as_json=True)
    elif workflow is None:
        items = [{**item, "waiting": _counted(item["waiting"])} for item in page["items"]]
        emit_page(
            {**page, "items": items}, ["workflow", "waiting", "since"], empty="nobody waits for a place", as_json=False
        )
    else:
        lanes = [row for lane in page["items"] for row in _needs(lane)]
        columns = ["for", "key", "at_work", "limit", "waiting", "since", "next"]
        emit_page({**page, "items": lanes}, columns, empty="nobody waits for a place", as_json=False)
        if meters := [_meter(meter) for meter in page.get("meters") or ()]:
            click.echo("\n" + table(meters, ["for", "key", "count", "since", "until", "waiting", "run_id"]))


def _needs(lane: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each place that the next run lacks; who waits stands on the first."""
    who = {"waiting": _counted(lane["waiting"]), "since": lane["since"], "next": next(iter(lane["next"]), None)}
    for need in lane["needs"]:
        at_work = _counted(need["at_work"])
        yield {"for": _word(need["part"]), "key": need["key"], "at_work": at_work, "limit": need["limit"], **who}
        who = {}


def _meter(meter: Mapping[str, Any]) -> dict[str, Any]:
    return {**meter, "for": _word(meter["part"])}


def _word(part: str) -> str:
    return part.partition(".")[0]


def _counted(number: int) -> Any:
    return f"{_MOST}+" if number >= _MOST else number
