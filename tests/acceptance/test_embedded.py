"""The embedded servers die with their process, whatever ends it, and start again on the data that it left."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.datadir import DataDir
from appliance.embedded import postgres as postgres_module
from appliance.embedded import server as server_module
from appliance.embedded.binaries import find_postgres, find_valkey
from appliance.embedded.postgres import EmbeddedPostgres
from appliance.embedded.valkey import EmbeddedValkey
from appliance.errors import ConfigurationError
from tests.acceptance.embedded_host import exchange
from tests.servers import wait_until

ROOT = Path(__file__).parents[2]
NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


@dataclass
class Host:
    """A running ``embedded_host``."""

    process: asyncio.subprocess.Process
    report: dict[str, Any]


def python_for(user: int | None) -> str:
    """An interpreter like ours that the user may run (ours may lie in root's home)."""
    if user is None:
        return sys.executable
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([candidate, "-c", ""], user=user, group=user, extra_groups=[], check=True)
            return candidate
    pytest.skip(f"user {user} can't run Python {sys.version_info.minor} here")


def owner(path: Path | str) -> int:
    return Path(path).stat().st_uid


async def start_host(data: Path, *arguments: str, user: int | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(python_for(user), "-m", "tests.acceptance.embedded_host", str(data), *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": sysconfig.get_path("platlib")},
    )


@contextlib.asynccontextmanager
async def hosting(data: Path, *arguments: str, user: int | None = None) -> AsyncIterator[Host]:
    process = await start_host(data, *arguments, user=user)
    try:
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line, "the host ended before its servers answered"
        yield Host(process, json.loads(line))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await wait_until(lambda: nobody_serves(data), "the servers are gone")


def nobody_serves(data: Path) -> bool:
    """Whether no process holds a lock that the servers inherit."""
    return all(is_free(data / name) for name in ("valkey.lock", "postgres.lock", "appliance.lock"))


def is_free(lock: Path) -> bool:
    if not lock.exists():
        return True
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A folder that every user can reach (pytest's own are closed to others)."""
    path = Path(tempfile.mkdtemp(prefix="appliance-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_the_servers_die_with_the_process_and_start_on_its_data(tmp_path: Path, number: signal.Signals) -> None:
    async with hosting(tmp_path, "kept") as host:
        assert not nobody_serves(tmp_path)
        host.process.send_signal(number)
        await host.process.wait()
        await wait_until(lambda: nobody_serves(tmp_path), "no server holds its lock", timeout=5)
        await wait_until(lambda: not any(map(is_alive, host.report["pids"])), "no server process is left", timeout=5)
    async with hosting(tmp_path) as host:
        assert host.report["found"] == ["kept", "kept"]


async def test_starts_at_once_after_a_kill(tmp_path: Path) -> None:
    """The successor may come before the orphans are gone: it waits for them instead of failing."""
    async with hosting(tmp_path, "kept") as host:
        host.process.kill()
        await host.process.wait()
        async with hosting(tmp_path) as successor:
            assert successor.report["found"] == ["kept", "kept"]


async def test_starts_after_a_kill_in_the_middle_of_the_first_start(tmp_path: Path) -> None:
    process = await start_host(tmp_path)
    await wait_until((tmp_path / "postgres.new" / "base").exists, "initdb is at work")
    process.kill()
    await process.wait()
    async with hosting(tmp_path) as host:
        assert host.report["found"] == [None, None]


async def test_ctrl_c_in_the_terminal_does_not_reach_the_servers(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        groups = {os.getpgid(pid) for pid in (host.process.pid, *host.report["pids"])}
        assert len(groups) == 3


async def test_a_held_data_directory_is_refused_with_the_holder(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        with pytest.raises(ConfigurationError, match=f"held by another appliance .process {host.process.pid}."):
            DataDir.open(tmp_path)


@as_root
async def test_root_does_not_run_postgres_as_root(tmp_path: Path) -> None:
    assert tmp_path.parents[1].stat().st_mode & 0o077 == 0  # closed to others on the way, like /root
    async with hosting(tmp_path) as host:
        assert [owner(f"/proc/{pid}") for pid in host.report["pids"]] == [0, NOBODY]
    assert owner(tmp_path / "postgres") == NOBODY


@as_root
async def test_an_ordinary_user_can_run_both(public_path: Path) -> None:
    data = public_path / "data"
    data.mkdir()
    os.chown(data, NOBODY, NOBODY)
    async with hosting(data, "kept", user=NOBODY) as host:
        assert [owner(f"/proc/{pid}") for pid in host.report["pids"]] == [NOBODY, NOBODY]
    async with hosting(data, user=NOBODY) as host:
        assert host.report["found"] == ["kept", "kept"]


@as_root
async def test_programs_that_nobody_can_reach_are_copied(
    tmp_path: Path, public_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = find_postgres().parents[1]
    if not wheel.with_name(f"{wheel.name}.libs").is_dir():
        pytest.skip("PostgreSQL does not come from the wheel here")
    for source in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(source, tmp_path / source.name, copy_function=os.link)
    monkeypatch.setattr(postgres_module, "_COPY_TO", public_path / "cache")
    for _ in range(2):  # the second start finds the copy
        with DataDir.open(tmp_path / "data") as datadir:
            async with EmbeddedPostgres(datadir, bin_dir=tmp_path / wheel.name / "pginstall/bin", durable=False):
                pass
    assert len(list((public_path / "cache").iterdir())) == 1


async def test_a_server_that_ends_is_started_again_on_its_data(tmp_path: Path) -> None:
    with DataDir.open(tmp_path) as datadir:
        valkey, postgres = EmbeddedValkey(datadir), EmbeddedPostgres(datadir, durable=False)
        async with valkey, postgres:
            await exchange(valkey.url, postgres.url, "kept")
            for server in (valkey, postgres):
                assert server.process is not None
                killed = server.process
                os.kill(killed.pid, signal.SIGKILL)
                await killed.exited
                await wait_until(server.answers, f"{server.name} answers again")
            assert await exchange(valkey.url, postgres.url, None) == ["kept", "kept"]
    assert nobody_serves(tmp_path)


async def test_a_server_that_keeps_ending_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_MAX_RESTARTS", 1)
    reasons: list[str] = []
    with DataDir.open(tmp_path) as datadir:
        async with EmbeddedValkey(datadir, on_failure=reasons.append) as server:
            killed: set[int] = set()

            def kill() -> bool:
                if server.process is not None and server.process.pid not in killed:
                    killed.add(server.process.pid)
                    os.kill(server.process.pid, signal.SIGKILL)
                return bool(reasons)

            await wait_until(kill, "the server is given up")
            assert len(killed) == 2
    assert reasons[0].startswith("the embedded valkey ended 2 times")


async def test_a_start_that_fails_says_what_the_server_said(tmp_path: Path) -> None:
    with DataDir.open(tmp_path) as datadir:
        (tmp_path / "valkey" / "appendonlydir").mkdir(parents=True)
        (tmp_path / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("rubbish\n")
        with pytest.raises(ConfigurationError, match=r"did not start .exit status 1.*(?s:.)*AOF manifest"):
            async with EmbeddedValkey(datadir):
                pass
    assert nobody_serves(tmp_path)


async def test_a_half_made_cluster_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    (tmp_path / "postgres").mkdir()
    with DataDir.open(tmp_path) as datadir:
        async with EmbeddedPostgres(datadir, durable=False) as server:
            assert await server.answers()
    assert not (tmp_path / "postgres.new").exists()


async def test_a_long_path_still_gives_sockets(tmp_path: Path) -> None:
    with DataDir.open(tmp_path / ("long" * 25)) as datadir:
        async with EmbeddedValkey(datadir) as valkey, EmbeddedPostgres(datadir, durable=False) as postgres:
            assert await exchange(valkey.url, postgres.url, None) == [None, None]


def test_a_program_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"/bin/true: expected a server of version 7 or later, got None"):
        find_valkey(Path("/bin/true"))


def test_data_of_another_version_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no postgres of version 9, which wrote the data"):
        find_postgres(major=9)
