"""What is in the streams, asked by recovery: entries by their ids, the internal work, entries that nobody has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis.exceptions as rx
from redis.asyncio import Redis

from appliance.errors import Malformed, StreamUnavailable
from appliance.events import FIELD_WORK, PRIORITIES
from appliance.stream.client import Script, unavailable
from appliance.stream.keys import Keys
from appliance.stream.work import Work, decode_work

_PAGE = 500


class Presence:
    """Questions to Redis. Everything raises StreamUnavailable."""

    def __init__(self, client: Redis, keys: Keys, group: str, consumer: str) -> None:
        self._client: Any = client
        self._keys = keys
        self._group = group
        self._consumer = consumer
        self._orphans = Script("orphans")
        self._fence = Script("fence")

    async def missing(self, places: Sequence[tuple[str, str]]) -> list[bool]:
        """Of each (priority, entry id), whether there is no such entry."""
        with _translated():
            pipeline = self._client.pipeline(transaction=False)
            for priority, entry_id in places:
                pipeline.xrange(self._keys.stream(priority), entry_id, entry_id, 1)
            return [not rows for rows in await pipeline.execute()] if places else []

    async def works(self) -> AsyncIterator[Work]:
        """All internal work that is in the streams. Reads them from end to end: to be asked for rarely."""
        for priority in PRIORITIES:
            start = "-"
            while True:
                with _translated():
                    rows = await self._client.xrange(self._keys.stream(priority), start, "+", _PAGE)
                for _, fields in rows:
                    try:
                        if FIELD_WORK in fields:
                            yield decode_work(fields[FIELD_WORK])
                    except Malformed:  # somebody else's: the executor sets it aside
                        continue
                if len(rows) < _PAGE:
                    break
                start = f"({rows[-1][0].decode()}"

    async def adopt(self) -> int:
        """Put delivered entries that are pending with nobody back into the pending list; returns how many."""
        adopted = 0
        for priority in PRIORITIES:
            start = "-"
            while start:
                args = [self._group, self._consumer, start, _PAGE]
                with _translated():
                    number, after = await self._orphans.call(self._client, [self._keys.stream(priority)], args)
                adopted += number
                start = after.decode()
        return adopted

    async def fence(self, places: Sequence[tuple[str, str]]) -> list[bool]:
        """Whoever has these (priority, entry id) in hand, although they were deleted, can't settle them any more.

        Answers for each whether somebody still could have: not if it was settled before, or its life is over.
        """
        answers: list[bool] = []
        for priority, entry_id in places:
            keys = [self._keys.stream(priority), self._keys.ledger(priority), self._keys.settled(priority)]
            with _translated():
                answers.append(bool(await self._fence.call(self._client, keys, [self._group, entry_id])))
        return answers

    async def server(self) -> str:
        """What names this life of the server: after a restart or a failover it is another."""
        with _translated():
            return str((await self._client.info("server"))["run_id"])


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (rx.RedisError, OSError) as error:
        raise unavailable(error) or StreamUnavailable(f"Redis: {error}") from error
