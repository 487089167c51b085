"""Servers that actions call: a mail server with scripted replies and an HTTP server that misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import email
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from types import TracebackType
from typing import Self

_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that the sink said 250 to."""

    sender: str
    recipients: tuple[str, ...]
    raw: bytes

    @property
    def message(self) -> Message:
        """The mail, parsed."""
        return email.message_from_bytes(self.raw)


class _Sink:
    """A server on a free port of 127.0.0.1 that closes its connections with itself."""

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, self.port, limit=_LIMIT)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class SmtpSink(_Sink):
    """Takes mail. ``script`` says what to answer, per verb, to the next commands; then it is 250 again.

    ``sink.script("RCPT", "450 4.2.0 greylisted", "450 4.2.0 greylisted")`` refuses two recipients for now. A reply of
    ``"hang"`` never comes, ``"close"`` hangs up, and for ``DATA`` a reply stands for the one after the final dot:
    the mail counts as taken only when it begins with 250, and ``"take-and-close"`` takes it and hangs up wordlessly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mails: list[Mail] = []
        self._replies: dict[str, list[str]] = {}

    def script(self, verb: str, *replies: str) -> None:
        """Answer the next commands ``verb`` with ``replies``, one each."""
        self._replies.setdefault(verb.upper(), []).extend(replies)

    def repeated(self) -> dict[str, int]:
        """Message-IDs taken more than once, and how often: the effects that were repeated."""
        counts = Counter(str(mail.message["Message-ID"]) for mail in self.mails)
        return {key: n for key, n in counts.items() if n > 1}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender, recipients = "", list[str]()
        writer.write(b"220 sink ESMTP\r\n")
        while line := (await reader.readline()).decode("utf-8", "replace").strip():
            verb = line.split(" ", 1)[0].split(":", 1)[0].upper()
            if verb == "DATA":
                if not await self._data(reader, writer, sender, recipients):
                    return
                recipients = []
                continue
            reply = self._next(verb, "250 sink" if verb != "QUIT" else "221 bye")
            if verb == "MAIL":
                sender, recipients = _address(line), []
            elif verb == "RCPT" and reply.startswith("250"):
                recipients.append(_address(line))
            if not await _say(writer, reply) or verb == "QUIT":
                return

    async def _data(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sender: str, recipients: list[str]
    ) -> bool:
        await _say(writer, "354 go on")
        raw = (await reader.readuntil(b"\r\n.\r\n"))[:-3].replace(b"\r\n..", b"\r\n.")
        reply = self._next("DATA", "250 2.0.0 taken")
        if reply.startswith(("250", "take")):
            self.mails.append(Mail(sender, tuple(recipients), raw))
        return await _say(writer, "close" if reply == "take-and-close" else reply)

    def _next(self, verb: str, otherwise: str) -> str:
        replies = self._replies.get(verb)
        return replies.pop(0) if replies else otherwise


@dataclass(slots=True)
class Request:
    """One request that the HTTP sink read to its end."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str | None:
        """Its Idempotency-Key."""
        return self.headers.get("idempotency-key")


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer: a status with headers and body, or a way to misbehave."""

    status: int = 200
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()
    behave: str = ""
    """``hang`` (no answer), ``close`` (hang up), ``drip`` (a byte every 50 ms, for ever), ``huge`` (64 MiB)."""


class HttpSink(_Sink):
    """Answers every POST with 200 ``{}`` unless told otherwise, and remembers what it was asked.

    ``sink.script(Reply(429, headers=(("Retry-After", "2"),)))`` answers the next request so. ``sink.gate`` holds
    every answer while it is cleared (the requests are recorded before): a test can act while the action runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._replies: list[Reply] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}/"

    def script(self, *replies: Reply) -> None:
        """Answer the next requests with ``replies``, one each."""
        self._replies.extend(replies)

    def keys(self) -> Counter[str | None]:
        """How often each Idempotency-Key was seen."""
        return Counter(request.key for request in self.requests)

    def repeated(self) -> dict[str | None, int]:
        """Keys seen more than once, and how often: the effects that were repeated."""
        return {key: n for key, n in self.keys().items() if n > 1}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await _read_request(reader)) is not None:
            self.requests.append(request)
            reply = self._replies.pop(0) if self._replies else Reply()
            await self.gate.wait()
            if not await _answer(writer, reply):
                return


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    first = await reader.readline()
    if not first:
        return None
    method, path, _ = first.decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while (line := (await reader.readline()).decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


async def _answer(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    """Send the answer; False when the connection is to be closed."""
    if reply.behave == "hang":
        await asyncio.Event().wait()
    if reply.behave == "close":
        return False
    length = {"drip": 1 << 30, "huge": 64 << 20}.get(reply.behave, len(reply.body))
    lines = [f"HTTP/1.1 {reply.status} Scripted", "Content-Type: application/json", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in reply.headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    if reply.behave:
        await _misbehave(writer, reply.behave)
        return False
    writer.write(reply.body)
    await writer.drain()
    return True


async def _misbehave(writer: asyncio.StreamWriter, how: str) -> None:
    if how == "huge":
        for _ in range(1024):
            writer.write(b"\0" * 65536)
            await writer.drain()
    while how == "drip":
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _say(writer: asyncio.StreamWriter, reply: str) -> bool:
    if reply == "hang":
        await asyncio.Event().wait()
    if reply == "close":
        return False
    writer.write(f"{reply}\r\n".encode())
    await writer.drain()
    return True


def _address(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]


def json_reply(document: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    """An ordinary answer with a JSON body."""
    return Reply(status, json.dumps(document).encode(), tuple(headers))
