"""How the real process starts, refuses to start, stops and dies: whatever it accepted is accounted for afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli.exits import Exit
from tests.chaos.api import api_of, load
from tests.chaos.appliance_process import Fleet, Replica
from tests.chaos.invariants import Accepted
from tests.chaos.sinks import HttpSink
from tests.servers import wait_until

LOOPBACK = {"APPLIANCE_OUTBOUND__ALLOWED_NETWORKS": '["127.0.0.0/8"]'}


def _calling(url: str) -> str:
    return f"""
name: load
trigger: {{event: form_submitted, when: {{path: template_id, op: "==", value: load}}}}
steps:
  - id: call
    action: webhook
    with: {{url: "{url}", json: {{n: "{{{{ event.data.n }}}}"}}}}
    retry: {{max_attempts: 20, initial: 20ms, max: 200ms}}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: a Unix socket's path may have a hundred bytes only."""
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as name:
        yield Path(name)


async def _all_settled(replica: Replica, accepted: Accepted) -> None:
    """The ledger is balanced, and each accepted event has its outcome and exactly one successful run."""
    async with api_of(replica) as api:
        account = await api.balanced()
        assert account["accepted"] >= len(accepted)
        for event_id in accepted.ids:
            assert (await api.get(f"events/{event_id}"))["outcome"] == "handled"
            assert [run["status"] for run in await api.runs(event_id)] == ["succeeded"]


async def test_sigterm_under_load_finishes_and_loses_nothing(folder: Path) -> None:
    accepted = Accepted()
    async with HttpSink() as sink, Fleet(folder, settings=LOOPBACK) as fleet:
        fleet.workflow("load", _calling(sink.url))
        first = await fleet.start(name="one")
        traffic = asyncio.create_task(load(first, accepted, template_id="load", count=5000))
        await wait_until(lambda: len(accepted) >= 100, "traffic flows", 30)
        code = await first.stop()
        await traffic
        assert code == 0, first.tail()
        assert len(accepted) < 5000, "the stop came too late to prove anything"
        second = await fleet.start(name="one")
        await _all_settled(second, accepted)
        assert sink.repeated() == {}, "an orderly stop repeats nothing"
        assert len(sink.keys()) >= len(accepted)


async def test_kill_9_under_load_loses_nothing_and_repeats_with_the_same_key(folder: Path) -> None:
    accepted = Accepted()
    settings = {**LOOPBACK, "APPLIANCE_STREAM__LEASE": "2s"}
    async with HttpSink() as sink, Fleet(folder, settings=settings) as fleet:
        fleet.workflow("load", _calling(sink.url))
        first = await fleet.start(name="one")
        traffic = asyncio.create_task(load(first, accepted, template_id="load", count=5000))
        await wait_until(lambda: len(accepted) >= 100, "traffic flows", 30)
        await first.kill()
        await traffic
        second = await fleet.start(name="one")
        await _all_settled(second, accepted)
        assert all(request.key for request in sink.requests)
        in_flight = 256  # engine.concurrency: what one crash can repeat at most
        assert sum(count - 1 for count in sink.repeated().values()) <= in_flight


async def test_kill_9_while_the_action_runs_repeats_that_action_with_its_key(folder: Path) -> None:
    settings = {**LOOPBACK, "APPLIANCE_STREAM__LEASE": "2s"}
    async with HttpSink() as sink, Fleet(folder, settings=settings) as fleet:
        fleet.workflow("load", _calling(sink.url))
        first = await fleet.start(name="one")
        sink.gate.clear()
        async with api_of(first) as api:
            event_id = await api.submit("load", {"n": 1})
        await wait_until(lambda: sink.requests, "the action runs", 15)
        await first.kill()
        sink.gate.set()
        second = await fleet.start(name="one")
        async with api_of(second) as api:
            run = await api.finished_run(event_id)
            assert run["status"] == "succeeded"
            await api.balanced()
        assert len(sink.keys()) == 1
        assert len(sink.requests) <= 2


async def test_the_api_key_that_it_makes_is_not_logged(folder: Path) -> None:
    async with Fleet(folder, settings={"APPLIANCE_API_KEY": ""}) as fleet:
        note = (
            "name: n\ntrigger: {event: x}\nsteps: [{id: a, action: log, with: {message: 'it is {{ event.data.k }}'}}]"
        )
        fleet.workflow("note", note)
        replica = await fleet.start()
        key = json.loads((replica.data_dir / "secrets.json").read_bytes())["api_key"]
        async with replica.client(api_key=key) as client:
            accepted = await client.post("/api/v1/events", json={"type": "x", "data": {"k": key}})
            assert accepted.status_code == 202, accepted.text
        await wait_until(lambda: "it is [secret]" in replica.log, "the message is logged", 15)
        assert key not in replica.log


async def test_it_can_be_stopped_and_started_at_rest(folder: Path) -> None:
    async with Fleet(folder) as fleet:
        first = await fleet.start(name="one", options=("--log-format", "json"))
        async with api_of(first) as api:
            event_id = await api.submit("nobody-listens")
            await api.balanced()
        assert await first.stop() == 0
        assert not (first.data_dir / "appliance.json").exists()
        for line in first.log.splitlines():
            assert json.loads(line), "every line of a JSON log is JSON"
        second = await fleet.start(name="one")
        async with api_of(second) as api:
            assert (await api.get(f"events/{event_id}"))["outcome"] == "unmatched"
            assert (await api.balanced())["accepted"] == 1
        second.signal(signal.SIGINT)
        assert await second.ended() == 0


async def test_a_data_folder_has_one_process(folder: Path) -> None:
    async with Fleet(folder) as fleet:
        first = await fleet.start(name="one")
        second = await fleet.start(name="one", ready=False)
        assert await second.ended() == Exit.CONFIGURATION
        assert f"process {first.pid}" in second.log
        assert "Traceback" not in second.log
        async with api_of(first) as api:
            await api.balanced()


async def test_a_wrong_setting_is_named_with_its_place(folder: Path) -> None:
    async with Fleet(folder) as fleet:
        (fleet.config_dir / "appliance.yaml").write_text("http:\n  prot: 80\n")
        replica = await fleet.start(ready=False)
        assert await replica.ended() == Exit.CONFIGURATION
        assert "appliance.yaml:2" in replica.log
        assert "prot" in replica.log
        assert "Traceback" not in replica.log
        assert not replica.data_dir.exists()


async def test_a_broken_workflow_does_not_stop_the_others_and_is_named(folder: Path) -> None:
    async with Fleet(folder) as fleet:
        fleet.workflow("good", "name: good\ntrigger: {event: x}\nsteps: [{id: a, action: log, with: {message: hi}}]\n")
        fleet.workflow("bad", "name: bad\ntrigger: {event: x}\nsteps:\n  - {id: a, acton: log}\n")
        replica = await fleet.start()
        assert "bad.yaml:4" in replica.log
        assert "acton" in replica.log
        async with api_of(replica) as api:
            names = [workflow["name"] for workflow in (await api.get("workflows"))["items"]]
            assert names == ["good"]


async def test_ephemeral_leaves_nothing(folder: Path) -> None:
    async with Fleet(folder) as fleet:
        environ = {"TMPDIR": str(folder / "tmp")}
        (folder / "tmp").mkdir()
        replica = await fleet.start(options=("--ephemeral", "--port", "0"), settings=environ, ready=False)
        await wait_until(lambda: list((folder / "tmp").glob("*/appliance.json")), "it serves", 60)
        assert await replica.stop() == 0, replica.tail()
        assert list((folder / "tmp").iterdir()) == []
        assert not replica.data_dir.exists()


@pytest.mark.parametrize("command", [("version",), ("validate",), ("plugins",), ("schema",), ("doctor",)])
async def test_local_commands_work_without_a_process(folder: Path, command: tuple[str, ...]) -> None:
    shutil.copytree(Path(__file__).parents[2] / "config", folder / "config")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appliance", *command, "--json"),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    assert json.loads(out)


async def test_a_signal_during_the_start_stops_in_order_and_leaves_nothing(folder: Path) -> None:
    """At whatever moment of the start it comes."""
    for moment in ("postgres", "migrat", "loaded"):
        log = folder / "log.txt"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "appliance", "run", "--ephemeral", "--port", "0", "--log-format", "json",
                stderr=output, env={**os.environ, "TMPDIR": str(folder)}, start_new_session=True,
            )  # fmt: skip
        await wait_until(lambda: moment in log.read_text(), f"the start says {moment}", 30)  # noqa: B023 - awaited here
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0, log.read_text()
        assert [name for name in os.listdir(folder) if name.startswith("appliance-ephemeral-")] == []
