"""Writes the documents that are made from declarations: ``python -m tests.documents``. The tests compare them."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from appliance.configuration import describe
from appliance.declarations import Setting
from appliance.observe.metrics import METRICS

ROOT = Path(__file__).parents[1]
WIDTH = 118


def settings_page() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Sources, strongest first: command line, environment, `.env` in the working directory,",
        "`<config-dir>/appliance.yaml`, default. Unknown keys are refused, with file and line.",
        "",
        "- Durations are texts such as `500ms`, `30s`, `10m`, `1h30m`, `2d`; a bare number counts seconds.",
        "- An empty variable counts as unset. Lists in variables are JSON or separated by commas; mappings are JSON",
        "  or one variable per entry: `APPLIANCE_SECRETS__SMS_TOKEN` sets the secret `sms_token`.",
        "- A secret (🔒) can be read from a file: append `_FILE` to the variable and give the file's path.",
        "- `config/appliance.yaml` lists every key with its default.",
    ]
    for section, settings in groupby(describe(), key=lambda setting: setting.path[:-1]):
        group = list(settings)
        lines += ["", f"## {section[0] if section else 'General'}", ""]
        if group[0].section:
            lines += [_escape(group[0].section), ""]
        lines += ["| key | default | variable | meaning |", "|---|---|---|---|"]
        lines += [_row(setting) for setting in group]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    lock = " 🔒" if setting.secret else ""
    variables = ", ".join(f"`{name}`" for name in setting.variables)
    bounds = f" ({setting.bounds})" if setting.bounds else ""
    default = "" if setting.default in ("null", '""') else f"`{setting.default.strip(chr(34))}`"
    return f"| `{setting.key}`{lock} | {default} | {variables} | {_escape(setting.description)}{bounds} |"


def metrics_page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics`, in the Prometheus text format, beside the usual `process_*`. Names and labels are public:",
        "they change only with a line in the changelog. A histogram has `_bucket`, `_sum` and `_count` series.",
        "",
        "| name | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in METRICS.describe():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {_escape(metric.description)} |")
    return "\n".join(lines) + "\n"


def sample() -> str:
    """config/appliance.yaml."""
    lines = [
        "# Every setting with its default. Delete what you don't change: a key that is not here has its default.",
        "# Variables are stronger (APPLIANCE_STREAM__LEASE=10s); docs/settings.md explains the sources.",
        "",
    ]
    section: tuple[str, ...] = ()
    for setting in describe():
        if setting.key == "config_dir":
            continue
        if setting.path[:-1] != section:
            section = setting.path[:-1]
            lines += ["", *_comment(setting.section, ""), f"{section[0]}:"]
        indent = "  " * len(section)
        lines += _comment(setting.description, indent)
        value = "" if setting.default == "null" else f" {setting.default}"
        lines.append(f"{indent}{setting.path[-1]}:{value}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    lines, current = [], ""
    for word in text.split():
        if len(indent) + len(current) + len(word) + 3 > WIDTH:
            lines.append(f"{indent}# {current.strip()}")
            current = ""
        current += f" {word}"
    return [*lines, f"{indent}# {current.strip()}"]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


PAGES = {"docs/settings.md": settings_page, "docs/metrics.md": metrics_page, "config/appliance.yaml": sample}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), "utf-8")
