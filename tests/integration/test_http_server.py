"""The server on a real socket: limits of time and size, framing, and the stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from starlette.types import Receive, Scope, Send

from appliance.errors import ConfigurationError
from appliance.http.server import HttpServer
from appliance.settings import HttpSettings

WaitUntil = Callable[..., Awaitable[Any]]
QUICK = HttpSettings(port=0, header_timeout="50ms", body_timeout="50ms")
PATIENT = HttpSettings(port=0)
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
GRACE = timedelta(seconds=5)


class Echo:
    """Answers with the length of the body, once ``gate`` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.requests = 0
        self.disconnects = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        self.started.set()
        body = b""
        more = scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            body += message["body"]
            more = message["more_body"]
        await self.gate.wait()
        answer = b"%d" % len(body)
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


class Client:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        """The status line and headers of the next answer."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(10):
            return await self.reader.read()


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest_asyncio.fixture
async def connect(echo: Echo) -> AsyncIterator[Callable[[HttpSettings], Awaitable[Client]]]:
    servers: list[HttpServer] = []
    clients: list[Client] = []

    async def connect(settings: HttpSettings) -> Client:
        server = HttpServer(echo, settings)
        await server.start()
        servers.append(server)
        client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.writer.close()
    for server in servers:
        await server.stop(GRACE)


Connect = Callable[[HttpSettings], Awaitable[Client]]


async def test_requests_are_answered_on_one_connection(connect: Connect) -> None:
    client = await connect(PATIENT)
    for body in (b"", b"abc"):
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        assert await client.reader.readexactly(1) == b"%d" % len(body)


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"", b""),
        (b"\r\n\r\n", b""),
        (b"GET / HT", b"HTTP/1.1 408 "),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"HTTP/1.1 408 "),
    ],
)
async def test_a_request_that_does_not_come_on_is_given_up(connect: Connect, start: bytes, status: bytes) -> None:
    client = await connect(QUICK)
    client.send(start)
    answer = await client.rest()
    assert answer.startswith(status)
    assert bool(answer) is bool(status)
    if status:
        assert b"urn:appliance:problem:timeout" in answer


async def test_dripping_bytes_do_not_prolong_the_time(connect: Connect) -> None:
    client = await connect(QUICK)
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")

    async def drip() -> None:
        while True:
            client.send(b"X-Drip: 1\r\n")
            await asyncio.sleep(0.005)

    dripping = asyncio.create_task(drip())
    assert (await client.head()).startswith(b"HTTP/1.1 408 ")
    dripping.cancel()


async def test_the_application_learns_that_the_body_will_not_come(
    connect: Connect, echo: Echo, wait_until: WaitUntil
) -> None:
    client = await connect(QUICK)
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
    await client.rest()
    await wait_until(lambda: echo.disconnects == 1, "the application was told")


async def test_an_answer_before_the_body_is_not_followed_by_another(connect: Connect) -> None:
    client = await connect(QUICK)
    client.send(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
    answer = await client.rest()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_an_idle_connection_between_requests_is_not_under_the_header_limit(connect: Connect) -> None:
    client = await connect(QUICK)
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await client.head()
    await client.reader.readexactly(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await client.reader.read()


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, b"bad-request"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400, b"bad-request"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400, b"bad-request"),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, b"bad-request"),
        (POST + b"Content-Length: -3\r\n\r\n", 400, b"bad-request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, b"bad-request"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"bad-request"),
        (b"nonsense\r\n\r\n", 400, b"bad-request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431, b"headers-too-large"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, b"headers-too-large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: 1\r\n" * 101 + b"\r\n", 431, b"headers-too-large"),
    ],
)  # fmt: skip
async def test_ambiguous_and_oversized_requests_never_reach_the_application(
    connect: Connect, echo: Echo, request_: bytes, status: int, code: bytes
) -> None:
    client = await connect(PATIENT)
    client.send(request_)
    answer = await client.rest()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"urn:appliance:problem:" + code in answer
    assert b"connection: close" in answer
    assert echo.requests == 0


async def test_an_endless_header_is_cut_off(connect: Connect) -> None:
    client = await connect(PATIENT)
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")

    async def flood() -> None:
        while True:
            client.send(b"a" * 10_000)
            await client.writer.drain()
            await asyncio.sleep(0)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(flood(), timeout=10)


async def test_bad_requests_are_not_logged(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    client = await connect(PATIENT)
    client.send(b"nonsense\r\n\r\n")
    await client.rest()
    assert caplog.text == ""


async def test_the_stop_lets_requests_finish_and_takes_no_new_ones(echo: Echo, wait_until: WaitUntil) -> None:
    server = HttpServer(echo, PATIENT)
    await server.start()
    port = server.port
    idle = Client(*await asyncio.open_connection("127.0.0.1", port))
    echo.gate.clear()
    busy = Client(*await asyncio.open_connection("127.0.0.1", port))
    busy.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
    await echo.started.wait()
    stopping = asyncio.create_task(server.stop(GRACE))
    assert await idle.rest() == b""
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", port)
    assert not stopping.done()
    echo.gate.set()
    answer = await busy.rest()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer
    await stopping
    await server.stop(GRACE)
    assert server.running.done()
    for client in (idle, busy):
        client.writer.close()


async def test_the_stop_is_bounded(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    server = HttpServer(echo, PATIENT)
    await server.start()
    echo.gate.clear()
    client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await echo.started.wait()
    await server.stop(timedelta(milliseconds=20))
    assert [record.getMessage() for record in caplog.records] == ["1 HTTP connections did not finish in time"]
    with contextlib.suppress(ConnectionError):  # a reset, or just the end
        assert await client.rest() == b""
    client.writer.close()


async def test_a_taken_port_is_a_configuration_error(echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port}"):
            await HttpServer(echo, HttpSettings(port=port)).start()
    with pytest.raises(ConfigurationError, match=r"http\.port"):
        await HttpServer(echo, HttpSettings(host="203.0.113.1", port=0)).start()


async def test_the_url_is_one_that_this_machine_reaches(echo: Echo) -> None:
    server = HttpServer(echo, HttpSettings(host="0.0.0.0", port=0))  # noqa: S104  # what is tested
    await server.start()
    assert server.url == f"http://127.0.0.1:{server.port}"
    await server.stop(GRACE)
