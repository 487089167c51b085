"""The data directory: held once, private, and known to the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.datadir import DataDir, read_api_key, read_endpoint
from appliance.errors import ConfigurationError


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_is_private_and_held_by_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data"
    with DataDir.open(path):
        assert mode(path) == 0o700
        with pytest.raises(ConfigurationError, match=rf"process {os.getpid()}.*another --data-dir"):
            DataDir.open(path)
    DataDir.open(path).close()


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file/data can't be used: Not a directory"):
        DataDir.open(tmp_path / "file" / "data")


def test_the_api_key_is_made_once_and_private(tmp_path: Path) -> None:
    assert read_api_key(tmp_path) is None
    with DataDir.open(tmp_path) as datadir:
        key = datadir.api_key()
        other = datadir.secret("other")
    with DataDir.open(tmp_path) as datadir:
        assert (datadir.api_key(), datadir.secret("other")) == (key, other)
    assert read_api_key(tmp_path) == key
    assert len(key) >= 40
    assert mode(tmp_path / "secrets.json") == 0o600


def test_broken_secrets_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{")
    with DataDir.open(tmp_path) as datadir, pytest.raises(ConfigurationError, match=r"secrets\.json: not JSON"):
        datadir.api_key()
    assert (tmp_path / "secrets.json").read_text() == "{"


def test_says_where_it_serves_until_it_ends(tmp_path: Path) -> None:
    with DataDir.open(tmp_path) as datadir:
        datadir.announce("http://127.0.0.1:8000", "1.2.3")
        assert read_endpoint(tmp_path) == {"url": "http://127.0.0.1:8000", "pid": os.getpid(), "version": "1.2.3"}
    assert read_endpoint(tmp_path) == {}


def test_a_temporary_one_is_removed(tmp_path: Path) -> None:
    with DataDir.open(tmp_path / "ignored", ephemeral=True) as datadir:
        (datadir.path / "something").mkdir()
    assert not datadir.path.exists()
    assert not (tmp_path / "ignored").exists()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, young = tmp_path / "appliance-ephemeral-left", tmp_path / "appliance-ephemeral-young"
    for path in (left, young):
        path.mkdir()
        (path / "appliance.lock").touch()
    os.utime(left, (0, 0))
    with DataDir.open(tmp_path / "ignored", ephemeral=True) as held:
        os.utime(held.path, (0, 0))
        DataDir.open(tmp_path / "ignored", ephemeral=True).close()
        assert held.path.exists()
    assert list(tmp_path.iterdir()) == [young]


def test_a_short_place_for_sockets_when_the_path_is_long(tmp_path: Path) -> None:
    with DataDir.open(tmp_path / ("x" * 100)) as datadir:
        short = datadir.socket_dir("valkey")
        assert len(os.fsencode(short / ".s.PGSQL.5432.lock")) < 100
        assert datadir.socket_dir("valkey") == short
        assert mode(short) == 0o700
    assert not short.exists()


def test_sockets_lie_with_the_data_when_the_path_is_short() -> None:
    with DataDir.open(Path("ignored"), ephemeral=True) as datadir:
        assert datadir.socket_dir("valkey") == datadir.path / "valkey"
