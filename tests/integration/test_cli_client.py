"""Which process the command line finds, and what it says when there is none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from appliance.cli import root
from appliance.cli.client import Client
from appliance.cli.exits import Exit, Failure
from appliance.cli.target import DEFAULT_URL, Target, find_target
from tests.chaos.sinks import HttpSink, Reply, json_reply


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "secrets.json").write_text(json.dumps({"api_key": "made"}))
    (tmp_path / "appliance.json").write_text(json.dumps({"url": "http://127.0.0.1:8123/", "pid": 1}))
    return tmp_path


def test_the_data_folder_of_a_process_here_is_enough(data_dir: Path) -> None:
    target = find_target(url=None, api_key=None, data_dir=data_dir, environ={})
    assert (target.url, target.api_key) == ("http://127.0.0.1:8123", "made")
    assert find_target(url=None, api_key=None, data_dir=None, environ={"APPLIANCE_DATA_DIR": str(data_dir)}) == target


def test_options_win_over_the_environment_and_that_over_the_folder(data_dir: Path) -> None:
    environ = {"APPLIANCE_URL": "http://env", "APPLIANCE_API_KEY": "env"}
    target = find_target(url=None, api_key=None, data_dir=data_dir, environ=environ)
    assert (target.url, target.api_key) == ("http://env", "env")
    target = find_target(url="https://opt/", api_key="opt", data_dir=data_dir, environ=environ)
    assert (target.url, target.api_key) == ("https://opt", "opt")


def test_a_key_file_is_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from file\n")
    environ = {"APPLIANCE_API_KEY_FILE": str(tmp_path / "key")}
    assert find_target(url=None, api_key=None, data_dir=tmp_path, environ=environ).api_key == "from file"
    with pytest.raises(Failure, match="none"):
        find_target(url=None, api_key=None, data_dir=tmp_path, environ={"APPLIANCE_API_KEY_FILE": "none"})


def test_nothing_anywhere_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_target(url=None, api_key=None, data_dir=None, environ={}) == Target(DEFAULT_URL, None, "default")


@pytest.mark.parametrize("named", ["option", "environment"])
def test_a_named_folder_without_a_process_is_not_another_process(tmp_path: Path, named: str) -> None:
    option = tmp_path if named == "option" else None
    environ = {} if option else {"APPLIANCE_DATA_DIR": str(tmp_path)}
    target = find_target(url=None, api_key=None, data_dir=option, environ=environ)
    assert target == Target(None, None, str(tmp_path))
    with pytest.raises(Failure, match=f"no appliance serves from {tmp_path}") as caught:
        Client(target, 5).get("/api/v1/ledger")
    assert caught.value.code == Exit.UNAVAILABLE


async def test_the_key_is_sent_and_json_comes_back(tmp_path: Path) -> None:
    async with HttpSink() as sink:
        sink.script(json_reply({"a": "ü"}), Reply(body=b"not json"), Reply(status=204, body=b""))
        client = Client(Target(sink.url.rstrip("/"), "k", "test"), 5)
        assert await asyncio.to_thread(client.get, "/x", a=1, b=None) == {"a": "ü"}
        assert await asyncio.to_thread(client.post, "/y", {"q": "ü"}) == "not json"
        assert await asyncio.to_thread(client.post, "/z") is None
    first, second, third = sink.requests
    assert (first.method, first.path, first.headers["authorization"]) == ("GET", "/x?a=1", "Bearer k")
    assert json.loads(second.body) == {"q": "ü"}
    assert second.headers["content-type"] == "application/json"
    assert third.body == b""


@pytest.mark.parametrize(
    ("url", "code"),
    [("http://127.0.0.1:1", Exit.UNAVAILABLE), ("ftp://x", Exit.USAGE), ("http://x:port", Exit.USAGE)],
)
def test_no_answer_is_one_line_with_the_way_out(url: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.main(["ledger", "--url", url]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert url in captured.err
