"""``appliance diff``: how definitions in files differ from what is in force."""

from __future__ import annotations

from pathlib import Path

import click

from appliance.cli.client import Client, connected, json_option
from appliance.cli.exits import Exit
from appliance.cli.proposals import Proposal, complaints, proposed
from appliance.cli.tables import cell, emit


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@json_option
@connected
@click.pass_context
def diff(ctx: click.Context, client: Client, /, paths: tuple[Path, ...], as_json: bool) -> None:
    """Compare definitions in files or folders with what is in force, as a unified diff of their YAML.

    Exits with 0 if nothing differs and with 1 if something does; with more if a definition is refused.
    """
    proposals = proposed(client, paths)
    same = not any(proposal.changes for proposal in proposals)
    document = {"same": same, "items": [proposal.to_json() for proposal in proposals]}
    emit(document, "\n".join(text for text in map(_text, proposals) if text), as_json=as_json)
    for complaint in complaints(proposals):
        click.echo(f"error: {complaint}", err=True)
    ctx.exit(max((proposal.code for proposal in proposals), default=Exit.OK) or (Exit.OK if same else Exit.FAILED))


def _text(proposal: Proposal) -> str:
    """The diff; where only being enabled differs, which no diff shows, a line that says so."""
    shown = "\n".join(map(cell, str(proposal.plan.get("diff") or "").splitlines()))
    only = {"enable": "disabled now", "disable": "enabled now"}.get(proposal.change)
    return shown if only is None else f"{cell(proposal.name)} is {only}"
