"""A TCP proxy between the appliance and a server, which can be told to misbehave.

It listens on 127.0.0.1 and connects to TCP or to a Unix socket. How it treats bytes is switched while it runs, for
connections that are open and for those to come.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

_CHUNK = 65536


class Mode(Enum):
    """What happens to the bytes."""

    PASS = "pass"
    BLACK_HOLE = "black-hole"
    """Bytes of both directions vanish, connections stay open: a cable pulled, a firewall that forgot."""
    DROP_REPLY = "drop-reply"
    """Requests arrive, answers vanish: the server did it and nobody knows."""
    REFUSE = "refuse"
    """New connections are closed at once; see :meth:`Proxy.cut` for those that are open."""


class Proxy:
    """``async with Proxy.to_url(redis_url) as proxy`` and use ``proxy.url`` instead of the server's own."""

    def __init__(self, host: str, port: int | None = None, *, unix: str | None = None) -> None:
        self.mode = Mode.PASS
        self.delay_s = 0.0
        """How long each chunk of an answer is held back, in seconds."""
        self.accepted = 0
        """Connections taken so far."""
        self.swallowed = 0
        """Chunks of bytes that vanished so far."""
        self.port = 0
        self.url = ""
        self._rewrite: Callable[[int], str] = lambda port: f"127.0.0.1:{port}"
        self._upstream = (host, port, unix)
        self._links: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    def to_url(cls, url: str) -> Self:
        """A proxy to the server of a Redis or PostgreSQL URL, over TCP or over a Unix socket."""
        parts = urlsplit(url)
        if parts.scheme in ("unix", "redis+unix"):
            proxy = cls("", unix=unquote(parts.path))
            proxy._rewrite = lambda port: f"redis://127.0.0.1:{port}/0"
            return proxy
        host = parts.hostname or parse_qs(parts.query).get("host", ["127.0.0.1"])[0]
        postgres = parts.scheme.startswith("postgres")
        port = parts.port or int(parse_qs(parts.query).get("port", ["5432" if postgres else "6379"])[0])
        proxy = cls("", unix=f"{host}/.s.PGSQL.{port}") if host.startswith("/") else cls(host, port)
        user = parts.netloc.rpartition("@")[0]

        def rewrite(own: int) -> str:
            kept = [(k, v) for k, vs in parse_qs(parts.query).items() if k not in ("host", "port") for v in vs]
            query = "&".join(f"{k}={quote(v)}" for k, v in kept)
            netloc = f"{user}@127.0.0.1:{own}" if user else f"127.0.0.1:{own}"
            return urlunsplit((parts.scheme, netloc, parts.path, query, ""))

        proxy._rewrite = rewrite
        return proxy

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = self._rewrite(self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()

    async def cut(self) -> int:
        """Close every open connection, both sides; returns how many there were."""
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        return len(links)

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            if self.mode is not Mode.REFUSE:
                await self._link(reader, writer)
        except asyncio.CancelledError:
            pass  # cut(): the connection is closed below, and nobody waits for this task
        except OSError:
            pass  # the server is away: the client sees its connection closed
        finally:
            self._links.discard(task)
            await _close(writer)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port, unix = self._upstream
        if unix is not None:
            up_reader, up_writer = await asyncio.open_unix_connection(unix)
        else:
            up_reader, up_writer = await asyncio.open_connection(host, port)
        try:
            request = asyncio.create_task(self._pump(reader, up_writer, reply=False))
            reply = asyncio.create_task(self._pump(up_reader, writer, reply=True))
            try:
                await asyncio.wait({request, reply}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                request.cancel()
                reply.cancel()
                await asyncio.gather(request, reply, return_exceptions=True)
        finally:
            await _close(up_writer)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, reply: bool) -> None:
        while chunk := await source.read(_CHUNK):
            if reply and self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.mode is Mode.BLACK_HOLE or (reply and self.mode is Mode.DROP_REPLY):
                self.swallowed += 1
                continue
            sink.write(chunk)
            await sink.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, asyncio.CancelledError):
        await writer.wait_closed()
