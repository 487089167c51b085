"""The connection's guard: time limits for headers and bodies, a size limit for headers, no ambiguous framing.

It sits in the protocol, below the application: a slow or oversized header never gets as far as an application. Requests
that arrive in one piece cost one comparison.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from appliance.http.problems import HttpProblem

if TYPE_CHECKING:
    from uvicorn.server import ServerState


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take: seconds for the headers and for the body, bytes and number of headers."""

    header_timeout_s: float
    body_timeout_s: float
    max_header_bytes: int = 32_768
    max_headers: int = 100


class GuardedConfig(uvicorn.Config):
    """uvicorn's configuration, with the limits that :class:`GuardedProtocol` enforces."""

    def __init__(self, app: Any, limits: Limits, **options: Any) -> None:
        self.limits = limits
        super().__init__(app, http=GuardedProtocol, **options)


class Refused(Exception):
    """Raised inside the parser's callbacks: the request is answered with a problem and the connection closed."""


class _Phase(Enum):
    IDLE = "between requests"
    HEADERS = "headers have begun"
    BODY = "the body is under way"


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the guard around it."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, GuardedConfig)  # noqa: S101  # it chose this class
        self._limits = config.limits
        self._phase = _Phase.IDLE
        self._timed: _Phase | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unparsed_bytes = 0
        self._problem: HttpProblem | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection that sends nothing is closed after the time for headers."""
        super().connection_made(transport)
        self._start_timer(_Phase.HEADERS, self._limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then see whether what is incomplete may stay so."""
        in_headers = self._phase is _Phase.HEADERS
        super().data_received(data)
        if self._phase is _Phase.IDLE and self._timed is None and self._is_answered():
            # Between requests, and uvicorn has stopped its keep-alive timer because bytes came (empty lines).
            if self.timeout_keep_alive_task is None:
                self._start_timer(_Phase.HEADERS, self._limits.header_timeout_s)
        elif self._phase is _Phase.HEADERS:
            self._wait_for_headers(len(data) if in_headers else 0)
        elif self._phase is _Phase.BODY and self._timed is not _Phase.BODY:
            self._start_timer(_Phase.BODY, self._limits.body_timeout_s)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._phase = _Phase.HEADERS
        self._unparsed_bytes = 0

    def on_headers_complete(self) -> None:
        """Refuse what is too large or ambiguous, before an application sees it."""
        self._stop_timer()
        self._check_headers()
        self._phase = _Phase.BODY
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is here."""
        self._stop_timer()
        self._phase = _Phase.IDLE
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for a request that the parser, or a callback of ours, refused."""
        self._close_with(self._problem or HttpProblem("bad-request", msg))

    def _check_headers(self) -> None:
        size = len(self.url)
        hosts = 0
        for name, value in self.headers:
            size += len(name) + len(value)
            hosts += name == b"host"
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                self._refuse("bad-request", "Transfer-Encoding: only chunked is supported.")
        if size > self._limits.max_header_bytes or len(self.headers) > self._limits.max_headers:
            self._refuse_headers()
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._refuse("bad-request", "Exactly one Host header is expected.")
        self._check_framing()

    def _check_framing(self) -> None:
        """RFC 9112 §6.3: both framings at once is how requests are smuggled past a proxy."""
        names = [name for name, _ in self.headers if name in (b"content-length", b"transfer-encoding")]
        if len(names) > 1:
            self._refuse("bad-request", "One of Content-Length and Transfer-Encoding, once, is expected.")

    def _wait_for_headers(self, more_bytes: int) -> None:
        self._unparsed_bytes += more_bytes
        if self._unparsed_bytes > self._limits.max_header_bytes:
            self._close_with(HttpProblem("headers-too-large", "The headers are too large."))
        elif self._timed is None:
            self._start_timer(_Phase.HEADERS, self._limits.header_timeout_s)

    def _refuse_headers(self) -> None:
        limits = self._limits
        detail = f"More than {limits.max_header_bytes} bytes, or more than {limits.max_headers} headers."
        self._refuse("headers-too-large", detail)

    def _refuse(self, code: str, detail: str) -> None:
        self._problem = HttpProblem(code, detail)
        raise Refused(detail)  # the parser stops, and uvicorn calls send_400_response

    def _start_timer(self, phase: _Phase, seconds: float) -> None:
        self._stop_timer()
        self._timed = phase
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timed = None

    def _too_slow(self) -> None:
        part = "headers" if self._timed is _Phase.HEADERS else "body"
        self._timer = self._timed = None
        if self._phase is _Phase.IDLE:
            self.transport.close()  # nothing was asked, so there is nothing to answer
        else:
            self._close_with(HttpProblem("timeout", f"The {part} took too long to arrive."))

    def _close_with(self, problem: HttpProblem) -> None:
        """Answer with ``problem``, unless an answer has begun or an earlier request still waits for its own; close."""
        self._stop_timer()
        # In the body phase the open cycle is this request's; before it, an earlier one's.
        in_body = self._phase is _Phase.BODY
        free = not self.pipeline and not self.cycle.response_started if in_body else self._is_answered()
        if free and not self.transport.is_closing():
            self.transport.write(self._encoded(problem))
        if in_body:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _encoded(self, problem: HttpProblem) -> bytes:
        body = problem.body()
        headers = [*self.server_state.default_headers, *problem.raw_headers(), (b"connection", b"close")]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        return b"".join([STATUS_LINE[problem.status], *lines, b"content-length: %d\r\n\r\n" % len(body), body])

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete
