"""Collect what concurrent callers ask for and do it together: one pipeline, one transaction, one script call.

A flush starts as soon as there is something to do and the last flush has returned. A fixed collecting window is slower
(9.1 k against 16.0 k requests a second for XADD) and adds its length to every latency.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """Hands items in batches of at most ``limit`` to ``flush``, one batch at a time, in order of arrival.

    ``flush(items)`` returns an answer, or an exception, for each item. If it raises, every item of the batch gets that
    exception. A caller that is cancelled does not disturb the flush: nothing on the wire is ever cut off half-way.
    """

    def __init__(
        self, flush: Callable[[list[Item]], Awaitable[Sequence[Answer | BaseException]]], *, limit: int, name: str
    ) -> None:
        self._flush = flush
        self._limit = limit
        self._name = name
        self._queue: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> asyncio.Future[Answer]:
        """Queue ``item``; the future brings its answer."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"flush {self._name}")
        return future

    def __len__(self) -> int:
        """How many items wait for the next flush."""
        return len(self._queue)

    async def drain(self) -> None:
        """Wait until everything that was submitted has been flushed."""
        while self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._flush_some()
        finally:
            self._task = None

    async def _flush_some(self) -> None:
        queue = self._queue
        batch = [queue.popleft() for _ in range(min(self._limit, len(queue)))]
        answers: Sequence[Answer | BaseException]
        try:
            answers = await self._flush([item for item, _ in batch])
        except Exception as error:  # the flush's own failure is every caller's
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
