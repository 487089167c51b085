"""One child process that can't outlive this one, and the lock that shows whether an earlier one still lives.

The child holds an inherited ``flock`` on a file in its directory. A lock that can be taken therefore proves that no
process of an earlier server is left; a process id in a file could by now be anybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.embedded import launcher
from appliance.errors import ConfigurationError

_POLL_S = 0.01
_LAUNCHER = Path(launcher.__file__)


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and group that a server runs as, when that is not ours."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run, and how it wants to be treated."""

    argv: Sequence[str]
    log: Path
    lock: Path
    environ: Mapping[str, str]
    death_signal: signal.Signals
    """Sent by the kernel when this process dies (Linux)."""
    stop_signal: signal.Signals
    """Asks for an orderly stop."""
    identity: Identity | None = None
    inherit: tuple[int, ...] = ()
    """Further file descriptors that the child keeps."""


class ServerProcess:
    """A running child. Made by :func:`spawn`; ``exited`` is done, with the exit status, once it is gone."""

    def __init__(self, command: Command, popen: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self.command = command
        self.pid = popen.pid
        self.exited: asyncio.Future[int] = loop.create_future()
        self._popen = popen
        self._loop = loop
        threading.Thread(target=self._reap, name=f"reap-{self.pid}", daemon=True).start()

    def _reap(self) -> None:
        status = self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(self._report, status)

    def _report(self, status: int) -> None:
        if not self.exited.done():
            self.exited.set_result(status)

    async def stop(self, timeout_s: float) -> int:
        """Ask for an orderly stop, kill after ``timeout_s``; returns the exit status."""
        self._popen.send_signal(self.command.stop_signal)
        done, _ = await asyncio.wait([self.exited], timeout=timeout_s)
        if not done:
            self._popen.kill()
        return await asyncio.shield(self.exited)

    def last_words(self, lines: int = 5) -> str:
        """The end of the server's log."""
        return tail(self.command.log, lines)


def spawn(command: Command, lock_fd: int) -> ServerProcess:
    """Start the child; call it on the loop's thread, which must be the one that lives as long as the process.

    (The kernel ties the death signal to the *thread* that forked.) ``lock_fd`` comes from :func:`take_lock`; it and
    ``command.inherit`` are closed here: from now on the child alone holds them.
    """
    argv = [sys.executable, "-I", "-S", str(_LAUNCHER), f"--parent={os.getpid()}"]
    argv += [f"--death-signal={int(command.death_signal)}"]
    if command.identity is not None:
        argv += [f"--uid={command.identity.uid}", f"--gid={command.identity.gid}"]
    try:
        with command.log.open("ab") as log:
            popen = subprocess.Popen(  # noqa: S603 - our own launcher and a program found by binaries.py
                [*argv, "--", *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(command.environ),
                pass_fds=(lock_fd, *command.inherit),
                process_group=0,  # else Ctrl-C would stop the servers while the appliance still drains
            )
        os.pwrite(lock_fd, str(popen.pid).encode(), 0)
    finally:
        for fd in (lock_fd, *command.inherit):
            os.close(fd)
    return ServerProcess(command, popen, asyncio.get_running_loop())


async def take_lock(path: Path, stop_signal: signal.Signals, timeout_s: float) -> int:
    """Wait until no earlier server holds ``path``, and hold it; returns the descriptor.

    The caller holds the data directory, so an earlier server is an orphan: it is on its way out (Linux) or, without a
    death signal, asked to go (macOS), and killed when half the time is over. The lock must not be held by anything
    else while the file names a process, so whoever takes it empties the file.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    started = time.monotonic()
    sent: signal.Signals | None = stop_signal if sys.platform == "linux" else None  # on Linux the kernel has sent one
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(fd, 0)
                return fd
            waited_s = time.monotonic() - started
            if waited_s > timeout_s:
                raise ConfigurationError(f"{path}: a server left by an earlier process does not end")
            wanted = signal.SIGKILL if waited_s > timeout_s / 2 else stop_signal
            if wanted is not sent:
                sent = wanted
                _signal_holder(fd, wanted)
            await asyncio.sleep(_POLL_S)
    except BaseException:
        os.close(fd)
        raise


def _signal_holder(fd: int, number: signal.Signals) -> None:
    text = os.pread(fd, 32, 0)
    if text.isdigit():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(text), number)


def tail(path: Path, lines: int) -> str:
    """The last ``lines`` lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])
