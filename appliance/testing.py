"""What a plugin author tests with: an action, run as the engine runs it, without servers and without a network.

::

    from appliance.testing import run_action

    async def test_sends() -> None:
        outcome = await run_action(action, {"to": "+1", "text": "hi"}, http=lambda _: httpx.Response(202))
        assert outcome.output == {"status": 202}

``Retry`` and ``Reject`` are raised to the test; hand in a :class:`Recorded` to see what was done before.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from appliance.engine.effects import DeliveryRecord, Effects
from appliance.events import Event, dumps, loads, new_event
from appliance.identifiers import uuid7
from appliance.plugin import Action, Context, Environment, RunInfo

__all__ = ["DeliveryRecord", "Outcome", "Recorded", "make_context", "open_resource", "run_action"]

HttpHandler = Callable[[httpx.Request], httpx.Response]
"""Answers a request, or raises what ``ctx.http`` is to raise (``httpx.ConnectError("…")``)."""

_MAX_HOPS = 16


@dataclass(slots=True)
class Recorded:
    """What an action did to the outside: deliveries as the history would keep them, events with their priority,
    requests in order."""

    published: list[tuple[Event, str]] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)
    _effects: list[Effects] = field(default_factory=list)

    @property
    def deliveries(self) -> list[DeliveryRecord]:
        """Every delivery that was tried, in order."""
        return [record for effects in self._effects for record in effects.records]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The action's output as a later step would see it (JSON data), and what it did."""

    output: Any
    deliveries: list[DeliveryRecord]
    published: list[tuple[Event, str]]
    requests: list[httpx.Request]


def make_context(
    *,
    event: Event | None = None,
    run: RunInfo | None = None,
    step: str = "step",
    attempt: int = 1,
    idempotency_key: str = "test-key",
    http: HttpHandler | httpx.AsyncClient | None = None,
    secrets: Mapping[str, str] | None = None,
    resource: Any = None,
    delivered_before: Mapping[tuple[str, str], str | None] | None = None,
    recorded: Recorded | None = None,
) -> Context:
    """A context as the engine makes it, with sensible stand-ins for what isn't given.

    ``http`` answers the requests (without it, each one fails the test). ``delivered_before`` is what earlier attempts
    delivered: ``{("sms", "+1"): "their message id"}``. ``recorded`` collects what the action does.
    """
    recorded = recorded if recorded is not None else Recorded()
    event = event if event is not None else new_event("test", {}, source="appliance.testing")
    run = run if run is not None else RunInfo(id=uuid7(), workflow="test", revision=1)

    async def publish(published: Event, priority: str) -> None:
        recorded.published.append((published, priority))

    effects = Effects(event, run, idempotency_key, delivered_before or {}, publish, _MAX_HOPS)
    recorded._effects.append(effects)
    return Context(
        event=event,
        run=run,
        step=step,
        attempt=attempt,
        idempotency_key=idempotency_key,
        http=http if isinstance(http, httpx.AsyncClient) else _client(http, recorded),
        log=logging.LoggerAdapter(logging.getLogger("appliance.actions.test"), {"step": step}),
        secrets=secrets or {},
        deliver=effects.deliver,
        publish=effects.publish,
        resource=resource,
    )


async def run_action(
    action: Action,
    params: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    config_dir: Path | None = None,
    **context: Any,
) -> Outcome:
    """Check ``params``, open the action's resource (with ``settings``), run one attempt, and close everything.

    ``context`` is what :func:`make_context` takes. A plain function runs in a thread, as it will later. Raises what the
    action raises, pydantic's ValidationError for parameters or settings that its models refuse, and Malformed for an
    output that is no JSON data.
    """
    checked = action.params.model_validate(dict(params))
    recorded = context.pop("recorded", None) or Recorded()
    async with AsyncExitStack() as stack:
        if action.resource is not None and "resource" not in context:
            environment = _environment(action, settings, stack.enter_context(_folder(data_dir)), config_dir)
            context["resource"] = await stack.enter_async_context(action.resource(environment))
        ctx = make_context(recorded=recorded, **context)
        if inspect.iscoroutinefunction(action.run):
            output = await action.run(checked, ctx)
        else:
            output = await asyncio.to_thread(action.run, checked, ctx)
    output = None if output is None else loads(dumps(output))
    return Outcome(output, recorded.deliveries, recorded.published, recorded.requests)


def open_resource(
    action: Action,
    settings: Mapping[str, Any] | None = None,
    *,
    data_dir: Path,
    config_dir: Path | None = None,
    http: HttpHandler | None = None,
) -> Any:
    """The action's resource as an async context manager: hand it to several attempts as ``resource``."""
    if action.resource is None:
        raise ValueError("the action has no resource")
    return action.resource(_environment(action, settings, data_dir, config_dir, http))


def _environment(
    action: Action,
    settings: Mapping[str, Any] | None,
    data_dir: Path,
    config_dir: Path | None,
    http: HttpHandler | None = None,
) -> Environment:
    raw = dict(settings or {})
    return Environment(
        settings=raw if action.settings is None else action.settings.model_validate(raw),
        data_dir=data_dir,
        config_dir=config_dir if config_dir is not None else data_dir,
        http=_client(http, Recorded()),
        log=logging.LoggerAdapter(logging.getLogger("appliance.actions.test"), {}),
    )


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def _client(handler: HttpHandler | None, recorded: Recorded) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        recorded.requests.append(request)
        if handler is None:
            raise AssertionError(f"unexpected request: {request.method} {request.url} (give http= to answer it)")
        response = handler(request)
        if not response.is_stream_consumed:
            return response
        # As it comes off a wire: still to be read, in whichever way the action does.
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
        return httpx.Response(response.status_code, headers=headers, stream=httpx.ByteStream(response.content))

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), follow_redirects=False, trust_env=False)
