"""What an event led to: its runs, the events that these published, their runs, and so on, as one tree.

The events of a chain share the attribute ``correlationid`` (the first one's id), and name the run that made them in
``causationid``. So any event of a chain finds the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg_pool import AsyncConnectionPool

from appliance.errors import NotFound
from appliance.identifiers import is_uuid, milliseconds_of, range_start
from appliance.store.history import History
from appliance.store.queries import named
from appliance.store.reading import Connection, Item, rows, snapshot

MAX_NODES = 1000
"""Events and runs in one tree; beyond it the tree is cut."""
SQL = named("trace")


class Traces:
    """Reads trees. Raises NotFound and StoreUnavailable."""

    def __init__(self, pool: AsyncConnectionPool[Any], history: History) -> None:
        self._pool = pool
        self._history = history

    async def trace(self, event_id: str, max_nodes: int = MAX_NODES) -> Item:
        """The tree that an event (by its uid, or its sender's id) belongs to.

        ``events`` are the first ones: one, unless senders gave several events the same ``correlationid``. Each has
        ``runs``, and a run the ``events`` that it published and the ``runs`` that it called. A batch that began with
        another event says with which (``joined``), and is only there in full with that one.
        """
        found = await self._history.find_events(event_id, limit=1)
        if not found:
            raise NotFound(f"no event {event_id!r}")
        given = found[0]
        correlation = str(given["attributes"].get("correlationid") or given["id"])
        async with snapshot(self._pool) as conn:
            events = await self._events(conn, correlation, given, max_nodes)
            runs = await self._runs(conn, events, max_nodes)
        whole = len(events) + len(runs)
        tree = _Tree(events, runs, max_nodes)
        first = tree.first(given["uid"])
        return {"event": given["uid"], "correlation_id": correlation, "events": first, "nodes": tree.nodes,
                "cut": tree.cut or whole > max_nodes}  # fmt: skip

    async def _events(self, conn: Connection, correlation: str, given: Item, limit: int) -> list[Item]:
        values: dict[str, Any] = {"correlation": correlation, "limit": limit + 1}
        later = await rows(conn, _sql("correlated"), values)
        root = [given]
        if given["attributes"].get("correlationid"):
            uid = correlation if is_uuid(correlation) else None
            before = min([event["uid"] for event in later] or [given["uid"]])
            root = await rows(conn, _sql("root"), {"uid": uid, "id": correlation, "before": before})
        known = {event["uid"]: event for event in [*root, *later]}
        known.setdefault(given["uid"], given)
        return list(known.values())

    async def _runs(self, conn: Connection, events: list[Item], limit: int) -> list[Item]:
        moments = [milliseconds_of(event["uid"]) for event in events]
        values = {
            "uids": [event["uid"] for event in events],
            "starts": [range_start(moment) for moment in moments],
            "ends": [range_start(moment + 1) for moment in moments],
            "limit": limit + 1,
        }
        return await rows(conn, _sql("runs"), values)


class _Tree:
    """Puts events under the runs that published them, and runs under the events or runs that began them."""

    def __init__(self, events: list[Item], runs: list[Item], max_nodes: int) -> None:
        self.nodes = 0
        self.cut = False
        self._max = max_nodes
        self._events = events
        ids = {run["id"] for run in runs}
        self._of_event: dict[str, list[Item]] = {}
        self._called: dict[str, list[Item]] = {}
        self._published: dict[str, list[Item]] = {}
        for run in runs:
            if run["of_event"] != run["event_uid"]:
                self._of_event.setdefault(run["of_event"], []).append(run)
            elif run["parent"] in ids:
                self._called.setdefault(run["parent"], []).append(run)
            else:
                self._of_event.setdefault(run["event_uid"], []).append(run)
        for event in events:
            if (cause := _cause(event)) is not None:
                self._published.setdefault(cause, []).append(event)
        self._ids = ids

    def first(self, given: str) -> list[Item]:
        """The events that no run of this chain published, each with all below; the given one is always there."""
        tops = [event for event in self._events if _cause(event) is None]
        if not tops:  # its beginning is no longer kept
            tops = [event for event in self._events if _cause(event) not in self._ids]
        shown = [node for event in tops if (node := self._event(event)) is not None]
        if not any(_holds(node, given) for node in shown):
            shown += [n for e in self._events if e["uid"] == given and (n := self._event(e)) is not None]
        return shown

    def _event(self, event: Item) -> Item | None:
        if not self._room():
            return None
        names = ("uid", "id", "type", "source", "subject", "time", "outcome")
        node = {name: event[name] for name in names}
        node["id"] = event["id"] if event["id"] is not None else event["uid"]
        below = self._of_event.get(event["uid"], ())
        return {**node, "runs": [made for run in below if (made := self._run(run)) is not None]}

    def _run(self, run: Item) -> Item | None:
        if not self._room():
            return None
        names = ("id", "workflow", "revision", "status", "origin", "started_at", "finished_at", "duration_s", "error")
        node: Item = {name: run[name] for name in names}
        if run["parent"] is not None:
            node["step"] = run["step"]
        if run["rerun_of"] is not None:
            node["rerun_of"] = run["rerun_of"]
        if run["of_event"] != run["event_uid"]:
            return {**node, "joined": run["event_uid"], "events": [], "runs": []}
        published = self._published.get(run["id"], ())
        called = self._called.get(run["id"], ())
        node["events"] = [made for event in published if (made := self._event(event)) is not None]
        node["runs"] = [made for child in called if (made := self._run(child)) is not None]
        return node

    def _room(self) -> bool:
        if self.nodes >= self._max:
            self.cut = True
            return False
        self.nodes += 1
        return True


def _cause(event: Item) -> str | None:
    cause = (event["attributes"] or {}).get("causationid")
    return cause if isinstance(cause, str) else None


def _holds(node: Mapping[str, Any], uid: str) -> bool:
    return node.get("uid") == uid or any(_holds(below, uid) for below in [*node["runs"], *node.get("events", ())])


def _sql(name: str) -> Any:
    return SQL[name].decode()
