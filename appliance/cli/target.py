"""Which running process a command talks to, and with which key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.cli.exits import Exit, Failure
from appliance.datadir import read_api_key, read_endpoint

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Target:
    """Where the process listens, the key of its API (None: ask without), and where the address was found.

    ``url`` is None when a data folder was named that no process serves from.
    """

    url: str | None
    api_key: str | None
    origin: str


def find_target(
    *, url: str | None, api_key: str | None, data_dir: Path | None, environ: Mapping[str, str] | None = None
) -> Target:
    """The first that says something: option, environment, the data folder of a process here, the default.

    A folder that was named stands for its process: when that doesn't run, another one at the default isn't meant.

    A data folder's ``appliance.json`` names the address while a process serves; its ``secrets.json`` holds the key that
    was made at the first start (mode 0600: only its owner can read it).
    """
    env = os.environ if environ is None else environ
    named = data_dir or (Path(env["APPLIANCE_DATA_DIR"]) if env.get("APPLIANCE_DATA_DIR") else None)
    folder = named or Path("data")
    key = api_key or env.get("APPLIANCE_API_KEY") or _key_file(env.get("APPLIANCE_API_KEY_FILE"))
    if key is None:
        key = read_api_key(folder)
    if url or env.get("APPLIANCE_URL"):
        return Target((url or env["APPLIANCE_URL"]).rstrip("/"), key, "--url" if url else "APPLIANCE_URL")
    if isinstance(found := read_endpoint(folder).get("url"), str):
        return Target(found.rstrip("/"), key, str(folder))
    return Target(DEFAULT_URL, key, "default") if named is None else Target(None, key, str(folder))


def _key_file(name: str | None) -> str | None:
    if not name:
        return None
    try:
        return Path(name).read_text().strip() or None
    except OSError as error:
        raise Failure(f"APPLIANCE_API_KEY_FILE: {error}", Exit.CONFIGURATION) from None
