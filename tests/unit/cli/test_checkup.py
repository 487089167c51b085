"""The doctor's judgement of facts: each wrong one is named, with what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.cli.checkup import Finding, check_disk, check_process, check_store, check_stream
from appliance.store.inspection import StoreFacts
from appliance.stream.inspection import StreamFacts

STREAM = StreamFacts(
    server="Valkey",
    version="9.1.2",
    role="master",
    eviction_policy="noeviction",
    append_only=True,
    append_sync="everysec",
    used_memory_bytes=1,
    max_memory_bytes=0,
    clock_ahead_s=0.01,
)
STORE = StoreFacts(
    version="18.6",
    synchronous_commit="on",
    fsync="on",
    read_only=False,
    max_connections=100,
    connections=3,
    clock_ahead_s=-0.01,
    encoding="UTF8",
)


def _bad(findings: list[Finding]) -> list[tuple[str, str]]:
    assert all(f.advice for f in findings if f.state != "ok")
    return [(f.check, f.state) for f in findings if f.state != "ok"]


def test_good_servers_have_nothing_wrong() -> None:
    assert _bad(list(check_stream(STREAM))) == []
    assert _bad(list(check_store(STORE, 8))) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"eviction_policy": "allkeys-lru"}, ("eviction", "fail")),
        ({"eviction_policy": ""}, ("eviction", "fail")),
        ({"role": "slave"}, ("redis role", "fail")),
        ({"append_only": False}, ("append-only file", "warn")),
        ({"append_sync": "no"}, ("append-only file", "warn")),
        ({"used_memory_bytes": 90, "max_memory_bytes": 100}, ("redis memory", "warn")),
        ({"clock_ahead_s": -2.0}, ("redis clock", "warn")),
        ({"clock_ahead_s": 31.0}, ("redis clock", "fail")),
    ],
)
def test_each_wrong_fact_about_the_stream_server_is_found(change: dict[str, Any], wrong: tuple[str, str]) -> None:
    assert _bad(list(check_stream(replace(STREAM, **change)))) == [wrong]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"read_only": True}, ("postgresql writes", "fail")),
        ({"synchronous_commit": "off"}, ("commits", "warn")),
        ({"fsync": "off"}, ("commits", "fail")),
        ({"encoding": "SQL_ASCII"}, ("encoding", "fail")),
        ({"connections": 95}, ("connections", "warn")),
        ({"clock_ahead_s": 5.0}, ("postgresql clock", "warn")),
        ({"long_waiting": 3}, ("flow control", "warn")),
    ],
)
def test_each_wrong_fact_about_postgresql_is_found(change: dict[str, Any], wrong: tuple[str, str]) -> None:
    assert _bad(list(check_store(replace(STORE, **change), 8))) == [wrong]


@pytest.mark.parametrize(("free", "state"), [(1 << 40, "ok"), (1 << 30, "warn"), (1 << 20, "fail")])
def test_disk_space_is_judged(free: int, state: str) -> None:
    assert check_disk(free).state == state


def test_a_process_that_is_not_there_is_a_warning_and_one_that_is_not_ready_a_failure() -> None:
    assert check_process("http://x", None, "").state == "warn"
    assert check_process("http://x", 200, "").state == "ok"
    unready = check_process("http://x", 503, "PostgreSQL is away")
    assert unready.state == "fail"
    assert "PostgreSQL is away" in unready.text
