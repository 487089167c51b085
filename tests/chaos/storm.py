"""Processes that die again and again: at fault points, and whenever chance will have it."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from appliance import faultpoints
from tests.chaos.appliance_process import Fleet, Replica
from tests.chaos.site import LEASE_S

_FREQUENT = ("before_action", "after_action", "before_commit", "after_commit", "after_read", "before_ack", "after_ack")
"""Points that are passed many times a second under load; the others are rarer."""


@dataclass(slots=True)
class Storm:
    """``await storm.blow()``: ``width`` replicas, one after the other in each place, until ``kills`` of them died.

    After it a healthy replica stands in each place. ``kills`` is counted down, ``blind`` counts the deaths by chance,
    which leave no line in a log. With ``freezes`` some are frozen beyond their leases instead, and thawed.
    """

    fleet: Fleet
    dice: random.Random
    kills: int
    width: int = 2
    freezes: bool = False
    blind: int = 0
    frozen: dict[int, float] = field(default_factory=dict)
    """By process id, when it was frozen (Unix seconds): what it does after that it does without its leases."""
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def blow(self) -> None:
        """Until all the deaths are died, and every place has a replica that is ready."""
        await asyncio.gather(*(self._place(f"place-{number}") for number in range(self.width)))
        self.over.set()

    async def _place(self, name: str) -> None:
        while self.kills > 0:
            self.kills -= 1
            replica = await self.fleet.start(name=name, fault=self._fault(), ready=False)
            if await _came_up(replica):
                await self._end(replica)
        await self.fleet.start(name=name)

    def _fault(self) -> str:
        point = self.dice.choice(sorted(faultpoints.POINTS))
        return f"kill@{point}#{self.dice.randrange(1, 60 if point in _FREQUENT else 6)}"

    async def _end(self, replica: Replica) -> None:
        try:
            await asyncio.wait_for(replica.process.wait(), self.dice.uniform(0.3, 2.5))
        except TimeoutError:
            self.blind += 1
            if self.freezes and self.dice.random() < 0.3:
                replica.freeze()
                self.frozen[replica.pid] = time.time()
                await asyncio.sleep(LEASE_S * 1.5)
                replica.thaw()
                await asyncio.sleep(0.5)  # so that it tries to go on with what isn't its own any more
            await replica.kill()


async def _came_up(replica: Replica) -> bool:
    """Wait until it is ready; False if it died before."""
    try:
        await replica.ready()
    except AssertionError:
        assert replica.process.returncode is not None, replica.tail()
        return False
    return True
