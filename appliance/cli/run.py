"""``appliance run``: settings -> supervisor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--config-dir", type=_PATH, help="Folder of appliance.yaml, workflows/ and templates/. [config]")
@click.option("--data-dir", type=_PATH, help="Folder of the embedded servers' data, secrets and outbox. [data]")
@click.option("--host", metavar="ADDRESS", help="Address to listen on. [127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one. [8000]")
@click.option("--ephemeral", is_flag=True, default=None, help="Use a temporary data folder, removed at the stop.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severity. [info]")
@click.option("--log-format", type=click.Choice(["auto", "json", "console"]), help="Form of the log lines. [auto]")
def run(
    config_dir: Path | None,
    data_dir: Path | None,
    host: str | None,
    port: int | None,
    ephemeral: bool | None,
    log_level: str | None,
    log_format: str | None,
) -> int:
    """Start the appliance and serve until it is asked to stop (SIGTERM or Ctrl-C).

    Without REDIS_URL and DATABASE_URL it starts a Valkey and a PostgreSQL of its own, with their data in the data
    folder. An option left out is taken from the environment, .env, <config-dir>/appliance.yaml or the default.
    """
    import asyncio

    import uvloop

    from appliance.configuration import load_settings
    from appliance.supervisor import run as serve

    settings = load_settings(
        cli=_given(
            config_dir=config_dir,
            data_dir=data_dir,
            ephemeral=ephemeral,
            http=_given(host=host, port=port),
            log=_given(level=log_level, format=log_format),
        ),
        environ=os.environ,
        cwd=Path.cwd(),
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings))


def _given(**values: Any) -> dict[str, Any]:
    """Only what was said: what was not must not hide what a weaker source says."""
    return {name: value for name, value in values.items() if value is not None and value != {}}
