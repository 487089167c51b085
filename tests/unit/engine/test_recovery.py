"""Which entries the ledger counts as accepted."""

from __future__ import annotations

import pytest

from appliance.engine.recovery import was_counted
from appliance.store.recovery import Life

LIVES = [
    Life("normal", "1000-0", "5000-3", True),
    Life("normal", "6000-0", "6000-0", False),
    Life("high", "0-0", None, False),
]


@pytest.mark.parametrize(
    ("entry_id", "expected"),
    [("1000-0", True), ("5000-3", True), ("5000-10", False), ("5999-0", False), ("6000-0", True), ("9000-0", True)],
)
def test_what_was_added_after_the_counters_were_saved_is_not_counted(entry_id: str, expected: bool) -> None:
    assert was_counted("normal", entry_id, LIVES) is expected


def test_a_life_that_was_never_saved_counts_nothing() -> None:
    assert not was_counted("normal", "999-0", LIVES)


def test_without_any_life_on_record_everything_is_taken_as_counted() -> None:
    assert was_counted("low", "5-0", LIVES)
