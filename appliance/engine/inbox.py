"""What people put in for a run: an event, and what became of a step whose effect is not known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from appliance.engine.interventions import Intervention, Standing, described, intervention
from appliance.engine.state import UNKNOWN
from appliance.errors import Conflict, NotFound
from appliance.events import Event, dumps
from appliance.identifiers import derived_uuid7, milliseconds_of
from appliance.store.pool import Pool


class Inbox:
    """Two operations. Both raise NotFound, Conflict and StoreUnavailable."""

    def __init__(self, pool: Pool, on_timer: Callable[[float], None]) -> None:
        self._pool = pool
        self._on_timer = on_timer

    async def send_event(self, run_id: str, event: Event, actor: str) -> dict[str, Any]:
        """Give a run an event, whatever it correlates by; the first active step that takes such events takes it.

        The event is stored, but starts nothing and reaches no other run. ``{"id", "uid", "status"}``: ``accepted``, or
        ``duplicate`` if the run was given the event before.
        """
        async with intervention(self._pool, actor, "run.event", run_id) as act:
            await self._open(act, run_id, "no event can be sent to it")
            uid = await self._store(act, event)
            new = await act.signal(run_id, "", "event", None, id=uid, event_uid=uid)
            act.detail["event"] = uid
        self._on_timer(time.time())
        return {"id": event.id, "uid": uid, "status": "accepted" if new else "duplicate"}

    async def _store(self, act: Intervention, event: Event) -> str:
        """The uid under which the event stands in the database: that of an earlier one with the same key."""
        if event.key is not None:
            await act.do("claim_key", event.key, event.uid)
            ((uid,),) = await act.rows("claimed_key", event.key)
            if uid != event.uid:
                if not await act.rows("has_event", uid):
                    raise Conflict(f"an event of this source and id is on its way as {uid}: send another id, or later")
                return str(uid)
        sender = event.id if event.id != event.uid else None
        attributes = dumps(dict(event.attributes)).decode() if event.attributes else None
        data = dumps(event.data).decode() if event.data is not None else None
        values = (event.uid, sender, event.source, event.type, event.subject, event.time, attributes, data, event.key)
        await act.do("add_event", *values)
        return event.uid

    async def settle_step(
        self, run_id: str, key: str, verdict: str, actor: str, *, output: Any = None, error: str | None = None
    ) -> dict[str, Any]:
        """Say what became of a step whose outcome is unknown: ``succeeded``, ``failed``, or ``retry`` it.

        Of several who say so at once the first is heard, the others get a Conflict.
        """
        async with intervention(self._pool, actor, "step.settle", run_id) as act:
            await self._open(act, run_id, "none of its steps can be settled")
            found = await act.rows("step", run_id, key)
            if not found:
                raise NotFound(f"run {run_id} has no step {key!r}")
            ((status, attempt, started_at),) = found
            if status != UNKNOWN:
                raise Conflict(f"step {key} is {status}; only one whose outcome is unknown can be settled")
            # Derived from the attempt: it is settled once, the next one can be settled again.
            signal = derived_uuid7(milliseconds_of(run_id), "settle", run_id, key, str(attempt), str(started_at))
            payload = {"status": verdict, "output": output, "error": error, "by": actor}
            if not await act.signal(run_id, key, "settle", payload, id=signal):
                raise Conflict(f"step {key} was settled by somebody else just now")
            act.detail |= {"step": key, "as": verdict}
        self._on_timer(time.time())
        return {"step": key, "status": "accepted"}

    async def _open(self, act: Intervention, run_id: str, what_not: str) -> Standing:
        run = await act.lock(run_id)
        if run.over:
            raise Conflict(f"run {run_id} is {described(run)}; {what_not}")
        return run
