"""Named SQL statements: files under ``store/sql`` with a ``-- name: x`` line before each statement."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def named(file: str) -> Mapping[str, bytes]:
    """The statements of ``store/sql/<file>.sql`` by name, comments removed."""
    text = (files("appliance.store") / "sql" / f"{file}.sql").read_text()
    parts = _NAME.split(text)[1:]
    return {name: _bare(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _bare(body: str) -> bytes:
    lines = (line for line in body.strip().splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(lines).encode()
