"""The editor against a real database: who sees what, who wins, and what a change is refused for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from appliance.catalog import Catalog
from appliance.editor import Change, Editor, Outcome
from appliance.errors import Conflict, DefinitionError, NotFound, StoreUnavailable
from appliance.plugin import Action
from appliance.preconditions import NOTHING_SAID, Outdated, OwnedByFile, Precondition, Unseen
from appliance.settings import StoreSettings
from appliance.store.definitions import CurrentWorkflow, DefinitionStore
from appliance.store.history import History
from appliance.store.pool import Pool, open_pool
from appliance.workflows.revision import Workflow
from tests.integration.test_catalog import ACTIONS, EVENT, Replica, definition, yaml

WaitUntil = Callable[..., Awaitable[Any]]
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest_asyncio.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database_url, StoreSettings())
    yield pool
    await pool.close()


class Desk:
    """An editor on a replica of its own."""

    def __init__(self, pool: Pool, folder: Path, actions: dict[str, Action] | None = None) -> None:
        self.pool = pool
        self.replica = Replica(pool, folder, actions)
        self.catalog: Catalog = self.replica.catalog
        self.editor = Editor(self.catalog, DefinitionStore(pool), ACTIONS if actions is None else actions)

    async def make(self, change: Change, condition: Precondition = NOTHING_SAID) -> Outcome:
        return await self.editor.make(change, "ann", condition)

    async def put(self, text: str, **more: Any) -> Outcome:
        """Change it as somebody who doesn't care about others."""
        return await self.make(self.editor.put(definition(text=text, **more)), either(await self.standing()))

    async def standing(self) -> CurrentWorkflow | None:
        return await DefinitionStore(self.pool).standing("one")

    async def etag(self) -> str:
        standing = await self.standing()
        assert standing is not None
        return standing.etag

    async def seen(self) -> Precondition:
        return Precondition(frozenset({await self.etag()}))

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as connection:
            return list(await (await connection.execute(statement.encode())).fetchall())


def either(standing: CurrentWorkflow | None) -> Precondition:
    return NOTHING_SAID if standing is None else Precondition(frozenset({"*"}))


@pytest_asyncio.fixture
async def desk(pool: Pool, tmp_path: Path) -> Desk:
    desk = Desk(pool, tmp_path / "config")
    await desk.catalog.load()
    return desk


@pytest_asyncio.fixture
async def other(pool: Pool, tmp_path: Path) -> Desk:
    """On a replica that has no files."""
    desk = Desk(pool, tmp_path / "nowhere")
    await desk.catalog.load()
    return desk


@contextlib.asynccontextmanager
async def held(database_url: str, statement: str, wait_until: WaitUntil, waiting: int) -> AsyncIterator[None]:
    """Hold what ``statement`` locks from the block's end on until so many others wait for it."""
    async with (
        await psycopg.AsyncConnection.connect(database_url) as holder,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as watcher,
    ):
        await holder.execute(statement.encode())
        yield

        async def blocked() -> bool:
            row = await (await watcher.execute(WAITING)).fetchone()
            return row is not None and row[0] >= waiting

        await wait_until(blocked, "the editors to wait for the row")
        await holder.rollback()


LOCKED = "SELECT FROM workflows WHERE name = 'one' FOR UPDATE"
PAIRS: dict[str, Callable[[Editor, int], Change]] = {
    "put": lambda editor, n: editor.put(definition(text=f"by {n}")),
    "disable": lambda editor, n: editor.switch("one", False),
    "rollback": lambda editor, n: editor.rollback("one", 1),
}


@pytest.mark.parametrize("pair", [("put", "put"), ("put", "disable"), ("rollback", "put"), ("disable", "rollback")])
async def test_of_two_who_saw_the_same_one_wins(
    desk: Desk, other: Desk, database_url: str, wait_until: WaitUntil, pair: tuple[str, str]
) -> None:
    await desk.put("a")
    await desk.put("b")
    await other.catalog.refresh()
    seen = await desk.seen()
    async with held(database_url, LOCKED, wait_until, 2):
        changes = [PAIRS[what](side.editor, n) for n, (what, side) in enumerate(zip(pair, (desk, other), strict=True))]
        both = [asyncio.create_task(side.make(c, seen)) for c, side in zip(changes, (desk, other), strict=True)]
    results = await asyncio.gather(*both, return_exceptions=True)
    (won,) = [result for result in results if isinstance(result, Outcome)]
    (lost,) = [result for result in results if isinstance(result, Outdated)]
    standing = await desk.standing()
    assert (won.standing, lost.etag, lost.revision) == (standing, won.standing.etag, won.standing.number)
    assert len(await desk.rows("SELECT FROM audit_log")) == 3


async def test_of_two_who_create_the_same_one_wins(
    desk: Desk, other: Desk, database_url: str, wait_until: WaitUntil
) -> None:
    begun = "INSERT INTO workflows (name, origin) VALUES ('one', 'api')"
    async with held(database_url, begun, wait_until, 2):
        both = [
            asyncio.create_task(side.make(side.editor.put(definition(text=text)), Precondition(absent=True)))
            for text, side in (("a", desk), ("b", other))
        ]
    results = await asyncio.gather(*both, return_exceptions=True)
    (won,) = [result for result in results if isinstance(result, Outcome)]
    (lost,) = [result for result in results if isinstance(result, Outdated)]
    assert (won.kind, won.standing.number, lost.etag) == ("create", 1, won.standing.etag)
    assert await desk.rows("SELECT number FROM revisions") == [(1,)]


async def test_of_two_who_create_without_a_word_the_second_changes_nothing(
    desk: Desk, other: Desk, database_url: str, wait_until: WaitUntil
) -> None:
    begun = "INSERT INTO workflows (name, origin) VALUES ('one', 'api')"
    for texts, refused in ((("a", "a"), 0), (("b", "c"), 2)):
        async with held(database_url, begun if refused == 0 else LOCKED, wait_until, 2):
            both = [
                asyncio.create_task(side.make(side.editor.put(definition(text=text))))
                for text, side in zip(texts, (desk, other), strict=True)
            ]
        results = await asyncio.gather(*both, return_exceptions=True)
        assert sum(isinstance(result, Unseen) for result in results) == refused
    assert await desk.rows("SELECT number FROM revisions") == [(1,)]


async def test_the_etag_is_another_one_after_every_change(desk: Desk, pool: Pool) -> None:
    tags = [(await desk.put("a")).standing.etag]
    for change in (
        desk.editor.put(definition(text="b")),
        desk.editor.put(definition(text="a")),
        desk.editor.switch("one", False),
        desk.editor.switch("one", True),
        desk.editor.rollback("one", 2),
        desk.editor.rollback("one"),
    ):
        condition = Precondition(frozenset({tags[-1]}))
        outcome = await desk.make(change, condition)
        shown = await History(pool).get_workflow("one")
        assert (outcome.standing.etag, outcome.standing.number) == (shown["etag"], shown["revision"])
        with pytest.raises(Outdated, match="somebody changed it since"):
            await desk.make(desk.editor.put(definition(text="z")), condition)
        tags.append(outcome.standing.etag)
    desk.replica.write("a.yaml", yaml(text="a"))
    await desk.catalog.refresh()
    tags.append(await desk.etag())
    desk.replica.remove("a.yaml")
    await desk.catalog.refresh()
    tags.append(await desk.etag())
    assert len(set(tags)) == len(tags) == 9


async def test_what_changes_nothing_needs_no_etag_and_keeps_it(desk: Desk) -> None:
    first = await desk.put("a")
    stale = Precondition(frozenset({"stale"}))
    for change in (
        desk.editor.put(definition(text="a")),
        desk.editor.switch("one", True),
        desk.editor.rollback("one", 1),
    ):
        for condition in (NOTHING_SAID, stale):
            assert await desk.make(change, condition) == Outcome("none", first.standing)
    assert len(await desk.rows("SELECT FROM audit_log")) == 1


async def test_a_real_change_of_a_definition_needs_one(desk: Desk) -> None:
    await desk.put("a")
    etag = await desk.etag()
    with pytest.raises(Unseen, match=f'send If-Match: "{etag}"') as refused:
        await desk.make(desk.editor.put(definition(text="b")))
    assert (refused.value.etag, refused.value.revision) == (etag, 1)
    with pytest.raises(Outdated, match="there is a workflow of this name"):
        await desk.make(desk.editor.put(definition(text="b")), Precondition(absent=True))
    with pytest.raises(Outdated, match="no such workflow") as gone:
        await desk.make(desk.editor.put(definition("two")), Precondition(frozenset({etag})))
    assert (gone.value.etag, gone.value.revision) == (None, None)
    with pytest.raises(NotFound):
        await desk.catalog.get("two")
    await desk.make(desk.editor.switch("one", False))
    with pytest.raises(Unseen):  # a client that sends its definition at every start must not undo what people did
        await desk.make(desk.editor.put(definition(text="a")))
    assert (await desk.make(desk.editor.put(definition(text="a")), await desk.seen())).kind == "enable"


async def test_on_and_off_reach_every_replica(desk: Desk, other: Desk) -> None:
    await desk.put("a")
    outcome = await desk.make(desk.editor.switch("one", False))
    await other.catalog.refresh()
    assert (outcome.kind, desk.replica.matching(), other.replica.matching()) == ("disable", [], [])
    assert (await other.make(other.editor.switch("one", True), await desk.seen())).kind == "enable"
    await desk.catalog.refresh()
    assert desk.replica.matching() == other.replica.matching() == ["one"]
    assert (await desk.put("a", enabled=False)).standing.enabled is False
    assert (await desk.make(desk.editor.switch("one", True))).standing.enabled is True
    assert desk.replica.matching() == ["one"]
    assert await desk.rows("SELECT actor, action, subject, detail ->> 'revision' FROM audit_log ORDER BY id") == [
        ("ann", "put workflow", "one", "1"),
        ("ann", "disable workflow", "one", "1"),
        ("ann", "enable workflow", "one", "1"),
        ("ann", "put workflow", "one", "2"),
        ("ann", "enable workflow", "one", "2"),
    ]
    with pytest.raises(NotFound):
        await desk.make(desk.editor.switch("two", True))


async def test_rolling_back(desk: Desk, other: Desk) -> None:
    for text in "abc":
        await desk.put(text)
    outcome = await desk.make(desk.editor.rollback("one"), await desk.seen())
    assert (outcome.kind, outcome.standing.number) == ("rollback", 2)
    await other.catalog.refresh()
    for side in (desk, other):
        [rule] = side.catalog.matcher.match(EVENT)
        assert (rule.payload.number, rule.payload.workflow.definition) == (2, definition(text="b"))
    assert (await desk.make(desk.editor.rollback("one"))).standing.number == 1
    with pytest.raises(Conflict, match="no revision before 1"):
        await desk.make(desk.editor.rollback("one"))
    assert (await desk.make(desk.editor.rollback("one", 3))).standing.number == 3
    for name, number in (("one", 4), ("two", 1), ("two", None)):
        with pytest.raises(NotFound):
            await desk.make(desk.editor.rollback(name, number))
    assert (await desk.put("d")).standing.number == 4
    assert len(await desk.rows("SELECT FROM revisions")) == 4
    assert (await desk.rows("SELECT actor, action, subject, detail FROM audit_log ORDER BY id"))[2:5] == [
        ("ann", "put workflow", "one", {"revision": 3, "enabled": True, "from": 2}),
        ("ann", "roll back workflow", "one", {"revision": 2, "enabled": True, "from": 3}),
        ("ann", "roll back workflow", "one", {"revision": 1, "enabled": True, "from": 2}),
    ]
    await desk.make(desk.editor.switch("one", False))
    assert (await desk.rows("SELECT action, detail FROM audit_log ORDER BY id DESC LIMIT 1")) == [
        ("disable workflow", {"revision": 4, "enabled": False, "from": 4})
    ]


async def test_what_is_rolled_back_is_as_enabled_as_it_says_unless_it_was_disabled_by_hand(desk: Desk) -> None:
    await desk.put("a")
    await desk.put("b", enabled=False)
    await desk.put("c")
    await desk.make(desk.editor.switch("one", False))
    assert (await desk.make(desk.editor.rollback("one", 1))).standing.enabled is False
    await desk.make(desk.editor.switch("one", True))
    assert (await desk.make(desk.editor.rollback("one", 2))).standing.enabled is False
    assert (await desk.make(desk.editor.rollback("one", 1))).standing.enabled is True


async def test_a_revision_whose_action_has_gone_is_refused(desk: Desk, pool: Pool, tmp_path: Path) -> None:
    await desk.put("a")
    other: dict[str, Any] = {"steps": [{"id": "s", "transform": 1}]}
    await desk.make(desk.editor.put({**definition(), **other}), await desk.seen())
    without = Desk(pool, tmp_path / "other", actions={})
    await without.catalog.load()
    change = without.editor.rollback("one")
    for attempt in (without.make(change), without.editor.plan(change)):
        with pytest.raises(DefinitionError, match="revision 1 can't be put in force any more") as refused:
            await attempt
        assert "unknown action 'note'" in str(refused.value)
    await desk.make(desk.editor.rollback("one"))
    assert (await without.make(without.editor.switch("one", False))).kind == "disable"
    with pytest.raises(DefinitionError, match="unknown action 'note'"):
        await without.make(without.editor.switch("one", True))
    assert (await without.standing()).enabled is False  # type: ignore[union-attr]
    workflow = without.catalog.current("one").workflow
    assert (without.catalog.lacking(workflow), desk.catalog.lacking(workflow)) == (["note"], [])


async def test_a_plan_changes_nothing(desk: Desk) -> None:
    everything = (
        "SELECT (SELECT count(*) FROM workflows), (SELECT count(*) FROM revisions), (SELECT count(*) FROM audit_log), "
        "version FROM catalog_version"
    )
    new = await desk.editor.plan(desk.editor.put(definition(text="a")))
    assert (new.draft.kind, new.current, new.draft.enabled) == ("create", None, True)
    assert new.diff.splitlines()[:3] == ["--- /dev/null", "+++ one (new)", "@@ -0,0 +1,6 @@"]
    assert await desk.rows(everything) == [(0, 0, 0, 0)]
    await desk.put("a")
    await desk.put("b")
    before, standing = await desk.rows(everything), await desk.standing()
    same: list[str] = []
    back = ["-    with: {text: b}", "+    with: {text: a}"]
    for change, told, lines in (
        (desk.editor.put(definition(text="b")), ("none", True, 2), same),
        (desk.editor.put(definition(text="a", enabled=False)), ("change", False, None), ["+enabled: false", *back]),
        (desk.editor.put(definition(text="a")), ("change", True, 1), back),
        (desk.editor.switch("one", False), ("disable", False, 2), same),
        (desk.editor.switch("one", True), ("none", True, 2), same),
        (desk.editor.rollback("one"), ("rollback", True, 1), back),
    ):
        plan = await desk.editor.plan(change)
        becomes = None if plan.draft.revision is None else plan.draft.revision.number
        assert (plan.draft.kind, plan.draft.enabled, becomes) == told
        assert [line for line in plan.diff.splitlines()[2:] if line[0] in "+-"] == lines
        assert plan.current == standing
    with pytest.raises(Outdated):
        await desk.editor.plan(desk.editor.switch("one", False), Precondition(frozenset({"stale"})))
    assert (await desk.rows(everything), await desk.standing()) == (before, standing)


async def test_a_change_that_is_made_is_no_failure_although_it_is_not_in_force_here_yet(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*fresh: Workflow) -> None:
        raise StoreUnavailable("PostgreSQL went away")

    monkeypatch.setattr(desk.catalog, "take_over", away)
    assert (await desk.put("a")).kind == "create"
    assert (await desk.put("b")).standing.number == 2
    await desk.catalog.refresh()
    assert desk.catalog.current("one").number == 2


async def test_a_plan_warns(desk: Desk) -> None:
    calls = {"steps": [{"id": "s", "workflow": "two"}]}
    plan = await desk.editor.plan(desk.editor.put({**definition(), **calls}))
    assert (plan.warnings, plan.missing) == ([], ["two"])
    await desk.make(desk.editor.put({**definition(), **calls}))
    back = {"steps": [{"id": "s", "workflow": "one"}]}
    plan = await desk.editor.plan(desk.editor.put({**definition("two"), **back}))
    assert (plan.warnings, plan.missing) == (["calls itself: two → one → two"], [])
    await desk.make(desk.editor.switch("one", False))
    plan = await desk.editor.plan(desk.editor.put(definition(text="b")))
    assert plan.warnings == ["it is disabled, and this enables it"]
    circle = {"trigger": {"event": "workflow.completed"}}
    plan = await desk.editor.plan(desk.editor.put({**definition(), **circle}))
    assert [warning for warning in plan.warnings if warning.startswith("triggers itself: one")]


async def test_revisions_are_compared(desk: Desk) -> None:
    for text in "abc":
        await desk.put(text)
    await desk.make(desk.editor.rollback("one"))
    standing, stored = await desk.editor.revision("one", 1)
    assert (standing.number, stored.number, stored.digest) == (2, 1, stored.digest)
    difference = await desk.editor.difference("one", 1, 3)
    assert difference.splitlines()[:2] == ["--- one (revision 1)", "+++ one (revision 3)"]
    assert difference.splitlines()[-2:] == [
        "-    with: {text: a}",
        "+    with: {text: c}",
    ]
    assert "+++ one (revision 2)" in await desk.editor.difference("one", 1)
    assert await desk.editor.difference("one", 2) == ""
    for name, first, second in (("two", 1, None), ("one", 9, None), ("one", 1, 9)):
        with pytest.raises(NotFound):
            await desk.editor.difference(name, first, second)


async def test_what_a_file_owns_is_changed_there_only(
    desk: Desk, other: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    await desk.put("a")
    desk.replica.write("sub/a.yaml", yaml(text="b"))
    await desk.catalog.refresh()
    assert "sub/a.yaml takes over workflow 'one', whose revision 1 came through the API" in caplog.text
    await other.catalog.refresh()
    whatever = Precondition(frozenset({"*"}))
    for side in (desk, other):
        for change in (
            side.editor.put(definition(text="b")),
            side.editor.switch("one", False),
            side.editor.switch("one", True),
            side.editor.rollback("one"),
        ):
            for attempt in (side.make(change, whatever), side.editor.plan(change)):
                with pytest.raises(OwnedByFile, match=r"by the file workflows/sub/a\.yaml: change it there"):
                    await attempt
    assert (await desk.standing()).number == 2  # type: ignore[union-attr]
    caplog.clear()
    desk.replica.write("sub/a.yaml", yaml(text="c"))
    await desk.catalog.refresh()
    assert "takes over" not in caplog.text
    desk.replica.remove("sub/a.yaml")
    await desk.catalog.refresh()
    standing = await desk.standing()
    assert standing is not None
    assert (standing.origin, standing.file, standing.enabled, standing.number) == ("file", None, False, 3)
    await other.make(other.editor.rollback("one", 1))
    await desk.make(desk.editor.switch("one", True))
    await desk.replica.catalog.refresh()
    restarted = Desk(desk.pool, desk.replica.folder)
    await restarted.catalog.load()
    assert restarted.replica.matching() == ["one"]
    assert (await desk.standing()).origin == "api"  # type: ignore[union-attr]


async def test_a_file_that_says_disabled_or_is_broken_still_owns(desk: Desk, other: Desk) -> None:
    desk.replica.write("a.yaml", yaml() + "enabled: false\n")
    await desk.catalog.refresh()
    with pytest.raises(OwnedByFile):
        await other.make(other.editor.switch("one", True))
    desk.replica.write("a.yaml", "name: one\nstps: []\n")
    await desk.catalog.refresh()
    with pytest.raises(OwnedByFile):
        await other.make(other.editor.switch("one", True))
    desk.replica.write("b.yaml", yaml() + "enabled: false\n")
    desk.replica.remove("a.yaml")
    await desk.catalog.refresh()
    with pytest.raises(OwnedByFile, match=r"workflows/b\.yaml"):
        await other.make(other.editor.switch("one", True))


async def test_the_name_is_that_of_the_path(desk: Desk) -> None:
    with pytest.raises(DefinitionError, match=r"the definition's name is 'one' \(expected 'two', as in the path"):
        desk.editor.put(definition(), "two")
    assert desk.editor.put(definition(), "one").name == "one"
