"""Commands that need no running process: ``schema``, ``plugins`` and ``migrate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.client import json_option
from appliance.cli.exits import Exit, Failure
from appliance.cli.tables import emit, table

if TYPE_CHECKING:
    from appliance.registry import Registry
    from appliance.settings import Settings

config_dir_option = click.option(
    "--config-dir", type=click.Path(path_type=Path), help="Folder of appliance.yaml and workflows/. [config]"
)


def settings_here(config_dir: Path | None, data_dir: Path | None = None) -> Settings:
    """The settings that ``appliance run`` would have here; raises ConfigurationError."""
    from appliance.configuration import load_settings

    given = {"config_dir": config_dir, "data_dir": data_dir}
    cli = {name: value for name, value in given.items() if value is not None}
    return load_settings(cli=cli, environ=os.environ, cwd=Path.cwd())


def registry_here(settings: Settings) -> Registry:
    """The installed actions with the settings of this place; raises ConfigurationError."""
    from appliance.registry import Registry

    return Registry.load(settings.plugins, smtp=settings.smtp)


@click.command()
@config_dir_option
@json_option
def schema(config_dir: Path | None, as_json: bool) -> None:
    """Print the JSON Schema of workflow files, with the actions that are installed: for editors.

    It is JSON with and without --json.
    """
    from appliance.workflows.schema import json_schema

    document = json_schema(registry_here(settings_here(config_dir)).actions)
    emit(document, "", as_json=True)


@click.command()
@config_dir_option
@json_option
@click.pass_context
def plugins(ctx: click.Context, config_dir: Path | None, as_json: bool) -> None:
    """List the installed actions; exits with 1 when one of them can't be loaded."""
    registry = registry_here(settings_here(config_dir))
    actions = registry.describe()
    broken = [{"name": name, "error": reason} for name, reason in registry.broken.items()]
    text = table(actions, ["name", "distribution", "version", "description"], empty="no actions are installed")
    if broken:
        text += "\n\nbroken:\n" + table(broken, ["name", "error"])
    emit({"actions": actions, "broken": broken}, text, as_json=as_json)
    if broken:
        ctx.exit(Exit.FAILED)


@click.command()
@config_dir_option
@click.option("--check", is_flag=True, help="Apply nothing; exit with 1 if there is something to apply.")
@json_option
@click.pass_context
def migrate(ctx: click.Context, config_dir: Path | None, check: bool, as_json: bool) -> None:
    """Bring the schema of DATABASE_URL up to date. Every replica does so at its start as well; one of them wins."""
    import asyncio

    from appliance.store import migrate as migrations

    settings = settings_here(config_dir)
    if settings.database_url is None:
        raise Failure(
            "DATABASE_URL is not set: the embedded PostgreSQL is migrated by `appliance run`", Exit.CONFIGURATION
        )
    url = settings.database_url.get_secret_value()
    names = asyncio.run(migrations.pending(url) if check else migrations.migrate(url))
    verb = "to be applied" if check else "applied"
    text = "\n".join(f"{verb}: {name}" for name in names) or "the schema is up to date"
    emit({"pending" if check else "applied": names}, text, as_json=as_json)
    if check and names:
        ctx.exit(Exit.FAILED)
