"""Every setting with its default, unit and bounds, declared once.

Sources, strongest first: command line, environment, ``.env``, ``<config-dir>/appliance.yaml``, default. Environment
names are ``APPLIANCE_`` + the path with ``__`` between its parts (``APPLIANCE_STREAM__LEASE=30s``); the plain names
that everybody uses (``REDIS_URL``, ``DATABASE_URL``, ``SMTP_HOST`` …) work as well. A secret may be read from a file:
its name with ``_FILE`` appended. Unknown keys are refused.
"""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, SecretStr

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_duration(value: Any) -> timedelta:
    """``"30s"``, ``"1h30m"``, ``"500ms"``, ``"2d"`` -> timedelta; a bare number is seconds. ValueError otherwise."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _seconds(value)
    text = str(value).replace(" ", "")
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return _seconds(float(text))
        raise ValueError(f"expected a duration such as 500ms, 30s, 10m, 1h30m or 2d, got {value!r}")
    return _seconds(sum(float(n) * _UNITS[u] for n, u in parts))


def format_duration(value: timedelta) -> str:
    """The shortest text that :func:`parse_duration` turns back into ``value``."""
    ms = round(value.total_seconds() * 1000)
    for unit, size in (("d", 86400000), ("h", 3600000), ("m", 60000), ("s", 1000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms" if ms else "0s"


def _seconds(value: float) -> timedelta:
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError):  # ValueError: not a number
        raise ValueError(f"no such duration: {value:g} seconds") from None


def _url(*schemes: str, example: str) -> AfterValidator:
    """A check that a URL has one of ``schemes``. The message doesn't show the URL, in which there may be a password."""

    def check(value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(tuple(f"{scheme}:" for scheme in schemes)):
            raise ValueError(f"expected a URL such as {example}")
        return value

    return AfterValidator(check)


def _public(value: str) -> str:
    """A URL that paths can be put behind."""
    if value and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
        raise ValueError("expected a URL such as https://appliance.example.com")
    return value.rstrip("/")


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)]
RedisUrl = Annotated[SecretStr | None, _url("redis", "rediss", "unix", example="redis://localhost:6379/0")]
DatabaseUrl = Annotated[
    SecretStr | None, _url("postgresql", "postgres", example="postgresql://user@localhost/appliance")
]
_MS, _S, _M, _H, _D = (timedelta(seconds=_UNITS[unit]) for unit in ("ms", "s", "m", "h", "d"))


class Section(BaseModel):
    """Base of a group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class HttpSettings(Section):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one. Also read from PORT.")
    max_body_bytes: int = Field(1_048_576, ge=1024, le=67_108_864, description="Largest request body, in bytes.")
    max_depth: int = Field(32, ge=2, le=200, description="Deepest nesting of JSON data that is accepted.")
    max_batch: int = Field(1000, ge=1, le=10_000, description="Most events in one CloudEvents batch.")
    header_timeout: Duration = Field(
        timedelta(seconds=10), ge=10 * _MS, description="Time a client has to send its headers."
    )
    body_timeout: Duration = Field(
        timedelta(seconds=30), ge=10 * _MS, description="Time a client has to send a request body."
    )
    redirect_hosts: tuple[str, ...] = Field(
        (), description="Hosts (host or host:port) that a form may be redirected to; paths on this server always may."
    )
    submit_open: bool = Field(True, description="Whether POST /submit works without an API key.")
    public_url: Annotated[str, AfterValidator(_public)] = Field(
        "", description="Address under which people reach this server, for links; empty is the one listened on."
    )
    proxy_headers: bool = Field(False, description="Trust X-Forwarded-For and -Proto from a proxy on this host.")


class IngestSettings(Section):
    """What is taken in."""

    max_backlog: int = Field(
        100_000, ge=1, description="Entries not yet settled, over all streams, at which ingest answers 503."
    )
    rate_limit: float = Field(0, ge=0, description="Accepted events a second and replica; 0 is off.")
    dedupe_window: Duration = Field(
        timedelta(hours=24),
        ge=_S,
        le=365 * _D,
        description="How long ingest remembers a sender's key (the history: store.retention).",
    )
    max_event_bytes: int = Field(262_144, ge=256, description="Largest event, encoded, in bytes.")
    durability: Literal["redis", "postgres"] = Field(
        "redis",
        description="What stores an event before it counts as accepted; postgres survives the loss of Redis's data.",
    )


class StreamSettings(Section):
    """Redis Streams: the consumer group and its leases."""

    group: str = Field("appliance", min_length=1, description="The consumer group that the replicas share.")
    consumer: str = Field("", description="This replica's name in the group; empty makes one of host, pid and chance.")
    lease: Duration = Field(
        timedelta(seconds=30),
        ge=500 * _MS,
        le=_D,
        description="How long an entry stays with a replica that gives no sign of life.",
    )
    block: Duration = Field(
        timedelta(seconds=2), ge=10 * _MS, le=10 * _S, description="Longest wait of one blocking read."
    )
    max_deliveries: int = Field(
        5, ge=2, le=1000, description="Deliveries without an outcome after which an entry is set aside (crash loop)."
    )
    idle_consumer: Duration = Field(
        timedelta(hours=1),
        ge=_M,
        description="A consumer without pending entries is removed after this long without a sign.",
    )
    max_connections: int = Field(32, ge=4, description="Most connections to Redis from this process.")


class EngineSettings(Section):
    """Running workflows."""

    concurrency: int = Field(1000, ge=1, le=100_000, description="Entries worked on at once by this replica.")
    max_held: int = Field(1000, ge=0, description="Entries held for a retry; beyond it a retry is parked as a timer.")
    park_after: Duration = Field(
        timedelta(seconds=60), le=_H, description="A longer backoff or delay is parked as a timer."
    )
    action_timeout: Duration = Field(
        timedelta(seconds=30), ge=10 * _MS, description="Time limit of one attempt, if none is given."
    )
    threads: int = Field(32, ge=1, le=1000, description="Threads for actions that are plain functions.")
    max_abandoned: int = Field(
        16, ge=1, description="Actions that ignore their cancellation at which the process drains and ends."
    )
    grace: Duration = Field(timedelta(seconds=20), description="Time that actions have to finish at a stop.")
    stall_warning: Duration = Field(
        timedelta(seconds=1), ge=10 * _MS, description="A blocked event loop is reported after this."
    )
    stall_limit: Duration = Field(
        timedelta(minutes=5), ge=_S, description="A blocked event loop ends the process after this."
    )
    max_hops: int = Field(16, ge=1, le=1000, description="Longest chain of events that publish each other.")
    max_depth: int = Field(8, ge=1, le=100, description="Deepest nesting of workflows that call each other.")
    lifecycle_events: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Events about the ends of runs (workflow.completed ...); auto: if a workflow in force takes them.",
    )
    max_output_bytes: int = Field(262_144, ge=256, description="Largest output of a step, as JSON, in bytes.")
    timer_poll: Duration = Field(
        timedelta(seconds=1), ge=10 * _MS, le=_M, description="Longest time between two looks for due timers."
    )


class StoreSettings(Section):
    """PostgreSQL."""

    pool_size: int = Field(8, ge=2, le=200, description="Most connections from this process.")
    commit_batch: int = Field(500, ge=1, le=10_000, description="Most entries whose outcome is committed together.")
    retention: Duration = Field(timedelta(days=90), ge=_H, description="How long settled history is kept.")
    partition: Duration = Field(
        timedelta(days=7), ge=_H, le=366 * _D, description="Time span of one partition of the history."
    )
    statement_timeout: Duration = Field(
        timedelta(seconds=30), ge=100 * _MS, description="Time limit of one SQL statement."
    )


class SourceSettings(Section):
    """Reading rows of other databases (config/sources)."""

    connect_timeout: Duration = Field(
        timedelta(seconds=5), ge=2 * _S, le=_M, description="Time limit of connecting to a source's database."
    )
    statement_timeout: Duration = Field(
        timedelta(seconds=10), ge=100 * _MS, le=10 * _M, description="Time limit of one query of a source."
    )
    concurrency: int = Field(4, ge=1, le=100, description="Sources that one replica reads at once.")


class OutboundSettings(Section):
    """Where actions may connect to."""

    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="Networks that outbound calls may reach although they are not public, as CIDRs."
    )
    allowed_ports: tuple[int, ...] = Field(
        (80, 443, 8000, 8080, 8443),
        description="Ports that outbound calls may use; any port within allowed_networks.",
    )
    timeout: Duration = Field(timedelta(seconds=20), ge=10 * _MS, description="Total time limit of one outbound call.")
    max_response_bytes: int = Field(1_048_576, ge=1024, description="Largest response body that is read, in bytes.")
    max_connections: int = Field(200, ge=1, description="Most outbound connections at once.")


class SmtpSettings(Section):
    """The mail server of send_email; also read from SMTP_HOST, _PORT, _USER, _PASSWORD, _USE_TLS and FROM_EMAIL."""

    host: str = Field("", description="Mail server; empty writes .eml files into <data-dir>/outbox instead.")
    port: int = Field(587, ge=1, le=65535, description="Port of the mail server.")
    user: str = Field("", description="User name, if the server wants one.")
    password: SecretStr = Field(SecretStr(""), description="Password, if the server wants one.")
    use_tls: bool = Field(True, description="TLS: from the start on port 465, by STARTTLS on any other.")
    verify: bool = Field(True, description="Check the mail server's certificate.")
    from_email: str = Field("appliance@localhost", description="Sender of mail that names none.")
    max_connections: int = Field(8, ge=1, le=100, description="Mail connections kept open.")
    timeout: Duration = Field(timedelta(seconds=20), ge=10 * _MS, description="Time limit of one mail.")


class LogSettings(Section):
    """Logging, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity that is logged.")
    format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else json.")


class Settings(Section):
    """All settings of one process."""

    config_dir: Path = Field(Path("config"), description="Folder of appliance.yaml, workflows/, templates/, forms/.")
    data_dir: Path = Field(Path("data"), description="Folder of the embedded servers' data, secrets and outbox.")
    ephemeral: bool = Field(False, description="Use a temporary data folder that is removed at the stop.")
    namespace: str = Field("appliance", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Prefix of every key in Redis.")
    redis_url: RedisUrl = Field(None, description="Redis or Valkey; unset starts an embedded one.")
    database_url: DatabaseUrl = Field(None, description="PostgreSQL; unset starts an embedded one.")
    redis_binary: Path | None = Field(None, description="valkey-server or redis-server to embed; unset searches.")
    postgres_bin_dir: Path | None = Field(None, description="Folder of initdb and postgres to embed; unset searches.")
    api_key: SecretStr | None = Field(None, description="Key of the API; unset makes one in <data-dir>/secrets.json.")
    link_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="Key that signs links to tasks, the same for all replicas; unset makes one in secrets.json.",
    )
    secrets: dict[str, SecretStr] = Field({}, description="What templates see as secrets.<name>.")
    plugins: dict[str, dict[str, Any]] = Field({}, description="Settings of plugins, by action name.")
    http: HttpSettings = HttpSettings()
    ingest: IngestSettings = IngestSettings()
    stream: StreamSettings = StreamSettings()
    engine: EngineSettings = EngineSettings()
    store: StoreSettings = StoreSettings()
    sources: SourceSettings = SourceSettings()
    outbound: OutboundSettings = OutboundSettings()
    smtp: SmtpSettings = SmtpSettings()
    log: LogSettings = LogSettings()
