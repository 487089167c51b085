"""The appliance as the processes that it is in earnest: started, killed, frozen and asked through its API.

Replicas share what ``REDIS_URL`` and ``DATABASE_URL`` name, and have a data folder each. Without these, a replica runs
on servers of its own. Every process that was started is ended with the block that started it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from appliance import faultpoints
from tests.servers import wait_until

API_KEY = "test-key-" + "0" * 24
_OURS = ("APPLIANCE_", "REDIS_", "DATABASE_", "SMTP_", "FROM_EMAIL", "PORT", "NOTIFY_SOCKET")
START_TIMEOUT_S = 60.0
"""Two servers that are made from nothing on a machine that is busy with other tests."""


class Replica:
    """One process. Made by :meth:`Fleet.start`."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, data_dir: Path, log: Path) -> None:
        self.process = process
        self.folder = folder
        self.data_dir = data_dir
        self.log_file = log
        self.url = ""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """Everything it has written so far."""
        return self.log_file.read_text("utf-8", "replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; harmless when it is gone already."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM, and wait; returns the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended(timeout_s)

    def freeze(self) -> None:
        """SIGSTOP: it lives and does nothing."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    async def ended(self, timeout_s: float = 40.0) -> int:
        """Wait for its end; returns the exit code (negative: the signal that ended it)."""
        try:
            return await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            raise AssertionError(f"process {self.pid} did not end within {timeout_s:g} s\n{self.tail()}") from None

    async def ready(self, timeout_s: float = START_TIMEOUT_S) -> Self:
        """Wait until ``/readyz`` answers 200."""

        async def serves() -> bool:
            if self.process.returncode is not None:
                raise AssertionError(f"the process ended with {self.process.returncode}")
            self.url = self._announced() or self.url
            if not self.url:
                return False
            try:
                async with self.client() as client:
                    return (await client.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        try:
            await wait_until(serves, f"{self.folder.name} is ready", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        return self

    @asynccontextmanager
    async def client(self, *, api_key: str | None = API_KEY) -> AsyncIterator[httpx.AsyncClient]:
        """A client for it, with the key of its API."""
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, trust_env=False) as client:
            yield client

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join([f"--- {self.log_file}", *self.log.splitlines()[-lines:]])

    def _announced(self) -> str | None:
        try:
            document = json.loads((self.data_dir / "appliance.json").read_bytes())
        except (OSError, ValueError):
            return None
        return str(document["url"]) if document.get("pid") == self.pid else None


class Fleet:
    """``async with Fleet(folder, redis_url=…, database_url=…) as fleet`` and ``await fleet.start()`` once or more."""

    def __init__(
        self,
        folder: Path,
        *,
        redis_url: str | None = None,
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.config_dir = folder / "config"
        self.replicas: list[Replica] = []
        self._numbers = itertools.count(1)
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
        self._environ |= {"APPLIANCE_API_KEY": API_KEY, "PYTHONUNBUFFERED": "1", **(settings or {})}
        for name, url in (("REDIS_URL", redis_url), ("DATABASE_URL", database_url)):
            if url is not None:
                self._environ[name] = url
        (self.config_dir / "workflows").mkdir(parents=True, exist_ok=True)

    def workflow(self, name: str, text: str) -> None:
        """Put a workflow file into the configuration folder."""
        (self.config_dir / "workflows" / f"{name}.yaml").write_text(text, "utf-8")

    async def start(
        self,
        *,
        name: str | None = None,
        fault: str | None = None,
        settings: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
        ready: bool = True,
    ) -> Replica:
        """Start a process; a ``name`` that was used before starts it again on the same data folder.

        ``fault`` switches fault points on (see ``appliance/faultpoints.py``). With ``ready`` it waits until it serves.
        """
        number = next(self._numbers)
        home = self.folder / (name or f"replica-{number}")
        home.mkdir(exist_ok=True)
        data_dir, log = home / "data", home / f"log-{number}.txt"
        environ = {**self._environ, **(settings or {})}
        if fault is not None:
            environ[faultpoints.VARIABLE] = fault
        arguments = ["--config-dir", str(self.config_dir), "--data-dir", str(data_dir), "--host", "127.0.0.1"]
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "appliance", "run", *arguments, "--port", "0", *options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=home,
                env=environ,
                start_new_session=True,
            )
        replica = Replica(process, home, data_dir, log)
        self.replicas.append(replica)
        return await replica.ready() if ready else replica

    def faults_struck(self) -> int:
        """How many fault points have struck, over all processes that were ever started."""
        return sum(replica.log.count("fault point: ") for replica in self.replicas)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for replica in self.replicas:
            await replica.kill()
            if replica.log_file.exists():
                print(replica.tail())  # noqa: T201 - pytest shows it with a test that failed
