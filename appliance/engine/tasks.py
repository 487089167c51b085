"""Human tasks as people see them: lists, answers, and whom a task is for. The engine makes and closes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, LiteralString

from appliance.engine.interventions import Intervention, described, intervention
from appliance.errors import Conflict, Malformed, NotFound
from appliance.events import dumps
from appliance.identifiers import is_uuid
from appliance.store.history import Page
from appliance.store.pool import Pool
from appliance.store.queries import named
from appliance.store.reading import Item, query, rows, snapshot
from appliance.workflows.inputs import check

SQL = named("tasks")
STATUSES = ("open", "answered", "expired", "cancelled")
_MAX_TEXT = 1024
"""Characters of a person's or a group's name."""
_WINDOW = 20_000
"""Tasks that one filtered page looks at."""

_RANGES: Mapping[str, LiteralString] = {
    "cursor": "id < %(cursor)s",
    "run_id": "run_id = %(run_id)s",
}
_FILTERS: Mapping[str, LiteralString] = {
    "status": "status = %(status)s::task_status",
    "assignee": "assignee = %(assignee)s",
    "group": "people = %(group)s",
    "workflow": "workflow_id = (SELECT w.id FROM workflows AS w WHERE w.name = %(workflow)s)",
}


class Tasks:
    """Reads and two interventions. Everything raises StoreUnavailable when PostgreSQL is away."""

    def __init__(self, pool: Pool, on_timer: Callable[[float], None], max_answer_bytes: int = 262_144) -> None:
        self._pool = pool
        self._on_timer = on_timer
        self._max_answer_bytes = max_answer_bytes

    async def list_tasks(
        self,
        filters: Mapping[str, str] | None = None,
        *,
        cursor: str | None = None,
        limit: int = 50,
        window: int = _WINDOW,
    ) -> Page:
        """Tasks by ``status``, ``assignee``, ``group``, ``workflow`` (its name) or ``run_id``, newest first.

        A filtered page may be short, even empty, while ``next_cursor`` is set: it looks at ``window`` tasks at most.
        """
        chosen = dict(filters or {})
        if "run_id" in chosen and not is_uuid(chosen["run_id"]):
            return Page([], None)
        if cursor is not None:
            if not is_uuid(cursor):
                raise Malformed("cursor: not one that a page gave", code="cursor")
            chosen["cursor"] = cursor
        below = [clause for name, clause in _RANGES.items() if name in chosen]
        if chosen.get("status") == "open":
            below.append("status = 'open'")  # as the partial index has it
        where = [clause for name, clause in _FILTERS.items() if name in chosen]
        statement = query(
            "list_tasks", file="tasks", range=" AND ".join(below) or "true", filters=" AND ".join(where) or "true"
        )
        looked = max(window, limit) if where else limit
        async with snapshot(self._pool) as connection:
            found = await rows(connection, statement, {**chosen, "limit": limit, "window": looked})
        more = found[0]["looked_at"] == looked
        items = [{k: v for k, v in row.items() if k not in ("looked_at", "oldest")} for row in found if row["id"]]
        if len(items) == limit:
            return Page(items, items[-1]["id"])
        return Page(items, found[0]["oldest"] if more else None)

    async def get_task(self, task_id: str) -> Item:
        """One task with its ``description``, ``form`` and ``answer``; raises NotFound."""
        if is_uuid(task_id):
            async with snapshot(self._pool) as connection:
                found = await rows(connection, query("get_task", file="tasks"), {"id": task_id})
            if found:
                return found[0]
        raise NotFound(f"there is no task {task_id}")

    async def answer(self, task_id: str, data: Any, by: str, actor: str = "api") -> dict[str, Any]:
        """Answer an open task; its run goes on with ``data`` as the step's output.

        Raises NotFound, InputRefused (``data`` doesn't fit the form), Malformed (too large), and Conflict when the task
        is closed: of an answer, another answer, the deadline and a cancellation the first one counts.
        """
        by = _name("by", by) or "somebody"
        task = await self.get_task(task_id)
        _still_open(task)
        raw = dumps(data)
        if len(raw) > self._max_answer_bytes:
            raise Malformed(f"the answer is larger than {self._max_answer_bytes} bytes", code="too-large")
        await asyncio.to_thread(check, "answer", task["form"], data)
        async with intervention(self._pool, actor, "task.answer", task_id) as act:
            run = await act.lock(task["run_id"])  # before the task, as whoever closes it does
            if not await _changed(act, "answer_task", raw.decode(), by, task_id):
                raise await _closed_meanwhile(act, task_id)
            if not await act.signal(run.id, task["step"], "answer", {"answer": data, "by": by}):
                raise Conflict(f"run {run.id} of this task is {described(run)}")
            act.detail |= {"by": by, "run": run.id, "step": task["step"]}
        self._on_timer(time.time())
        return {"status": "answered", "run_id": task["run_id"], "step": task["step"]}

    async def assign(self, task_id: str, changes: Mapping[str, str | None], actor: str = "api") -> dict[str, Any]:
        """Give an open task to another ``assignee`` or ``group`` (None: to nobody); raises NotFound and Conflict."""
        names = {name: _name(name, value) for name, value in changes.items()}
        if not names or not names.keys() <= {"assignee", "group"}:
            raise Malformed("expected an assignee, a group, or both")
        _still_open(await self.get_task(task_id))
        values = [part for name in ("assignee", "group") for part in (name in names, names.get(name))]
        async with intervention(self._pool, actor, "task.assign", task_id) as act:
            cursor = await act.connection.execute(SQL["assign_task"], [*values, task_id])
            found = await cursor.fetchone()
            if found is None:
                raise await _closed_meanwhile(act, task_id)
            act.detail |= names
        return {"assignee": found[0], "group": found[1]}


async def _changed(act: Intervention, name: str, *values: Any) -> bool:
    return (await act.connection.execute(SQL[name], values)).rowcount == 1


async def _closed_meanwhile(act: Intervention, task_id: str) -> Conflict:
    """Why a task that was open a moment ago can't be changed any more."""
    found = await rows(act.connection, query("get_task", file="tasks"), {"id": task_id})
    return Conflict(_closing(found[0]) if found else f"task {task_id} has gone with the history of its time")


def _still_open(task: Mapping[str, Any]) -> None:
    if task["status"] != "open":
        raise Conflict(_closing(task))


def _closing(task: Mapping[str, Any]) -> str:
    """Who or what closed a task, in words."""
    when = f" at {task['closed_at']}" if task["closed_at"] else ""
    how = {
        "answered": f"was answered by {task['answered_by'] or 'somebody'}{when}",
        "expired": f"expired{when}: its deadline came first",
        "cancelled": f"was cancelled{when}: its run no longer waits for it",
    }
    return f"task {task['id']} {how.get(task['status'], 'has changed just now; look again')}"


def _name(what: str, value: str | None) -> str | None:
    """A person's or group's name as it can be stored; None for an empty one."""
    if value is not None and ("\0" in value or len(value) > _MAX_TEXT):
        raise Malformed(f"{what}: expected at most {_MAX_TEXT} characters, none of them NUL", code="attribute")
    return value or None
