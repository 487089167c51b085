"""With which entry an event's outcome is counted, where it isn't the one that the event came with.

Entries that recovery has added again, and redrives, settle events that stand recorded with other entries. When a life
of a stream ends, what it settled is compared with the history by the ids of the entries (``bookkeeping.py``). So before
such an entry is settled, the event's row is told its id.
"""

from __future__ import annotations

from appliance.batching import Batcher
from appliance.errors import Malformed
from appliance.events import FIELD_AGAIN, FIELD_COUNTED, FIELD_UID, FIELD_WORK
from appliance.identifiers import is_uuid
from appliance.store.recovery import RecoveryStore, Settling
from appliance.stream.consumer import Handler
from appliance.stream.entry import Entry, Settled, Verdict
from appliance.stream.work import decode_work

_LIMIT = 500


class Attributed:
    """A handler whose verdicts are attributed to the right entries."""

    def __init__(self, handler: Handler, store: RecoveryStore) -> None:
        self._handler = handler
        self._again: Batcher[Settling, None] = Batcher(store.settle_events, limit=_LIMIT, name="added again")
        self._reopened: Batcher[Settling, None] = Batcher(store.settle_reopened, limit=_LIMIT, name="reopened")

    async def handle(self, entry: Entry) -> Verdict:
        """As the handler does. Raises StoreUnavailable as well."""
        return await self._attributed(entry, await self._handler.handle(entry))

    async def set_aside(self, entry: Entry, reason: str) -> Verdict:
        """As the handler does."""
        return await self._attributed(entry, await self._handler.set_aside(entry, reason))

    async def _attributed(self, entry: Entry, verdict: Verdict) -> Verdict:
        fields = entry.fields
        if not isinstance(verdict, Settled) or (FIELD_AGAIN not in fields and FIELD_WORK not in fields):
            return verdict
        place = (entry.priority, entry.id.decode())
        if FIELD_WORK in fields:
            if name := _reopened_by(fields[FIELD_WORK]):
                await self._reopened.submit(Settling(name, *place))
        elif is_uuid(uid := fields.get(FIELD_UID, b"").decode("ascii", "replace")):
            await self._again.submit(Settling(uid, *place, FIELD_COUNTED in fields))
        return verdict


def _reopened_by(raw: bytes) -> str:
    """The run or letter whose dead event this work takes up again; empty if it is other work."""
    try:
        work = decode_work(raw)
    except Malformed:
        return ""
    return (work.run or work.letter) if work.reopens else ""
