"""The actions that are installed: entry points of the group ``appliance.actions``, read once.

A plugin that can't be loaded is reported in :attr:`Registry.broken` and hurts nobody else. A plugin's *settings* that
are wrong stop the start, as any wrong setting does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from appliance.errors import ConfigurationError, Problem
from appliance.plugin import Action, Params
from appliance.resources import Place, Resources

if TYPE_CHECKING:
    import httpx

    from appliance.settings import SmtpSettings

GROUP = "appliance.actions"
_OWN_DISTRIBUTION = "appliance"


@dataclass(frozen=True, slots=True)
class Plugin:
    """One installed action. ``settings`` is an instance of ``action.settings``, or the raw mapping without one."""

    name: str
    action: Action
    distribution: str = ""
    version: str = ""
    settings: Any = None

    def describe(self) -> dict[str, Any]:
        """What is shown about the action: name, origin, description and the JSON Schema of its parameters."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "description": self.action.description or _first_line(self.action.run.__doc__),
            "params": self.action.params.model_json_schema(),
        }


class Registry:
    """Every installed action by name, and what became of those that could not be loaded."""

    def __init__(self, plugins: Iterable[Plugin], broken: Mapping[str, str] | None = None) -> None:
        self.plugins: Mapping[str, Plugin] = MappingProxyType({plugin.name: plugin for plugin in plugins})
        self.actions: Mapping[str, Action] = MappingProxyType({n: p.action for n, p in self.plugins.items()})
        self.broken: Mapping[str, str] = MappingProxyType(dict(broken or {}))

    @classmethod
    def load(
        cls,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        smtp: SmtpSettings | None = None,
        found: Iterable[EntryPoint] | None = None,
    ) -> Registry:
        """Import every plugin and check its settings.

        ``settings`` is ``Settings.plugins``; ``smtp`` (``Settings.smtp``) underlies those of ``send_email``. ``found``
        stands in for the installed entry points. Raises ConfigurationError for settings that an action refuses, or that
        belong to no installed action.
        """
        plugins: dict[str, Plugin] = {}
        broken: dict[str, str] = {}
        for entry in sorted(entry_points(group=GROUP) if found is None else found, key=_precedence):
            distribution, version = _origin(entry)
            if entry.name in plugins:
                broken[f"{entry.name} ({distribution})"] = f"{plugins[entry.name].distribution} has that name already"
                continue
            try:
                plugins[entry.name] = Plugin(entry.name, _import(entry), distribution, version)
            except Exception as error:
                broken[entry.name] = f"{distribution} {version}: {type(error).__name__}: {error}"
        return cls(_configured(plugins, broken, dict(settings or {}), smtp), broken)

    @classmethod
    def of(cls, actions: Mapping[str, Action], settings: Mapping[str, Mapping[str, Any]] | None = None) -> Registry:
        """A registry of just these actions (tests, tools)."""
        plugins = {name: Plugin(name, action) for name, action in actions.items()}
        return cls(_configured(plugins, {}, dict(settings or {}), None))

    def describe(self) -> list[dict[str, Any]]:
        """Every loaded action, by name; see :meth:`Plugin.describe`."""
        return [self.plugins[name].describe() for name in sorted(self.plugins)]

    @asynccontextmanager
    async def open(self, *, data_dir: Path, config_dir: Path, http: httpx.AsyncClient) -> AsyncIterator[Resources]:
        """Open every action's resource, and close them at the end.

        Returns once each was opened, has failed, or took too long; a resource that failed is tried again in the
        background, and until then only its own action's attempts fail.
        """
        place = Place(data_dir=data_dir, config_dir=config_dir, http=http)
        async with Resources(place) as resources:
            await resources.open(
                {n: (p.action.resource, p.settings) for n, p in self.plugins.items() if p.action.resource is not None}
            )
            yield resources


def _precedence(entry: EntryPoint) -> tuple[bool, str, str]:
    """The appliance's own actions keep their names; among others the distribution's name decides."""
    distribution, _ = _origin(entry)
    return distribution != _OWN_DISTRIBUTION, distribution, entry.name


def _origin(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("", "")


def _import(entry: EntryPoint) -> Action:
    try:
        action = entry.load()
    except SystemExit as error:
        raise ImportError(f"the import raised SystemExit({error.code!r})") from None
    if not isinstance(action, Action):
        raise TypeError(f"{entry.value} is no appliance.plugin.Action but {type(action).__name__}")
    if not (isinstance(action.params, type) and issubclass(action.params, Params)):
        raise TypeError("Action.params is no subclass of appliance.plugin.Params")
    action.params.model_json_schema()  # a schema that can't be made would fail later, in the editor and the API
    return action


def _configured(
    plugins: Mapping[str, Plugin],
    broken: Mapping[str, str],
    settings: dict[str, Mapping[str, Any]],
    smtp: SmtpSettings | None,
) -> list[Plugin]:
    if smtp is not None and "send_email" in plugins:
        own = {name: getattr(smtp, name) for name in type(smtp).model_fields}
        settings["send_email"] = {**own, **settings.get("send_email", {})}
    problems = [
        Problem("no such action is installed", key=f"plugins.{name}", expected=f"one of {', '.join(sorted(plugins))}")
        for name in settings
        if name not in plugins and name not in broken
    ]
    done = []
    for name, plugin in plugins.items():
        try:
            value = _settings(plugin.action.settings, settings.get(name, {}))
        except ValidationError as error:
            problems += _problems(f"plugins.{name}", error)
        else:
            done.append(Plugin(name, plugin.action, plugin.distribution, plugin.version, value))
    if problems:
        raise ConfigurationError(*problems)
    return done


def _settings(model: type[BaseModel] | None, raw: Mapping[str, Any]) -> Any:
    return dict(raw) if model is None else model.model_validate(dict(raw))


def _problems(key: str, error: ValidationError) -> list[Problem]:
    # Never the input: it may be a secret.
    return [
        Problem(str(detail["msg"]), key=".".join((key, *map(str, detail["loc"]))))
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
