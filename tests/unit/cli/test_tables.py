"""Tables for people: aligned, and harmless whatever an event says."""

from __future__ import annotations

import json

import pytest

from appliance.cli.ledger import account_text
from appliance.cli.tables import cell, emit, fields, table


def test_columns_are_aligned_and_numbers_stand_to_the_right() -> None:
    rows = [{"id": "a", "n": 5, "data": {"x": 1}}, {"id": "bcd", "n": 12, "data": None}]
    assert table(rows, ["id", "n", "data.x"]).splitlines() == ["ID    N  X", "a     5  1", "bcd  12"]


def test_wide_and_combining_characters_keep_the_columns() -> None:
    rows = [{"a": "日本", "b": "x"}, {"a": "e\u0301", "b": "x"}]
    assert table(rows, ["a", "b"]).splitlines() == ["A     B", "日本  x", "e\u0301     x"]


def test_no_rows_say_so() -> None:
    assert table([], ["id"], empty="no runs") == "no runs"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b31m", r"\x9b31m"),
        ("grüße", "grüße"),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text: str, shown: str) -> None:
    assert cell(text) == shown
    assert cell({"k": text}).isprintable()


def test_fields_leave_out_what_is_not_there() -> None:
    assert fields([("id", "1"), ("subject", None), ("ok", True)]) == "id  1\nok  yes"


def test_json_output_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"name": "grüße"}, "text", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"name": "grüße"}


def test_the_account_is_a_sum_that_ends_in_the_difference() -> None:
    account = {"accepted": 1204, "handled": 1100, "unmatched": 80, "duplicate": 10, "dead": 4, "in_flight": 9}
    text = account_text({**account, "difference": 1})
    assert text.splitlines() == [
        "accepted    1,204",
        "- handled   1,100",
        "- unmatched    80",
        "- duplicate    10",
        "- dead          4",
        "- in flight     9",
        "            -----",
        "difference      1",
    ]
