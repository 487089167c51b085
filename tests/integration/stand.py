"""Runs that stand in a database without anybody who runs them, for tests of what people may do to them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import psycopg

from appliance.engine.control import Control
from appliance.errors import NotFound
from appliance.events import Event, new_event
from appliance.identifiers import uuid7
from appliance.rules.matcher import Matcher, Rule, Trigger
from appliance.settings import StoreSettings
from appliance.store.pool import Connection, Pool, open_connection, open_pool
from appliance.store.recorder import Recorder
from appliance.store.rows import Change, RunUpdate
from appliance.store.runs import Runs
from appliance.templating import compile_template
from appliance.workflows.revision import Machine, Revision, Step, Thread, Workflow

PARKED: dict[str, Any] = {"by": "timer"}
PLAIN = {"name": "plain", "steps": [{"id": "a", "action": "x"}, {"id": "b", "action": "x"}]}
SAGA = {
    "name": "saga",
    "steps": [
        {"id": "charge", "action": "x", "compensate": {"action": "y"}},
        {"id": "each", "for_each": {"items": "{{ [1] }}", "steps": [{"id": "book", "action": "x"}]}},
        {"id": "send", "action": "x"},
    ],
}


def compiled(definition: dict[str, Any]) -> Workflow:
    """As much of the compiled form as interventions look at; a nested list of steps becomes a thread."""
    steps: list[Step] = []
    threads = [Thread(0, "", 0)]
    for written in definition["steps"]:
        at = len(steps)
        steps.append(Step(written["id"], at, "action", action=written.get("action")))
        for inner in written.get("for_each", {}).get("steps", ()):
            threads.append(Thread(len(threads), "", len(steps), parent=at))
            steps.append(Step(inner["id"], len(steps), "action", thread=len(threads) - 1))
    return Workflow(
        name=definition["name"],
        description="",
        priority=None,
        triggers=(Trigger("t"),),
        steps=tuple(steps),
        by_id={step.id: step.index for step in steps},
        definition=definition,
        digest="",
        threads=tuple(threads),
    )


class Catalog:
    """The workflows of a test. ``broken`` is raised for every revision; actions that are ``gone`` aren't installed."""

    def __init__(self) -> None:
        self.revisions: dict[int, Revision] = {}
        self.gone: set[str] = set()
        self.broken: Exception | None = None

    @property
    def matcher(self) -> Matcher:
        latest = {revision.workflow.name: revision for revision in self.revisions.values()}
        return Matcher(
            Rule(name, revision.workflow.triggers, order, revision)
            for order, (name, revision) in enumerate(latest.items())
            if revision.workflow.enabled
        )

    async def revision(self, revision_id: int) -> Revision:
        if self.broken is not None:
            raise self.broken
        return self.revisions[revision_id]

    def current(self, name: str) -> Revision:
        found = [revision for revision in self.revisions.values() if revision.workflow.name == name]
        if not found:
            raise NotFound(f"there is no workflow {name!r}")
        return found[-1]

    def lacking(self, workflow: Workflow) -> list[str]:
        return sorted(self.gone & {step.action for step in workflow.steps if step.action is not None})


class Stand:
    """A database with runs in it, and who writes them."""

    def __init__(self, url: str, db: Connection, pool: Pool) -> None:
        self.db = db
        self.url = url
        self.pool = pool
        self.catalog = Catalog()
        self.freed: list[int] = []
        """The workflows of whose places it was told that others may have them."""
        self.control = Control(pool, Runs(pool), self.catalog, lambda _: None, on_freed=self._free)
        self.recorder = Recorder(lambda: open_connection(url, StoreSettings()), batch=100, timeout_s=10)

    async def _free(self, workflow_id: int) -> None:
        self.freed.append(workflow_id)

    async def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = await self.db.execute(statement.encode(), values)
        return list(await cursor.fetchall()) if cursor.description else []

    async def one(self, statement: str, *values: Any) -> Any:
        ((value,),) = await self.rows(statement, *values)
        return value

    async def workflow(self, definition: dict[str, Any]) -> Revision:
        """A new revision of a workflow."""
        name = definition["name"]
        workflow_id = await self.one(
            "INSERT INTO workflows (name, origin) VALUES (%s, 'api') "
            "ON CONFLICT (name) DO UPDATE SET origin = 'api' RETURNING id",
            name,
        )
        revision_id, number = (
            await self.rows(
                "INSERT INTO revisions (workflow_id, number, digest, definition) SELECT %s, "
                "(SELECT count(*) + 1 FROM revisions WHERE workflow_id = %s), 'd', %s::json RETURNING id, number",
                workflow_id,
                workflow_id,
                orjson.dumps(definition).decode(),
            )
        )[0]
        await self.rows("UPDATE workflows SET current_revision = %s WHERE id = %s", revision_id, workflow_id)
        revision = Revision(revision_id, workflow_id, number, compiled(definition))
        self.catalog.revisions[revision_id] = revision
        return revision

    async def machine(self) -> Revision:
        """The workflow ``plain`` as a state machine, whose business key is ``data.key``."""
        revision = await self.workflow(PLAIN)
        correlate = compile_template("{{ event.data.key }}", key="correlate")
        machine = Machine("a", {"a": 0}, correlate, ())
        revision = replace(revision, workflow=replace(revision.workflow, machine=machine))
        self.catalog.revisions[revision.id] = revision
        return revision

    async def event(self, **data: Any) -> str:
        event = new_event("t", data, source="/t")
        await self.rows(
            "INSERT INTO events (uid, source, type, time, received_at, data, stream, entry_id, outcome) "
            "VALUES (%s, '/t', 't', now(), now(), %s::json, 'normal', '1-1', 'handled')",
            event.uid,
            orjson.dumps(data).decode(),
        )
        return event.uid

    async def run(
        self,
        definition: dict[str, Any] = PLAIN,
        status: str = "waiting",
        state: dict[str, Any] | None = PARKED,
        steps: dict[str, str] | None = None,
        **columns: Any,
    ) -> str:
        """A run; ``steps`` are by key their status. One that is parked has a timer an hour ahead."""
        known = [r for r in self.catalog.revisions.values() if r.workflow.name == definition["name"]]
        revision = known[-1] if known else await self.workflow(definition)
        run_id = columns.get("id", uuid7())
        details = columns.get("details")
        await self.rows(
            "INSERT INTO runs (id, event_uid, workflow_id, revision_id, status, version, started_at, updated_at, "
            "priority, state, details, asked) "
            "VALUES (%s, %s, %s, %s, %s, 1, now(), now(), 'normal', %s::json, %s::json, %s)",
            run_id,
            columns.get("event_uid") or await self.event(),
            revision.workflow_id,
            revision.id,
            status,
            orjson.dumps(state).decode() if state is not None else None,
            orjson.dumps(details).decode() if details is not None else None,
            columns.get("asked"),
        )
        for seq, (key, of_step) in enumerate((steps or {}).items()):
            await self.rows(
                "INSERT INTO steps (run_id, key, seq, status, attempt, started_at, output) "
                "VALUES (%s, %s, %s, %s, 1, now(), %s::json)",
                run_id,
                key,
                seq,
                of_step,
                f'"of {key}"' if of_step == "succeeded" else None,
            )
        if state is not None and state.get("by") == "timer":
            await self.rows(
                "INSERT INTO timers (run_id, key, due_at, priority) VALUES (%s, '', now() + interval '1h', 'normal')",
                run_id,
            )
        return str(run_id)

    async def status(self, run_id: str) -> str:
        return str(await self.one("SELECT status::text FROM runs WHERE id = %s", run_id))

    async def asked(self, run_id: str) -> str | None:
        found: str | None = await self.one("SELECT asked FROM runs WHERE id = %s", run_id)
        return found

    async def due(self, run_id: str) -> list[str]:
        """The keys of the run's timers that are due."""
        return [key for (key,) in await self.rows(
            "SELECT key FROM timers WHERE run_id = %s AND due_at <= now() ORDER BY key", run_id
        )]  # fmt: skip

    async def commit(self, run_id: str, status: str, version: int, state: dict[str, Any] | None = None) -> None:
        """What whoever holds the run writes; Fenced if somebody else wrote it first."""
        over = time.time() if status in ("succeeded", "failed", "cancelled") else None
        kept = orjson.dumps(state).decode() if state is not None else None
        update = RunUpdate(run_id, status, version + 1, over, time.time(), kept, None, None, None)
        await self.recorder.record(Change(run_updates=[update]))

    @contextlib.asynccontextmanager
    async def writing(self, run_id: str, **columns: Any) -> AsyncIterator[None]:
        """Somebody's transaction that has changed the run and is committed at the end of the block."""
        async with await psycopg.AsyncConnection.connect(self.url) as other:
            settings = ", ".join(f"{name} = %({name})s" for name in columns)
            statement = f"UPDATE runs SET {settings}, version = version + 1 WHERE id = %(id)s"  # noqa: S608
            await other.execute(statement.encode(), {**columns, "id": run_id})
            yield

    async def blocked(self) -> bool:
        """Whether somebody waits for a lock."""
        return bool(await self.one("SELECT count(*) FROM pg_locks WHERE NOT granted"))


@contextlib.asynccontextmanager
async def standing(database_url: str) -> AsyncIterator[Stand]:
    """A stand on a fresh database."""
    db = await open_connection(database_url, StoreSettings())
    pool = await open_pool(database_url, StoreSettings())
    made = Stand(database_url, db, pool)
    yield made
    await made.recorder.close()
    await pool.close()
    await db.close()


async def called_by(stand: Stand, parent: str, definition: dict[str, Any] = PLAIN, **more: Any) -> str:
    details = {"parent": {"run": parent, "key": "call"}, "depth": 1}
    run_id = await stand.run(definition, details=details, **more)
    await stand.rows("INSERT INTO children VALUES (%s, %s, %s)", parent, f"call-{run_id}", run_id)
    return run_id


def sent(**more: Any) -> Event:
    return new_event("order.paid", {"n": 1}, source="/api", **more)
