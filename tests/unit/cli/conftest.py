"""Fixtures of the command line's tests."""

from __future__ import annotations

import pytest

from appliance.cli import root
from appliance.cli.client import Client
from tests.unit.cli.double import Invoke, Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    double = Server()
    monkeypatch.setattr(
        Client,
        "ask",
        lambda client, method, path, body=None, headers=None: double.ask(client, method, path, body, headers),
    )
    return double


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = root.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
