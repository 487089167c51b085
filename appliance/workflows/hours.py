"""Business hours: which moments count when a delay is measured in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from appliance.workflows import wallclock

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_KEYS = ("days", "from", "to", "timezone", "holidays")
_HORIZON_DAYS = 3660
"""How far ahead is looked for an open moment: as far as a delay may reach."""
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)")
_MIDNIGHT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class BusinessHours:
    """The same hours on some days of each week, but for holidays.

    ``opens`` and ``closes`` are times since midnight, as the clocks of ``zone`` show them; a day's last moment is
    ``closes`` itself, so eight hours from 09:00 on end at 17:00 and not the next morning.
    """

    days: frozenset[int]
    """Monday is 0."""
    opens: timedelta
    closes: timedelta
    zone: ZoneInfo
    holidays: frozenset[date] = frozenset()

    @classmethod
    def parse(cls, hours: Any) -> BusinessHours:
        """From ``{days, from, to, timezone, holidays}``; ``days`` is mon-fri and ``timezone`` UTC unless given.

        Raises ValueError, which begins with the key that is wrong.
        """
        if not isinstance(hours, Mapping):
            raise ValueError(f"business_hours: expected an object with {', '.join(_KEYS)}, got {hours!r:.80}")
        for key in hours:
            if key not in _KEYS:
                raise ValueError(f"{key!s:.80}: there is no such key; there are {', '.join(_KEYS)}")
        opens, closes = _clock(hours, "from"), _clock(hours, "to")
        if opens >= closes:
            raise ValueError(
                "to: expected a time later than `from`, on the same day; hours over midnight can't be said"
            )
        return cls(
            _days(hours.get("days", "mon-fri")),
            opens,
            closes,
            wallclock.zone(hours.get("timezone", "UTC")),
            _holidays(hours.get("holidays", ())),
        )

    def next_open(self, moment: datetime) -> datetime:
        """The first open moment from ``moment`` (aware) on, in UTC. ValueError if there is none within ten years."""
        return self.add(moment, timedelta())

    def add(self, start: datetime, duration: timedelta) -> datetime:
        """When ``duration`` of open time has passed since ``start`` (aware), in UTC.

        What passes is real time: a day on which the clocks change is as long as it is. ValueError if that isn't within
        ten years.
        """
        if start.tzinfo is None or duration < timedelta():
            raise ValueError("expected a start with an offset and a duration that is not negative")
        left = duration
        for opened, closed in self._spans(start.astimezone(UTC)):
            if left <= closed - opened:
                return opened + left
            left -= closed - opened
        raise ValueError(f"the business hours of {_HORIZON_DAYS} days are not enough")

    def _spans(self, start: datetime) -> Iterator[tuple[datetime, datetime]]:
        """What is open from ``start`` (UTC) on, as (begin, end) in UTC, never empty."""
        today = start.astimezone(self.zone).date()
        for number in range(_HORIZON_DAYS):
            try:
                day = today + timedelta(days=number)
                if day.weekday() not in self.days or day in self.holidays:
                    continue
                midnight = datetime.combine(day, time())
                opened = max(start, wallclock.moment(midnight + self.opens, self.zone))
                closed = wallclock.moment(midnight + self.closes, self.zone, last=self.closes < _MIDNIGHT)
            except OverflowError:  # the end of the year 9999
                return
            if opened < closed:
                yield opened, closed


def _clock(hours: Mapping[str, Any], key: str) -> timedelta:
    found = _TIME.fullmatch(str(hours.get(key)).strip())
    since_midnight = timedelta(hours=int(found[1]), minutes=int(found[2])) if found else None
    if since_midnight is None or since_midnight > _MIDNIGHT:
        raise ValueError(f'{key}: expected a time from "00:00" to "24:00", got {hours.get(key)!r:.80}')
    return since_midnight


def _days(value: Any) -> frozenset[int]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f"days: expected days such as mon-fri or [mon, wed], got {value!r:.80}")
    return frozenset(day for part in parts for day in _range(part))


def _range(part: Any) -> Iterator[int]:
    """The days of ``mon`` or ``mon-fri``; ``sat-mon`` goes over the week's end."""
    first, _, last = str(part).strip().lower().replace(" ", "").partition("-")
    try:
        begin, end = DAYS.index(first), DAYS.index(last or first)
    except ValueError:
        raise ValueError(f"days: expected {', '.join(DAYS)}, or two of them as mon-fri, got {part!r:.80}") from None
    return ((begin + number) % 7 for number in range((end - begin) % 7 + 1))


def _holidays(value: Any) -> frozenset[date]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"holidays: expected a list of dates such as 2030-12-25, got {value!r:.80}")
    return frozenset(map(_date, value))


def _date(value: Any) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(str(value).strip())
    except ValueError:
        raise ValueError(f"holidays: expected a date such as 2030-12-25, got {value!r:.80}") from None
