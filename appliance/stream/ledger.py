"""The ledger: ``accepted = handled + unmatched + duplicate + dead + in_flight``, read in one moment from Redis.

``accepted`` comes from the streams' own counters, so entries that others added count. The outcomes were counted in the
script that acknowledged their entries, so the sum holds at any moment, under traffic too. A difference that is not zero
means that entries vanished unsettled: trimmed or deleted by somebody, or lost with Redis's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import redis.exceptions as rx
from redis.asyncio import Redis

from appliance.errors import StreamUnavailable
from appliance.events import PRIORITIES, entry_ms
from appliance.stream.client import Script, unavailable
from appliance.stream.keys import Keys

_COUNTS = ("accepted", "handled", "unmatched", "duplicate", "dead", "in_flight")


@dataclass(frozen=True, slots=True)
class Account:
    """The counts of one stream (``epoch`` names its life: it counts from zero after Redis lost it), or of all.

    ``oldest_ms`` is when the oldest entry in the stream was added (Unix milliseconds), None if it is empty.
    ``first_id`` is where this life begins, ``last_id`` the newest entry of it. ``recent`` counts the settled events by
    the minute of their entries, from the first minute of which something may be unsettled.
    """

    accepted: int = 0
    handled: int = 0
    unmatched: int = 0
    duplicate: int = 0
    dead: int = 0
    in_flight: int = 0
    epoch: str = ""
    oldest_ms: int | None = None
    first_id: str | None = None
    last_id: str = ""
    recent: Mapping[int, int] = field(default_factory=dict)

    @property
    def difference(self) -> int:
        """Accepted and not accounted for."""
        return self.accepted - self.handled - self.unmatched - self.duplicate - self.dead - self.in_flight

    def __add__(self, other: Account) -> Account:
        return Account(*(getattr(self, name) + getattr(other, name) for name in _COUNTS))

    def as_dict(self) -> dict[str, int]:
        """The counts and the difference."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {**counts, "difference": self.difference}


class Ledger:
    """Reads the counters."""

    def __init__(self, client: Redis, keys: Keys, group: str) -> None:
        self._client = client
        self._keys = keys
        self._group = group
        self._script = Script("snapshot")

    async def accounts(self) -> list[Account]:
        """One account for each stream, all of the same moment. Raises StreamUnavailable."""
        keys = [key for p in PRIORITIES for key in (self._keys.stream(p), self._keys.ledger(p))]
        try:
            reply = await self._script.call(self._client, keys, [self._group])
        except (rx.RedisError, OSError) as error:
            raise unavailable(error) or StreamUnavailable(f"Redis: {error}") from error
        return [account(*row) for row in reply]


def account(
    length: int,
    added: int,
    groups: int,
    pending: int,
    lag: int,
    counters: list[bytes],
    oldest: bytes,
    last: bytes = b"",
    kept: int = 0,
) -> Account:
    """One stream's account from what ``lua/snapshot.lua`` answers."""
    texts = [part.decode() for part in counters]
    values = dict(zip(texts[::2], texts[1::2], strict=True))
    epoch, first = values.pop("epoch", ""), values.pop("first", None)
    n = {name: int(value) for name, value in values.items()}
    minutes = {int(name[3:]): number for name, number in n.items() if name.startswith("at:")}
    # Where ours is the only group, settled entries are deleted, so the stream's length is exactly what is unsettled.
    unsettled = length if groups <= 1 or lag < 0 else pending + lag
    internal = n.get("work", 0) - n.get("reopened", 0) - n.get("internal", 0)
    return Account(
        accepted=added - n.get("base", 0) - n.get("work", 0),
        handled=n.get("handled", 0),
        unmatched=n.get("unmatched", 0),
        duplicate=n.get("duplicate", 0),
        dead=n.get("dead", 0),
        in_flight=unsettled - internal,
        epoch=epoch,
        oldest_ms=entry_ms(oldest) if oldest else None,
        first_id=first,
        last_id=last.decode(),
        recent={kept: 0, **{minute: number for minute, number in minutes.items() if minute >= kept}},
    )
