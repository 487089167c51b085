"""``appliance version``."""

from __future__ import annotations

import platform
from importlib.metadata import version as version_of

import click

from appliance.cli.client import json_option
from appliance.cli.tables import emit


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version."""
    document = {"version": version_of("appliance"), "python": platform.python_version()}
    emit(document, f"appliance {document['version']} (Python {document['python']})", as_json=as_json)
