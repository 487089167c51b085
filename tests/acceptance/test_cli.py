"""The command line against the real process, found through its data folder alone."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.cli.exits import Exit
from tests.chaos.appliance_process import API_KEY, Fleet, Replica
from tests.servers import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOTE = """
name: note
trigger: {event: form_submitted, when: {path: template_id, op: "==", value: note}}
steps:
  - {id: write, action: log, with: {message: "{{ event.data.text }}"}}
"""
SLOW = """
name: slow
trigger: {event: form_submitted, when: {path: template_id, op: "==", value: slow}}
steps:
  - {id: go, wait: {event: go}, forever: true}
  - {id: write, action: log, with: {message: "{{ steps.go.output.data.by }}"}}
"""
REFUSED = """
name: refused
trigger: {event: order.refused}
steps:
  - {id: call, action: webhook, with: {url: "http://10.0.0.1/"}, retry: {max_attempts: 1}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica() -> AsyncIterator[Replica]:
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as folder:
        async with Fleet(Path(folder)) as fleet:
            fleet.workflow("note", NOTE)
            fleet.workflow("slow", SLOW)
            fleet.workflow("refused", REFUSED)
            yield await fleet.start()


class Shell:
    """Runs commands in the folder of the process."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._environ = {**os.environ, "APPLIANCE_API_KEY": API_KEY}

    async def run(self, *arguments: str, code: int = 0, stdin: str = "", **environ: str) -> str:
        """The standard output of a command, which must end with ``code``; what it complains about, if that isn't 0."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance", *arguments),
            cwd=self._replica.folder,
            env={**self._environ, **environ},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(stdin.encode())
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{out.decode()}\n{err.decode()}"
        assert "Traceback" not in err.decode()
        return out.decode() if code in (0, 1) else err.decode()

    async def json(self, *arguments: str, code: int = 0, stdin: str = "") -> Any:
        """The JSON that a command prints."""
        return json.loads(await self.run(*arguments, "--json", code=code, stdin=stdin))


@pytest.fixture
def shell(replica: Replica) -> Shell:
    return Shell(replica)


async def test_a_form_from_submission_to_ledger(shell: Shell) -> None:
    event_id = (await shell.json("submit", "note", "text=hello"))["id"]

    async def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await shell.json("runs", "list", "--event-id", event_id))["items"]
        return found if found and found[0]["status"] == "succeeded" else []

    (run,) = await wait_until(runs, "the run succeeds", 20)
    shown = await shell.run("runs", "show", run["id"])
    assert "write" in shown
    assert "succeeded" in shown
    event = await shell.run("events", "show", event_id)
    assert '{"text": "hello"}' in event
    assert run["id"] in event
    assert event_id in await shell.run("events", "list", "--type", "form_submitted", "--outcome", "handled")
    explained = await shell.run("explain", event_id)
    assert [line.split("  ")[0] for line in explained.splitlines()[1:]] == ["note", "refused", "slow"]
    ledger = await shell.run("ledger", "--check")
    assert ledger.splitlines()[-1].split() == ["difference", "0"]


async def test_explain_of_a_pasted_event_starts_nothing(shell: Shell) -> None:
    before = await shell.json("ledger")
    event = json.dumps({"type": "form_submitted", "template_id": "other", "data": {}})
    verdicts = (await shell.json("explain", "-", "--workflow", "note", stdin=event))["verdicts"]
    assert [(v["workflow"], v["matched"]) for v in verdicts] == [("note", False)]
    assert "other" in verdicts[0]["reason"]
    assert (await shell.json("ledger"))["accepted"] == before["accepted"]


async def test_dead_letters_can_be_listed_redriven_and_discarded(shell: Shell) -> None:
    event_id = (await shell.json("publish", "order.refused", "n=1"))["id"]

    async def letters() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await shell.json("dlq", "list", "--event-id", event_id))["items"]
        return found

    (letter,) = await wait_until(letters, "the step is a dead letter", 20)
    assert "10.0.0.1" in (await shell.run("dlq", "show", letter["id"]))
    await shell.run("dlq", "redrive", "--all")
    assert "error: " in await shell.run("dlq", "discard", letter["id"], code=Exit.NOT_FOUND)
    (again,) = await wait_until(letters, "it failed again", 20)
    assert again["id"] != letter["id"]
    await shell.run("dlq", "discard", again["id"])
    assert await letters() == []
    (run,) = (await shell.json("runs", "list", "--event-id", event_id))["items"]
    assert "error: " in await shell.run("runs", "cancel", run["id"], code=Exit.NOT_FOUND)


async def test_the_same_id_published_twice_is_one_event(shell: Shell) -> None:
    first = await shell.json("publish", "quiet", "--id", "p-1")
    second = await shell.json("publish", "quiet", "--id", "p-1")
    assert (first["status"], second["status"]) == ("accepted", "duplicate")
    assert first["uid"] == second["uid"]


async def test_what_is_not_there_is_said_in_one_line(shell: Shell) -> None:
    for arguments in (("runs", "show", "x"), ("events", "show", "x/../y"), ("dlq", "show", "x"), ("explain", "x")):
        error = await shell.run(*arguments, code=Exit.NOT_FOUND)
        assert error.startswith("error: ")
        assert error.count("\n") == 1


async def test_a_wrong_key_is_denied(shell: Shell) -> None:
    assert (await shell.run("runs", "list", "--api-key", "wrong", code=Exit.DENIED)).startswith("error: ")


async def test_the_doctor_finds_everything_well(shell: Shell) -> None:
    await shell.run("doctor", "--quick")
    report = await shell.json("doctor", "--config-dir", "../config")
    assert report["ok"], report
    checks = {finding["check"]: finding["state"] for finding in report["findings"]}
    assert checks["process"] == checks["settings"] == checks["plugins"] == checks["data dir"] == "ok"


async def test_the_doctor_is_quick_to_say_that_nothing_runs(shell: Shell) -> None:
    await shell.run("doctor", "--quick", "--url", "http://127.0.0.1:1", code=Exit.FAILED)


async def test_a_run_is_paused_resumed_rerun_and_its_event_replayed(shell: Shell) -> None:
    event = (await shell.json("submit", "slow", "text=hello"))["id"]

    async def run() -> Any:
        items = (await shell.json("runs", "list", "--event-id", event))["items"]
        return items[0] if items and items[0]["status"] == "waiting" else None

    run_id = (await wait_until(run, "the run to wait", 15))["id"]
    assert "paused" in await shell.run("runs", "pause", run_id)
    assert "error: " in await shell.run("runs", "pause", run_id, code=Exit.NOT_FOUND)
    assert "waiting" in await shell.run("runs", "resume", run_id)
    assert "accepted" in await shell.run("events", "send", run_id, "go", "by=me")

    async def over() -> bool:
        return bool((await shell.json("runs", "show", run_id))["status"] == "succeeded")

    await wait_until(over, "the run's end", 15)
    assert await shell.run("runs", "rerun", run_id, "--from", "nothing", code=Exit.FAILED) == ""
    again = await shell.json("runs", "rerun", run_id, "--from", "write")
    assert again["run"] != run_id
    replayed = await shell.json("events", "replay", event, "--workflow", "slow", "--priority", "low")
    (new,) = replayed["items"][0]["runs"]
    assert json.loads(await shell.run("events", "replay", "--since", "1h", "--dry-run", "--json"))["events"] >= 1
    await shell.run("runs", "cancel", new["id"])
    shown = await shell.json("runs", "list", "--event-id", event)
    assert sorted(str(item["origin"]) for item in shown["items"]) == ["None", "replay", "rerun"]
