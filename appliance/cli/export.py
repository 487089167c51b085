"""``appliance export``: the definition of a workflow in force."""

from __future__ import annotations

import json
from pathlib import Path

import click

from appliance.cli.client import API, Client, connected, json_option, quoted
from appliance.cli.exits import Failure

FORMS = ("yaml", "json", "react-flow")


@click.command()
@click.argument("name")
@click.option(
    "--as", "form", type=click.Choice(FORMS), default="yaml", show_default=True, help="Form of the definition."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there instead of printing it.")
@json_option
@connected
def export(client: Client, name: str, form: str, out: Path | None, as_json: bool) -> None:
    """Print the definition of a workflow.

    What is exported can be imported again: YAML and JSON make the same revision, a graph one that draws the same.
    """
    form = "json" if as_json and form == "yaml" else form
    answer = client.get(f"{API}/workflows/{quoted(name)}/export", **{"as": "json" if form == "yaml" else form})
    if form == "yaml":
        from appliance.workflows.writing import to_yaml  # slow to import

        text = to_yaml(answer)
    else:
        text = json.dumps(answer, ensure_ascii=False, indent=2) + "\n"
    if out is None:
        click.echo(text, nl=False)
    else:
        write(out, text)


def write(path: Path, text: str) -> None:
    """Write a file; raises Failure when that is impossible."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise Failure(f"{path} can't be written: {error.strerror}") from None
