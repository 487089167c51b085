"""The outbox's loop: what stands in the table is put into the streams, and goes when it is no longer needed.

Every replica may do it: rows are taken with SKIP LOCKED, put into their streams, and marked in the transaction whose
commit follows. After a crash between the two a marker in Redis tells that the entry is there; once that is forgotten
the entry is added again, marked as such, and the executor finds what is recorded of its event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque

from appliance import faultpoints
from appliance.errors import StoreUnavailable, StreamUnavailable
from appliance.events import FIELD_AGAIN
from appliance.observe.metrics import METRICS
from appliance.store.outbox import Outbox, Place, Waiting
from appliance.stream.producer import Producer, Send

_BATCH = 500
_YOUNG_S = 10.0
"""A durable row is left to the process that stored it for so long: twice the time limit of a command to Redis."""
_SETTLE_AFTER_S = 1.0
"""Rows of this process are looked at this long after their entries were added: most events are handled by then."""
_PURGE_EVERY_S = 5.0
_PAGE = 2000
_MOST_NOTED = 200_000
"""Entries that this process remembers having added. Beyond it, rows look unsent, and their markers tell otherwise."""

log = logging.getLogger("appliance.engine.outbox")


class OutboxLoop:
    """One loop."""

    def __init__(self, outbox: Outbox, producer: Producer, poll_s: float) -> None:
        self._outbox = outbox
        self._producer = producer
        self._poll_s = poll_s
        self._noted: deque[tuple[float, str, str]] = deque(maxlen=_MOST_NOTED)
        self._place = Place()
        self._purged_at = time.monotonic()
        self._kick = asyncio.Event()
        self._stopping = False

    def expect(self) -> None:
        """A row was stored that is to be put in at once."""
        self._kick.set()

    def note(self, uid: str, entry_id: str) -> None:
        """This process has put the event of a durable row into its stream itself."""
        self._noted.append((time.monotonic(), uid, entry_id))

    def stop(self) -> None:
        """End :meth:`run_forever` after the batch in hand."""
        self._stopping = True
        self._kick.set()

    async def run_forever(self) -> None:
        """Until :meth:`stop`; what other replicas stored is found within ``engine.timer_poll``."""
        while not self._stopping:
            self._kick.clear()
            try:
                while await self.fire() == _BATCH and not self._stopping:
                    pass
                await self.settle(_SETTLE_AFTER_S)
                if time.monotonic() - self._purged_at > _PURGE_EVERY_S:
                    self._purged_at = time.monotonic()
                    await self._purge()
            except (StoreUnavailable, StreamUnavailable) as error:
                log.warning("the outbox waits: %s", error)
                await asyncio.sleep(min(1.0, self._poll_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._kick.wait()
        with contextlib.suppress(StoreUnavailable):
            await self.settle(0.0)

    async def fire(self) -> int:
        """Put what waits into the streams; returns how many rows. Raises StreamUnavailable when some could not be."""
        async with self._outbox.taking(_YOUNG_S, _BATCH) as (connection, rows):
            answers = await self._producer.put([_send(row) for row in rows]) if rows else []
            done = [(row, entry_id) for row, entry_id in zip(rows, answers, strict=True) if isinstance(entry_id, str)]
            if done:
                faultpoints.hit("after_put")
            await self._outbox.mark(connection, done)
        METRICS.outbox_sent.inc(len(done))
        for answer in answers:
            if isinstance(answer, StreamUnavailable):
                raise answer
        return len(rows)

    async def settle(self, after_s: float) -> None:
        """Look at the rows whose entries this process added ``after_s`` seconds ago or earlier."""
        before = time.monotonic() - after_s
        while self._noted and self._noted[0][0] <= before:
            batch = [row for row in list(self._noted)[:_PAGE] if row[0] <= before]
            await self._outbox.settle([(uid, entry_id) for _, uid, entry_id in batch])
            done = {uid for _, uid, _ in batch}
            while self._noted and self._noted[0][1] in done:
                self._noted.popleft()

    async def purge(self) -> int:
        """Drop every durable row whose event is settled; returns how many went."""
        place, dropped = Place(), 0
        while True:
            looked, gone = await self._outbox.purge(place, _PAGE)
            dropped += gone
            if looked < _PAGE:
                return dropped

    async def _purge(self) -> None:
        """The same from the oldest row on, until a page has none to drop. Behind it there will be few."""
        place = Place()
        while (await self._outbox.purge(place, _PAGE))[1] and not self._stopping:
            pass


def _send(row: Waiting) -> Send:
    """A durable row comes here after its own process could not, or did not say that it did: perhaps it was added."""
    fields = {**row.fields, FIELD_AGAIN: b"1"} if row.durable else row.fields
    return Send(row.priority, fields, row.uid)
