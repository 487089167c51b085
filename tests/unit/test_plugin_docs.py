"""docs/plugins.md is true: its plugin runs, its test passes, and every parameter and context field is in it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from appliance import plugin
from appliance.registry import Registry
from appliance.testing import run_action

TEXT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
PLUGIN, TEST = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
STANDARD = ("send_email", "webhook", "log", "publish")


def loaded(name: str, source: str) -> ModuleType:
    made = ModuleType(name)
    # Registered first: the annotations of pydantic's models are looked up in the module.
    sys.modules[name] = made
    exec(compile(source, f"docs/plugins.md:{name}", "exec", dont_inherit=True), made.__dict__)  # noqa: S102
    return made


@pytest.fixture
def sms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "sms", ModuleType("sms"))  # put back at the end
    return loaded("sms", PLUGIN)


def section(title: str) -> str:
    return re.split(r"\n#{2,3} ", TEXT.split(f"### {title}\n", 1)[1], maxsplit=1)[0]


def test_twenty_lines_are_enough() -> None:
    lines = [line for line in PLUGIN.splitlines() if line.strip()]
    assert len(lines) <= 20


async def test_the_plugins_test_passes(sms: ModuleType) -> None:
    await loaded("sms_test", TEST).test_sends()
    del sys.modules["sms_test"]


@pytest.mark.parametrize(("status", "error"), [(429, plugin.Retry), (502, plugin.Retry), (403, plugin.Reject)])
async def test_the_plugin_tells_later_from_never(sms: ModuleType, status: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        await run_action(
            sms.action, {"to": "+1", "text": "x"}, secrets={"sms_token": "t"}, http=lambda _: httpx.Response(status)
        )


def test_the_entry_point_names_the_plugin(sms: ModuleType) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    project: dict[str, Any] = tomllib.loads(block)
    assert project["project"]["entry-points"]["appliance.actions"] == {"sms": "sms:action"}
    assert isinstance(sms.action, plugin.Action)


@pytest.mark.parametrize("name", STANDARD)
def test_every_parameter_of_a_standard_action_is_described(name: str) -> None:
    (described,) = [action for action in Registry.load().describe() if action["name"] == name]
    missing = [field for field in described["params"]["properties"] if f"`{field}`" not in section(name)]
    assert missing == []


@pytest.mark.parametrize(("kind", "title"), [(plugin.Context, "The context"), (plugin.Environment, "Settings")])
def test_every_field_is_described(kind: Any, title: str) -> None:
    text = TEXT.split(f"### {title}", 1)[1]
    names = kind._fields if kind is plugin.Context else [field.name for field in dataclasses.fields(kind)]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_public_name_is_mentioned() -> None:
    names = [name for name in plugin.__all__ if name not in ("Delivered", "RunInfo", "Event")]
    assert [name for name in names if not re.search(rf"\b{name}\b", TEXT)] == []
    assert all(inspect.getdoc(getattr(plugin, name)) for name in names if name != "Duration")
