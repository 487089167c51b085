"""Running foreign code so that the worst it can do is to fail: own tasks, own threads, a deadline, a count of the lost.

Whatever the code raises comes back as a value, ``SystemExit`` and ``CancelledError`` included; code that outlives its
deadline by more than a moment is *abandoned*: it may go on, but nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

CLEAN_UP_S = 0.5
"""How long a cancelled action may take to clean up before it is abandoned. It delays the retry, so: short."""


@dataclass(frozen=True, slots=True)
class Raised:
    """What the code raised."""

    error: BaseException


class Deadline(Exception):
    """The code had not ended at its deadline."""


class Isolation:
    """Bounds the time of coroutines and plain functions, and counts those that did not stop."""

    def __init__(self, threads: int) -> None:
        self._threads = _Threads(threads)
        self._abandoned: set[asyncio.Future[Any]] = set()

    @property
    def abandoned(self) -> int:
        """How many actions are still running although their attempt is over."""
        return len(self._abandoned)

    async def coroutine(self, start: Callable[[], Awaitable[Any]], timeout_s: float, name: str) -> Any:
        """What the coroutine returned, or :class:`Raised`; raises Deadline. Cancelling this cancels the coroutine.

        ``name`` is its task's, by which the watchdog of the event loop names it.
        """
        task = asyncio.get_running_loop().create_task(_guarded(start), name=name)
        try:
            await asyncio.sleep(0)  # an instant coroutine is over after this, without the price of a timer
            if not task.done():
                await asyncio.wait((task,), timeout=timeout_s)
        except asyncio.CancelledError:
            await self._end(task)
            raise
        if not task.done():
            await self._end(task)
            raise Deadline
        return _outcome(task)

    async def function(self, call: Callable[[], Any], timeout_s: float) -> Any:
        """The same for a plain function, in a thread. Waiting for a free thread does not count against its time."""
        job = await self._threads.start(call)
        try:
            await asyncio.wait((job,), timeout=timeout_s)
        finally:
            if not job.done():  # a thread can't be cancelled
                self._threads.write_off(job)
                self._abandon(job)
        if not job.done():
            raise Deadline
        return job.result()

    async def _end(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        try:
            await asyncio.wait((task,), timeout=CLEAN_UP_S)
        finally:
            if not task.done():
                self._abandon(task)

    def _abandon(self, future: asyncio.Future[Any]) -> None:
        self._abandoned.add(future)
        future.add_done_callback(self._abandoned.discard)


async def _guarded(start: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await start()
    except GeneratorExit:  # the coroutine is being closed: the loop went away
        raise
    except BaseException as error:
        return Raised(error)


def _outcome(task: asyncio.Task[Any]) -> Any:
    if task.cancelled():
        return Raised(asyncio.CancelledError())
    error = task.exception()
    return Raised(error) if error is not None else task.result()


class _Threads:
    """At most ``limit`` threads, not counting those written off.

    Daemons, unlike the threads of concurrent.futures: one that hangs must not hold up the end of the process.
    """

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._idle: list[_Thread] = []
        self._busy: dict[asyncio.Future[Any], _Thread] = {}

    async def start(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Begin ``call`` once a thread is free; the future's result is what it returned, or Raised."""
        await self._free.acquire()
        thread = self._idle.pop() if self._idle else _Thread()
        job: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._busy[job] = thread
        job.add_done_callback(self._ended)
        thread.work.put((call, job, contextvars.copy_context()))
        return job

    def write_off(self, job: asyncio.Future[Any]) -> None:
        """Its place is free for another; the thread ends with the job."""
        self._busy.pop(job).work.put(None)
        self._free.release()

    def _ended(self, job: asyncio.Future[Any]) -> None:
        thread = self._busy.pop(job, None)
        if thread is not None:
            self._idle.append(thread)
            self._free.release()


class _Thread:
    def __init__(self) -> None:
        self.work: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any], contextvars.Context] | None] = (
            SimpleQueue()
        )
        threading.Thread(target=self._run, name="appliance-action", daemon=True).start()

    def _run(self) -> None:
        while (item := self.work.get()) is not None:
            call, job, context = item
            try:
                result = context.run(call)
            except BaseException as error:
                result = Raised(error)
            try:
                job.get_loop().call_soon_threadsafe(_resolve, job, result)
            except RuntimeError:  # the loop is closed: the process is ending
                return
            del item, call, job, context, result


def _resolve(job: asyncio.Future[Any], result: Any) -> None:
    if not job.done():
        job.set_result(result)
