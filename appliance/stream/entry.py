"""A stream entry in this replica's hands, and what its handler may answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

HANDLED = "handled"
UNMATCHED = "unmatched"
DUPLICATE = "duplicate"
DEAD = "dead"
INTERNAL = "internal"


@dataclass(slots=True, eq=False)
class Entry:
    """An entry that was read or reclaimed and is not acknowledged yet.

    ``redelivered`` says that somebody may have handled it before, so PostgreSQL is to be asked first.
    ``deliveries`` is how often it was given to a process, this time included. ``renewed_at`` is the monotonic time from
    which the lease runs. ``failures`` counts errors of our own while handling it here.
    """

    priority: str
    id: bytes
    fields: dict[bytes, bytes]
    renewed_at: float
    redelivered: bool = False
    deliveries: int = 1
    lost: bool = False
    failures: int = 0

    @property
    def name(self) -> str:
        """``normal-1700000000000-0``: how logs and dead letters name it."""
        return f"{self.priority}-{self.id.decode('ascii', 'replace')}"


class Settled(NamedTuple):
    """The entry's outcome is committed: acknowledge it. See ``lua/settle.lua`` for the outcomes."""

    outcome: str


class Later(NamedTuple):
    """Not yet: keep the entry pending, leased, and hand it over again, as redelivered, after ``delay_s`` seconds."""

    delay_s: float


Verdict = Settled | Later
