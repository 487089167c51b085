"""What settings there are: their paths, the variables that set them, their defaults, read from ``settings.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from appliance.settings import Settings, format_duration

PREFIX = "APPLIANCE_"
FILE_NAME = "appliance.yaml"
PLAIN_NAMES: Mapping[str, tuple[str, ...]] = {
    "REDIS_URL": ("redis_url",),
    "DATABASE_URL": ("database_url",),
    "PORT": ("http", "port"),
    "SMTP_HOST": ("smtp", "host"),
    "SMTP_PORT": ("smtp", "port"),
    "SMTP_USER": ("smtp", "user"),
    "SMTP_PASSWORD": ("smtp", "password"),
    "SMTP_USE_TLS": ("smtp", "use_tls"),
    "FROM_EMAIL": ("smtp", "from_email"),
}
"""Names without our prefix that everybody uses; the prefixed name wins when both are set."""
KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as the documentation shows it; ``default`` is YAML (a JSON text)."""

    path: KeyPath
    variables: tuple[str, ...]
    default: str
    description: str
    section: str
    secret: bool
    bounds: str = ""

    @property
    def key(self) -> str:
        """The dotted path."""
        return ".".join(self.path)


def describe() -> list[Setting]:
    """Every setting, in the order of its declaration."""
    plain = {path: name for name, path in PLAIN_NAMES.items()}
    found = []
    for path, info, section in leaves(Settings):
        names = [variable(path), *([plain[path]] if path in plain else [])]
        secret = is_secret(info)
        default = TypeAdapter(Any).dump_json(_plain_default(info)).decode()
        found.append(
            Setting(path, tuple(names), default, info.description or "", section, secret=secret, bounds=_bounds(info))
        )
    return found


def leaves(model: type[BaseModel], path: KeyPath = (), section: str = "") -> Iterator[tuple[KeyPath, FieldInfo, str]]:
    """Path, field and section description of every setting below a model, in the order of declaration."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, (*path, name), (kind.__doc__ or "").strip())
        else:
            yield (*path, name), info, section


def variable(path: KeyPath) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(path).upper()


def is_mapping(info: FieldInfo) -> bool:
    """Whether the setting is a mapping with names of the operator's choice."""
    return getattr(info.annotation, "__origin__", None) is dict


def is_list(info: FieldInfo) -> bool:
    """Whether the setting is a list."""
    return getattr(info.annotation, "__origin__", None) is tuple


def is_secret(info: FieldInfo) -> bool:
    """Whether the setting's value, or each of its values, must not be shown."""
    return info.annotation is SecretStr or SecretStr in get_args(info.annotation)


def _plain_default(info: FieldInfo) -> Any:
    default = info.default
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    serializer = next((m for m in info.metadata if hasattr(m, "func") and hasattr(m, "return_type")), None)
    return serializer.func(default) if serializer is not None else default


def _bounds(info: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [(sign, getattr(m, name)) for m in info.metadata for name, sign in signs.items() if hasattr(m, name)]
    return ", ".join(f"{sign} {format_duration(at) if isinstance(at, timedelta) else at}" for sign, at in limits)
