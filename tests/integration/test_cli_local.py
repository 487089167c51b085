"""The commands that need no process: each against real files and a real database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cli import root
from appliance.cli.exits import Exit

GOOD = "name: {name}\ntrigger: {{event: x}}\nsteps:\n  - {{id: a, action: log, with: {{message: hi}}}}\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration folder, in a working directory of its own and without settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "DATABASE_URL", "PORT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config" / "workflows").mkdir(parents=True)
    return tmp_path / "config"


def test_validate_says_how_many_are_in_order(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config / "workflows" / "a.yaml").write_text(GOOD.format(name="a"))
    assert root.main(["validate"]) == Exit.OK
    assert capsys.readouterr().out == "ok: 1 workflow\n"


def test_validate_names_file_line_column_and_key_of_every_problem(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config / "workflows" / "a.yaml").write_text(GOOD.format(name="a"))
    (config / "workflows" / "b.yaml").write_text(GOOD.format(name="b").replace("message", "mesage"))
    (config / "workflows" / "c.yaml").write_text("name: c\ntrigger: {event: [\n")
    assert root.main(["validate", "--json"]) == Exit.CONFIGURATION
    report = json.loads(capsys.readouterr().out)
    assert report["workflows"] == ["a"]
    places = {(Path(p["file"]).name, p["line"]) for p in report["problems"]}
    assert {("b.yaml", 4)} <= places
    assert "c.yaml" in {name for name, _ in places}
    assert root.main(["validate", str(config / "workflows" / "b.yaml")]) == Exit.CONFIGURATION
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{config / 'workflows' / 'b.yaml'}:4:")
    assert "steps[0].with" in first


def test_validate_refuses_two_files_of_one_name(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("a.yaml", "b.yaml"):
        (config / "workflows" / file).write_text(GOOD.format(name="same"))
    assert root.main(["validate"]) == Exit.CONFIGURATION
    assert "b.yaml: name: 'same' is already defined in" in capsys.readouterr().out


def test_validate_refuses_workflows_that_call_each_other_in_a_circle(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, called in (("a", "b"), ("b", "a"), ("c", "a")):
        text = f"name: {name}\ntrigger: manual\nsteps:\n- {{id: s, workflow: {called}}}\n"
        (config / "workflows" / f"{name}.yaml").write_text(text)
    assert root.main(["validate"]) == Exit.CONFIGURATION
    first, second = capsys.readouterr().out.splitlines()
    assert "a.yaml:4:11: steps[0].workflow: calls itself: a → b → a" in first
    assert "b.yaml:4:11: steps[0].workflow: calls itself: b → a → b" in second


def test_validate_checks_the_settings_too(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config / "appliance.yaml").write_text("http:\n  port: 99999\n")
    assert root.main(["validate"]) == Exit.CONFIGURATION
    assert "appliance.yaml:2:3: http.port: " in capsys.readouterr().out


def test_validate_misses_a_path_that_is_not_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.main(["validate", "nowhere.yaml"]) == Exit.CONFIGURATION
    assert "nowhere.yaml" in capsys.readouterr().out


def test_schema_is_a_json_schema_with_the_actions(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.main(["schema"]) == Exit.OK
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert "send_email" in json.dumps(schema)


def test_plugins_lists_the_standard_actions(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.main(["plugins", "--json"]) == Exit.OK
    actions = json.loads(capsys.readouterr().out)["actions"]
    assert {"log", "publish", "send_email", "webhook"} <= {action["name"] for action in actions}


def test_migrate_needs_a_database_of_ones_own(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert root.main(["migrate"]) == Exit.CONFIGURATION
    assert "DATABASE_URL" in capsys.readouterr().err


def test_migrate_checks_applies_and_is_done(
    config: Path, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert root.main(["migrate", "--check"]) == Exit.FAILED
    assert "to be applied: 0001_first" in capsys.readouterr().out
    assert root.main(["migrate"]) == Exit.OK
    assert "applied: 0001_first" in capsys.readouterr().out
    assert root.main(["migrate", "--check"]) == Exit.OK
    assert capsys.readouterr().out == "the schema is up to date\n"


def test_migrate_says_that_the_server_is_away(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql:///x?host={tmp_path}")
    assert root.main(["migrate"]) == Exit.UNAVAILABLE
    assert capsys.readouterr().err.count("\n") == 1


def test_the_doctor_examines_somebody_elses_servers(
    config: Path,
    redis_url: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    code = root.main(["doctor", "--json", "--url", "http://127.0.0.1:1"])
    report = json.loads(capsys.readouterr().out)
    states = {finding["check"]: finding["state"] for finding in report["findings"]}
    assert states["eviction"] == states["append-only file"] == states["schema"] == states["redis clock"] == "ok"
    assert states["process"] == "warn"
    # The tests' own PostgreSQL runs without fsync, and that is just what the doctor is for.
    assert states["commits"] == "fail"
    assert code == Exit.FAILED


def test_the_doctor_names_wrong_settings_and_goes_on(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config / "appliance.yaml").write_text("nonsense: 1\n")
    assert root.main(["doctor", "--url", "http://127.0.0.1:1"]) == Exit.FAILED
    out = capsys.readouterr().out
    assert "appliance.yaml:1:1" in out
    assert "no answer from" in out
