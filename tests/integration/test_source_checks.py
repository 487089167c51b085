"""``appliance validate`` and ``appliance doctor`` on polling sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cli import root
from appliance.cli.checkup import check_sources
from appliance.cli.exits import Exit
from appliance.settings import Settings

SOURCE = """\
name: {name}
postgresql: "{{{{ secrets.shop }}}}"
query: SELECT 1 AS id, now() AS at
cursor: at
key: id
event: {{type: order.placed}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "DATABASE_URL", "PORT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config" / "sources").mkdir(parents=True)
    return tmp_path / "config"


def test_validate_checks_sources(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config / "sources" / "a.yaml").write_text(SOURCE.format(name="a"))
    assert root.main(["validate"]) == Exit.OK
    assert capsys.readouterr().out == "ok: 0 workflows, 1 source\n"
    wrong = config / "sources" / "b.yaml"
    wrong.write_text(SOURCE.format(name="b") + "evry: 1s\n")
    assert root.main(["validate", "--json"]) == Exit.CONFIGURATION
    report = json.loads(capsys.readouterr().out)
    assert report["sources"] == ["a"]
    assert [(p["line"], p["key"]) for p in report["problems"]] == [(7, "evry")]
    assert root.main(["validate", str(wrong)]) == Exit.CONFIGURATION
    assert capsys.readouterr().out.startswith(f"{wrong}:7:1: evry: unknown key 'evry'; did you mean every?")


async def test_the_doctor_asks_the_databases(config: Path, empty_database_url: str) -> None:
    for name in ("good", "bad"):
        (config / "sources" / f"{name}.yaml").write_text(SOURCE.format(name=name).replace("shop", name))
    (config / "sources" / "off.yaml").write_text(SOURCE.format(name="off") + "enabled: false\n")
    (config / "sources" / "wrong.yaml").write_text("name: wrong\n")
    secrets = {"good": empty_database_url, "bad": "postgresql://u:hunter2@127.0.0.1:1/x"}
    findings = await check_sources(Settings.model_validate({"config_dir": config, "secrets": secrets}))
    assert [(finding.check, finding.state) for finding in findings] == [
        ("sources", "fail"),
        ("source bad", "fail"),
        ("source good", "ok"),
    ]
    assert "hunter2" not in "".join(finding.text for finding in findings)
