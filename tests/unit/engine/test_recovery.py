"""Which entries the ledger counts as accepted."""

from __future__ import annotations

import pytest

from appliance.engine.recovery import counting
from appliance.store.recovery import Life

LIVES = [
    Life("normal", "1000-0", "5000-3", True, "old"),
    Life("normal", "6000-0", "6000-0", False, "new"),
    Life("high", "0-0", None, False, "other"),
]


@pytest.mark.parametrize(
    ("entry_id", "expected"), [("1000-0", True), ("5000-3", True), ("5000-10", False), ("5999-0", False)]
)
def test_what_was_added_after_the_counters_were_saved_is_not_counted(entry_id: str, expected: bool) -> None:
    assert counting("normal", entry_id, LIVES) == (expected, "")


@pytest.mark.parametrize("entry_id", ["6000-0", "9000-0"])
def test_a_life_that_goes_on_counts_what_is_added_while_it_does(entry_id: str) -> None:
    assert counting("normal", entry_id, LIVES) == (True, "new")


def test_a_life_that_was_never_saved_counts_nothing() -> None:
    assert counting("normal", "999-0", LIVES) == (False, "")


def test_without_any_life_on_record_everything_is_taken_as_counted() -> None:
    assert counting("low", "5-0", LIVES) == (True, "")
