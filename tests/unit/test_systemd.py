"""Notifications to the service manager, received as systemd would."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.observe.systemd import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def test_tells_its_states(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("serving on port 1")
    notifier.status("draining")
    notifier.stopping(20.5)
    notifier.alive()
    assert [manager.recv(100) for _ in range(4)] == [
        b"READY=1\nSTATUS=serving on port 1",
        b"STATUS=draining",
        b"STOPPING=1\nEXTEND_TIMEOUT_USEC=20500000",
        b"WATCHDOG=1",
    ]


def test_says_how_often_the_watchdog_wants_to_hear_of_it() -> None:
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_interval_s == 15
    assert Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_interval_s == 15
    assert Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog_interval_s is None
    assert Notifier({}).watchdog_interval_s is None


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_is_silent_without_a_manager(environ: dict[str, str]) -> None:
    Notifier(environ).ready("serving")
