"""What a plugin author imports; the whole public surface for actions.

An action is an async function (or a plain one: it then runs in a thread) with typed parameters, found through an entry
point of the group ``appliance.actions``. See ``docs/plugins.md`` for a plugin in twenty lines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from appliance.events import Event
from appliance.settings import Duration

if TYPE_CHECKING:
    import logging

    import httpx

__all__ = [
    "Action",
    "Context",
    "Delivered",
    "Duration",
    "Environment",
    "Event",
    "Params",
    "Reject",
    "Retry",
    "RunInfo",
]


class Params(BaseModel):
    """Base of an action's parameters: unknown keys are refused, values are checked when a workflow is loaded."""

    # A parameter that is exactly one expression keeps its type; a number is a fine text all the same.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Retry(Exception):
    """Raise when trying again later may help.

    ``after`` is the earliest time to try again: seconds, a timedelta, or the text of a ``Retry-After`` header (seconds
    or an HTTP date). It is a lower bound: the step's own backoff may be longer. Text that is neither is ignored.
    """

    def __init__(self, reason: str, *, after: float | timedelta | str | None = None) -> None:
        self.reason = reason
        self.after_s = _seconds(after)
        super().__init__(reason)


class Reject(Exception):
    """Raise when trying again can't help: the step fails at once, without further attempts."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class RunInfo(NamedTuple):
    """The run an action works for."""

    id: str
    workflow: str
    revision: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one message to one recipient. ``repeated`` says an earlier attempt had already sent it."""

    recipient: str
    message_id: str | None
    repeated: bool = False


class Deliver(Protocol):
    """``await ctx.deliver("email", "a@example.org", send)``.

    Calls ``send()`` and records the delivery with the step, unless an earlier attempt of this step already delivered to
    this recipient. ``send`` returns the provider's message id (or None) and raises Retry or Reject, which is recorded
    and raised again.
    """

    def __call__(
        self, channel: str, recipient: str, send: Callable[[], Awaitable[str | None]], /
    ) -> Awaitable[Delivered]: ...


class Publish(Protocol):
    """``await ctx.publish(type="order.paid", data={...})``: a new event into a stream; returns its id.

    The id is derived from the idempotency key (and from how many this attempt published before), so a repeated attempt
    publishes nothing new. Raises Reject when the chain of events that led here is longer than the limit.
    """

    def __call__(
        self,
        *,
        type: str,
        data: Any = None,
        subject: str | None = None,
        source: str | None = None,
        priority: str = "normal",
        attributes: Mapping[str, str | int | float | bool] | None = None,
    ) -> Awaitable[str]: ...


class Context(NamedTuple):
    """Everything an action may use besides its parameters. Made and read by name: fields are only ever added.

    ``idempotency_key`` is the same for every attempt of this step of this run: hand it to whatever you call.
    ``http`` is a shared client that refuses non-public addresses (see ``outbound.allowed_networks``), follows no
    redirects and caps what it reads. ``resource`` is what ``Action.resource`` opened. ``secrets`` are the operator's.
    """

    event: Event
    run: RunInfo
    step: str
    attempt: int
    idempotency_key: str
    http: httpx.AsyncClient
    log: logging.LoggerAdapter[logging.Logger]
    secrets: Mapping[str, str]
    deliver: Deliver
    publish: Publish
    resource: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a resource opener gets: the plugin's own settings and the places it may read and write."""

    settings: Any
    """An instance of ``Action.settings`` (or the raw mapping when the action declares none)."""
    data_dir: Path
    config_dir: Path
    http: httpx.AsyncClient
    log: logging.LoggerAdapter[logging.Logger]


ResourceOpener = Callable[[Environment], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An action, as an entry point names it.

    ``run(params, ctx)`` returns JSON data (the step's output) or None; it raises Retry or Reject, and any other
    exception counts as a failure that may be retried. ``timeout`` bounds one attempt (a step may set its own).
    ``settings`` is the model of the plugin's configuration (``plugins.<name>`` in ``appliance.yaml``).
    ``resource`` opens something once per process (a connection pool) and closes it at the stop.
    """

    params: type[Params]
    run: Callable[[Any, Context], Any]
    timeout: timedelta | None = None
    settings: type[BaseModel] | None = None
    resource: ResourceOpener | None = None
    description: str = ""


def _seconds(after: float | timedelta | str | None) -> float | None:
    if after is None:
        return None
    if isinstance(after, timedelta):
        return max(0.0, after.total_seconds())
    if not isinstance(after, str):
        return max(0.0, float(after))
    return _retry_after_header(after.strip())


def _retry_after_header(text: str) -> float | None:
    """RFC 9110 §10.2.3: delay-seconds or an HTTP-date."""
    if text.isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (when - datetime.now(when.tzinfo)).total_seconds())
