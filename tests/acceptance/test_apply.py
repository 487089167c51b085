"""Definitions from files and through the API against the real process: the documents' examples, and who owns what."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.cli.exits import Exit
from tests.acceptance.test_cli import Shell
from tests.chaos.appliance_process import Fleet, Replica
from tests.servers import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OWN = "name: own\ntrigger: {event: own}\nsteps: [{id: note, action: log, with: {message: hi}}]\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica() -> AsyncIterator[Replica]:
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as folder:
        templates = Path(folder, "config", "templates")
        templates.mkdir(parents=True)  # noqa: ASYNC240
        for name in ("welcome_email", "united_welcome", "podcast_welcome", "generic_welcome", "engagement_nudge"):
            (templates / f"{name}.txt").write_text("Subject: x\n\nx\n", "utf-8")
        async with Fleet(Path(folder)) as fleet:
            fleet.workflow("own", OWN)
            yield await fleet.start()


@pytest.fixture
def shell(replica: Replica) -> Shell:
    return Shell(replica)


def _examples(command: str) -> Any:
    """The blocks of a command's section."""
    section = PAGE.partition(f"### `appliance {command}")[2].partition("\n### ")[0]
    return iter(re.findall(r"^```(\w*)\n(.*?)^```", section, re.MULTILINE | re.DOTALL))


async def _prints(shell: Shell, examples: Any, code: int = 0) -> None:
    """The next command of the page prints what stands below it, whatever the ids of runs are."""
    (_, command), (_, printed) = next(examples), next(examples)
    out = await shell.run(*shlex.split(command)[1:], code=code)
    assert ID.sub("ID", out) == ID.sub("ID", printed), command


async def test_the_examples_of_the_documents_print_what_they_say(shell: Shell, replica: Replica) -> None:
    examples = _examples("apply")
    file = replica.folder / "flows" / "order.yaml"
    file.parent.mkdir()
    _, text = next(examples)
    file.write_text(text, "utf-8")
    await _prints(shell, examples)
    await shell.run("publish", "order.paid", "number=17")

    async def waits() -> bool:
        return bool((await shell.json("tasks", "list"))["items"])

    await wait_until(waits, "the order to wait", 20)
    file.write_text(text.replace("{after: 2d}", "{after: 3d}"), "utf-8")
    await _prints(shell, examples, code=1)
    await _prints(shell, examples)
    assert (await shell.json("workflows", "show", "order"))["revision"] == 1
    await shell.run("apply", "flows")
    await shell.run("diff", "flows")
    await _prints(shell, _examples("workflows rollback"))


async def test_every_dialect_is_applied_and_is_the_same_afterwards(shell: Shell) -> None:
    folder = str(ROOT / "tests" / "data" / "dialects")
    applied = (await shell.json("apply", folder))["items"]
    assert {(item["change"], item["done"]) for item in applied} == {("create", True)}
    assert await shell.run("diff", folder) == ""
    again = (await shell.json("apply", folder))["items"]
    assert {(item["change"], item["done"]) for item in again} == {("none", False)}
    exported = await shell.run("export", applied[0]["name"], "--out", "back.yaml")
    assert exported == ""
    assert await shell.run("diff", "back.yaml") == ""


async def test_of_two_editors_the_second_is_told(shell: Shell, replica: Replica) -> None:
    path = replica.folder / "edited.yaml"
    path.write_text(OWN.replace("own", "edited"), "utf-8")
    await shell.run("apply", "edited.yaml")
    async with replica.client() as http:
        seen = await http.get("/api/v1/workflows/edited")
        definition = seen.json()["definition"]
        for author, status in (("ann", 200), ("bob", 412)):
            definition["description"] = author
            headers = {"If-Match": seen.headers["etag"]}
            answer = await http.put("/api/v1/workflows/edited", json=definition, headers=headers)
            assert answer.status_code == status, answer.text
        now = (await http.get("/api/v1/workflows/edited")).json()
        assert (answer.json()["etag"], answer.json()["revision"]) == (now["etag"], 2)
        assert now["definition"]["description"] == "ann"
        assert (await http.put("/api/v1/workflows/edited", json=definition)).status_code == 428
        assert (await http.post("/workflows", json=now["definition"])).status_code == 201
        difference = await http.get("/api/v1/workflows/edited/diff?from=1&to=2")
        assert "+description: ann" in difference.text.splitlines()
        assert (await http.get("/api/v1/workflows/edited/revisions/1")).json()["in_force"] is False


async def test_what_a_file_owns_is_refused_with_its_name(shell: Shell, replica: Replica) -> None:
    (replica.folder / "mine").mkdir()
    (replica.folder / "mine" / "own.yaml").write_text(OWN.replace("hi", "bye"), "utf-8")
    (replica.folder / "mine" / "other.yaml").write_text(OWN.replace("own", "other"), "utf-8")
    refused = await shell.run("apply", "mine", code=Exit.NOT_FOUND)
    assert "mine/own.yaml: the workflow 'own' is defined by the file workflows/own.yaml: change it there" in refused
    assert "nothing was changed" in refused
    await shell.run("workflows", "show", "other", code=Exit.NOT_FOUND)
    for verb in ("disable", "enable", "rollback"):
        assert "workflows/own.yaml" in await shell.run("workflows", verb, "own", code=Exit.NOT_FOUND)


async def test_pruning_disables_what_is_the_apis_only(shell: Shell, replica: Replica) -> None:
    (replica.folder / "kept.yaml").write_text(OWN.replace("own", "kept"), "utf-8")
    (replica.folder / "odd.yaml").write_text(OWN.replace("own", "odd"), "utf-8")
    await shell.run("apply", "kept.yaml", "odd.yaml")
    planned = (await shell.json("apply", "kept.yaml", "--prune", "--dry-run"))["items"]
    assert {"odd", "order"} <= {item["name"] for item in planned if item["change"] == "disable" and not item["done"]}
    await shell.run("apply", "kept.yaml", "--prune")
    assert [item["name"] for item in (await shell.json("workflows", "list"))["items"]] == ["kept", "own"]
    await shell.run("apply", "odd.yaml")
    assert json.loads(await shell.run("workflows", "show", "odd", "--json"))["enabled"] is True
