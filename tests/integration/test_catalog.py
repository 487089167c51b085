"""The catalog against a real database: files, the API, other replicas, and what breaks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.catalog import Catalog
from appliance.errors import Conflict, DefinitionError, NotFound, StoreUnavailable
from appliance.plugin import Action, Params
from appliance.settings import StoreSettings
from appliance.store.definitions import DefinitionStore
from appliance.store.pool import Pool, open_pool


class Note(Params):
    text: str


async def note(params: Note, ctx: Any) -> None:
    return None


ACTIONS = {"note": Action(params=Note, run=note)}
EVENT = {"type": "t", "data": {}}


def definition(name: str = "one", text: str = "a", **more: Any) -> dict[str, Any]:
    steps = [{"id": "s", "action": "note", "with": {"text": text}}]
    return {"name": name, "trigger": {"event": "t"}, "steps": steps, **more}


@pytest_asyncio.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database_url, StoreSettings())
    yield pool
    await pool.close()


class Replica:
    """A catalog with a configuration folder of its own."""

    def __init__(self, pool: Pool, folder: Path, actions: dict[str, Action] | None = None) -> None:
        self.folder = folder
        self.catalog = Catalog(DefinitionStore(pool), ACTIONS if actions is None else actions, folder)
        self._ticks = 0

    def write(self, file: str, text: str) -> None:
        path = self.folder / "workflows" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self._ticks += 1  # two writes within one tick of the clock must not look the same
        os.utime(path, ns=(self._ticks, self._ticks))

    def remove(self, file: str) -> None:
        (self.folder / "workflows" / file).unlink()

    def matching(self) -> list[str]:
        return [rule.workflow for rule in self.catalog.matcher.match(EVENT)]


@pytest.fixture
def replica(pool: Pool, tmp_path: Path) -> Replica:
    return Replica(pool, tmp_path / "config")


def yaml(name: str = "one", text: str = "a", event: str = "t") -> str:
    return (
        f"name: {name}\ntrigger: {{event: {event}}}\nsteps:\n  - id: s\n    action: note\n    with: {{text: {text}}}\n"
    )


async def test_files_become_revisions(replica: Replica) -> None:
    replica.write("b.yaml", yaml("two"))
    replica.write("sub/a.yaml", yaml("one"))
    await replica.catalog.load()
    assert sorted(replica.matching()) == ["one", "two"]
    revision = await replica.catalog.get("one")
    assert (revision.number, revision.workflow.definition) == (1, definition("one"))
    assert [r.workflow.name for r in replica.catalog.workflows()] == replica.matching()


async def test_a_changed_file_is_a_new_revision_and_the_old_one_still_loads(replica: Replica, pool: Pool) -> None:
    replica.write("a.yaml", yaml(text="a"))
    await replica.catalog.load()
    first = await replica.catalog.get("one")
    replica.write("a.yaml", yaml(text="b"))
    await replica.catalog.refresh()
    second = await replica.catalog.get("one")
    assert (second.number, second.workflow_id) == (2, first.workflow_id)
    [rule] = replica.catalog.matcher.match(EVENT)
    assert rule.payload is second
    restarted = Replica(pool, replica.folder)
    await restarted.catalog.load()
    old = await restarted.catalog.revision(first.id)
    assert (old.number, old.workflow.definition) == (1, first.workflow.definition)
    replica.write("a.yaml", yaml(text="a"))
    await replica.catalog.refresh()
    assert (await replica.catalog.get("one")).number == 1


async def test_what_has_not_changed_changes_nothing(replica: Replica, pool: Pool) -> None:
    replica.write("a.yaml", yaml())
    await replica.catalog.load()
    store = DefinitionStore(pool)
    version = await store.version()
    replica.write("a.yaml", yaml() + "# a comment\n")
    await replica.catalog.refresh()
    await Replica(pool, replica.folder).catalog.load()
    assert await store.version() == version
    assert (await replica.catalog.get("one")).number == 1


async def test_a_broken_file_leaves_the_last_good_revision(
    replica: Replica, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    replica.write("a.yaml", yaml())
    await replica.catalog.load()
    replica.write("a.yaml", yaml().replace("text:", "txt:"))
    await replica.catalog.refresh()
    assert replica.matching() == ["one"]
    [problem] = [p for p in replica.catalog.broken["a.yaml"].problems if "unknown" in p.message]
    assert (problem.line, problem.column, problem.key) == (6, 12, "steps[0].with.txt")
    assert (
        f"{replica.folder}/workflows/a.yaml:6:12: steps[0].with.txt: unknown key 'txt'; did you mean text?"
        in caplog.text
    )
    restarted = Replica(pool, replica.folder)
    await restarted.catalog.load()
    assert restarted.matching() == ["one"]
    replica.write("a.yaml", yaml(text="mended"))
    await replica.catalog.refresh()
    assert not replica.catalog.broken
    assert (await replica.catalog.get("one")).number == 2


async def test_a_removed_or_renamed_workflow_is_disabled(
    replica: Replica, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    replica.write("a.yaml", yaml("one"))
    replica.write("b.yaml", yaml("two"))
    await replica.catalog.load()
    replica.remove("b.yaml")
    replica.write("a.yaml", yaml("uno"))
    await replica.catalog.refresh()
    assert replica.matching() == ["uno"]
    assert "b.yaml has gone: workflow 'two' is disabled" in caplog.text
    assert "a.yaml holds another workflow now: workflow 'one' is disabled" in caplog.text
    assert (await replica.catalog.get("two")).number == 1
    replica.remove("a.yaml")
    restarted = Replica(pool, replica.folder)
    await restarted.catalog.load()
    assert restarted.matching() == []
    replica.write("b.yaml", yaml("two"))
    await replica.catalog.refresh()
    assert replica.matching() == ["two"]


async def test_without_the_folder_nothing_is_disabled(replica: Replica, pool: Pool, tmp_path: Path) -> None:
    replica.write("a.yaml", yaml())
    await replica.catalog.load()
    other = Replica(pool, tmp_path / "nowhere")
    await other.catalog.load()
    assert other.matching() == ["one"]


async def test_two_files_of_one_name(replica: Replica, caplog: pytest.LogCaptureFixture) -> None:
    replica.write("a.yaml", yaml(text="a"))
    replica.write("b.yaml", yaml(text="b"))
    await replica.catalog.load()
    assert [*replica.catalog.broken] == ["b.yaml"]
    assert f"{replica.folder}/workflows/b.yaml: name: 'one' is already the name of a.yaml" in caplog.text
    assert (await replica.catalog.get("one")).workflow.definition == definition(text="a")
    replica.remove("a.yaml")
    await replica.catalog.refresh()
    assert not replica.catalog.broken
    assert replica.matching() == ["one"]
    assert (await replica.catalog.get("one")).workflow.definition == definition(text="b")


async def test_put_reaches_other_replicas(replica: Replica, pool: Pool, tmp_path: Path) -> None:
    other = Replica(pool, tmp_path / "other")
    await replica.catalog.load()
    await other.catalog.load()
    revision = await replica.catalog.put(definition())
    assert (revision.number, revision.workflow.name) == (1, "one")
    assert replica.matching() == ["one"]
    assert other.matching() == []
    await other.catalog.refresh()
    assert other.matching() == ["one"]
    assert (await replica.catalog.put(definition())).id == revision.id
    assert (await replica.catalog.put(definition(text="b"))).number == 2
    assert (await replica.catalog.put(definition(enabled=False))).number == 3
    assert replica.matching() == []


async def test_concurrent_puts(replica: Replica, pool: Pool, tmp_path: Path) -> None:
    other = Replica(pool, tmp_path / "other")
    await asyncio.gather(replica.catalog.load(), other.catalog.load())
    sides = (replica.catalog, other.catalog)
    revisions = await asyncio.gather(*(side.put(definition(f"w{n}")) for n in range(20) for side in sides))
    assert {revision.number for revision in revisions} == {1}
    assert len({revision.id for revision in revisions}) == 20
    await asyncio.gather(*(side.refresh() for side in sides))
    assert sorted(replica.matching()) == sorted(other.matching()) == sorted(f"w{n}" for n in range(20))
    changed = await asyncio.gather(*(side.put(definition("w0", text=f"{n}")) for n in range(10) for side in sides))
    assert {revision.workflow_id for revision in changed} == {revisions[0].workflow_id}
    await asyncio.gather(*(side.refresh() for side in sides))
    assert (await sides[0].get("w0")).id == (await sides[1].get("w0")).id


async def test_the_loop_takes_over_changes_and_outlives_an_outage(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Awaitable[Any]]
) -> None:
    class Flaky(DefinitionStore):
        away = False
        refusals = 0

        async def version(self) -> int:
            if self.away:
                self.refusals += 1
                raise StoreUnavailable("gone for a while")
            return await super().version()

    monkeypatch.setattr("appliance.catalog.POLL_S", 0.01)
    store = Flaky(pool)
    replica = Replica(pool, tmp_path / "config")
    replica.catalog = Catalog(store, ACTIONS, replica.folder)
    await replica.catalog.load()
    loop = asyncio.create_task(replica.catalog.run())
    try:
        replica.write("a.yaml", yaml("one"))
        await wait_until(lambda: replica.matching() == ["one"], "the new file")
        store.away = True
        replica.write("b.yaml", yaml("two"))
        await wait_until(lambda: store.refusals > 2, "the outage to be noticed")
        assert replica.matching() == ["one"]
        store.away = False
        await wait_until(lambda: sorted(replica.matching()) == ["one", "two"], "the file of the outage")
    finally:
        loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop


async def test_rules_and_listeners_are_replaced_together(
    replica: Replica, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event must not start a run by new rules and be kept from those who wait for it by old listeners."""
    await replica.catalog.load()
    asked, go = asyncio.Event(), asyncio.Event()
    plain = DefinitionStore.listeners

    async def slowly(self: DefinitionStore) -> list[str]:
        asked.set()
        await go.wait()
        return await plain(self)

    monkeypatch.setattr(DefinitionStore, "listeners", slowly)
    wait = {"id": "w", "wait": {"event": "paid"}, "forever": True}
    putting = asyncio.create_task(replica.catalog.put({"name": "one", "trigger": {"event": "t"}, "steps": [wait]}))
    await asked.wait()
    assert (bool(replica.matching()), replica.catalog.listeners.wants("paid")) == (False, False)
    go.set()
    await putting
    assert (bool(replica.matching()), replica.catalog.listeners.wants("paid")) == (True, True)


async def test_a_listener_of_a_later_release_is_left_out(replica: Replica, pool: Pool) -> None:
    await replica.catalog.load()
    shapes = ['["paid"]', '[["a"],[],"m","{{ event.data.key | nothing_known }}"]', '{"kind":"new"}', "7"]
    async with pool.connection() as connection:
        for number, shape in enumerate(shapes):
            await connection.execute("INSERT INTO listeners VALUES (md5(%s)::uuid, %s::json)", (str(number), shape))
    await replica.catalog.put({**definition(), "steps": [{"id": "w", "wait": {"event": "paid"}, "forever": True}]})
    assert replica.catalog.listeners.wants("paid")
    assert not replica.catalog.listeners.wants("a")


async def test_put_refuses(replica: Replica) -> None:
    replica.write("a.yaml", yaml())
    await replica.catalog.load()
    with pytest.raises(Conflict, match=r"defined by the file workflows/a\.yaml"):
        await replica.catalog.put(definition(text="b"))
    with pytest.raises(DefinitionError, match="unknown action"):
        await replica.catalog.put({**definition("two"), "steps": [{"id": "s", "action": "note2"}]})
    with pytest.raises(NotFound):
        await replica.catalog.get("two")
    with pytest.raises(NotFound):
        await replica.catalog.revision(999)


async def test_another_dialect_is_kept_as_it_was_written(replica: Replica, pool: Pool) -> None:
    steps = [{"id": "s", "type": "auto_action", "actions": [{"type": "note", "config": {"text": "Hi {name}"}}]}]
    document = {"name": "d", "definition": {"trigger": {"type": "t"}, "initial_step_id": "s", "steps": steps}}
    await replica.catalog.load()
    revision = await replica.catalog.put(document)
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT source::json FROM revisions WHERE id = %s", (revision.id,))
        assert await cursor.fetchone() == (document,)
    assert replica.matching() == ["d"]


async def test_a_vanished_action_is_no_obstacle(replica: Replica, pool: Pool, tmp_path: Path) -> None:
    await replica.catalog.load()
    revision = await replica.catalog.put(definition())
    without = Replica(pool, tmp_path / "other", actions={})
    await without.catalog.load()
    assert without.matching() == ["one"]
    assert (await without.catalog.revision(revision.id)).workflow.steps[0].action == "note"


async def test_many_definitions_are_stored_at_once(replica: Replica) -> None:
    for number in range(300):
        replica.write(f"w{number}.json", yaml(f"w{number}", event=f"t{number}"))
    await replica.catalog.load()
    assert len(replica.catalog.workflows()) == 300


async def test_who_changed_what_is_recorded(replica: Replica, pool: Pool) -> None:
    replica.write("a.yaml", yaml())
    await replica.catalog.load()
    await replica.catalog.put(definition("two"), actor="key:ops")
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT actor, action, subject FROM audit_log ORDER BY id")
        assert await cursor.fetchall() == [("files", "put workflow", "one"), ("key:ops", "put workflow", "two")]
