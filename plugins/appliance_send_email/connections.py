"""Connections to the mail server, kept open between mails: at most so many, each used by one mail at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiosmtplib

from appliance.plugin import Reject, Retry
from appliance_send_email.message import Mail
from appliance_send_email.settings import IMPLICIT_TLS_PORT, SmtpSettings

_IDLE_S = 60.0
"""A connection unused for longer is not used again: servers and firewalls drop them silently."""
_QUIT_S = 2.0
_SERVICE_CLOSING = 421


@dataclass(slots=True)
class _Connection:
    client: aiosmtplib.SMTP
    reused: bool = False
    idle_since: float = 0.0


class Stale(Exception):
    """A kept connection turned out to be dead before the mail's data was sent: another may be tried at once."""


class Connections:
    """The pool. Mails wait for a connection in the order of their calls."""

    def __init__(self, settings: SmtpSettings, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self._settings = settings
        self._log = log
        self._free = asyncio.Semaphore(settings.max_connections)
        self._idle: list[_Connection] = []

    async def send(self, mail: Mail, recipient: str) -> None:
        """Hand the mail over to the server for one recipient.

        ``smtp.timeout`` bounds it, not counting the wait for a free connection. Raises Retry for a 4xx answer and for
        any trouble with the connection, Reject for a 5xx answer. Cancelling it closes the connection.
        """
        async with self._free:
            try:
                async with asyncio.timeout(self._settings.timeout.total_seconds()):
                    try:
                        await self._once(mail, recipient)
                    except Stale:
                        self._discard_idle()  # the others date from before the same restart
                        await self._once(mail, recipient)
            except TimeoutError as error:
                raise Retry(f"the mail server did not answer within {self._settings.timeout}") from error

    async def close(self) -> None:
        """Say goodbye (QUIT) on every kept connection."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(self._quit(connection) for connection in idle))

    async def _once(self, mail: Mail, recipient: str) -> None:
        async with self._connection() as connection:
            await _transfer(connection, mail, recipient)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        connection = self._kept() or _Connection(await self._connect())
        healthy = False
        try:
            yield connection
            healthy = True
        except (Retry, Reject):
            healthy = await _reset(connection.client)  # the server said no; the connection may still be good
            raise
        finally:
            if healthy and connection.client.is_connected:
                connection.reused, connection.idle_since = True, time.monotonic()
                self._idle.append(connection)
            else:
                connection.client.close()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.client.is_connected and time.monotonic() - connection.idle_since < _IDLE_S:
                return connection
            connection.client.close()
        return None

    def _discard_idle(self) -> None:
        for connection in self._idle:
            connection.client.close()
        self._idle.clear()

    async def _connect(self) -> aiosmtplib.SMTP:
        settings = self._settings
        implicit = settings.use_tls and settings.port == IMPLICIT_TLS_PORT
        client = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            username=settings.user or None,
            password=settings.password.get_secret_value() if settings.user else None,
            use_tls=implicit,
            start_tls=settings.use_tls and not implicit,  # required, not merely tried: no downgrade
            validate_certs=settings.verify,
            local_hostname=_own_name(),
            timeout=settings.timeout.total_seconds(),
        )
        try:
            await client.connect()
        except aiosmtplib.SMTPResponseException as error:
            client.close()
            raise Retry(f"the mail server refuses the connection: {_said(error)}") from error
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            client.close()
            raise Retry(f"no connection to the mail server {settings.host}:{settings.port}: {error}") from error
        except BaseException:
            client.close()
            raise
        return client

    async def _quit(self, connection: _Connection) -> None:
        with contextlib.suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
            async with asyncio.timeout(_QUIT_S):
                await connection.client.quit()
        connection.client.close()


async def _transfer(connection: _Connection, mail: Mail, recipient: str) -> None:
    client = connection.client
    try:
        await client.mail(mail.sender)
        await client.rcpt(recipient)
    except aiosmtplib.SMTPResponseException as error:
        if connection.reused and error.code == _SERVICE_CLOSING:
            raise Stale from error
        raise _refusal(error) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        if connection.reused and not isinstance(error, TimeoutError):
            raise Stale from error
        raise Retry(f"the connection to the mail server broke: {error}") from error
    try:
        await client.data(mail.content)
    except aiosmtplib.SMTPResponseException as error:
        raise _refusal(error) from error
    except (aiosmtplib.SMTPException, OSError) as error:
        # Whether the server took the mail is unknown; its Message-ID lets the receiver drop a second copy.
        raise Retry(f"the connection to the mail server broke while it took the mail: {error}") from error


def _refusal(error: aiosmtplib.SMTPResponseException) -> Retry | Reject:
    text = f"the mail server refused: {_said(error)}"
    return Reject(text) if 500 <= error.code <= 599 else Retry(text)


def _said(error: aiosmtplib.SMTPResponseException) -> str:
    return f"{error.code} {' '.join(error.message.split())}"[:500]


async def _reset(client: aiosmtplib.SMTP) -> bool:
    if not client.is_connected:
        return False
    try:
        await client.rset()
    except (aiosmtplib.SMTPException, OSError):
        return False
    return True


def _own_name() -> str:
    """For EHLO. Not ``getfqdn``, which asks the DNS and blocks."""
    name = socket.gethostname()
    return name if name and name.isascii() and not any(c.isspace() or ord(c) < 0x21 for c in name) else "localhost"
