"""Requests a second that ``POST /submit`` takes, beside a bare handler on the same machine."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

_BODY = json.dumps(
    {"template_id": "bench", "data": {"email": "somebody@example.org", "text": "x" * 220}}, separators=(",", ":")
).encode()
_REQUEST = (
    b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
) % (len(_BODY), _BODY)
_CONNECTIONS = 64
KINDS = ("bare", "ours", "durable")


class _Client(asyncio.Protocol):
    """One kept-alive connection that sends the next request as soon as the last one was answered."""

    def __init__(self, number: int, done: asyncio.Future[None]) -> None:
        self._left = number
        self._done = done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(_REQUEST)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        if not head.startswith(b"HTTP/1.1 202"):
            self._finish(RuntimeError(f"not accepted: {head[:200]!r}"))
            return
        self._buffer = rest[length:]
        self._left -= 1
        if self._left == 0:
            self._finish(None)
        else:
            self._transport.write(_REQUEST)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(exc or ConnectionError("the server hung up"))

    def _finish(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None) if error is None else self._done.set_exception(error)
            self._transport.close()


async def requests_per_second(kind: str, redis_url: str, number: int, database_url: str = "") -> float:
    """How many requests the server ``kind`` answers a second, over 64 connections."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.ingest_server", kind, redis_url, database_url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = json.loads(await process.stdout.readline())["port"]
        await _load(port, _CONNECTIONS * 20)  # warm
        began = time.perf_counter()
        await _load(port, number)
        return number / (time.perf_counter() - began)
    finally:
        process.stdin.close()
        await process.wait()


async def _load(port: int, number: int) -> None:
    loop = asyncio.get_running_loop()
    done: list[asyncio.Future[None]] = [loop.create_future() for _ in range(_CONNECTIONS)]
    for future in done:
        await loop.create_connection(
            lambda future=future: _Client(number // _CONNECTIONS, future),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
    await asyncio.gather(*done)
