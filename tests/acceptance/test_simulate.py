"""Simulations over the history of a real process: what is in force would do what it did, and connects to nothing."""

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

from tests.chaos.appliance_process import API_KEY, Fleet, Replica
from tests.servers import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER = """
name: order
trigger: {event: order.paid, when: {path: data.total, op: ">=", value: 100}}
steps:
  - {id: note, action: log, with: {message: "{{ event.data.total }}"}}
  - id: each
    for_each: {items: "{{ event.data.lines }}", steps: [{id: line, action: log, with: {message: "{{ item }}"}}]}
  - {id: big, if: {path: event.data.total, op: ">", value: 500}, action: publish, with: {type: order.big, data: {}}}
"""
PATIENT = """
name: patient
trigger: {event: asked}
steps:
  - {id: go, wait: {event: told, match: {path: subject, value: "{{ event.subject }}"}}, deadline: {after: 8s}}
  - {id: call, workflow: {name: called, input: {by: "{{ steps.go.output.data.by }}"}}}
  - {id: note, action: log, with: {message: "{{ steps.call.output.by }} of {{ run.id }}"}}
"""
CALLED = """
name: called
trigger: manual
output: {by: "{{ input.by }}"}
steps: [{id: write, action: log, with: {message: "{{ input.by }}"}}]
"""
REFUSED = """
name: refused
trigger: {event: order.refused}
steps:
  - {id: call, action: webhook, with: {url: "http://10.0.0.1/"}, retry: {max_attempts: 1}, on_error: tidy}
  - {id: end_here, end: fine}
  - {id: tidy, action: log, with: {message: tidy}}
"""
MACHINE = """
name: refund
trigger: {event: refund.requested}
correlate: "{{ event.subject }}"
initial: pending
states:
  pending:
    on: {APPROVED: {next: paid, do: [{id: pay, action: log, with: {message: pay}}]}}
    deadline: {after: 8s, next: late}
  paid: {final: true}
  late: {final: true}
"""
GUARD = """
import os, socket

def guarded(real):
    def connect(sock, address, *more):
        if sock.family != socket.AF_UNIX and address[:2] != ("127.0.0.1", int(os.environ["ONLY_PORT"])):
            os.write(2, f"CONNECTED TO {address}".encode())
            os._exit(99)
        with open(os.environ["CONNECTED"], "a") as file:
            file.write("x")
        return real(sock, address, *more)
    return connect

socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica() -> AsyncIterator[Replica]:
    workflows = {"order": ORDER, "patient": PATIENT, "called": CALLED, "refused": REFUSED, "refund": MACHINE}
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as folder:
        async with Fleet(Path(folder)) as fleet:
            for name, text in workflows.items():
                fleet.workflow(name, text)
            yield await fleet.start()


async def shell(replica: Replica, *arguments: str, **environ: str) -> Any:
    """The JSON that a command prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appliance", *arguments, "--json"),
        cwd=replica.folder,
        env={**os.environ, "APPLIANCE_API_KEY": API_KEY, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"{arguments}: {process.returncode}\n{out.decode()}\n{err.decode()}"
    return json.loads(out)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def history(replica: Replica) -> Replica:
    """A process in which some things happened, all of which are over."""
    data = [{"total": total, "lines": ["a", "b"]} for total in (50, 100, 700)]
    events = [{"type": "order.paid", "data": each} for each in data]
    events += [{"type": "asked", "subject": name} for name in ("x", "y")]
    events += [{"type": "refund.requested", "subject": name} for name in ("x", "y")]
    events += [{"type": "order.refused"}]
    file = Path(replica.folder) / "events.json"
    file.write_text(json.dumps([{**event, "id": f"e{n}", "source": "/t"} for n, event in enumerate(events)]))
    await shell(replica, "publish", "--file", str(file))

    async def runs() -> list[Any]:
        return list((await shell(replica, "runs", "list", "--limit", "50"))["items"])

    async def parked() -> bool:
        return [run["status"] for run in await runs()].count("waiting") == 4

    async def over() -> bool:
        found = await runs()
        return len(found) == 8 and all(run["status"] in ("succeeded", "failed") for run in found)

    await wait_until(parked, "four runs wait", 20)
    await shell(replica, "publish", "told", "by=ann", "--subject", "x")
    await shell(replica, "publish", "APPROVED", "--subject", "x")
    await wait_until(over, "all runs are over", 40)
    return replica


@pytest.mark.parametrize(
    ("workflow", "same"), [("order", 2), ("patient", 2), ("refused", 1), ("refund", 2), ("called", 0)]
)
async def test_what_is_in_force_would_do_again_what_it_did(
    history: Replica, tmp_path: Path, workflow: str, same: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    guard = {"PYTHONPATH": str(tmp_path), "ONLY_PORT": history.url.rpartition(":")[2], "CONNECTED": str(tmp_path / "c")}
    before = await shell(history, "ledger")
    answer = await shell(history, "simulate", workflow, "--since", "1h", **guard)
    differing = [item for item in answer["items"] if item["verdict"] != "same"]
    assert differing == []
    assert answer["summary"]["same"] == same
    assert answer["events"] == 11
    assert (tmp_path / "c").exists(), "the guard was not there"
    assert await shell(history, "ledger") == before


async def test_a_draft_is_told_from_what_ran(history: Replica, tmp_path: Path) -> None:
    draft = tmp_path / "draft.yaml"
    draft.write_text(ORDER.replace("value: 100", "value: 50").replace("id: big", "id: large"))
    answer = await shell(history, "simulate", str(draft), "--since", "1h")
    assert answer["summary"] == {"same": 0, "different": 2, "new": 1, "gone": 0, "open": 0, "unmatched": 8}
    differences = sorted(item["differences"] for item in answer["items"] if item["verdict"] == "different")
    assert differences == [
        ["step big: was skipped, would not be reached", "step large: was not reached, would be skipped"],
        ["step big: was succeeded, would not be reached", "step large: was not reached, would be succeeded"],
    ]


SHAPED = {
    "rated": "rate_limit: {limit: 2, period: 1h}",
    "batched": "batch: {size: 2, timeout: 1s}",
    "last": "debounce: {period: 1s}",
    "paced": "throttle: {limit: 1, period: 1s}",
}


async def test_what_flow_control_did_it_would_do_again(history: Replica) -> None:
    """The last of the file: it adds to the history."""
    for name, said in SHAPED.items():
        steps = "steps: [{id: note, action: log, with: {message: x}}]"
        file = history.folder.parent / "config" / "workflows" / f"{name}.yaml"
        file.write_text(f"name: {name}\ntrigger: {{event: shaped}}\n{said}\n{steps}\n")

    async def loaded() -> bool:
        names = {item["name"] for item in (await shell(history, "workflows", "list"))["items"]}
        return names >= SHAPED.keys()

    async def over() -> bool:
        found = (await shell(history, "runs", "list", "--limit", "50"))["items"]
        runs = [run for run in found if run["workflow"] in SHAPED]
        return len(runs) == 3 + 2 + 3 + 3 and all(run["status"] in ("succeeded", "cancelled") for run in runs)

    await wait_until(loaded, "the workflows to be loaded", 20)
    for n in range(3):
        await shell(history, "publish", "shaped", f"n={n}")
    await wait_until(over, "all of them to be over", 40)
    expected: dict[str, dict[str, Any]] = {
        "rated": {"began": 2, "left_out": {"rate_limited": 1}},
        "batched": {"waited": 2, "joined": 1},
        "last": {"waited": 1, "left_out": {"debounced": 2}},
    }
    for name in SHAPED:
        answer = await shell(history, "simulate", name, "--since", "1h")
        assert [item for item in answer["items"] if item["verdict"] != "same"] == [], name
        assert answer["summary"]["same"] == 3
        assert {key: answer["flow"][key] for key in expected.get(name, {})} == expected.get(name, {}), name
