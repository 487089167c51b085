"""A sink that measures who is at work: each attempt is a call that lasts as long as the sink takes to answer.

An attempt counts from when its request was read until its answer is about to be sent, or its connection is closed: so
what is found to overlap has overlapped, since whoever is at work knew of no end before the sink noted it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.chaos.sinks import HttpSink, Reply, _answer, _read_request

FLAKY, NEVER = 3, 5
"""Remainders of ``n``, by seven, whose first step is refused twice, and whose second step is refused for good."""
_CUT_S = 0.02
"""By so much an end that shows in a closed connection only may be noted too late."""


@dataclass(slots=True)
class Attempt:
    """One call. ``begun`` and ``ended`` are Unix seconds; ``ended`` is 0 while it lasts."""

    run: str
    workflow: str
    step: str
    key: str
    n: int
    pid: int
    begun: float
    ended: float = 0.0


class Gauge(HttpSink):
    """Answers after a few milliseconds: 503 and 422 as ``n`` has it where ``fails`` holds, else 200."""

    def __init__(self, dice: random.Random, fails: Callable[[str], bool]) -> None:
        super().__init__()
        self.attempts: list[Attempt] = []
        self._dice = dice
        self._fails = fails
        self._seen: Counter[str] = Counter()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await _read_request(reader)) is not None:
            said: dict[str, Any] = json.loads(request.body)
            kept = {name: said[name] for name in ("run", "workflow", "step", "key", "n", "pid")}
            attempt = Attempt(**kept, begun=time.time())
            self.attempts.append(attempt)
            status = self._status(attempt)
            if status != 503:  # what is refused is to be repeated
                self.requests.append(request)
            if await _hung_up(reader, self._dice.uniform(0.005, 0.05)):
                attempt.ended = max(attempt.begun, time.time() - _CUT_S)
                return
            attempt.ended = time.time()
            if not await _answer(writer, Reply(status)):
                return

    def _status(self, attempt: Attempt) -> int:
        if not self._fails(attempt.workflow):
            return 200
        self._seen[attempt.run + attempt.step] += 1
        if attempt.n % 7 == FLAKY and attempt.step == "a" and self._seen[attempt.run + attempt.step] <= 2:
            return 503
        return 422 if attempt.n % 7 == NEVER and attempt.step == "b" else 200


async def _hung_up(reader: asyncio.StreamReader, within_s: float) -> bool:
    """Whether the caller closes the connection while it waits: it died, or was told to stop."""
    try:
        async with asyncio.timeout(within_s):
            return not await reader.read(1)
    except TimeoutError:
        return False
    except OSError:
        return True


def counted(attempts: Iterable[Attempt], over: Mapping[str, float], lapsed: Mapping[int, float]) -> list[Attempt]:
    """The attempts by which runs may be said to be at work.

    ``over``: when a person ended a run, by run; what is under way then isn't interrupted. ``lapsed``: when the leases
    of a process that was frozen had run out, by pid; what it does after that it does as a zombie.
    """
    found = []
    for each in attempts:
        ended = min(each.ended or time.time(), over.get(each.run, float("inf")))
        if each.begun < ended and each.begun < lapsed.get(each.pid, float("inf")):
            found.append(Attempt(each.run, each.workflow, each.step, each.key, each.n, each.pid, each.begun, ended))
    return found


def at_once(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Of the moment at which the most runs are at work, one attempt of each."""
    moments = [(each.begun, 1, number, each) for number, each in enumerate(attempts)]
    moments += [(each.ended, 0, number, each) for _, _, number, each in moments]
    under_way: dict[str, list[Attempt]] = defaultdict(list)
    most: list[Attempt] = []
    for _, begins, _, each in sorted(moments):
        if begins:
            under_way[each.run].append(each)
            if len(under_way) > len(most):
                most = [attempts[0] for attempts in under_way.values()]
        else:
            under_way[each.run].remove(each)
            if not under_way[each.run]:
                del under_way[each.run]
    return most
