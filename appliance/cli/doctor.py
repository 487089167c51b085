"""``appliance doctor``: is everything as it has to be, and if not, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.client import Client, connected, json_option
from appliance.cli.exits import Exit, Failure
from appliance.cli.tables import cell, emit

if TYPE_CHECKING:
    from appliance.cli.checkup import Finding


@click.command()
@click.option("--quick", is_flag=True, help="Only ask whether the process is ready: for container health checks.")
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder of appliance.yaml. [config]")
@json_option
@connected
@click.pass_context
def doctor(ctx: click.Context, client: Client, quick: bool, config_dir: Path | None, as_json: bool) -> None:
    """Check settings, servers, plugins, disk and clocks; every line that is not ok says what to do.

    Exits with 1 when something fails; warnings alone leave it at 0. With --quick it exits with 0 when the process is
    ready and with 1 otherwise.
    """
    if quick:
        findings = [_ask_process(client)]
        failed = findings[0].state != "ok"
    else:
        findings = _examine(client, config_dir)
        failed = any(finding.state == "fail" for finding in findings)
    document = [{"check": f.check, "state": f.state, "text": f.text, "advice": f.advice or None} for f in findings]
    emit({"ok": not failed, "findings": document}, _describe(findings), as_json=as_json)
    if failed:
        ctx.exit(Exit.FAILED)


def _ask_process(client: Client) -> Finding:
    from appliance.cli.checkup import check_process

    try:
        answer = client.ask("GET", "/readyz")
    except Failure:
        return check_process(client.target.url or client.target.origin, None, "")
    reasons = answer.body.get("reasons", ()) if isinstance(answer.body, dict) else ()
    return check_process(
        client.target.url or "", answer.status, ", ".join(map(str, reasons)) or f"HTTP {answer.status}"
    )


def _examine(client: Client, config_dir: Path | None) -> list[Finding]:
    import asyncio

    from appliance.cli import checkup
    from appliance.cli.local import settings_here
    from appliance.errors import ConfigurationError

    findings = [checkup.check_python()]
    try:
        settings = settings_here(config_dir, client.data_dir)
    except ConfigurationError as error:
        findings += [checkup.Finding("settings", "fail", str(p), "see docs/settings.md") for p in error.problems]
        return [*findings, _ask_process(client)]
    file = settings.config_dir / "appliance.yaml"
    findings.append(checkup.Finding("settings", "ok", str(file) if file.exists() else f"no {file}"))
    findings += checkup.check_data_dir(settings.data_dir)
    findings += asyncio.run(checkup.check_servers(settings))
    findings += checkup.check_plugins(settings)
    findings.append(checkup.check_definitions(settings))
    findings += asyncio.run(checkup.check_sources(settings))
    return [*findings, _ask_process(client)]


def _describe(findings: Sequence[Finding]) -> str:
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<4}  {finding.check:<{width}}  {cell(finding.text)}")
        if finding.state != "ok" and finding.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.advice}")
    return "\n".join(lines)
