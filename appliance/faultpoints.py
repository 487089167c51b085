"""Named places where a test makes this process die or freeze; inert, and nearly free, unless asked for.

``APPLIANCE_FAULT`` lists what to do, separated by commas: ``kill@before_commit#3`` sends SIGKILL to this process the
third time it reaches ``before_commit`` (``#1`` may be left out). What can be done:

=======  ====================================================================
``kill``  SIGKILL: the process is gone, as in a power cut of this machine
``term``  SIGTERM: a stop is asked for at exactly this place
``stop``  SIGSTOP: the process freezes until somebody sends SIGCONT (a zombie)
``fail``  ConnectionError: what a server that goes away looks like from here
=======  ====================================================================

The caller writes ``faultpoints.hit("before_commit")``: an empty function's call (some 30 ns) when no fault is switched
on. Nothing but tests ever sets the variable; it is no setting.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from appliance.errors import ConfigurationError

VARIABLE = "APPLIANCE_FAULT"

Point = Literal[
    "after_read",  # entries are ours in the pending list, nothing looked at yet
    "before_action",  # a step's attempt is about to run
    "after_action",  # its effect happened, nothing is recorded
    "before_commit",  # the outcome is in hand, the transaction not yet sent
    "after_commit",  # the outcome is durable, nobody was told
    "before_ack",  # the acknowledge is about to be sent
    "after_ack",  # the entry is out of the pending list
    "before_xadd",  # an event is accepted from its sender, Redis has not seen it
    "after_xadd",  # Redis has it, the sender was not answered
    "after_fire",  # the work of timers that were due is in the stream, their rows have not gone
    "after_slot",  # the event of a schedule's slot is in the stream, its row has not moved on
    "before_rows",  # rows of a source were read and mapped, nothing of it is committed
    "after_rows",  # their events are committed to the outbox, none is in a stream
    "after_put",  # events of the outbox are in the stream, their rows don't say so
    "before_decision",  # flow control has decided about some runs, nothing of it is committed
    "after_decision",  # its decisions are durable, nobody was told
    "before_tell",  # an event is recorded, the runs that wait for it were not told
    "before_look_back",  # that a run waits is recorded, events that came before were not looked for
]
POINTS: frozenset[str] = frozenset(get_args(Point))

_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}
_FAULT = re.compile(r"(kill|term|stop|fail)@([a-z_]+)(?:#([1-9][0-9]{0,8}))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """Do ``effect`` at the ``nth`` time (from 1) that ``point`` is reached."""

    effect: str
    point: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.effect}@{self.point}#{self.nth}"


def parse(text: str) -> tuple[Fault, ...]:
    """The faults that ``text`` lists; ConfigurationError for anything else: no test may pass by a typo."""
    faults = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _FAULT.fullmatch(part)
        if found is None or found[2] not in POINTS:
            raise ConfigurationError(
                f"{VARIABLE}: {part!r} is no fault: write kill|term|stop|fail@POINT#N, "
                f"POINT being one of {', '.join(sorted(POINTS))}"
            )
        faults.append(Fault(found[1], found[2], int(found[3] or 1)))
    return tuple(faults)


def armed(faults: tuple[Fault, ...]) -> Callable[[Point], None]:
    """The function that counts visits and strikes when one is due; :func:`inert` if there is nothing to do."""
    if not faults:
        return inert
    visits: Counter[str] = Counter()

    def hit(point: Point) -> None:
        visits[point] += 1
        for fault in faults:
            if fault.point == point and fault.nth == visits[point]:
                _strike(fault)

    return hit


def inert(_: Point) -> None:
    """What a fault point does unless it was asked to do something."""


def _strike(fault: Fault) -> None:
    # Written past every buffer: after SIGKILL nothing would flush it, and the tests count faults by these lines.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"fault point: {fault}\n".encode())
    if fault.effect == "fail":
        raise ConnectionError(f"fault point: {fault}")
    os.kill(os.getpid(), _SIGNALS[fault.effect])


hit: Callable[[Point], None] = armed(parse(os.environ.get(VARIABLE, "")))
"""Call it through the module at the place that the point names."""
