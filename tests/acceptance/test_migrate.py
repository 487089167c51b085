"""Moving runs to another revision with the command line, against the real process: the example of the page."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.cli.exits import Exit
from tests.acceptance.test_apply import _examples, _prints
from tests.acceptance.test_cli import Shell
from tests.chaos.appliance_process import Fleet, Replica
from tests.servers import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAD = "name: onboarding\ntrigger: {event: employee.hired}\nsteps:\n"
PAPERS = "  - {id: papers, human_task: {title: Papers}}\n"
BADGE = "  - {id: badge, human_task: {title: Badge}}\n"
WELCOME = "  - {id: welcome, action: log, with: {message: welcome}}\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica() -> AsyncIterator[Replica]:
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as folder:
        async with Fleet(Path(folder)) as fleet:
            yield await fleet.start()


@pytest.fixture
def shell(replica: Replica) -> Shell:
    return Shell(replica)


async def test_the_example_of_the_page_prints_what_it_says(shell: Shell, replica: Replica) -> None:
    path = replica.folder / "onboarding.yaml"
    path.write_text(HEAD + PAPERS + BADGE + WELCOME, "utf-8")
    await shell.run("apply", "onboarding.yaml")
    for _ in range(3):
        await shell.run("publish", "employee.hired", "name=Ann")
    first, *_ = await tasks(shell, "papers", 3)
    await shell.run("tasks", "answer", first["id"], "--by", "bob")
    await tasks(shell, "badge", 1)
    path.write_text(HEAD + PAPERS + WELCOME, "utf-8")
    await shell.run("apply", "onboarding.yaml")
    examples = _examples("runs migrate")
    await _prints(shell, examples)
    await _prints(shell, examples)
    for task in await tasks(shell, "papers", 2):
        await shell.run("tasks", "answer", task["id"], "--by", "bob")

    async def over() -> bool:
        found = (await shell.json("runs", "list", "--workflow", "onboarding", "--status", "succeeded"))["items"]
        return [run["revision"] for run in found] == [2, 2]

    await wait_until(over, "the two runs that were moved", 20)
    again = await shell.json("runs", "migrate", "onboarding")
    assert (again["moved"], [each["runs"] for each in again["stayed"]]) == (0, [1])
    assert "there is no workflow 'nothing'" in await shell.run("runs", "migrate", "nothing", code=Exit.NOT_FOUND)


async def tasks(shell: Shell, step: str, number: int) -> list[dict[str, Any]]:
    """The open tasks of a step, once there are so many."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        found[:] = [t for t in (await shell.json("tasks", "list", "--status", "open"))["items"] if t["step"] == step]
        return len(found) == number

    await wait_until(there, f"{number} tasks of {step}", 20)
    return found
