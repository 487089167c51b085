"""Wall-clock times as moments: what a zone's clocks show, also where they skip an hour or show one twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_SECOND = timedelta(seconds=1)


def zone(name: object) -> ZoneInfo:
    """The zone of an IANA name such as ``Europe/Berlin``; ValueError for anything else."""
    try:
        if isinstance(name, str) and name and name[0] not in "./":
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder's name, a strange character
        pass
    raise ValueError(f"timezone: expected a name such as Europe/Berlin or UTC, got {name!r:.80}")


def moment(shown: datetime, zone: ZoneInfo, *, last: bool = False) -> datetime:
    """The moment, in UTC, at which the clocks of ``zone`` show ``shown`` (naive).

    A time that they show twice is the first one, or the second if ``last``. A time that they never show is the moment
    at which they skip it.
    """
    first, second = (shown.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first <= second:
        return second if last else first
    return _skip(second, first, zone)


def skipped(shown: datetime, zone: ZoneInfo) -> bool:
    """Whether the clocks of ``zone`` never show ``shown`` (naive)."""
    return moment(shown, zone).astimezone(zone).replace(tzinfo=None, fold=0) != shown


def _skip(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """When, between two moments (UTC), the clocks are put forward, to the second."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) / 2
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)
