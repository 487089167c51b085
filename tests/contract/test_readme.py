"""README.md and docs/ are true: examples run, links lead somewhere, and what they name exists."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import httpx
import pytest

from appliance.cli.root import commands
from appliance.configuration import describe, load_settings
from appliance.events import Event, decode_entry
from appliance.observe.metrics import METRICS
from appliance.plugin import Action, Reject, Retry
from appliance.registry import Registry
from appliance.testing import run_action
from appliance.workflows.compile import compile_workflow
from appliance.workflows.dialects import to_native
from appliance.workflows.loader import parse_document

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
INTERNALS = (ROOT / "docs" / "internals.md").read_text("utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted((ROOT / "tests").glob("**/*.md")),
]
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
YAML = [text for kind, text in BLOCKS if kind == "yaml"]
WORKFLOWS = [text for text in YAML if text.startswith("name:")]
SHELL = "\n".join(text for kind, text in BLOCKS if kind in ("sh", "console"))
STORY, PLUGIN = [text for kind, text in BLOCKS if kind == "python"]
(PROJECT,) = [text for kind, text in BLOCKS if kind == "toml"]
POSTED: list[dict[str, Any]] = [
    json.loads(body) for body in re.findall(r"-d '\n?(\{.*?\})'$", SHELL, re.MULTILINE | re.DOTALL)
]
ADDED = [shlex.split(line) for line in SHELL.splitlines() if line.startswith("redis-cli ")]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Action:
    module = ModuleType("tickets")
    # Registered first: the annotations of pydantic's models are looked up in the module.
    monkeypatch.setitem(sys.modules, "tickets", module)
    exec(compile(PLUGIN, "README.md:tickets", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    action = module.action
    assert isinstance(action, Action)
    return action


@pytest.mark.parametrize("text", WORKFLOWS, ids=lambda text: text.splitlines()[0])
def test_workflows_are_valid(text: str, plugin: Action) -> None:
    actions = {**Registry.load().actions, "create_ticket": plugin}
    assert compile_workflow(parse_document(text.encode()).data, actions=actions).steps


def test_the_story_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (visit,) = [text for text in WORKFLOWS if text.startswith("name: visit\n")]
    (tmp_path / "config" / "workflows").mkdir(parents=True)
    (tmp_path / "config" / "workflows" / "visit.yaml").write_text(visit)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(STORY, "README.md:story", "exec", dont_inherit=True), names)  # noqa: S102
    names["test_nobody_answers"]()


def test_settings_are_valid(tmp_path: Path) -> None:
    (text,) = [text for text in YAML if text not in WORKFLOWS]
    (tmp_path / "appliance.yaml").write_text(text)
    settings = load_settings(cli={"config_dir": tmp_path}, environ={}, cwd=tmp_path)
    assert settings.smtp.host == "mail.example.org"


def test_what_is_posted_is_valid() -> None:
    definitions = [body for body in POSTED if "definition" in body]
    forms = [body for body in POSTED if "template_id" in body]
    assert len(definitions) == 1
    assert len(forms) == 2
    workflow = compile_workflow(to_native(definitions[0]), actions=Registry.load().actions)
    assert [step.action for step in workflow.steps] == ["send_email"]
    assert all(form.keys() <= {"template_id", "data", "org_id"} for form in forms)


def _decoded(words: list[str]) -> Event:
    _, command, stream, entry_id, *parts = words
    assert (command, entry_id) == ("XADD", "*")
    names, values = parts[::2], parts[1::2]
    fields = {name.encode(): value.encode() for name, value in zip(names, values, strict=True)}
    return decode_entry(stream, b"1795229294377-3", fields)


def test_foreign_entries_become_the_events_of_the_table() -> None:
    bare, whole, cloudevent, flat = map(_decoded, ADDED)
    assert (bare.type, bare.data) == ("order.paid", {"total": 700, "customer": "Ann"})
    assert (bare.id, bare.source) == ("normal-1795229294377-3", "redis:appliance:events:normal")
    assert (whole.id, whole.source, whole.subject) == ("o-20", "/shop", "order-20")
    assert whole.attributes == {"region": "eu"}
    assert (cloudevent.id, cloudevent.data) == ("o-21", {"total": 700})
    assert (flat.type, flat.id, flat.data) == (
        "redis.entry",
        "low-1795229294377-3",
        {"sensor": "s1", "value": "21.5"},
    )
    assert [event.key is not None for event in (bare, whole, cloudevent, flat)] == [False, True, True, False]


def test_the_plugin_has_twenty_lines_and_an_entry_point(plugin: Action) -> None:
    assert len([line for line in PLUGIN.splitlines() if line.strip()]) <= 20
    project = tomllib.loads(PROJECT)
    assert project["project"]["entry-points"]["appliance.actions"] == {"create_ticket": "tickets:action"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == ["tickets.py"]
    assert plugin.timeout is not None


async def test_the_plugin_runs(plugin: Action) -> None:
    outcome = await run_action(
        plugin,
        {"title": "help", "tags": ["form"]},
        secrets={"tickets": "t"},
        http=lambda _: httpx.Response(201, json={"id": "T-1"}),
    )
    assert outcome.output == {"id": "T-1"}
    assert outcome.requests[0].headers["authorization"] == "Bearer t"
    assert outcome.requests[0].headers["idempotency-key"]


@pytest.mark.parametrize(("status", "error"), [(429, Retry), (503, Retry), (422, Reject)])
async def test_the_plugin_tells_later_from_never(plugin: Action, status: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        await run_action(plugin, {"title": "x"}, secrets={"tickets": "t"}, http=lambda _: httpx.Response(status))


def _paths(command: click.Command, path: str) -> Iterator[str]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _paths(found, f"{path} {name}")


def test_commands_exist() -> None:
    existing = set(_paths(commands, "appliance"))
    groups = {path.rpartition(" ")[0] for path in existing}
    for name, text in ((page.name, page.read_text("utf-8")) for page in PAGES):
        for words in re.findall(r"(?:`|^\$ |^)appliance ((?:[a-z]+ ?)+)", text, re.MULTILINE):
            path = "appliance"
            for word in words.split():
                if path not in groups:
                    break
                path = f"{path} {word}"
            assert path in existing, f"{name}: {path}"


def test_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_settings_exist() -> None:
    declared = describe()
    variables = {variable for setting in declared for variable in setting.variables} | {"APPLIANCE_SECRETS__TICKETS"}
    assert set(re.findall(r"\bAPPLIANCE_[A-Z_]+", README)) <= variables
    assert {"REDIS_URL", "DATABASE_URL", "SMTP_HOST", "FROM_EMAIL", "PORT"} <= variables
    sections = {setting.path[0] for setting in declared if len(setting.path) > 1}
    keys = {setting.key for setting in declared}
    for page in PAGES:
        named = re.findall(r"`((?:" + "|".join(sections) + r")\.[a-z_]+)(?::[^`]*)?`", page.read_text("utf-8"))
        wrong = {name for name in named if name not in keys and not name.endswith((".py", ".lua"))}
        assert wrong == set(), page.name


def test_the_defaults_in_the_table_are_those_of_the_settings() -> None:
    defaults = {variable: setting.default.strip('"') for setting in describe() for variable in setting.variables}
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([^`]+)` \|", README, re.MULTILINE)
    assert len(rows) == 4
    assert [(name, value) for name, value in rows if defaults[name] != value] == []


def test_metrics_exist() -> None:
    names = {metric.name for metric in METRICS.describe()}
    for page in PAGES:
        named = set(re.findall(r"`(appliance_[a-z_]+)`", page.read_text("utf-8")))
        assert {name for name in named if not name.startswith("appliance_expect")} <= names, page.name


def test_routes_exist() -> None:
    # docs/api.md names exactly what is served (test_interface.py).
    served = set(re.findall(r"^\| `(?:GET|POST) (\S+)`", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"`(?:(?:GET|POST) )?(/[a-z0-9/{}-]+)`", README))
    assert {"/submit", "/api/v1/events", "/readyz", "/metrics"} <= named <= served


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, _, anchor in (
        link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link
    ):
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text("utf-8"), re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, f"{target}#{anchor}"


def test_the_changelog_has_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def _modules() -> Iterator[str]:
    for module in sorted((ROOT / "appliance").rglob("*.py")):
        if module.name != "__init__.py":
            yield str(module.relative_to(ROOT / "appliance"))
    for module in sorted((ROOT / "plugins").rglob("*.py")):
        yield str(module.relative_to(ROOT)).removesuffix("__init__.py")


@pytest.mark.parametrize("module", list(_modules()))
def test_every_module_is_explained(module: str) -> None:
    assert f"**`{module}`**" in INTERNALS


def test_no_module_is_explained_that_is_not_there() -> None:
    assert set(re.findall(r"\*\*`([\w/]+(?:\.py|/))`\*\*", INTERNALS)) == set(_modules())


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "appliance/stream/lua").glob("*.lua")))
def test_scripts_that_touch_the_ledger_are_explained(script: str) -> None:
    text = (ROOT / "appliance/stream/lua" / script).read_text()
    assert "ledger" not in text or f"`{script}`" in INTERNALS
