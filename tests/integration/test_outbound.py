"""The outbound client against servers that misbehave, on loopback."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import httpx
import pytest

from appliance.guard import Record
from appliance.outbound import make_client
from appliance.plugin import Reject
from appliance.settings import OutboundSettings

LOOPBACK = (ip_network("127.0.0.0/8"),)
Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A server that hands each request's head to ``answer``; gives its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(await reader.readuntil(b"\r\n\r\n"), writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        listener.close()


@asynccontextmanager
async def client(*, lookup: Any = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = {"allowed_networks": LOOPBACK, **settings}
    async with make_client(OutboundSettings(**settings), lookup=lookup) as made:
        yield made


def says(raw: bytes) -> Answer:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return answer


def ok(body: bytes, *headers: str) -> bytes:
    head = "\r\n".join(("HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers))
    return head.encode() + b"\r\n\r\n" + body


async def test_reaches_an_allowed_network_and_asks_for_no_compression() -> None:
    heads: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(ok(b'{"a": 1}', "Content-Type: application/json"))

    async with server(answer) as url, client() as http:
        response = await http.post(url, json={"n": 1}, headers={"Accept-Encoding": "gzip"})

    assert response.json() == {"a": 1}
    assert b"accept-encoding: identity" in heads[0].lower()
    assert b"gzip" not in heads[0]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.1", "169.254.169.254"]
)
async def test_refuses_inner_addresses_however_they_are_written(host: str) -> None:
    async with server(says(ok(b""))) as url, client(allowed_networks=()) as http:
        port = url.rpartition(":")[2]
        with pytest.raises(Reject, match="not a public address"):
            await http.get(f"http://{host}:{port}/")


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f.1", "0177.0.0.1"])
async def test_refuses_numbers_that_systems_take_for_addresses(host: str) -> None:
    async with server(says(ok(b""))) as url, client(allowed_networks=()) as http:
        with pytest.raises((Reject, httpx.UnsupportedProtocol, httpx.InvalidURL)):
            await http.get(f"http://{host}:{url.rpartition(':')[2]}/")


async def test_refuses_a_name_that_resolves_inwards() -> None:
    async def lookup(host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in ("8.8.8.8", "127.0.0.1")]

    async with client(allowed_networks=(), lookup=lookup) as http:
        with pytest.raises(Reject, match=r"127\.0\.0\.1 is not a public address"):
            await http.get("http://rebind.example/")


async def test_dials_the_address_that_was_checked() -> None:
    asked: list[str] = []

    async def lookup(host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async with server(says(ok(b"here"))) as url, client(lookup=lookup) as http:
        response = await http.get(url.replace("127.0.0.1", "inside.example"))

    assert (response.text, asked) == ("here", ["inside.example"])


async def test_a_failing_look_up_is_an_httpx_error() -> None:
    async def lookup(host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    async with client(lookup=lookup) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("http://gone.example/")


async def test_a_slow_look_up_ends_at_the_deadline() -> None:
    async def lookup(host: str, port: int, family: socket.AddressFamily) -> Sequence[Record]:
        await asyncio.Event().wait()
        return []

    async with client(lookup=lookup, timeout=timedelta(milliseconds=50)) as http:
        with pytest.raises(httpx.TimeoutException):
            await http.get("http://slow.example/")


async def test_follows_no_redirect() -> None:
    async with server(says(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")) as url, client() as http:
        assert (await http.get(url)).status_code == 302


async def test_ignores_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with server(says(ok(b"direct"))) as url, client() as http:
        assert (await http.get(url)).text == "direct"


async def test_a_body_over_the_cap_is_refused_before_it_is_in_memory() -> None:
    sent = 0

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with server(answer) as url, client(max_response_bytes=100_000) as http:
        with pytest.raises(Reject, match="larger than 100000 bytes"):
            await http.get(url)

    assert sent < 20_000_000


async def test_unpacks_what_was_packed_unasked() -> None:
    body = gzip.compress(b"hello" * 10)
    async with server(says(ok(body, "Content-Encoding: gzip"))) as url, client() as http:
        assert (await http.get(url)).text == "hello" * 10


async def test_a_gzip_bomb_does_not_go_off() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    async with server(says(ok(bomb, "Content-Encoding: gzip"))) as url, client(max_response_bytes=100_000) as http:
        with pytest.raises(Reject, match="larger than 100000 bytes"):
            await http.get(url)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
async def test_other_compression_is_an_error(encoding: str) -> None:
    async with server(says(ok(b"????", f"Content-Encoding: {encoding}"))) as url, client() as http:
        with pytest.raises(httpx.DecodingError):
            await http.get(url)


async def drip(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.005)


async def drip_head(head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    await drip(head, writer)


async def silent(head: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("answer", [drip, drip_head, silent])
async def test_the_deadline_is_for_the_whole_exchange(answer: Answer) -> None:
    async with server(answer) as url, client(timeout=timedelta(milliseconds=100)) as http:
        async with asyncio.timeout(5):
            with pytest.raises(httpx.TimeoutException):
                await http.get(url)


async def test_a_requests_own_timeout_counts_for_the_whole_exchange() -> None:
    async with server(drip) as url, client() as http:
        async with asyncio.timeout(5):
            with pytest.raises(httpx.TimeoutException):
                await http.get(url, timeout=0.1)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"",
    ],
    ids=["huge header", "many headers", "no HTTP", "cut short", "hung up"],
)
async def test_broken_answers_are_httpx_errors(raw: bytes) -> None:
    async with server(says(raw)) as url, client() as http:
        with pytest.raises(httpx.TransportError) as caught:
            await http.get(url)
    assert not isinstance(caught.value, httpx.TimeoutException)


async def test_cookies_of_one_answer_do_not_reach_the_next_request() -> None:
    heads: list[bytes] = []

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(ok(b"", "Set-Cookie: a=b"))

    async with server(answer) as url, client() as http:
        await http.get(url)
        await http.get(url)

    assert b"a=b" not in heads[1]
