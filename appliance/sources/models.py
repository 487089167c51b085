"""A source's file as pydantic models: which keys there are and what may stand behind each."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from appliance.workflows.models import Name, WrittenDuration

Column = Annotated[str, Field(min_length=1, max_length=63)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EventModel(_Model):
    """The event that a row becomes; all of it templates that see ``row``."""

    type: str = Field(min_length=1)
    subject: Any = None
    time: Any = None
    data: Any = "{{ row }}"
    attributes: dict[str, Any] = {}


class SourceModel(_Model):
    """One file of ``config/sources``. ``event`` is checked by itself, so that its mistakes are told of its keys."""

    name: Name
    description: str = ""
    enabled: bool = True
    postgresql: str = Field(min_length=1)
    query: str = Field(min_length=1, max_length=65_536)
    cursor: Column
    key: Column | Annotated[list[Column], Field(min_length=1, max_length=8)]
    every: WrittenDuration = Field(timedelta(seconds=30), ge=timedelta(milliseconds=100), le=timedelta(days=1))
    lag: WrittenDuration = Field(timedelta(minutes=1), ge=timedelta(0), le=timedelta(days=1))
    batch: int = Field(500, ge=1, le=5000)
    start: Literal["now", "beginning"] = "now"
    timezone: str = "UTC"
    decimals: Literal["number", "text"] = "number"
    priority: Literal["high", "normal", "low"] = "normal"
    event: dict[str, Any]
