"""A plugin as its own distribution: installed with pip, found through its entry point, tested with its own tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "data" / "acme-sms"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the plugin into."""
    target = tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    command = (sys.executable, "-m", "pip", "install", *offline, "--target", target, SOURCE)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def python(*arguments: str, site: Path, cwd: Path) -> str:
    """What another process prints that has ``site`` on its path."""
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_registry_of_a_new_process_sees_it(site: Path, tmp_path: Path) -> None:
    program = """
import json
from appliance.registry import Registry
registry = Registry.load({"sms": {"sender": "Me"}})
print(json.dumps({"described": registry.describe(), "broken": dict(registry.broken),
                  "sender": registry.plugins["sms"].settings.sender}))
"""
    seen = json.loads(python("-c", program, site=site, cwd=tmp_path))

    described = {action["name"]: action for action in seen["described"]}
    assert seen["broken"] == {}
    assert seen["sender"] == "Me"
    assert {name: described["sms"][name] for name in ("distribution", "version", "description")} == {
        "distribution": "acme-sms",
        "version": "2.1.0",
        "description": "Send a text message.",
    }
    assert described["sms"]["params"]["required"] == ["to", "text"]
    assert set(described) >= {"send_email", "webhook", "log", "publish"}


def test_without_it_the_action_is_not_there(tmp_path: Path) -> None:
    program = "from appliance.registry import Registry; print('sms' in Registry.load().actions)"
    assert python("-c", program, site=tmp_path, cwd=tmp_path) == "False\n"


def test_its_own_tests_pass_against_this_appliance(site: Path, tmp_path: Path) -> None:
    # In a place of their own, as in their author's repository: without the configuration of this one.
    tests = shutil.copytree(SOURCE / "tests", tmp_path / "tests")
    output = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), site=site, cwd=tmp_path)
    assert "5 passed" in output
