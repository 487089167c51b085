"""``appliance simulate``: what a workflow would do, or would have done, with every effect stubbed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.exits import Exit, Failure
from appliance.cli.explain import changes_text
from appliance.cli.ingest import read_json
from appliance.cli.listing import moment
from appliance.cli.local import config_dir_option
from appliance.cli.tables import cell, emit, table

if TYPE_CHECKING:
    from appliance.engine.simulation import Comparison, Replayed, Simulation
    from appliance.workflows.revision import Workflow

_FILES = (".yaml", ".yml", ".json")
_MOST_CALLED = 50
"""Workflows that the simulated one may call, directly or through others; further ones are stubbed."""


@click.command()
@click.argument("workflow")
@click.option(
    "--event", "event_file", metavar="FILE", help="An event, or a list of them, as JSON; - is standard input."
)
@click.option("--since", type=moment, metavar="TIME", help="All stored events from then on: a time, or 7d for so long.")
@click.option(
    "--limit",
    type=click.IntRange(1, 5000),
    default=1000,
    show_default=True,
    help="With --since: most events, the newest.",
)
@click.option("--output", "outputs", multiple=True, metavar="STEP=JSON", help="What a step gives. May be repeated.")
@click.option("--for", "lasting", default="366d", show_default=True, help="With --event: how long time goes on.")
@config_dir_option
@json_option
@connected
def simulate(
    client: Client,
    workflow: str,
    event_file: str | None,
    since: str | None,
    limit: int,
    outputs: tuple[str, ...],
    lasting: str,
    config_dir: Path | None,
    as_json: bool,
) -> None:
    """Run a workflow without any effect, and print what would happen, or how that differs from what did.

    WORKFLOW is a file (a draft, of any dialect), or the name of a workflow in force.

    \b
    appliance simulate draft.yaml --event event.json
    appliance simulate draft.yaml --since 7d
    """
    if (event_file is None) == (since is None):
        raise click.UsageError("give either --event FILE or --since TIME")
    from appliance.engine.simulation import Simulation

    compiled = _compiled(client, workflow, config_dir)
    local = event_file is not None and _is_file(workflow)
    called = [] if local else _called(client, compiled)
    simulation = Simulation(compiled, called=called, outputs=dict(map(_output, outputs)))
    if event_file is not None:
        _given(simulation, event_file, lasting, as_json)
    elif since is not None:
        _stored(client, simulation, since, limit, as_json)


def _is_file(workflow: str) -> bool:
    return workflow.endswith(_FILES) or Path(workflow).is_file()


def _compiled(client: Client, workflow: str, config_dir: Path | None) -> Workflow:
    """The draft in a file, checked with the actions that are installed here, or what is in force."""
    if _is_file(workflow):
        from appliance.cli.local import registry_here, settings_here
        from appliance.workflows.folder import read_definition

        return read_definition(Path(workflow), registry_here(settings_here(config_dir)).actions)[0]
    return _in_force(client, workflow)


def _in_force(client: Client, name: str) -> Workflow:
    from appliance.workflows.compile import compile_workflow

    found = client.get(f"{API}/workflows/{quoted(name)}")
    return compile_workflow(found["definition"], actions=None)


def _called(client: Client, workflow: Workflow) -> list[Workflow]:
    """The workflows that it calls, and those that they call; one that isn't there is stubbed."""
    found: dict[str, Workflow] = {workflow.name: workflow}
    todo = [workflow]
    while todo and len(found) <= _MOST_CALLED:
        for name in {step.flow for step in todo.pop().steps if step.flow is not None} - found.keys():
            try:
                found[name] = _in_force(client, name)
            except Failure as failure:
                if failure.code != Exit.NOT_FOUND:
                    raise
                continue
            todo.append(found[name])
    return [other for name, other in found.items() if name != workflow.name]


def _output(given: str) -> tuple[str, Any]:
    step, equals, value = given.partition("=")
    try:
        if not (step and equals):
            raise ValueError(given)
        return step, json.loads(value)
    except ValueError:
        raise click.BadParameter(f"expected STEP=JSON, such as send='{{\"id\": 1}}', got {given!r}") from None


# --- given events ----------------------------------------------------------------------------------------------------


def _given(simulation: Simulation, file: str, lasting: str, as_json: bool) -> None:
    from appliance.engine.simulation import what_would_happen
    from appliance.http.cloudevents import event_of
    from appliance.settings import parse_duration

    document = read_json(file, "--event")
    events = [event_of(each) for each in (document if isinstance(document, list) else [document])]
    if not events:
        raise Failure(f"--event: {file}: no event in it", Exit.USAGE)
    try:
        span = parse_duration(lasting)
    except ValueError as error:
        raise click.BadParameter(f"--for: {error}") from None
    answer = what_would_happen(simulation, [(event, datetime.fromisoformat(event.time)) for event in events], span)
    emit(answer, "\n".join(_story(answer)), as_json=as_json)


def _story(answer: Mapping[str, Any]) -> Iterator[str]:
    several = len(answer["events"]) > 1
    for event in answer["events"]:
        named = cell(event["type"]) + (f"  {cell(event['id'])}" if several else "")
        if event["matched"]:
            yield f"{named}  matched{_fate(event['flow'])}"
        else:
            yield f"{named}  not matched: {cell(event['reason'])}"
            yield f"  it would be with: {cell(changes_text(event))}"
    for run in answer["runs"]:
        yield ""
        yield from _run(run, "")
    if answer["flow"] is not None:
        yield ""
        yield from _flow(answer["flow"])


def _run(run: Mapping[str, Any], indent: str) -> Iterator[str]:
    ended = "; ".join(cell(run[name]) for name in ("outcome", "error") if run[name] is not None)
    yield f"{indent}{run['workflow']}  {run['status']}" + (f": {ended}" if ended else "")
    rows = [
        {
            **step,
            "after": _after(run["started_at"], step["started_at"]),
            "what": step["action"] or step["kind"],
            "with": step["params"],
            "note": step["error"]
            or (step["output"] if step["finished_at"] else f"until {step['due_at']}" if step["due_at"] else None),
        }
        for step in run["steps"]
    ]
    for line in table(rows, ["after", "id", "what", "status", "with", "note"], empty="no step").splitlines():
        yield f"{indent}  {line}"
    for other in run["called"]:
        yield from _run(other, indent + "  ")


def _after(started: str, at: str | None) -> str:
    """How long after the run's start: ``0s``, ``2d 00:10:00``."""
    if at is None:
        return ""
    passed = datetime.fromisoformat(at) - datetime.fromisoformat(started)
    rest = timedelta(seconds=passed.seconds)
    return (f"{passed.days}d " if passed.days else "") + (f"{rest}" if passed.seconds or passed.days else "0s")


# --- flow control ----------------------------------------------------------------------------------------------------


def _fate(fate: Mapping[str, Any] | None) -> str:
    """What flow control did with one event; nothing where it began at once."""
    if fate is None or (fate["did"] == "began" and fate["by"] is None):
        return ""
    if fate["did"] == "left out":
        return f", left out: {cell(fate['error'])}"
    if fate["did"] == "held":
        return f", still held ({fate['by']})"
    joined = f", joined the batch of {cell(fate['of'])}" if fate["did"] == "joined" else ""
    if fate["at"] is None:
        return f"{joined}, which is still held"
    return f"{joined}, began {fate['at']}, {_lasting(fate['waited_s'])} later ({fate['by']})"


def _flow(told: Mapping[str, Any]) -> Iterator[str]:
    """What it did in all, and what was left out of account."""
    left_out = [f"{count} {outcome}" for outcome, count in sorted(told["left_out"].items())]
    longest = f" (at most {_lasting(told['longest_s'])})" if told["waited"] else ""
    parts = [f"{told['began']} began at once", f"{told['waited']} later{longest}", f"{told['joined']} joined a batch"]
    parts += [f"left out: {', '.join(left_out)}"] if left_out else ["0 left out"]
    parts += [f"{told['held']} still held"] if told["held"] else []
    yield "flow control: " + "; ".join(parts)
    if told["ignored"]:
        yield f"not looked at, since it depends on how long runs are at work: {', '.join(told['ignored'])}"


def _lasting(seconds: float) -> str:
    """``4s``, ``2m10s``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms" if seconds else "0s"
    written, rest = "", round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        written += f"{number}{unit}" if number else ""
    return written


# --- stored events ---------------------------------------------------------------------------------------------------


def _stored(client: Client, simulation: Simulation, since: str, limit: int, as_json: bool) -> None:
    from appliance.engine.simulation import what_would_have_happened
    from appliance.store.history import stored_event

    name = simulation.workflow.name
    now = datetime.now(UTC)
    page = client.page(f"{API}/events", limit, since=since)
    events = [(stored_event(item), _came(item)) for item in reversed(page["items"])]
    oldest = page["items"][-1]["uid"] if page["next_cursor"] and page["items"] else None
    runs = client.page(f"{API}/runs", 5000, workflow=name, since=since)["items"]
    recorded = {
        run["event_uid"]: client.get(f"{API}/runs/{run['id']}")
        for run in runs
        if run["origin"] is None and (oldest is None or run["event_uid"] >= oldest)
    }
    replayed = what_would_have_happened(simulation, events, recorded, now)
    cut = oldest is not None
    document = {
        "workflow": name,
        "events": len(events),
        "cut": cut,
        "flow": replayed.flow,
        "summary": replayed.counts(),
        "items": [_as_json(c) for c in replayed.comparisons],
    }
    emit(document, "\n".join(_diff(replayed, len(events), cut)), as_json=as_json)


def _came(item: Mapping[str, Any]) -> datetime:
    """When an event came in: the run began then, whatever its sender's clock said."""
    return datetime.fromisoformat(item.get("received_at") or item["time"])


def _as_json(compared: Comparison) -> dict[str, Any]:
    event, recorded = compared.event, compared.recorded
    return {
        "event": {"uid": event.uid, "id": event.id, "type": event.type, "time": event.time},
        "verdict": compared.verdict,
        "differences": list(compared.differences),
        "flow": compared.fate,
        "run": compared.run,
        "recorded": None if recorded is None else {k: recorded.get(k) for k in ("id", "status", "outcome", "revision")},
    }


def _diff(replayed: Replayed, events: int, cut: bool) -> Iterator[str]:
    shown = {"new": "new: it would run", "gone": "gone: it would not run", "open": "open: it is not over yet"}
    for compared in replayed.comparisons:
        if compared.verdict != "same":
            yield f"{compared.event.uid}  {cell(compared.event.type)}  {shown.get(compared.verdict, compared.verdict)}"
            yield from (f"  {cell(difference)}" for difference in compared.differences)
            if fate := _fate(compared.fate):
                yield f"  flow control:{fate[1:]}"
            if compared.verdict == "new" and compared.run is not None:
                yield from _run(compared.run, "  ")
    if replayed.flow is not None:
        yield from _flow(replayed.flow)
    counts = "  ".join(f"{count} {verdict}" for verdict, count in replayed.counts().items())
    yield f"{events} events{' (the newest; more with --limit)' if cut else ''}: {counts}"
