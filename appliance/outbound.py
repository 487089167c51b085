"""The HTTP client that actions get: public addresses only, and no answer can hold it up or fill the memory.

What it refuses, it refuses by raising :class:`~appliance.plugin.Reject`: trying again can't help. All other trouble
comes as an httpx exception. See :mod:`appliance.guard` for the addresses.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from appliance.guard import Guard, GuardedResolver, Lookup
from appliance.plugin import Reject

if TYPE_CHECKING:
    from appliance.settings import OutboundSettings

_CONNECT_S = 10.0
_KEEPALIVE_S = 30.0
_MAX_LINE = 8190
_MAX_FIELD = 16_384
"""Longest header of an answer, in bytes."""


class GuardedTransport(AiohttpTransport):
    """aiohttp beneath httpx, with a total deadline, a cap on the body, and no compression that could burst it."""

    def __init__(self, session: Callable[[], aiohttp.ClientSession], *, timeout_s: float, max_bytes: int) -> None:
        super().__init__(client=session, trust_env=False)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request. Its ``timeout`` bounds the whole exchange, the body's last byte included."""
        total_s = request.extensions.get("timeout", {}).get("read") or self._timeout_s
        deadline = asyncio.get_running_loop().time() + total_s
        request.headers["Accept-Encoding"] = "identity"
        try:
            async with asyncio.timeout_at(deadline):
                response = await super().handle_async_request(request)
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"no answer within {total_s:g} s", request=request) from error
        except httpx.ConnectTimeout as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
            # httpx_aiohttp calls every lost connection a timeout.
            cause = error.__cause__ or error
            kind = httpx.ConnectError if isinstance(cause, aiohttp.ClientConnectorError) else httpx.ReadError
            raise kind(_text(cause), request=request) from error
        except aiohttp.ClientError as error:  # what httpx_aiohttp has no translation for
            raise httpx.RemoteProtocolError(_text(error), request=request) from error
        encoding = response.headers.pop("content-encoding", "identity").strip().lower()
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101
        response.stream = _CappedStream(response.stream, self._max_bytes, deadline, encoding)
        return response


class _CappedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, max_bytes: int, deadline: float, encoding: str) -> None:
        self._inner = inner
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._encoding = encoding

    async def __aiter__(self) -> AsyncIterator[bytes]:
        decode = _decoder(self._encoding, self._max_bytes)
        size = 0
        parts = aiter(self._inner)
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    part = decode(await anext(parts))
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise httpx.ReadTimeout("the answer's body did not end in time") from error
            except aiohttp.ClientError as error:
                raise httpx.ReadError(_text(error)) from error
            size += len(part)
            if size > self._max_bytes:
                raise Reject(f"the answer is larger than {self._max_bytes} bytes (outbound.max_response_bytes)")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


def _decoder(encoding: str, max_bytes: int) -> Callable[[bytes], bytes]:
    """Undoes the compression of a server that was asked for none, never making more than ``max_bytes`` + 1 at once."""
    if encoding in ("identity", ""):
        return lambda part: part
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError(f"the answer is compressed ({encoding[:40]}) although that was not asked for")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, whichever it is

    def decode(part: bytes) -> bytes:
        try:
            plain = inflate.decompress(part, max_bytes + 1)
        except zlib.error as error:
            raise httpx.DecodingError(f"the answer's {encoding} body is damaged: {error}") from error
        if inflate.unconsumed_tail:
            raise Reject(f"the answer is larger than {max_bytes} bytes (outbound.max_response_bytes)")
        return plain

    return decode


def make_client(settings: OutboundSettings, *, lookup: Lookup | None = None) -> httpx.AsyncClient:
    """The client for actions; close it at the stop. ``lookup`` replaces the system's name look-up (tests)."""
    guard = Guard(settings.allowed_networks, settings.allowed_ports)
    timeout_s = settings.timeout.total_seconds()

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(guard, lookup),
            socket_factory=guard.socket,  # sees literal addresses as well, which no resolver is asked for
            use_dns_cache=False,  # a cached answer would be as good; an operator's change should count at once
            limit=settings.max_connections,
            keepalive_timeout=_KEEPALIVE_S,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_FIELD,
            trust_env=False,
        )

    return httpx.AsyncClient(
        transport=GuardedTransport(session, timeout_s=timeout_s, max_bytes=settings.max_response_bytes),
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none: workflows share the client
        follow_redirects=False,
        trust_env=False,
    )


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
