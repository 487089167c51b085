"""The HTTP server: uvicorn, without its own ideas about signals and exits."""

from __future__ import annotations

import asyncio
import logging
import socket
from datetime import timedelta
from typing import Any

import uvicorn
from uvicorn.lifespan.off import LifespanOff

from appliance.errors import ConfigurationError, Problem
from appliance.http.guard import GuardedConfig, Limits
from appliance.settings import HttpSettings

log = logging.getLogger(__name__)

_BACKLOG = 2048
"""Connections that may wait to be accepted."""
_KEEP_ALIVE_S = 75
"""Seconds an idle connection stays open: longer than the usual 60 s of a reverse proxy, which then closes first."""
_ABORT_S = 1.0
"""Seconds that cancelled requests have to end."""


class HttpServer:
    """Serves one ASGI application on one address, on the running loop."""

    def __init__(self, app: Any, settings: HttpSettings) -> None:
        self._settings = settings
        limits = Limits(settings.header_timeout.total_seconds(), settings.body_timeout.total_seconds())
        self._config = GuardedConfig(
            app,
            limits,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=settings.proxy_headers,
            forwarded_allow_ips=["127.0.0.1", "::1"],
            timeout_keep_alive=_KEEP_ALIVE_S,
            backlog=_BACKLOG,
        )
        self._server = uvicorn.Server(self._config)
        logging.getLogger("uvicorn.error").addFilter(_is_about_us)
        self._socket: socket.socket | None = None
        self._ticking: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port listened on; of interest when the setting was 0."""
        if self._socket is None:
            raise RuntimeError("not started")
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """A URL under which this process reaches itself."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self._settings.host, self._settings.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def running(self) -> asyncio.Task[None]:
        """The server's loop, which ends only when it is stopped, or dies."""
        if self._ticking is None:
            raise RuntimeError("not started")
        return self._ticking

    async def start(self) -> None:
        """Listen and serve; raises ConfigurationError when the address can't be had."""
        self._socket = _listen(self._settings.host, self._settings.port)
        self._config.load()
        self._server.lifespan = LifespanOff(self._config)
        await self._server.startup(sockets=[self._socket])
        self._ticking = asyncio.create_task(self._server.main_loop(), name="http server")

    async def stop(self, grace: timedelta) -> None:
        """Stop accepting, let requests under way finish within ``grace``, then close what is left. Idempotent."""
        if self._ticking is None or self._socket is None or self._server.should_exit:
            return
        self._server.should_exit = True
        for server in self._server.servers:
            server.close()
        self._socket.close()
        connections = self._server.server_state.connections
        for connection in list(connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(grace.total_seconds()):
                await self._drained()
        except TimeoutError:
            log.warning("%d HTTP connections did not finish in time", len(connections))
            await self._abort()
        self._ticking.cancel()
        await asyncio.wait({self._ticking})

    async def _drained(self) -> None:
        state = self._server.server_state
        while state.connections or state.tasks:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)

    async def _abort(self) -> None:
        state = self._server.server_state
        for connection in list(state.connections):
            connection.transport.abort()
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_ABORT_S)


def _is_about_us(record: logging.LogRecord) -> bool:
    """Bad requests are answered, not logged: strangers would fill the log. Nor is uvicorn's own progress."""
    cancelled = record.exc_info is not None and record.exc_info[0] is asyncio.CancelledError  # by our own stop
    return record.levelno >= logging.ERROR and not cancelled


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; IPv6 for a host with colons in it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        problem = Problem(
            f"can't listen on {host} port {port}: {error.strerror or error}",
            key="http.port",
            expected="an address of this machine and a free port",
        )
        raise ConfigurationError(problem) from error
    sock.setblocking(False)
    return sock
