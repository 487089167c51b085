"""``appliance import`` and ``appliance export``, and what ``appliance validate`` says of other systems' files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.cli.client import Answer
from appliance.cli.exits import Exit
from appliance.workflows.compile import compile_workflow
from appliance.workflows.dialects import compile_document
from appliance.workflows.loader import parse_document, read_document
from tests.unit.cli.double import Invoke, Server

DATA = Path(__file__).parents[2] / "data" / "dialects"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
DEFINITION = {"name": "a b", "trigger": {"event": "x"}, "steps": [{"id": "s", "transform": 1}]}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory without any settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "DATABASE_URL", "PORT"):
        monkeypatch.delenv(name, raising=False)


def digest(definition: Any) -> str:
    return compile_workflow(definition, actions=None).digest


# --- import ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_is_printed_in_our_own_language(name: str, invoke: Invoke) -> None:
    code, out, err = invoke("import", str(DATA / f"{name}.json"))
    assert (code, err) == (Exit.OK, "")
    source = read_document(DATA / f"{name}.json").data
    assert digest(parse_document(out.encode()).data) == compile_document(source, actions=None)[0].digest


def test_standard_input_and_json(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = (DATA / "003-rule.json").read_bytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    code, out, _ = invoke("import", "-", "--json")
    assert code == Exit.OK
    assert json.loads(out)["trigger"]["event"] == "user.created"


def several(tmp_path: Path, **more: Any) -> Path:
    """A file with a workflow and two rules."""
    rule = json.loads((DATA / "003-rule.json").read_text("utf-8"))
    rules = [rule, {**rule, "name": "Welcome, e-mail automation!", **more}]
    path = tmp_path / "several.json"
    path.write_text(json.dumps({"workflows": [json.loads((DATA / "002-demo.json").read_text())], "rules": rules}))
    return path


def test_several_definitions_become_several_workflows(invoke: Invoke, tmp_path: Path) -> None:
    code, out, _ = invoke("import", str(several(tmp_path)))
    assert code == Exit.OK
    names = [parse_document(part.encode()).data["name"] for part in out.split("---\n")]
    assert names == ["Demo Workflow", "Welcome Email Automation", "Welcome, e-mail automation!"]
    assert len(json.loads(invoke("import", str(several(tmp_path)), "--json")[1])) == 3


def test_they_are_written_to_a_folder_that_can_be_validated(invoke: Invoke, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    code, out, _ = invoke("import", str(several(tmp_path)), "--out", str(folder))
    assert code == Exit.OK
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["demo-workflow.yaml", "welcome-e-mail-automation.yaml", "welcome-email-automation.yaml"]
    assert out.split() == [str(folder / name) for name in (names[0], names[2], names[1])]
    assert invoke("validate", str(folder))[:2] == (Exit.OK, "ok: 3 workflows\n")


def test_one_is_written_to_a_file(invoke: Invoke, tmp_path: Path) -> None:
    code, out, _ = invoke("import", str(DATA / "002-demo.json"), "--out", str(tmp_path / "demo.yaml"), "--json")
    assert (code, json.loads(out)) == (Exit.OK, {"files": [str(tmp_path / "demo.yaml")]})
    assert read_document(tmp_path / "demo.yaml").data["name"] == "Demo Workflow"
    code, _, err = invoke("import", str(several(tmp_path)), "--out", str(tmp_path / "demo.yaml"))
    assert code == Exit.USAGE
    assert "there are 3 workflows: name a folder" in err


def test_every_problem_has_its_place_and_nothing_is_written(invoke: Invoke, tmp_path: Path) -> None:
    path = several(tmp_path, conditions=[{"field": "x", "operator": "smells"}])
    code, out, err = invoke("import", str(path), "--out", str(tmp_path / "made"))
    assert (code, out) == (Exit.CONFIGURATION, "")
    assert err.startswith(f"error: {path}:1:")
    assert "rules[1].conditions[0].operator: unknown operator 'smells'" in err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no definition (expected a workflow)"),
        ("tasks: [a]", "no known format of a workflow"),
        ("{", "not YAML"),
        ('[{"name": "a", "rule": {"action": "log", "message": "x"}}, {"name": "a", "trigger": "manual", "steps": '
         '[{"id": "s", "transform": 1}]}]', "[1].name: 'a' is already defined in [0]"),
    ],
)  # fmt: skip
def test_files_that_hold_no_workflow(invoke: Invoke, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    code, out, err = invoke("import", "x.yaml")
    assert (code, out) == (Exit.CONFIGURATION, "")
    assert "x.yaml" in err
    assert words in err


def test_a_file_that_is_not_there(invoke: Invoke) -> None:
    code, _, err = invoke("import", "nowhere.yaml")
    assert code == Exit.CONFIGURATION
    assert "nowhere.yaml: can't be read" in err


# --- validate --------------------------------------------------------------------------------------------------------


def test_validate_accepts_every_dialect(invoke: Invoke) -> None:
    assert invoke("validate", str(DATA))[:2] == (Exit.OK, f"ok: {len(NAMES)} workflows\n")


def test_validate_places_what_is_wrong_with_a_dialect(invoke: Invoke, tmp_path: Path) -> None:
    text = (DATA / "002-demo.json").read_text("utf-8").replace('"type": "webhook"', '"type": "create_ticket"')
    (tmp_path / "demo.json").write_text(text)
    code, out, _ = invoke("validate", "demo.json")
    assert code == Exit.CONFIGURATION
    assert out.startswith("demo.json:9:7: steps[1].type: unknown action 'create_ticket'")


# --- export ----------------------------------------------------------------------------------------------------------


def test_export_prints_yaml_that_is_the_same_revision(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, DEFINITION)]
    code, out, err = invoke("export", "a b")
    assert (code, err) == (Exit.OK, "")
    assert server.asked == [("GET", "/api/v1/workflows/a%20b/export?as=json", None)]
    assert digest(parse_document(out.encode()).data) == digest(DEFINITION)


@pytest.mark.parametrize(
    ("options", "asked"),
    [(("--as", "json"), "json"), (("--json",), "json"), (("--as", "react-flow", "--json"), "react-flow")],
)
def test_export_prints_json(server: Server, invoke: Invoke, options: tuple[str, ...], asked: str) -> None:
    server.answers = [Answer(200, {"nodes": [], "edges": ["é"]})]
    code, out, _ = invoke("export", "w", *options)
    assert (code, json.loads(out)) == (Exit.OK, {"nodes": [], "edges": ["é"]})
    assert server.asked == [("GET", f"/api/v1/workflows/w/export?as={asked}", None)]


def test_export_writes_a_file(server: Server, invoke: Invoke, tmp_path: Path) -> None:
    server.answers = [Answer(200, DEFINITION)]
    assert invoke("export", "w", "--out", str(tmp_path / "w.yaml")) == (Exit.OK, "", "")
    assert read_document(tmp_path / "w.yaml").data == DEFINITION


def test_a_file_that_can_not_be_written(server: Server, invoke: Invoke, tmp_path: Path) -> None:
    server.answers = [Answer(200, DEFINITION)]
    for arguments in (("export", "w"), ("import", str(DATA / "002-demo.json"))):
        code, _, err = invoke(*arguments, "--out", str(tmp_path / "nowhere" / "w.yaml"))
        assert code == Exit.FAILED
        assert "w.yaml can't be written: No such file or directory" in err


def test_export_of_an_unknown_workflow(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(404, {"title": "There is no such thing", "detail": "no workflow 'w'"})]
    code, out, err = invoke("export", "w")
    assert (code, out, err) == (Exit.NOT_FOUND, "", "error: no workflow 'w'\n")
