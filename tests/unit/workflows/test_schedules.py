"""Schedules: each slot once, on every day of every zone, whatever the clocks do; and what is refused."""

# ruff: noqa: DTZ001 - what clocks show has no offset
from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.workflows import wallclock
from appliance.workflows.schedules import Schedule, parse_schedule

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour
    "America/Sao_Paulo",  # at midnight
    "America/Havana",
    "Asia/Tehran",
    "Africa/Casablanca",  # four times a year
    "Pacific/Apia",  # a whole day
)
MOMENTS = st.datetimes(datetime(2005, 1, 1), datetime(2036, 1, 1)).map(lambda shown: shown.replace(tzinfo=UTC))
MINUTE = timedelta(minutes=1)


def at(text: str, zone: str = "Europe/Berlin") -> datetime:
    return datetime.fromisoformat(text).astimezone(wallclock.zone(zone))


def fired(expression: str, day: str, zone: str = "Europe/Berlin") -> list[str]:
    """What the clocks of a zone show at each slot of a day, with the offset."""
    schedule = parse_schedule(expression, zone)
    begin = datetime.fromisoformat(day).replace(tzinfo=schedule.zone)
    end = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=schedule.zone)
    slots = schedule.slots(begin - timedelta(seconds=1), end - timedelta(seconds=1), 2000)
    return [f"{slot.astimezone(schedule.zone):%H:%M%z}"[:-2] for slot in slots]


SPRING, AUTUMN = "2026-03-29", "2026-10-25"


@pytest.mark.parametrize(
    ("expression", "day", "expected"),
    [
        ("30 2 * * *", SPRING, ["03:00+02"]),  # isn't there: when it is skipped
        ("0,15,30 2 * * *", SPRING, ["03:00+02"]),  # several that aren't there are one
        ("0 2,3 * * *", SPRING, ["03:00+02"]),
        ("30 2,3 * * *", SPRING, ["03:00+02", "03:30+02"]),
        ("30 1 * * *", SPRING, ["01:30+01"]),
        ("0 */2 * * *", SPRING, [f"{h:02}:00+{'01' if h < 2 else '02'}" for h in (0, 3, *range(4, 24, 2))]),
        ("30 2 * * *", AUTUMN, ["02:30+02"]),  # is there twice: the first time
        ("0 3 * * *", AUTUMN, ["03:00+01"]),
        ("0 2-4 * * *", AUTUMN, ["02:00+02", "03:00+01", "04:00+01"]),
        ("*/30 2 * * *", AUTUMN, ["02:00+02", "02:30+02"]),
    ],
)
def test_an_expression_that_names_hours_fires_once_for_each(expression: str, day: str, expected: list[str]) -> None:
    assert fired(expression, day) == expected


def test_an_expression_for_every_hour_goes_by_elapsed_time() -> None:
    spring, autumn = fired("*/30 * * * *", SPRING), fired("*/30 * * * *", AUTUMN)
    assert (len(spring), len(autumn)) == (46, 50)
    assert spring[2:6] == ["01:00+01", "01:30+01", "03:00+02", "03:30+02"]
    assert autumn[3:9] == ["01:30+02", "02:00+02", "02:30+02", "02:00+01", "02:30+01", "03:00+01"]
    assert fired("15 0-23 * * *", AUTUMN)[2:4] == ["02:15+02", "02:15+01"]


@given(st.sampled_from(ZONES[:-1]), st.integers(2005, 2036), st.integers(0, 23), st.integers(0, 59))
@settings(max_examples=60, deadline=None)
def test_a_daily_schedule_fires_once_a_day(zone: str, year: int, hour: int, minute: int) -> None:
    schedule = parse_schedule(f"{minute} {hour} * * *", zone)
    begin = wallclock.moment(datetime(year, 1, 1), schedule.zone)
    days = (date(year + 1, 1, 1) - date(year, 1, 1)).days
    slots = schedule.upcoming(begin - timedelta(seconds=1), days)
    shown = [slot.astimezone(schedule.zone) for slot in slots]
    assert [slot.date() for slot in shown] == [date(year, 1, 1) + timedelta(days=n) for n in range(days)]
    for slot in shown:
        skipped = wallclock.skipped(datetime.combine(slot.date(), time(hour, minute)), schedule.zone)
        assert skipped or (slot.hour, slot.minute) == (hour, minute)


Fields = tuple[set[int], set[int] | None, set[int] | None]


@st.composite
def fields(draw: st.DrawFn) -> Fields:
    """Minutes, hours (None: every), days of the week (None: every; 0 is Sunday)."""
    minutes = draw(st.sets(st.sampled_from([0, 1, 15, 29, 30, 59]), min_size=1))
    hours = draw(st.none() | st.sets(st.sampled_from([0, 1, 2, 3, 12, 23]), min_size=1))
    return minutes, hours, draw(st.none() | st.sets(st.integers(0, 6), min_size=1, max_size=3))


def written(said: Fields) -> str:
    minutes, hours, days = (",".join(map(str, sorted(part))) if part else "*" for part in said)
    return f"{minutes} {hours} * * {days}"


def by_hand(said: Fields, zone: str, begin: datetime, end: datetime) -> list[datetime]:
    """The slots from ``begin`` to before ``end``, minute by minute and without croniter."""
    minutes, hours, days = said
    area = wallclock.zone(zone)

    def named(shown: datetime) -> bool:
        weekday = shown.isoweekday() % 7
        return shown.minute in minutes and (not hours or shown.hour in hours) and (not days or weekday in days)

    if hours is None:
        elapsed = (begin + n * MINUTE for n in range((end - begin) // MINUTE))
        return [moment for moment in elapsed if named(moment.astimezone(area))]
    first = begin.replace(tzinfo=None) - timedelta(days=2)
    clock = (first + n * MINUTE for n in range((end - begin + timedelta(days=4)) // MINUTE))
    return sorted({slot for shown in clock if named(shown) and begin <= (slot := wallclock.moment(shown, area)) < end})


CHANGES = (
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("America/Sao_Paulo", "2018-02-18"),
    ("America/Sao_Paulo", "2018-11-04"),
    ("America/Havana", "2026-11-01"),
    ("Pacific/Apia", "2011-12-30"),
    ("Asia/Tehran", "2022-09-22"),
    ("UTC", "2026-03-29"),
)


@given(fields(), st.sampled_from(CHANGES), st.integers(-2880, 1440), st.integers(0, 59))
@settings(max_examples=100, deadline=None)
def test_around_a_change_the_slots_are_those_counted_by_hand(
    said: Fields, change: tuple[str, str], offset: int, seconds: int
) -> None:
    zone, day = change
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC) + offset * MINUTE
    end = begin + timedelta(days=2)
    expected = by_hand(said, zone, begin, end)
    schedule = parse_schedule(written(said), zone)
    late = begin - timedelta(seconds=60 - seconds)
    forward = [slot for slot in schedule.upcoming(late, len(expected) + 1) if slot < end]
    assert forward == [slot for slot in expected if slot > late]
    assert schedule.slots(late, end - timedelta(seconds=1), 10_000) == expected
    assert schedule.slots(late, end - timedelta(seconds=1), 2) == expected[-2:]


@given(fields(), st.sampled_from(ZONES), MOMENTS)
@settings(deadline=None)
def test_the_next_slot_is_later_and_nothing_lies_between(said: Fields, zone: str, moment: datetime) -> None:
    schedule = parse_schedule(written(said), zone)
    slot = schedule.next_after(moment)
    assert slot is not None
    assert slot > moment
    assert slot.tzinfo is UTC
    assert schedule.slots(moment, slot, 10) == [slot]
    assert schedule.slots(moment, slot - timedelta(microseconds=1), 10) == []


def test_a_dense_schedule_over_years_costs_no_more_than_its_limit() -> None:
    schedule = parse_schedule("* * * * *")
    until = datetime(2026, 1, 1, tzinfo=UTC)
    assert schedule.slots(datetime(2006, 1, 1, tzinfo=UTC), until, 3) == [until - n * MINUTE for n in (2, 1, 0)]


def test_slots_of_rare_days() -> None:
    leap = parse_schedule("0 12 29 2 *").upcoming(datetime(2026, 1, 1, tzinfo=UTC), 2)
    assert leap == [datetime(2028, 2, 29, 12, tzinfo=UTC), datetime(2032, 2, 29, 12, tzinfo=UTC)]
    last = parse_schedule("0 0 L * *").upcoming(datetime(2026, 1, 31, tzinfo=UTC), 2)
    assert last == [datetime(2026, 2, 28, tzinfo=UTC), datetime(2026, 3, 31, tzinfo=UTC)]
    second_tuesday = parse_schedule("0 0 * * tue#2").next_after(datetime(2026, 11, 1, tzinfo=UTC))
    assert second_tuesday == datetime(2026, 11, 10, tzinfo=UTC)
    assert parse_schedule("0 0 * * *").next_after(datetime(9999, 12, 31, tzinfo=UTC)) is None


FIRST = datetime(2026, 11, 21, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("misfire", "late", "expected"),
    [
        ("skip", timedelta(seconds=5), [0]),
        ("skip", timedelta(minutes=1), [0]),
        ("skip", timedelta(seconds=61), []),
        ("skip", timedelta(minutes=45, seconds=10), [3]),  # only the present one
        ("skip", timedelta(minutes=50), []),
        ("once", timedelta(0), [0]),
        ("once", timedelta(minutes=50), [3]),
        ("once", timedelta(days=400), [38400]),
        ("all", timedelta(minutes=50), [0, 1, 2, 3]),
        ("all", timedelta(minutes=90), [2, 3, 4, 5, 6]),  # the latest five
        ("all", -timedelta(minutes=1), []),
    ],
)
def test_what_becomes_of_missed_slots(misfire: str, late: timedelta, expected: list[int]) -> None:
    schedule = parse_schedule("*/15 * * * *", misfire=misfire, limit=5)
    assert schedule.due(FIRST, FIRST + late) == [FIRST + n * timedelta(minutes=15) for n in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("* * * *",), "schedule: expected five fields .*, got '\\* \\* \\* \\*'"),
        (("* * * * * *",), "schedule: expected five fields"),
        (("",), "schedule: expected five fields"),
        ((None,), "schedule: expected five fields"),
        ((5,), "schedule: expected five fields"),
        (("@reboot",), "schedule: expected one of @hourly, @daily, .*, got '@reboot'"),
        (("60 * * * *",), "schedule: minute: expected 0-59, got '60'"),
        (("*/0 * * * *",), "schedule: minute: expected 0-59, got '\\*/0'"),
        (("R * * * *",), "schedule: minute: expected 0-59, got 'r'"),
        (("0 h * * *",), "schedule: hour: expected 0-23, got 'h'"),
        (("0 r(0-3) * * *",), "schedule: hour: expected 0-23"),
        (("0 24 * * *",), "schedule: hour: expected 0-23, got '24'"),
        (("0 0 32 * *",), "schedule: day of the month: expected 1-31 or L"),
        (("0 0 * 13 *",), "schedule: month: expected 1-12 or jan-dec, got '13'"),
        (("0 0 * * 8",), "schedule: day of the week: expected 0-7"),
        (("0 0 * * monday",), "schedule: day of the week: expected 0-7"),
        (("0 0 30 2 *",), "schedule: '0 0 30 2 \\*' names no day that comes within 10 years"),
        (("0 0 31 4,6,9,11 *",), "schedule: .* names no day"),
        (("0 0 * * *", "Berlin"), "timezone: expected a name such as Europe/Berlin or UTC, got 'Berlin'"),
        (("0 0 * * *", "UTC", "never"), "misfire: expected skip, once or all, got 'never'"),
        (("0 0 * * *", "UTC", "all", 0), "misfire_limit: expected a whole number from 1 to 1000, got 0"),
        (("0 0 * * *", "UTC", "all", True), "misfire_limit: expected"),
        (("0 0 * * *", "UTC", "all", "3"), "misfire_limit: expected"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_schedule(*arguments)


@given(st.text("0123456789*,-/#LWRHhlmonjan@? ", max_size=30) | st.text(max_size=20))
@settings(deadline=None)
def test_any_text_is_taken_or_refused_with_a_reason(text: str) -> None:
    schedule, reason = None, ""
    try:
        schedule = parse_schedule(text)
    except ValueError as error:
        reason = str(error)
    assert schedule or reason.startswith("schedule: ")
    if schedule is None:
        return
    slot = schedule.next_after(FIRST)
    assert slot is None or slot > FIRST
    assert parse_schedule(schedule.expression) == schedule


def test_two_spellings_of_a_schedule_are_the_same() -> None:
    assert parse_schedule(" 0  9 * * MON ") == parse_schedule("0 9 * * mon") == Schedule("0 9 * * mon")
    assert parse_schedule("@daily").expression == "0 0 * * *"
    assert parse_schedule("@daily").digest == parse_schedule("0 0 * * *", misfire="all", limit=3).digest
    assert parse_schedule("@daily").digest != parse_schedule("@daily", "Europe/Berlin").digest
