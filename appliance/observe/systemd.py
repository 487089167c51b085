"""Telling the service manager how we are (sd_notify(3)); does nothing when there is none.

With ``Type=notify`` systemd waits for READY=1, and with ``WatchdogSec=`` for a regular WATCHDOG=1.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends states to the datagram socket that ``NOTIFY_SOCKET`` names. Never raises: it is an aid, not a need."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # @ is Linux's abstract namespace
        usec = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_interval_s = int(usec) / 2_000_000 if usec.isdecimal() and mine else None
        """How often to call :meth:`alive` (half of what systemd allows), or None when nobody waits for it."""

    def ready(self, status: str) -> None:
        """The start is over."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """A line for ``systemctl status``."""
        self._send(f"STATUS={status}")

    def stopping(self, timeout_s: float) -> None:
        """The stop has begun and may take this long."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(timeout_s * 1_000_000)}")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._address)
        except OSError:
            return
