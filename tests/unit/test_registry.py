"""The registry: what is installed, what is broken, and the plugins' settings and resources."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from appliance.errors import ConfigurationError
from appliance.plugin import Action, Context, Environment, Params
from appliance.registry import GROUP, Registry
from appliance.resources import ResourceUnavailable
from appliance.settings import Settings, SmtpSettings

HTTP = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200)))


class NoParams(Params):
    pass


class Loose(BaseModel):
    pass


class GatewaySettings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    url: str
    key: SecretStr = SecretStr("")
    limit: int = 1


async def act(params: NoParams, ctx: Context) -> None:
    """Do nothing much.

    At length.
    """


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("some_plugin")
    made.action = Action(params=NoParams, run=act)  # type: ignore[attr-defined]
    made.text = "no action"  # type: ignore[attr-defined]
    made.loose = Action(params=Loose, run=act)  # type: ignore[attr-defined,arg-type]
    made.gateway = Action(params=NoParams, run=act, settings=GatewaySettings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_plugin", made)
    return made


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, GROUP)


def test_the_standard_actions_are_installed_and_whole() -> None:
    settings = Settings()
    registry = Registry.load(settings.plugins, smtp=settings.smtp)

    assert {"send_email", "webhook", "log", "publish"} <= set(registry.actions)
    assert not {"send_email", "webhook", "log", "publish"} & set(registry.broken)
    described = {action["name"]: action for action in registry.describe()}
    assert described["webhook"]["distribution"] == "appliance"
    assert described["webhook"]["version"]
    assert described["webhook"]["description"]
    assert "json" in described["webhook"]["params"]["properties"]
    assert "from" in described["send_email"]["params"]["properties"]


@pytest.mark.usefixtures("module")
def test_a_plugin_that_can_not_be_loaded_hurts_no_other() -> None:
    found = [
        entry("good", "some_plugin:action"),
        entry("gone", "no_such_module:action"),
        entry("text", "some_plugin:text"),
        entry("loose", "some_plugin:loose"),
        entry("lost", "some_plugin:missing"),
    ]
    registry = Registry.load({"gone": {"kept": 1}}, found=found)

    assert set(registry.actions) == {"good"}
    assert "no_such_module" in registry.broken["gone"]
    assert "is no appliance.plugin.Action but str" in registry.broken["text"]
    assert "no subclass of appliance.plugin.Params" in registry.broken["loose"]
    assert "missing" in registry.broken["lost"]
    assert registry.describe()[0]["description"] == "Do nothing much."


def test_a_plugin_that_exits_while_it_is_imported_hurts_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exiting_plugin.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)

    registry = Registry.load(found=[entry("exits", "exiting_plugin:action")])

    assert "SystemExit(3)" in registry.broken["exits"]


@pytest.mark.usefixtures("module")
def test_one_name_belongs_to_one_action() -> None:
    registry = Registry.load(found=[entry("same", "some_plugin:action"), entry("same", "some_plugin:gateway")])

    assert list(registry.actions) == ["same"]
    assert len(registry.broken) == 1


@pytest.mark.usefixtures("module")
def test_settings_are_checked_by_the_plugins_model_and_their_values_not_shown() -> None:
    found = [entry("gateway", "some_plugin:gateway"), entry("plain", "some_plugin:action")]
    registry = Registry.load({"gateway": {"url": "u", "key": "k"}, "plain": {"any": 1}}, found=found)
    assert registry.plugins["gateway"].settings == GatewaySettings(url="u", key=SecretStr("k"))
    assert registry.plugins["plain"].settings == {"any": 1}

    with pytest.raises(ConfigurationError) as caught:
        Registry.load({"gateway": {"limit": "hunter2", "colour": "hunter2"}, "unknown": {}}, found=found)

    assert {problem.key for problem in caught.value.problems} == {
        "plugins.gateway.url",
        "plugins.gateway.limit",
        "plugins.gateway.colour",
        "plugins.unknown",
    }
    assert "hunter2" not in str(caught.value)


def test_the_mail_settings_are_the_cores_unless_the_plugins_say_otherwise() -> None:
    smtp = SmtpSettings(host="mail.example.com", password=SecretStr("pw"), timeout=timedelta(seconds=5))
    settings = Registry.load({"send_email": {"port": 25, "timeout": "7s"}}, smtp=smtp).plugins["send_email"].settings

    assert (settings.host, settings.port, settings.timeout) == ("mail.example.com", 25, timedelta(seconds=7))
    assert settings.password.get_secret_value() == "pw"


class Opener:
    """A resource opener that fails as often as told, and remembers its tasks."""

    def __init__(self, failures: int = 0, hang: bool = False) -> None:
        self.failures = failures
        self.hang = hang
        self.opened_by: Any = None
        self.closed_by: Any = None

    def __call__(self, environment: Environment) -> AbstractAsyncContextManager[str]:
        return self._open(environment)

    @asynccontextmanager
    async def _open(self, environment: Environment) -> AsyncIterator[str]:
        if self.hang:
            await asyncio.Event().wait()
        if self.failures:
            self.failures -= 1
            raise SystemExit("no route")
        self.opened_by = asyncio.current_task()
        try:
            yield f"pool in {environment.data_dir.name}"
        finally:
            self.closed_by = asyncio.current_task()


def opening(registry: Registry, folder: Path) -> AbstractAsyncContextManager[Any]:
    return registry.open(data_dir=folder, config_dir=folder, http=HTTP)


async def test_resources_are_opened_and_closed_by_one_task(tmp_path: Path) -> None:
    opener = Opener()
    registry = Registry.of({"act": Action(params=NoParams, run=act, resource=opener)})
    async with opening(registry, tmp_path) as resources:
        assert resources.get("act") == f"pool in {tmp_path.name}"
        assert resources.get("other") is None
        assert opener.closed_by is None

    assert opener.opened_by is opener.closed_by is not None
    with pytest.raises(ResourceUnavailable):
        resources.get("act")


async def test_a_resource_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.resources._FIRST_PAUSE_S", 0.01)
    registry = Registry.of({"act": Action(params=NoParams, run=act, resource=Opener(failures=2))})
    async with opening(registry, tmp_path) as resources:
        with pytest.raises(ResourceUnavailable, match="SystemExit: no route"):
            resources.get("act")
        async with asyncio.timeout(5):
            while True:
                try:
                    assert resources.get("act").startswith("pool")
                    break
                except ResourceUnavailable:
                    await asyncio.sleep(0.005)


async def test_a_resource_that_hangs_holds_up_neither_start_nor_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.resources._OPEN_S", 0.02)
    actions = {
        "hangs": Action(params=NoParams, run=act, resource=Opener(hang=True)),
        "good": Action(params=NoParams, run=act, resource=Opener()),
    }
    async with asyncio.timeout(2):
        async with opening(Registry.of(actions), tmp_path) as resources:
            assert resources.get("good")
            with pytest.raises(ResourceUnavailable, match="still being opened"):
                resources.get("hangs")
