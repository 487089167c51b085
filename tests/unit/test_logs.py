"""Log lines: their shape, what they mask and what they leave out."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from appliance.observe import logs
from appliance.settings import LogSettings


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)
    logging.raiseExceptions = True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_json_when_nobody_watches(stream: io.StringIO) -> None:
    logs.configure(LogSettings(), stream=stream)
    log = logging.getLogger("appliance.test")
    log.debug("hidden")
    log.warning("refused %s", "it", extra={"workflow": "contact", "at": object, "key": {1: SecretStr("hidden")}})
    (entry,) = lines(stream)
    assert entry.pop("time").endswith("+00:00")
    assert entry.pop("at") == "<class 'object'>"
    expected = {"level": "warning", "logger": "appliance.test", "message": "refused it", "workflow": "contact"}
    assert entry == {**expected, "key": {"1": "**********"}}


def test_errors_come_with_their_traceback_on_one_line(stream: io.StringIO) -> None:
    logs.configure(LogSettings(), stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("appliance.test").exception("failed")
    (entry,) = lines(stream)
    assert entry["error"].startswith("Traceback")
    assert entry["error"].endswith("ValueError: broken")


@pytest.mark.parametrize("odd", ["\ud800", 2**70, float("nan")])
def test_no_value_keeps_a_line_from_being_written(stream: io.StringIO, odd: object) -> None:
    logs.configure(LogSettings(), stream=stream)
    logging.getLogger("appliance.test").warning("odd", extra={"value": odd})
    assert lines(stream)[0]["message"] == "odd"


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_masked_everywhere(stream: io.StringIO, form: Any) -> None:
    logs.configure(LogSettings(format=form), ['pass"word', 'longer-pass"word', "tiny"], stream)
    log = logging.getLogger("appliance.test")
    log.warning('the pass"word is %s, a tiny one', 'pass"word', extra={"url": 'x://u:longer-pass"word@h'})
    try:
        raise ValueError('pass"word')
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert "word" not in text
    assert "x://u:[secret]@h" in text
    assert text.count("[secret]") >= 4
    assert "tiny" in text  # too short: masking it would blot out ordinary words


def test_console_lines_carry_their_context(stream: io.StringIO) -> None:
    logs.configure(LogSettings(format="console", level="debug"), stream=stream)
    logging.getLogger("appliance.engine.executor").debug("done", extra={"run": "r1"})
    assert stream.getvalue().endswith(" DEBUG    engine.executor  done run=r1\n")


def test_libraries_are_quiet(stream: io.StringIO) -> None:
    logs.configure(LogSettings(), stream=stream)
    logging.getLogger("httpx").info("HTTP Request: POST")
    logging.getLogger("httpx").warning("odd")
    assert [entry["message"] for entry in lines(stream)] == ["odd"]


def test_a_second_set_up_replaces_the_first(stream: io.StringIO) -> None:
    logs.configure(LogSettings(), stream=stream)
    logs.configure(LogSettings(level="error"), stream=stream)
    logging.getLogger("appliance.test").warning("hidden")
    logging.getLogger("appliance.test").error("once")
    assert len(lines(stream)) == 1


def test_repetitions_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    limited = logs.RateLimited(logging.getLogger("appliance.test"), interval_s=1.0)
    for _ in range(3):
        limited.warning("no-group", "the group is gone: %s", "normal")
    limited.error("refused", "refused")
    now = 101.0
    limited.warning("no-group", "the group is gone: %s", "normal", extra={"stream": "normal"})
    assert [record.getMessage() for record in caplog.records] == [
        "the group is gone: normal",
        "refused",
        "the group is gone: normal",
    ]
    assert logs.extras_of(caplog.records[-1]) == {"stream": "normal", "left_out": 2}
