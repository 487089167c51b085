"""The fault points: inert without the variable, exact with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from appliance import faultpoints
from appliance.errors import ConfigurationError
from appliance.faultpoints import Fault, armed, inert, parse


def test_nothing_is_armed_without_the_variable() -> None:
    assert faultpoints.VARIABLE not in os.environ
    assert faultpoints.hit is inert
    assert armed(parse("")) is inert


def test_a_list_of_faults_is_read() -> None:
    assert parse("kill@before_commit#3, stop@after_read") == (
        Fault("kill", "before_commit", 3),
        Fault("stop", "after_read", 1),
    )


@pytest.mark.parametrize(
    "text", ["kill@before_comit", "kill", "explode@after_ack", "kill@after_ack#0", "kill@after_ack#"]
)
def test_a_typo_is_refused_with_the_names_that_exist(text: str) -> None:
    with pytest.raises(ConfigurationError, match="before_commit") as caught:
        parse(text)
    assert text in str(caught.value)


def test_the_nth_visit_strikes_and_no_other() -> None:
    hit = armed(parse("fail@before_ack#2"))
    hit("before_ack")
    hit("after_ack")
    with pytest.raises(ConnectionError, match="fail@before_ack#2"):
        hit("before_ack")
    hit("before_ack")


def test_kill_ends_the_process_at_the_spot() -> None:
    code = (
        "from appliance import faultpoints as f\n"
        "for n in range(3):\n"
        "    print(n, flush=True)\n"
        "    f.hit('before_commit')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, faultpoints.VARIABLE: "kill@before_commit#2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.split() == ["0", "1"]
    assert ended.stderr == "fault point: kill@before_commit#2\n"
