"""log: a line that a form can't forge."""

from __future__ import annotations

import logging

import pytest
from appliance_log import action
from pydantic import ValidationError

from appliance.testing import run_action


async def test_writes_the_message_at_its_level_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    outcome = await run_action(action, {"message": "paid 100%", "level": "warning"})

    record = caplog.records[-1]
    assert (record.levelno, record.message) == (logging.WARNING, "paid 100%")
    assert outcome.output == {"message": "paid 100%", "level": "warning"}


async def test_info_is_the_level_that_needs_no_mention(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "appliance.actions"):
        await run_action(action, {"message": "hello"})

    assert caplog.records[-1].levelno == logging.INFO


@pytest.mark.parametrize("text", ["a\nERROR forged", "a\r\nb", "a\x1b[31mb", "a\0b", "a\u2028b", "a\x85b", "a\x9bb"])
async def test_a_message_is_one_visible_line(text: str, caplog: pytest.LogCaptureFixture) -> None:
    await run_action(action, {"message": text, "level": "error"})

    written = caplog.records[-1].message
    assert len(written.splitlines()) == 1
    assert written.isprintable()


@pytest.mark.parametrize("wrong", [{}, {"message": "a", "level": "fatal"}, {"message": "a", "colour": 1}])
async def test_refuses_other_parameters(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        await run_action(action, wrong)
