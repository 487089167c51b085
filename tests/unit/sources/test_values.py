"""Texts of PostgreSQL as JSON data: exact, or refused."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.sources.values import Values, moment_of, time_text

VALUES = Values(ZoneInfo("Europe/Berlin"), decimals_as_text=False)
NUMERIC, FLOAT8, JSON, TIMESTAMPTZ, TIMESTAMP, DATE = 1700, 701, 114, 1184, 1114, 1082


@pytest.mark.parametrize(
    ("oid", "text", "value"),
    [
        (16, "true", True),
        (20, "-9223372036854775808", -(2**63)),
        (NUMERIC, "10", 10),
        (NUMERIC, "10.50", 10.5),
        (NUMERIC, "-0.000001", -0.000001),
        (FLOAT8, "0.1", 0.1),
        (JSON, '{"a": null}', {"a": None}),
        (TIMESTAMPTZ, "2026-01-31 12:00:00+00", "2026-01-31T12:00:00Z"),
        (TIMESTAMPTZ, "0001-01-01 00:00:00.5+00", "0001-01-01T00:00:00.500000Z"),
        (TIMESTAMP, "2026-07-01 00:30:00", "2026-06-30T22:30:00Z"),
        (DATE, "2026-02-28", "2026-02-28"),
        (99999, '["to_json"]', ["to_json"]),
        (25, "text", "text"),
    ],
)
def test_what_has_json(oid: int, text: str, value: Any) -> None:
    read = VALUES.read(oid, text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (NUMERIC, "NaN"),
        (NUMERIC, "Infinity"),
        (NUMERIC, "0.1234567890123456"),
        (NUMERIC, "1" * 400),
        (FLOAT8, "NaN"),
        (FLOAT8, "-Infinity"),
        (JSON, '"\\u0000"'),
        (JSON, "[" * 300 + "]" * 300),
        (TIMESTAMPTZ, "infinity"),
        (TIMESTAMPTZ, "10000-01-01 00:00:00+00"),
        (TIMESTAMPTZ, "0001-01-01 00:00:00+00 BC"),
        (DATE, "-infinity"),
    ],
)
def test_what_has_none(oid: int, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        VALUES.read(oid, text)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4))
def test_a_decimal_is_exact_or_refused(value: Decimal) -> None:
    text = f"{value:f}"
    try:
        read = VALUES.read(NUMERIC, text)
    except ValueError:
        assert len(value.normalize().as_tuple().digits) > 15
    else:
        assert Decimal(repr(read)) == value
    assert Values(ZoneInfo("UTC"), decimals_as_text=True).read(NUMERIC, text) == text


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))  # noqa: DTZ001
def test_a_cursor_value_is_a_moment(shown: datetime) -> None:
    when = shown.replace(tzinfo=UTC)
    micros = (when - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution)
    assert moment_of(micros, None) == when
    assert datetime.fromisoformat(time_text(when)) == when
