"""A mail server for tests that says what it is told to, on loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage

DROP = "drop"
"""In place of a reply: the connection is closed."""
HANG = "hang"
"""In place of a reply: there is none."""

_USUAL = {"MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go on", ".": "250 kept", "RSET": "250 ok", "NOOP": "250 ok"}


@dataclass(frozen=True, slots=True)
class Received:
    """A mail that the sink said it kept."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    @property
    def message(self) -> EmailMessage:
        """The mail, parsed."""
        parsed = message_from_bytes(self.content.replace(b"\r\n", b"\n"), policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


@dataclass(slots=True)
class SmtpSink:
    """``script`` maps a verb (``EHLO MAIL RCPT DATA . RSET``, or a whole command) to the replies of its next uses."""

    port: int = 0
    script: dict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))
    received: list[Received] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    connections: int = 0
    most_open: int = 0
    extensions: tuple[str, ...] = ()
    greeting: str = "220 sink"
    tls: ssl.SSLContext | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def say(self, verb: str, *replies: str) -> None:
        """Answer the next uses of ``verb`` with these, and then as usual."""
        self.script[verb].extend(replies)

    def drop_all(self) -> None:
        """Close every connection, as a restart does."""
        for writer in self._writers:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        self._writers.add(writer)
        self.most_open = max(self.most_open, len(self._writers))
        try:
            await self._send(writer, self.greeting)
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender, recipients = "", list[str]()
        while line := (await reader.readline()).decode().rstrip("\r\n"):
            verb = line.partition(" ")[0].upper()
            self.commands.append(line)
            reply = self._reply(line, verb)
            if not await self._send(writer, reply):
                return
            if verb == "QUIT":
                return
            if verb == "STARTTLS" and self.tls is not None:
                await writer.start_tls(self.tls)
            elif verb == "MAIL":
                sender, recipients = _address(line), []
            elif verb == "RCPT" and reply.startswith("250"):
                recipients.append(_address(line))
            elif reply.startswith("354") and not await self._data(reader, writer, sender, tuple(recipients)):
                return

    async def _data(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sender: str, recipients: tuple[str, ...]
    ) -> bool:
        content = (await reader.readuntil(b"\r\n.\r\n"))[:-3]
        reply = self._reply(".", ".")
        if reply.startswith("250") or reply == f"{DROP} kept":
            self.received.append(Received(sender, recipients, content.replace(b"\r\n..", b"\r\n.")))
        return await self._send(writer, reply)

    def _reply(self, line: str, verb: str) -> str:
        for key in (line, verb):
            if self.script.get(key):
                return self.script[key].popleft()
        if verb == "EHLO":
            lines = ["sink", *self.extensions, "HELP"]
            return "\r\n".join(f"250{' ' if line == 'HELP' else '-'}{line}" for line in lines)
        return {"QUIT": "221 bye", "STARTTLS": "220 go on", "AUTH": "235 welcome", **_USUAL}.get(verb, "502 what?")

    async def _send(self, writer: asyncio.StreamWriter, reply: str) -> bool:
        if reply.startswith(DROP):
            return False
        if reply == HANG:
            await asyncio.Event().wait()
        writer.write(f"{reply}\r\n".encode())
        await writer.drain()
        return True


def _address(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]


@asynccontextmanager
async def smtp_sink(tls: ssl.SSLContext | None = None, *, implicit: bool = False) -> AsyncIterator[SmtpSink]:
    """A sink on a free port. ``tls`` offers STARTTLS, or wraps the connection from the start if ``implicit``."""
    sink = SmtpSink(tls=tls, extensions=("STARTTLS",) if tls is not None and not implicit else ())
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0, ssl=tls if implicit else None)
    async with server:
        sink.port = server.sockets[0].getsockname()[1]
        yield sink
        server.close()
        sink.drop_all()
