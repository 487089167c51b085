"""``appliance ledger``: every accepted event, accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from appliance.cli.client import API, Client, connected, json_option
from appliance.cli.exits import Exit
from appliance.cli.tables import emit, table

OUTCOMES = ("handled", "unmatched", "duplicate", "dead", "in_flight")


@click.command()
@click.option("--check", is_flag=True, help="Exit with 1 unless the difference is 0.")
@json_option
@connected
@click.pass_context
def ledger(ctx: click.Context, client: Client, check: bool, as_json: bool) -> None:
    """Show what became of every accepted event, down to the difference: 0 means that nothing is missing."""
    account = client.get(f"{API}/ledger")
    emit(account, "\n\n".join([account_text(account), *skipped_text(account)]), as_json=as_json)
    if check and account["difference"] != 0:
        ctx.exit(Exit.FAILED)


def account_text(account: Mapping[str, Any]) -> str:
    """The sum as an accountant writes it: accepted, less each outcome, gives the difference."""
    lines = [("accepted", account["accepted"]), *((f"- {n.replace('_', ' ')}", account[n]) for n in OUTCOMES)]
    total = f"{account['difference']:,}"
    figures = [f"{figure:,}" for _, figure in lines]
    width = max(map(len, [*figures, total]))
    body = [f"{name:<12}{figure:>{width}}" for (name, _), figure in zip(lines, figures, strict=True)]
    return "\n".join([*body, " " * 12 + "-" * width, f"{'difference':<12}{total:>{width}}"])


def skipped_text(account: Mapping[str, Any]) -> Iterator[str]:
    """Which of the handled events began no run, if there are any."""
    if skipped := account.get("skipped"):
        yield "of those handled, flow control left out:\n" + table(skipped, ["workflow", "reason", "count"])
