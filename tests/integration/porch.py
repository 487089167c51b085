"""Gatekeepers of several replicas on one database, and runs that come to them, for tests of flow control."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from appliance.engine.gatekeeper import Gatekeeper
from appliance.engine.gates import Arrival, Decision, position_of
from appliance.engine.rulings import Request
from appliance.errors import NotFound
from appliance.identifiers import milliseconds_of, run_id_for, uuid7
from appliance.settings import StoreSettings
from appliance.store.gates import Gates
from appliance.store.pool import Connection, Pool, open_connection, open_pool
from appliance.store.rows import EventRow, RunRow
from appliance.workflows.flow_control import LANE
from appliance.workflows.revision import Revision
from tests.unit.engine.life import act, flow

STARTED = '{"by":null}'


class Catalog:
    """What is in force."""

    def __init__(self) -> None:
        self.revisions: dict[str, Revision] = {}

    def current(self, name: str) -> Revision:
        if name not in self.revisions:
            raise NotFound(name)
        return self.revisions[name]


@dataclass
class Porch:
    """A database with workflows. Runs are called by their ids."""

    url: str
    db: Connection
    stack: contextlib.AsyncExitStack
    catalog: Catalog = field(default_factory=Catalog)
    now: float = field(default_factory=time.time)
    timers: list[float] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    requests: dict[str, Request] = field(default_factory=dict)
    _pools: dict[int, Pool] = field(default_factory=dict)

    async def gatekeeper(self, url: str = "", timeout_s: float = 10.0, **limits: float) -> Gatekeeper:
        """That of a replica of its own."""
        pool = await open_pool(url or self.url, StoreSettings())
        connect = functools.partial(open_connection, url or self.url, StoreSettings())
        gates = Gates(pool, connect, timeout_s=timeout_s, **limits)
        made = Gatekeeper(gates, self.catalog, self.timers.append, lambda: self.now)
        self._pools[id(made)] = pool
        self.stack.push_async_callback(self.close, made)
        return made

    async def close(self, gatekeeper: Gatekeeper) -> None:
        """End all its connections."""
        await gatekeeper.close()
        await self._pools[id(gatekeeper)].close()

    async def workflow(self, name: str = "w", **said: Any) -> Revision:
        """Put a workflow in force that says this about flow control."""
        workflow_id = await self.one(
            "INSERT INTO workflows (name, origin) VALUES (%s, 'api') "
            "ON CONFLICT (name) DO UPDATE SET origin = 'api' RETURNING id",
            name,
        )
        revision = Revision(next(self._numbers), workflow_id, 1, flow(act("a"), **said))
        self.catalog.revisions[name] = revision
        return revision

    def request(self, revision: Revision, entry: str | None = None, **more: Any) -> Request:
        """An event with this data comes in; ``entry``: the id of its stream entry."""
        number = next(self._numbers)
        options = {name: more.pop(name) for name in ("sole", "valid", "uid", "data") if name in more}
        uid = options.get("uid") or uuid7()
        control = revision.workflow.control
        assert control is not None
        keys = control.keys(revision.workflow_id, {"event": {"data": more}, "input": more})
        run_id = run_id_for(uid, str(revision.workflow_id))
        data = options.get("data") or orjson.dumps(more).decode()
        position = position_of(entry or f"{milliseconds_of(uid)}-{number}")
        request = Request(
            Arrival(run_id, uid, revision.workflow_id, control, keys, position),
            RunRow(run_id, uid, revision.workflow_id, revision.id, "running", 1, self.now, None, self.now, "normal",
                   STARTED, None, None, more.get("details")),
            EventRow(uid, None, "/t", "t", None, "2026-01-01T00:00:00.000Z", self.now, None, data, None, "normal",
                     "1-0", None),
            options.get("sole", True),
            options.get("valid", lambda: True),
        )  # fmt: skip
        self.requests[run_id] = request
        return request

    def woken(self, run_id: str) -> Request:
        """A timer of a run that is there has fired."""
        request = self.requests[run_id]
        arrival = request.arrival._replace(woken=True)
        return request._replace(arrival=arrival, run=None, event=None, sole=False)

    async def wake(self, gatekeeper: Gatekeeper, run_id: str) -> Decision:
        """Fire the timers of a run."""
        await self.rows("DELETE FROM timers WHERE run_id = %s", run_id)
        return await gatekeeper.arrive(self.woken(run_id))

    async def end(self, run_id: str, status: str = "succeeded") -> tuple[int, str]:
        """What the commit writes that ends a run; returns what is freed."""
        await self.end_of(run_id, status)
        arrival = self.requests[run_id].arrival
        return arrival.workflow_id, arrival.keys[LANE].digest

    async def end_of(self, run_id: str, status: str = "succeeded") -> None:
        """The same of a run that came by another way."""
        await self.rows(
            "WITH a AS (DELETE FROM places WHERE run_id = %(id)s), b AS (DELETE FROM queue WHERE run_id = %(id)s) "
            "UPDATE runs SET status = %(status)s, finished_at = now(), state = NULL WHERE id = %(id)s",
            {"id": run_id, "status": status},
        )

    async def park(self, run_id: str) -> tuple[int, str]:
        """What the commit writes that parks a run."""
        await self.rows(
            "WITH a AS (DELETE FROM places WHERE run_id = %(id)s AND NOT keeps) "
            "UPDATE runs SET status = 'waiting', state = %(state)s, version = version + 1 WHERE id = %(id)s",
            {"id": run_id, "state": '{"by": "timer"}'},
        )
        arrival = self.requests[run_id].arrival
        return arrival.workflow_id, arrival.keys[LANE].digest

    async def let_in(self) -> list[str]:
        """The runs that wait and whose timers are due, in the order of their ids."""
        found = await self.rows(
            "SELECT run_id::text FROM timers WHERE key = '' AND due_at <= to_timestamp(%s) ORDER BY run_id", self.now
        )
        return [row[0] for row in found]

    async def status(self, run_id: str) -> str:
        return str(await self.one("SELECT status::text FROM runs WHERE id = %s", run_id))

    async def stage(self, run_id: str) -> str:
        return str(await self.one("SELECT details -> 'flow' ->> 'stage' FROM runs WHERE id = %s", run_id))

    async def skipped(self) -> dict[str, int]:
        return dict(await self.rows("SELECT reason, count FROM skipped"))

    async def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        given = values[0] if values and isinstance(values[0], dict) else values
        cursor = await self.db.execute(statement.encode(), given)
        return list(await cursor.fetchall()) if cursor.description else []

    async def one(self, statement: str, *values: Any) -> Any:
        ((value,),) = await self.rows(statement, *values)
        return value


@contextlib.asynccontextmanager
async def porch(database_url: str) -> AsyncIterator[Porch]:
    """An empty one."""
    async with contextlib.AsyncExitStack() as stack:
        db = await open_connection(database_url, StoreSettings())
        stack.push_async_callback(db.close)
        yield Porch(database_url, db, stack)
