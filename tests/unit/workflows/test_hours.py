"""Business hours: counted by hand, and by minutes against the slow way over zones and years."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.templating import TemplateError
from appliance.workflows import wallclock
from appliance.workflows.hours import BusinessHours
from appliance.workflows.revision import due_at

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "America/Sao_Paulo",
    "Asia/Gaza",
)
OFFICE = {"days": "mon-fri", "from": "09:00", "to": "17:00", "timezone": "Europe/Berlin", "holidays": ["2026-12-25"]}


# ruff: noqa: DTZ001 - what clocks show has no offset
MOMENTS = st.datetimes(datetime(2005, 1, 1), datetime(2036, 1, 1))


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("start", "hours", "expected"),
    [
        ("2026-11-23T10:00", 2, "2026-11-23T12:00"),  # within a Monday
        ("2026-11-23T16:00", 2, "2026-11-24T10:00"),  # over a night
        ("2026-11-27T16:00", 2, "2026-11-30T10:00"),  # over a weekend
        ("2026-12-24T16:00", 2, "2026-12-28T10:00"),  # over a holiday and a weekend
        ("2026-11-28T12:00", 1, "2026-11-30T10:00"),  # from a Saturday
        ("2026-11-23T08:00", 8, "2026-11-23T17:00"),  # a whole day ends with it
        ("2026-11-23T17:00", 0, "2026-11-24T09:00"),  # nothing is left of the day
        ("2026-11-23T09:00", 40, "2026-11-27T17:00"),  # a whole week
        ("2026-11-23T09:00", 40.5, "2026-11-30T09:30"),
    ],
)
def test_only_open_time_counts(start: str, hours: float, expected: str) -> None:
    assert BusinessHours.parse(OFFICE).add(berlin(start), timedelta(hours=hours)) == berlin(expected)


@pytest.mark.parametrize(
    ("start", "hours", "expected"),
    [
        ("2026-03-29T00:00", 5, "2026-03-29T06:00"),  # 02:00 to 03:00 isn't there
        ("2026-10-25T00:00", 5, "2026-10-25T04:00"),  # it is there twice
        ("2026-03-28T00:00", 30, "2026-03-29T07:00"),
    ],
)
def test_the_day_on_which_the_clocks_change_is_as_long_as_it_is(start: str, hours: int, expected: str) -> None:
    always = BusinessHours.parse({"days": "mon-sun", "from": "00:00", "to": "24:00", "timezone": "Europe/Berlin"})
    assert always.add(berlin(start), timedelta(hours=hours)) == berlin(expected)


def test_hours_that_begin_or_end_in_a_skipped_hour_do_so_when_it_is_skipped() -> None:
    begins = BusinessHours.parse({"days": "sun", "from": "02:30", "to": "05:00", "timezone": "Europe/Berlin"})
    assert begins.next_open(berlin("2026-03-29T00:00")) == berlin("2026-03-29T03:00")
    ends = BusinessHours.parse({"days": "sun", "from": "01:00", "to": "02:30", "timezone": "Europe/Berlin"})
    assert ends.add(berlin("2026-03-29T00:00"), timedelta(hours=1)) == berlin("2026-03-29T03:00")
    assert ends.add(berlin("2026-03-29T00:00"), timedelta(minutes=61)) == berlin("2026-04-05T01:01")


@st.composite
def office_hours(draw: st.DrawFn) -> dict[str, Any]:
    opens, closes = sorted(draw(st.lists(st.integers(0, 96), min_size=2, max_size=2, unique=True)))
    return {
        "days": draw(st.lists(st.sampled_from(["mon", "tue-thu", "fri", "sat-mon"]), min_size=1, max_size=3)),
        "from": f"{opens // 4}:{opens % 4 * 15:02}",
        "to": f"{closes // 4}:{closes % 4 * 15:02}",
        "timezone": draw(st.sampled_from(ZONES)),
        "holidays": [],
    }


@settings(deadline=None)
@given(office_hours(), MOMENTS, st.integers(0, 90))
def test_minute_by_minute_it_is_the_same(written: dict[str, Any], start: datetime, minutes: int) -> None:
    hours = BusinessHours.parse(written)
    now = start.replace(tzinfo=UTC, second=0, microsecond=0)
    due = hours.add(now, timedelta(minutes=minutes))
    assert due.tzinfo is UTC
    passed, counted = now, 0
    while passed < due:
        shown = passed.astimezone(hours.zone)
        since_midnight = timedelta(hours=shown.hour, minutes=shown.minute)
        counted += shown.weekday() in hours.days and hours.opens <= since_midnight < hours.closes
        passed += timedelta(minutes=1)
    # Clocks that go back over an edge of the hours open them a second time: the span between is one.
    assert abs(counted - minutes) <= 60 * (_changes(now, due, hours.zone))


def _changes(start: datetime, end: datetime, zone: ZoneInfo) -> int:
    days = [start + timedelta(days=n) for n in range((end - start).days + 2)]
    offsets = [day.astimezone(zone).utcoffset() for day in days]
    return sum(a != b for a, b in itertools.pairwise(offsets))


@settings(deadline=None)
@given(office_hours(), MOMENTS, st.integers(0, 5000), st.integers(0, 5000))
def test_adding_in_two_parts_is_adding_at_once(written: dict[str, Any], start: datetime, a: int, b: int) -> None:
    hours = BusinessHours.parse(written)
    now, first, second = start.replace(tzinfo=UTC), timedelta(minutes=a), timedelta(minutes=b + 1)
    assert hours.add(hours.add(now, first), second) == hours.add(now, first + second)


def test_hours_that_never_come_end() -> None:
    first = date(2026, 1, 1)
    holidays = [str(first + timedelta(days=n)) for n in range(4400)]
    hours = BusinessHours.parse(OFFICE | {"holidays": holidays})
    with pytest.raises(ValueError, match="3660 days are not enough"):
        hours.next_open(berlin("2026-11-23T10:00"))
    with pytest.raises(TemplateError, match="not enough"):
        due_at({"for": "1h"}, berlin("2026-11-23T10:00"), hours)


def test_the_end_of_time() -> None:
    hours = BusinessHours.parse(OFFICE)
    with pytest.raises(ValueError, match="not enough"):
        hours.add(datetime(9999, 12, 30, tzinfo=UTC), timedelta(days=30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": "mon-fry"}, "days: expected mon, tue, .* got 'mon-fry'"),
        ({"days": []}, r"days: expected days such as mon-fri or \[mon, wed\], got \[\]"),
        ({"days": 5}, "days: expected days"),
        ({"days": "mon-tue-wed"}, "days: expected mon, tue"),
        ({"from": "9"}, 'from: expected a time from "00:00" to "24:00", got \'9\''),
        ({"from": None}, "from: expected a time"),
        ({"to": "24:01"}, "to: expected a time"),
        ({"from": "22:00", "to": "06:00"}, "to: expected a time later than `from`, on the same day"),
        ({"to": "09:00"}, "to: expected a time later"),
        ({"timezone": "Berlin"}, "timezone: expected a name such as Europe/Berlin or UTC, got 'Berlin'"),
        ({"timezone": "../etc/passwd"}, "timezone: expected"),
        ({"timezone": "Europe"}, "timezone: expected"),
        ({"timezone": ""}, "timezone: expected"),
        ({"timezone": 1}, "timezone: expected"),
        ({"holidays": "2026-12-25"}, "holidays: expected a list of dates"),
        ({"holidays": ["25.12."]}, "holidays: expected a date such as 2030-12-25, got '25.12.'"),
        ({"until": "x"}, "until: there is no such key; there are days, from, to, timezone, holidays"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        BusinessHours.parse(OFFICE | change)


def test_hours_are_an_object() -> None:
    with pytest.raises(ValueError, match=r"^business_hours: expected an object with days, from"):
        BusinessHours.parse("09:00-17:00")


def test_a_start_without_an_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="with an offset"):
        BusinessHours.parse(OFFICE).next_open(datetime(2026, 1, 1))


def test_days_may_be_said_in_several_ways() -> None:
    said = ["mon-wed, sat", ["mon", "tue", "wed", "sat"], ["Mon-Wed", "SAT"], "mon - wed,sat"]
    assert {BusinessHours.parse(OFFICE | {"days": days}).days for days in said} == {frozenset({0, 1, 2, 5})}
    assert BusinessHours.parse({"from": "9:00", "to": "17:00"}).days == frozenset(range(5))
    assert BusinessHours.parse(OFFICE | {"holidays": [date(2026, 1, 1)]}).holidays == {date(2026, 1, 1)}


def test_a_delay_counts_in_its_hours() -> None:
    hours, friday = BusinessHours.parse(OFFICE), berlin("2026-11-27T16:30")
    assert due_at({"for": "1h"}, friday, hours) == berlin("2026-11-30T09:30")
    assert due_at({"until": "2026-11-28T12:00:00+01:00"}, friday, hours) == berlin("2026-11-30T09:00")
    assert due_at({"until": "2026-11-30T12:00:00+01:00"}, friday, hours) == berlin("2026-11-30T12:00")
    assert due_at({"until": "2026-11-20T03:00:00+01:00"}, friday, hours) == friday
    assert due_at({"for": "1h"}, friday) == friday + timedelta(hours=1)
    with pytest.raises(TemplateError, match="longer than"):
        due_at({"until": "2056-11-28T12:00:00+01:00"}, friday, hours)


@settings(deadline=None)
@given(MOMENTS, st.sampled_from(ZONES))
def test_what_clocks_show_is_when_they_show_it(shown: datetime, name: str) -> None:
    zone = wallclock.zone(name)
    first, last = wallclock.moment(shown, zone), wallclock.moment(shown, zone, last=True)
    assert first <= last
    if wallclock.skipped(shown, zone):
        before = (first - timedelta(seconds=1)).astimezone(zone).replace(tzinfo=None)
        assert first == last
        assert before < shown < first.astimezone(zone).replace(tzinfo=None, fold=0)
    else:
        assert first.astimezone(zone).replace(tzinfo=None, fold=0) == shown
        assert last.astimezone(zone).replace(tzinfo=None, fold=0) == shown


def test_a_day_that_was_skipped_as_a_whole() -> None:
    """Samoa went to bed on the 29th of December 2011 and woke up on the 31st."""
    apia = wallclock.zone("Pacific/Apia")
    assert wallclock.moment(datetime(2011, 12, 30, 12), apia) == datetime(2011, 12, 30, 10, tzinfo=UTC)
    hours = BusinessHours.parse({"days": "mon-sun", "from": "09:00", "to": "17:00", "timezone": "Pacific/Apia"})
    assert hours.add(datetime(2011, 12, 29, 17, tzinfo=apia), timedelta()) == datetime(2011, 12, 31, 9, tzinfo=apia)
