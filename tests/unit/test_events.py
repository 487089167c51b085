"""The envelope: what can't be stored is refused, however it is nested."""

from __future__ import annotations

import pytest

from appliance.errors import Malformed
from appliance.events import MAX_DEPTH, decode_entry, deeper_than, dumps, loads, new_event

STREAM = "appliance:events:normal"


def nested(levels: int, core: bytes = b"1") -> bytes:
    return b"[" * levels + core + b"]" * levels


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 400, 1000, 1025, 100_000])
@pytest.mark.parametrize("core", [b"1", b'"\\u0000"'])
def test_data_that_is_nested_too_deeply_is_malformed(levels: int, core: bytes) -> None:
    with pytest.raises(Malformed):
        loads(nested(levels, core))
    with pytest.raises(Malformed):
        decode_entry(STREAM, b"1-1", {b"type": b"t", b"data": nested(levels, core)})


def test_the_deepest_data_that_is_read_can_be_written_again() -> None:
    event = decode_entry(STREAM, b"1-1", {b"type": b"t", b"data": nested(MAX_DEPTH)})
    assert dumps(event.data) == nested(MAX_DEPTH)
    again = decode_entry(
        STREAM, b"1-1", {b"event": dumps(event.to_cloudevent() | {"data": loads(nested(MAX_DEPTH - 1))})}
    )
    assert again.data == loads(nested(MAX_DEPTH - 1))


def test_many_brackets_are_not_deep() -> None:
    raw = b"[" + b",".join([b"[{}]"] * 1000) + b"]"
    assert len(loads(raw)) == 1000
    assert not deeper_than(loads(raw), 3, raw)
    assert deeper_than(loads(raw), 2, raw)


@pytest.mark.parametrize(
    "raw", [b'"\\u0000"', b'{"\\u0000": 1}', b'[{"a": ["b\\u0000"]}]', nested(MAX_DEPTH, b'"\\u0000"')]
)
def test_nul_is_found_wherever_it_is(raw: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        loads(raw)
    assert caught.value.code == "nul-character"


def test_what_an_event_starts_travels_with_it() -> None:
    event = new_event("schedule.due", {"n": 1}, source="schedule:w", key=None, start=("w", "schedule"))
    entry = event.to_entry()
    assert loads(entry[b"start"]) == {"workflow": "w", "origin": "schedule"}
    assert decode_entry("s", b"1-0", entry) == event
    plain = new_event("t", None, source="/t")
    assert b"start" not in plain.to_entry()
    assert decode_entry("s", b"1-0", plain.to_entry()).start is None


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"w",
        b"[]",
        b'{"workflow": "w"}',
        b'{"workflow": "", "origin": "manual"}',
        b'{"workflow": 1, "origin": "manual"}',
        b'{"workflow": "w", "origin": "event"}',
        b'{"workflow": "w", "origin": []}',
        b'{"workflow": "w", "origin": "manual", "more": 1}',
    ],
)
def test_a_start_that_cannot_be_read_is_malformed(start: bytes) -> None:
    entry = new_event("t", None, source="/t").to_entry() | {b"start": start}
    with pytest.raises(Malformed):
        decode_entry("s", b"1-0", entry)


def test_only_entries_of_our_own_start_a_workflow_by_name() -> None:
    start = b'{"workflow": "w", "origin": "manual"}'
    flat = decode_entry("s", b"1-0", {b"type": b"t", b"start": start})
    assert (flat.start, flat.data) == (None, {"start": start.decode()})
    entry = new_event("t", None, source="/t").to_entry() | {b"start": start}
    del entry[b"uid"]
    assert decode_entry("s", b"1-0", entry).start is None
