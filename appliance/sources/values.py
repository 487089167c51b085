"""Values of PostgreSQL, as it writes them, as JSON data. Nothing is rounded or left out: what has no JSON is refused.

====================  ==================================================================================
in the result         in the event
====================  ==================================================================================
boolean, null         the same
smallint … bigint     a number
real, double          a number; NaN and the infinities are refused
numeric               a number, if a double carries its digits exactly; else refused. A text with
                      ``decimals: text``
timestamptz           RFC 3339 in UTC: ``2026-11-21T09:30:00.123456Z``
timestamp             the same; the source's ``timezone`` says whose clock it is
date, time            ``2026-11-21``, ``09:30:00``
interval              ISO 8601: ``P1DT2H``
json, jsonb           the data
texts, uuid, inet …   a text
arrays, enums, others what ``to_json`` makes of them
====================  ==================================================================================

Times before year 1, after 9999 and ``infinity`` are refused. ``bytea`` is refused for the whole source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from appliance.errors import Malformed
from appliance.events import loads
from appliance.workflows import wallclock

TIMESTAMPTZ, TIMESTAMP, DATE, BYTEA = 1184, 1114, 1082, 17
INTEGERS = frozenset({20, 21, 23})
_PLAIN = frozenset(
    {16, 18, 19, 25, 26, 114, 142, 650, 700, 701, 790, 829, 869, 1042, 1043, 1083, 1186, 1266, 1560, 1562, 1700, 2950}
    | {3802, *INTEGERS, TIMESTAMPTZ, TIMESTAMP, DATE}
)
"""Types (by their OIDs) that are asked for as texts; all others as JSON."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?(\+00)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_WHOLE = re.compile(r"-?\d{1,18}")
_DIGITS = 15
"""Decimal digits that every double carries."""


class Values:
    """Reads values of one source."""

    def __init__(self, zone: ZoneInfo, *, decimals_as_text: bool) -> None:
        self._readers: dict[int, Callable[[str], Any]] = {
            16: lambda text: text == "true",
            **dict.fromkeys((*INTEGERS, 26), int),
            **dict.fromkeys((700, 701), _double),
            **dict.fromkeys((114, 3802), _json),
            1700: _exact if decimals_as_text else _number,
            TIMESTAMPTZ: lambda text: time_text(_moment(text, None)),
            TIMESTAMP: lambda text: time_text(_moment(text, zone)),
            DATE: _date,
        }

    def read(self, oid: int, text: str) -> Any:
        """JSON data; ``oid`` is of a type that was asked for as text, or as JSON. Raises ValueError saying why not."""
        reader = self._readers.get(oid)
        if reader is not None:
            return reader(text)
        return text if is_plain(oid) else _json(text)


def is_plain(oid: int) -> bool:
    """Whether values of a type are to be asked for as texts (else as JSON)."""
    return oid in _PLAIN


def time_text(when: datetime) -> str:
    """RFC 3339 in UTC, with as many digits as it takes."""
    return when.astimezone(UTC).isoformat().replace("+00:00", "Z")


def moment_of(microseconds: int, zone: ZoneInfo | None) -> datetime:
    """The moment of a cursor value; with ``zone`` it is what that zone's clocks show."""
    when = _EPOCH + microseconds * _MICROSECOND
    return when if zone is None else wallclock.moment(when.replace(tzinfo=None), zone)


def _moment(text: str, zone: ZoneInfo | None) -> datetime:
    if _TIME.fullmatch(text) is None:
        raise ValueError(f"{text} is no time between the years 1 and 9999")
    shown = datetime.fromisoformat(text.removesuffix("+00"))
    return shown.replace(tzinfo=UTC) if zone is None else wallclock.moment(shown, zone)


def _date(text: str) -> str:
    if _DATE.fullmatch(text) is None:
        raise ValueError(f"{text} is no date between the years 1 and 9999")
    return text


def _double(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no JSON number")
    return value


def _exact(text: str) -> str:
    if text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"{text} is no number")
    return text


def _number(text: str) -> int | float:
    if _WHOLE.fullmatch(text):
        return int(text)
    value = Decimal(_exact(text))
    near = float(value)
    if not math.isfinite(near) or len(value.normalize().as_tuple().digits) > _DIGITS:
        raise ValueError(f"{text} has more digits than a JSON number carries; decimals: text keeps them")
    return near


def _json(text: str) -> Any:
    try:
        return loads(text.encode())
    except Malformed as error:
        raise ValueError(str(error)) from None
