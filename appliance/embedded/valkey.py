"""The embedded Valkey: a Unix socket only, an append-only file synced every second, and no eviction."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from appliance.datadir import DataDir
from appliance.embedded.binaries import find_valkey
from appliance.embedded.process import Command
from appliance.embedded.server import EmbeddedServer


class EmbeddedValkey(EmbeddedServer):
    """Data in ``<data-dir>/valkey``. ``url`` is for redis-py (``unix:///…``)."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        datadir: DataDir,
        *,
        binary: Path | None = None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(datadir.path / "valkey", on_failure)
        self.socket = datadir.socket_dir("valkey") / "valkey.sock"
        self.url = f"unix://{quote(str(self.socket))}"
        self._binary = binary

    async def command(self, lock_fd: int) -> Command:
        self.directory.mkdir(mode=0o700, exist_ok=True)
        program = await asyncio.to_thread(find_valkey, self._binary)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "daemonize": "no",
            "appendonly": "yes",
            # Survives kill -9 of any process; a power cut may cost the last second.
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "set-proc-title": "no",
            "always-show-logo": "no",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return Command(
            argv=[str(program), *arguments],
            log=self.directory.parent / "valkey.log",
            lock=self.directory.parent / "valkey.lock",
            environ={"PATH": os.defpath, "LC_ALL": "C"},
            # SIGTERM rather than SIGKILL: it also ends a child that rewrites the append-only file.
            death_signal=signal.SIGTERM,
            stop_signal=self.stop_signal,
        )

    async def answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.socket))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await asyncio.wait_for(reader.readline(), 5) == b"+PONG\r\n"  # -LOADING while it reads its data
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()
