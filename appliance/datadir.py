"""The data directory: held by one process, with the secrets made at the first start and the address being served."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.errors import ConfigurationError

_LOCK = "appliance.lock"
_SECRETS = "secrets.json"
_ENDPOINT = "appliance.json"
_EPHEMERAL_PREFIX = "appliance-ephemeral-"
_MAX_SOCKET_DIR_BYTES = 80
"""A socket's path may have 107 bytes on Linux, 103 on macOS; PostgreSQL's name for it, with its lock, takes 23."""


class DataDir:
    """``with DataDir.open(path) as datadir``: the directory is ours until the block ends or the process does."""

    def __init__(self, path: Path, lock_fd: int, *, ephemeral: bool) -> None:
        self.path = path
        self.ephemeral = ephemeral
        self._lock_fd = lock_fd
        self._outside: set[Path] = set()

    @classmethod
    def open(cls, path: Path, *, ephemeral: bool = False) -> Self:
        """Make (mode 0700) and lock the directory; a temporary one, removed at the end, if ``ephemeral``.

        Raises ConfigurationError, naming the holder's process id, when another process holds it.
        """
        if ephemeral:
            _sweep_ephemeral()
            path = Path(tempfile.mkdtemp(prefix=_EPHEMERAL_PREFIX))
        path = path.absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"the data directory {path} can't be used: {error.strerror}") from None
        if not _lock(lock_fd):
            holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip()
            os.close(lock_fd)
            raise ConfigurationError(
                f"the data directory {path} is held by another appliance (process {holder or 'unknown'}); "
                "stop it, or use another --data-dir"
            )
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        return cls(path, lock_fd, ephemeral=ephemeral)

    def close(self) -> None:
        """Let go of the directory; a temporary one is removed."""
        (self.path / _ENDPOINT).unlink(missing_ok=True)
        if self.ephemeral:
            shutil.rmtree(self.path, ignore_errors=True)
        for folder in self._outside:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(self._lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def secret(self, name: str, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)) -> str:
        """The secret of this name in ``secrets.json`` (mode 0600), made at the first call ever."""
        known = _read_object(self.path / _SECRETS)
        value = known.get(name)
        if not isinstance(value, str) or not value:
            value = make()
            _write_object(self.path / _SECRETS, {**known, name: value})
        return value

    def api_key(self) -> str:
        """The API key made at the first start, for when none is configured."""
        return self.secret("api_key")

    def link_key(self) -> str:
        """The key of signed links made at the first start, for when none is configured."""
        return self.secret("link_key")

    def announce(self, url: str, version: str) -> None:
        """Say where this process serves, so that the command line finds it."""
        _write_object(self.path / _ENDPOINT, {"url": url, "pid": os.getpid(), "version": version})

    def socket_dir(self, name: str) -> Path:
        """A folder for a server's socket, made on demand: ``<data-dir>/<name>``, or a short one when that is too long.

        The short one has a fixed name per data directory, so that killed processes leave one at most.
        """
        inside = self.path / name
        if len(os.fsencode(inside)) <= _MAX_SOCKET_DIR_BYTES:
            return inside
        digest = hashlib.blake2b(os.fsencode(self.path), digest_size=8).hexdigest()
        outside = Path("/tmp") / f"appliance-{os.getuid()}-{digest}-{name}"  # noqa: S108 - never one we didn't make
        if outside not in self._outside:
            shutil.rmtree(outside, ignore_errors=True)
            try:
                outside.mkdir(mode=0o700)
            except FileExistsError:
                raise ConfigurationError(f"{outside} belongs to somebody else; use a shorter --data-dir") from None
        self._outside.add(outside)
        return outside


def read_endpoint(path: Path) -> dict[str, Any]:
    """``{"url", "pid", "version"}`` of the process that serves from the data directory; empty if none does."""
    return _read_object(path / _ENDPOINT)


def read_api_key(path: Path) -> str | None:
    """The API key made at the first start; None if there is none or it may not be read."""
    value = _read_object(path / _SECRETS).get("api_key")
    return value if isinstance(value, str) else None


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, PermissionError):
        return {}
    except ValueError as error:
        raise ConfigurationError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path}: expected a JSON object")
    return value


def _write_object(path: Path, value: dict[str, Any]) -> None:
    """Replace the file in one step, so that no reader and no kill sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sweep_ephemeral() -> None:
    """Remove temporary directories whose process was killed (young ones may be on the way to their lock)."""
    for path in Path(tempfile.gettempdir()).glob(f"{_EPHEMERAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                status = path.stat()
                if status.st_uid == os.getuid() and time.time() - status.st_mtime > 60 and _lock(fd):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
