"""``appliance apply``: definitions from files into force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from appliance.cli.client import API, Client, connected, failure_of, json_option, quoted
from appliance.cli.exits import Exit, Failure
from appliance.cli.proposals import REFUSALS, Proposal, complaints, proposed, remarks, touched
from appliance.cli.tables import cell, emit, table

_DONE = {"create": "created", "change": "changed", "enable": "enabled", "disable": "disabled"}
_COLUMNS = ["workflow", "result", "revision", "runs", "file"]


@dataclass(slots=True)
class Pruned:
    """A workflow of the API that no file defines. ``plan`` is what the process says of disabling it."""

    name: str
    plan: dict[str, Any]
    done: bool = False
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        told = {name: self.plan[name] for name in ("revision", "touches", "more")}
        return {
            "name": self.name,
            "file": None,
            "change": "disable",
            "done": self.done,
            **told,
            "errors": _errors(self),
        }


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Change nothing, and print what would be changed.")
@click.option("--prune", is_flag=True, help="Disable the workflows made through the API that no PATH defines.")
@click.option("--force", is_flag=True, help="Also change what somebody else has changed since it was compared.")
@json_option
@connected
@click.pass_context
def apply(
    ctx: click.Context,
    client: Client,
    /,
    paths: tuple[Path, ...],
    dry_run: bool,
    prune: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Put definitions of any dialect, in files or folders, into force through the running process.

    All are checked before the first is changed; if one is refused, none is. What somebody changes meanwhile stays as
    it is: the command ends there.
    """
    proposals = proposed(client, paths)
    refused = any(proposal.change == "refused" for proposal in proposals)
    pruned = _to_prune(client, {proposal.name for proposal in proposals}) if prune and not refused else []
    broken = None if refused or dry_run else _make(client, proposals, pruned, force=force)
    emit(_document(proposals, pruned), _text(proposals, pruned), as_json=as_json)
    for complaint in [*complaints(proposals), *(cell(error) for each in pruned for error in _errors(each))]:
        click.echo(f"error: {complaint}", err=True)
    if refused and not dry_run:
        click.echo("error: nothing was changed", err=True)
    if broken is not None:
        raise broken
    failed = Exit.NOT_FOUND if any(each.error for each in pruned) else Exit.OK
    ctx.exit(max([failed, *(proposal.code for proposal in proposals)]))


def _to_prune(client: Client, names: set[str]) -> list[Pruned]:
    """The workflows in force that no file of ours and none of the process's defines."""
    found, cursor = [], None
    while True:
        page = client.page(f"{API}/workflows", 1000, cursor)
        found += [item["name"] for item in page["items"] if item["file"] is None and item["name"] not in names]
        cursor = page["next_cursor"]
        if cursor is None:
            return [Pruned(name, client.post(f"{_path(name)}/disable?dry_run=true")) for name in found]


def _make(client: Client, proposals: list[Proposal], pruned: list[Pruned], *, force: bool) -> Failure | None:
    """Make the changes one by one, until one is refused; a failure that is about none of them is returned."""
    try:
        _change(client, proposals, pruned, force=force)
    except Failure as failure:
        return failure
    return None


def _change(client: Client, proposals: list[Proposal], pruned: list[Pruned], *, force: bool) -> None:
    waiting = [proposal for proposal in proposals if proposal.changes]
    for proposal in _called_first(waiting):
        answer = client.ask("POST", f"{API}/workflows", proposal.data, _condition(proposal.plan, force))
        if answer.status in REFUSALS:
            proposal.refuse(answer)
            return
        if answer.status >= 300:
            raise failure_of(answer)
        proposal.done = True
        proposal.plan["becomes"] = answer.body["revision"]
    for each in pruned:
        answer = client.ask("POST", f"{_path(each.name)}/disable", None, _condition(each.plan, force))
        if answer.status >= 300:
            each.error = str(failure_of(answer))
            return
        each.done = True


def _called_first(waiting: list[Proposal]) -> Iterator[Proposal]:
    """Those that others call come before these, as far as that is possible."""
    left = list(waiting)
    while left:
        names = {proposal.name for proposal in left}
        ready = next((proposal for proposal in left if not proposal.calls & names - {proposal.name}), left[0])
        left.remove(ready)
        yield ready


def _condition(plan: dict[str, Any], force: bool) -> dict[str, str]:
    if plan.get("etag") is None:
        return {"If-None-Match": "*"}
    return {"If-Match": "*" if force else f'"{plan["etag"]}"'}


def _path(name: str) -> str:
    return f"{API}/workflows/{quoted(name)}"


def _document(proposals: list[Proposal], pruned: list[Pruned]) -> dict[str, Any]:
    return {"items": [*(proposal.to_json() for proposal in proposals), *(each.to_json() for each in pruned)]}


def _errors(each: Pruned) -> list[str]:
    return [] if each.error is None else [each.error]


def _text(proposals: list[Proposal], pruned: list[Pruned]) -> str:
    """A line for each definition, then what there is to know of the changes."""
    rows = [
        {
            "workflow": proposal.name,
            "result": _result(proposal.change, proposal.done),
            "revision": proposal.plan.get("becomes") or ("new" if proposal.plan.get("name") else None),
            "runs": _runs(proposal.plan),
            "file": proposal.file,
        }
        for proposal in proposals
    ]
    rows += [
        {"workflow": each.name, "result": _result("disable", each.done), "runs": _runs(each.plan)} for each in pruned
    ]
    notes = [line for proposal in proposals if proposal.changes for line in remarks(proposal.plan)]
    notes += [line for each in pruned for line in touched(cell(each.name), each.plan)]
    return "\n".join([table(rows, _COLUMNS, empty="no definitions"), *notes])


def _runs(plan: dict[str, Any]) -> int | str | None:
    """How many runs a change touches; not all were looked at where there is a ``+``."""
    count = sum(group["runs"] for group in plan.get("touches") or ())
    return (f"{count}+" if plan.get("more") else count) or None


def _result(change: str, done: bool) -> str:
    """What was done, or what is to be."""
    if change in ("none", "refused"):
        return "unchanged" if change == "none" else change
    return _DONE[change] if done else f"to {change}"
