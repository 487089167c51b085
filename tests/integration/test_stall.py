"""The watchdog on a real event loop that is really blocked."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from appliance.observe.metrics import METRICS
from appliance.observe.stall import EXIT_STATUS, StallWatchdog
from tests.servers import wait_until


async def block(until: threading.Event) -> None:
    assert until.wait(30)


async def run_named(until: threading.Event) -> None:
    await asyncio.create_task(block(until), name="action sms run 1")


class Ends:
    """Stands in for os._exit, and lets the loop go on."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.status: int | None = None

    def __call__(self, status: int) -> None:
        self.status = status
        self.called.set()


async def test_names_what_blocks_the_loop_and_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends()
    watchdog = StallWatchdog(warning_s=0.02, limit_s=0.1, end=ends)
    stalls = METRICS.loop_stalls._value.get()
    watchdog.start()
    try:
        await run_named(ends.called)
    finally:
        watchdog.stop()
    assert ends.status == EXIT_STATUS
    assert METRICS.loop_stalls._value.get() == stalls + 1
    warning, end = caplog.records
    assert "by action sms run 1" in warning.getMessage()
    assert "in block" in warning.getMessage()
    assert "the process ends" in end.getMessage()


async def test_notices_that_the_loop_is_back(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = StallWatchdog(warning_s=0.02, limit_s=60, end=Ends())
    noticed = threading.Event()

    def wait_for_the_stall() -> None:
        while not watchdog.stalled:
            os.sched_yield()
        noticed.set()

    watcher = threading.Thread(target=wait_for_the_stall)
    watchdog.start()
    watcher.start()
    try:
        await block(noticed)  # blocked until the watchdog has seen it
        await wait_until(lambda: not watchdog.stalled, "the stall is over")
    finally:
        watchdog.stop()
        watcher.join()
    assert caplog.records[-1].getMessage() == "the event loop runs again"


async def test_a_loop_that_runs_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends()
    watchdog = StallWatchdog(warning_s=0.5, limit_s=1, end=ends)
    beats = METRICS.loop_lag_seconds._sum.get
    watchdog.start()
    before = beats()
    await wait_until(lambda: beats() > before, "a heartbeat")
    watchdog.stop()
    assert not watchdog.stalled
    assert ends.status is None
    assert not caplog.records
