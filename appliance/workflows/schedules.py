"""Schedules: cron expressions as moments, once each, also when the clocks change.

croniter says which minutes of the wall clock an expression names; which moments those are is decided here:

* An expression that names hours (``30 2 * * *``, ``0 */6 * * *``) fires once for each time that it names. A time that
  the clocks show twice counts when they show it first; a time that they skip counts when they skip it, as with cron: a
  02:30 that isn't there is 03:00. Several times in one skipped hour are one.
* An expression for every hour (``*/15 * * * *``) goes by elapsed time: what is skipped is no time, and the hour that
  comes twice counts twice.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from appliance.identifiers import key_uuid
from appliance.workflows import wallclock

SKIP, ONCE, ALL = MISFIRES = ("skip", "once", "all")
GRACE = timedelta(minutes=1)
"""A slot that is older than this was missed."""
MAX_LIMIT = 1000

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = (
    "minute: expected 0-59",
    "hour: expected 0-23",
    "day of the month: expected 1-31 or L (the last one)",
    "month: expected 1-12 or jan-dec",
    "day of the week: expected 0-7 (0 and 7 are Sunday) or sun-sat",
)
_CHARACTERS = re.compile(r"[0-9A-Za-z*,/#-]{1,100}", re.ASCII)
_CHANCE = re.compile(r"[hr]", re.IGNORECASE)
"""How a field begins for which croniter throws dice; no name of a day or month does."""
_YEARS = 10
"""An expression that names no day in so many years is refused."""
_MINUTE = timedelta(minutes=1)
_TICK = timedelta(microseconds=1)
_NEAR = timedelta(hours=25)
"""Clocks are put forward or back by a day at most (Samoa did it), and never twice within a day."""
_ANY_YEAR = datetime(2024, 1, 1)  # noqa: DTZ001 - what clocks show has no offset


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a workflow starts by itself; :func:`parse_schedule` makes it. ``timezone`` is an IANA name.

    ``misfire`` says what becomes of slots that nobody was there for: ``skip`` them, run ``once`` for the latest, or
    ``all``, of which the latest ``limit``.
    """

    expression: str
    timezone: str = "UTC"
    misfire: str = ONCE
    limit: int = 10

    @property
    def digest(self) -> str:
        """What two schedules with the same slots share."""
        return key_uuid("schedule", self.expression, self.timezone)

    @property
    def zone(self) -> ZoneInfo:
        """The zone whose clocks the expression is about."""
        return wallclock.zone(self.timezone)

    def next_after(self, moment: datetime) -> datetime | None:
        """The first slot after ``moment`` (aware), in UTC; None if there is none within ten years."""
        try:
            return _Calendar(self).next(moment)
        except (CroniterBadDateError, OverflowError):
            return None

    def slots(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """The latest ``limit`` slots later than ``after``, up to and with ``until``; the oldest comes first, in UTC."""
        calendar, found = _Calendar(self), [until + _TICK]
        with contextlib.suppress(CroniterBadDateError, OverflowError):
            while len(found) <= limit and (slot := calendar.last(found[-1] - _TICK)) > after:
                found.append(slot)
        return found[:0:-1]

    def due(self, first: datetime, now: datetime) -> list[datetime]:
        """Of the slots from ``first`` to ``now``, those that are to fire, the oldest first: what ``misfire`` says."""
        slots = self.slots(first - _TICK, now, self.limit if self.misfire == ALL else 1)
        return [slot for slot in slots if self.misfire != SKIP or now - slot <= GRACE]

    def upcoming(self, after: datetime, count: int) -> list[datetime]:
        """The first ``count`` slots after a moment (aware), in UTC."""
        calendar, found = _Calendar(self), [after]
        with contextlib.suppress(CroniterBadDateError, OverflowError):
            while len(found) <= count:
                found.append(calendar.next(found[-1]))
        return found[1:]


def parse_schedule(expression: Any, timezone: Any = "UTC", misfire: Any = ONCE, limit: Any = 10) -> Schedule:
    """A schedule from what is written in a trigger; ValueError says what is wrong and what was expected.

    An expression has five fields (croniter's: lists, ranges, steps, names, ``L``, ``#``), or is a name such as
    ``@daily``. One that names no day within ten years (30 February) is refused.
    """
    wallclock.zone(timezone)
    if misfire not in MISFIRES:
        raise ValueError(f"misfire: expected {', '.join(MISFIRES[:-1])} or {MISFIRES[-1]}, got {misfire!r:.80}")
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"misfire_limit: expected a whole number from 1 to {MAX_LIMIT}, got {limit!r:.80}")
    return Schedule(_expression(expression), timezone, misfire, limit)


def _expression(value: Any) -> str:
    """The expression in one spelling: lower-case, single spaces, no name."""
    text = str(value).strip().lower()
    if text.startswith("@") and text not in _ALIASES:
        raise ValueError(f"schedule: expected one of {', '.join(_ALIASES)}, got {value!r:.80}")
    fields = _ALIASES.get(text, text).split()
    if len(fields) != len(_FIELDS) or not isinstance(value, str):
        raise ValueError(
            'schedule: expected five fields (minute, hour, day, month, day of the week) such as "0 9 * * 1", '
            f"got {value!r:.80}"
        )
    for index, field in enumerate(fields):
        _check_field(index, field)
    expression = " ".join(fields)
    try:
        croniter(expression, _ANY_YEAR, max_years_between_matches=_YEARS).get_next(datetime)
    except CroniterBadDateError:
        raise ValueError(f"schedule: {value!r:.80} names no day that comes within {_YEARS} years") from None
    except ValueError as error:
        raise ValueError(f"schedule: {error}") from None
    return expression


def _check_field(index: int, field: str) -> None:
    alone = ["*"] * len(_FIELDS)
    alone[index] = field
    try:
        good = _CHARACTERS.fullmatch(field) and not _CHANCE.match(field) and croniter.expand(" ".join(alone))
    except (ValueError, KeyError, IndexError, TypeError):  # the last three are croniter's own mistakes
        good = None
    if not good:
        raise ValueError(f"schedule: {_FIELDS[index]}, got {field!r:.80}")


class _Calendar:
    """The minutes that an expression names on the clocks of a zone, and the moments that they are.

    Its methods raise CroniterBadDateError when there is none within ten years, OverflowError at the end of all years.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._cron = croniter(schedule.expression, _ANY_YEAR, max_years_between_matches=_YEARS)
        self._zone = schedule.zone
        self._every_hour = self._cron.expanded[1] == ["*"]

    def next(self, moment: datetime) -> datetime:
        """The first slot after ``moment``."""
        # Where clocks go back soon, what they show later may be earlier on them.
        shown = min(self._shown(moment), self._shown(moment + _NEAR) - _NEAR) - _MINUTE
        best: datetime | None = None
        while True:
            shown = self._cron.get_next(datetime, start_time=shown)
            if best is not None and wallclock.moment(shown, self._zone) >= best:
                return best  # all further times are first shown even later
            best = min(
                (slot for slot in (best, *self._slots(shown)) if slot is not None and slot > moment), default=None
            )

    def last(self, moment: datetime) -> datetime:
        """The last slot at or before ``moment``."""
        shown = max(self._shown(moment), self._shown(moment - _NEAR) + _NEAR) + _MINUTE
        best: datetime | None = None
        while True:
            shown = self._cron.get_prev(datetime, start_time=shown)
            if best is not None and wallclock.moment(shown, self._zone, last=True) <= best:
                return best
            best = max(
                (slot for slot in (best, *self._slots(shown)) if slot is not None and slot <= moment), default=None
            )

    def _slots(self, shown: datetime) -> tuple[datetime, ...]:
        """The moments that a time on the clocks stands for: none, one or two."""
        first = wallclock.moment(shown, self._zone)
        if not self._every_hour:
            return (first,)
        return () if wallclock.skipped(shown, self._zone) else (first, wallclock.moment(shown, self._zone, last=True))

    def _shown(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone).replace(tzinfo=None, fold=0, second=0, microsecond=0)
