"""Logging to standard error: JSON for machines, columns for a terminal, and never a secret.

Context goes into ``extra`` and comes out as keys: ``log.warning("refused", extra={"workflow": name})``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from appliance.observe.metrics import METRICS
from appliance.settings import LogSettings

MASK = "[secret]"
_SHORTEST_SECRET = 6
"""In characters; masking shorter ones would blot out ordinary words and protect nothing."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_QUIET = ("httpx", "httpcore", "aiohttp", "uvicorn.error", "asyncio", "psycopg.pool")
"""Libraries that log their ordinary work at info level, or what we log better ourselves."""
_COLORS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def configure(settings: LogSettings, secrets: Iterable[str] = (), stream: TextIO | None = None) -> None:
    """Set up the root logger; the last call counts. ``secrets`` are masked wherever they would appear."""
    target = sys.stderr if stream is None else stream
    terminal = target.isatty()
    as_json = settings.format == "json" or (settings.format == "auto" and not terminal)
    inner = JsonFormatter() if as_json else ConsoleFormatter(color=terminal and "NO_COLOR" not in os.environ)
    handler = logging.StreamHandler(target)
    handler.setFormatter(_Masking(inner, secrets))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # It warns of every pipeline that a refusal ended; what was refused is ours to say.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    # A full disk or a closed terminal must not become an error in whatever wanted to log.
    logging.raiseExceptions = False
    logging.captureWarnings(True)


def extras_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time, level, logger, message``, the extras, and ``error`` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extras_of(record),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        try:
            return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # a lone surrogate, an integer beyond 64 bits: still worth a line
            return orjson.dumps({name: _printable(value) for name, value in entry.items()}).decode()


class ConsoleFormatter(logging.Formatter):
    """``12:00:00.123 INFO    engine.executor  message key=value``."""

    def __init__(self, *, color: bool = False) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        level = f"{record.levelname:<8}"
        if self._color:
            level = f"\x1b[{_COLORS.get(record.levelname, '0')}m{level}\x1b[0m"
        extras = "".join(f" {name}={value}" for name, value in extras_of(record).items())
        text = f"{clock} {level} {record.name.removeprefix('appliance.')}  {record.getMessage()}{extras}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class RateLimited:
    """Logs each key at most once per interval, and then says how many it left out.

    For loops that fail again and again: the first line matters, the next thousand fill the disk.
    """

    def __init__(self, logger: logging.Logger, interval_s: float = 1.0) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def log(self, level: int, key: str, message: str, *values: object, extra: Mapping[str, Any] | None = None) -> None:
        """``key`` names the kind of event; keep it to a few values (it is remembered)."""
        now = time.monotonic()
        if now < self._next.get(key, 0.0):
            self._left_out[key] = self._left_out.get(key, 0) + 1
            METRICS.logs_suppressed.inc()
            return
        self._next[key] = now + self._interval_s
        left_out = self._left_out.pop(key, 0)
        more = {**(extra or {}), **({"left_out": left_out} if left_out else {})}
        self._logger.log(level, message, *values, extra=more, stacklevel=2)

    def warning(self, key: str, message: str, *values: object, extra: Mapping[str, Any] | None = None) -> None:
        """:meth:`log` at the level of a warning."""
        self.log(logging.WARNING, key, message, *values, extra=extra)

    def error(self, key: str, message: str, *values: object, extra: Mapping[str, Any] | None = None) -> None:
        """:meth:`log` at the level of an error."""
        self.log(logging.ERROR, key, message, *values, extra=extra)


class _Masking(logging.Formatter):
    """Replaces secrets in what another formatter made, in their plain and their JSON-escaped form."""

    def __init__(self, inner: logging.Formatter, secrets: Iterable[str]) -> None:
        super().__init__()
        self._inner = inner
        plain = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
        escaped = {orjson.dumps(secret)[1:-1].decode() for secret in plain}
        self._secrets = sorted(plain | escaped, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        text = self._inner.format(record)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text


def _printable(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
