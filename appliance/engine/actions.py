"""One attempt of one action: its parameters checked, its code isolated, its outcome judged, its output made JSON.

:meth:`ActionRunner.run` never raises for anything that a plugin does.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import ValidationError

from appliance.engine import storable
from appliance.engine.effects import DeliveredBefore, DeliveryRecord, Effects, Publisher
from appliance.engine.isolation import Deadline, Isolation, Raised
from appliance.engine.redaction import Redaction
from appliance.errors import Malformed
from appliance.events import dumps, loads
from appliance.plugin import Action, Context, Event, Params, Reject, Retry, RunInfo
from appliance.resources import Resources, ResourceUnavailable

if TYPE_CHECKING:
    import httpx

    from appliance.registry import Registry
    from appliance.settings import EngineSettings

__all__ = ["ActionRunner", "DeliveredBefore", "DeliveryRecord", "Failed", "Publisher", "Result", "Succeeded"]

Kind = Literal["rejected", "retry", "error", "timeout", "invalid-params", "unknown-action", "bad-output"]

MAX_AFTER_S = 86_400.0
"""Longest wait that another side's Retry-After can ask for, in seconds."""


class Succeeded(NamedTuple):
    """The action's output, as JSON data that nobody else holds, and its deliveries."""

    output: Any
    deliveries: tuple[DeliveryRecord, ...] = ()


class Failed(NamedTuple):
    """Why the attempt failed. ``after_s`` is the earliest time to try again that the other side asked for."""

    error: str
    retryable: bool
    kind: Kind
    after_s: float | None = None
    deliveries: tuple[DeliveryRecord, ...] = ()
    classes: tuple[str, ...] = ()
    """Names of the classes of the exceptions behind it, the most particular first: for policies by error."""


Result = Succeeded | Failed


@dataclass(frozen=True, slots=True)
class _Prepared:
    name: str
    action: Action
    is_async: bool
    timeout_s: float
    log: logging.Logger


class ActionRunner:
    """Runs attempts. One per process; the calls are independent of each other."""

    def __init__(
        self,
        registry: Registry,
        resources: Resources,
        *,
        http: httpx.AsyncClient,
        settings: EngineSettings,
        publisher: Publisher,
        secrets: Mapping[str, str],
    ) -> None:
        default_s = settings.action_timeout.total_seconds()
        self._prepared = {name: _prepare(name, action, default_s) for name, action in registry.actions.items()}
        self._broken = registry.broken
        self._resources = resources
        self._http = http
        self._settings = settings
        self._publisher = publisher
        self._secrets = secrets
        self._redaction = Redaction(secrets.values())
        self._isolation = Isolation(settings.threads)

    @property
    def abandoned(self) -> int:
        """How many actions go on although their attempt is over: they ignored their cancellation."""
        return self._isolation.abandoned

    async def run(
        self,
        name: str,
        params: Any,
        event: Event,
        run: RunInfo,
        step: str,
        attempt: int,
        idempotency_key: str,
        timeout_s: float | None = None,
        delivered_before: DeliveredBefore | None = None,
    ) -> Result:
        """Make one attempt of the action ``name``.

        ``params`` is rendered JSON data, or an instance of the action's model. The limit is ``timeout_s``, else the
        action's own, else ``engine.action_timeout``. Cancelling this call cancels the action, waits a moment for its
        clean-up, and is the only way in which this raises.
        """
        prepared = self._prepared.get(name)
        if prepared is None:
            return self._unknown(name)
        effects = Effects(
            event,
            run,
            idempotency_key,
            delivered_before or {},
            self._publisher,
            self._settings.max_hops,
            self._redaction.text,
        )
        try:
            checked = params if isinstance(params, prepared.action.params) else _check(prepared.action.params, params)
            context = Context(
                event=event,
                run=run,
                step=step,
                attempt=attempt,
                idempotency_key=idempotency_key,
                http=self._http,
                log=self._redaction.logger(prepared.log, {"action": name, "run": run.id, "step": step}),
                secrets=self._secrets,
                deliver=effects.deliver if prepared.is_async else _only_async,
                publish=effects.publish if prepared.is_async else _only_async,
                resource=self._resources.get(name),
            )
            limit_s = prepared.timeout_s if timeout_s is None else timeout_s
            outcome = await self._invoke(prepared, checked, context, limit_s)
        except Deadline:
            result: Result = Failed(f"the action did not finish within {limit_s:g} s", True, "timeout")
        except ValidationError as error:
            result = Failed(_invalid(error), False, "invalid-params")
        except ResourceUnavailable as error:
            result = Failed(str(error), True, "error")
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the plugin's own validators
            result = self._failure(prepared, error)
        else:
            result = self._judge(prepared, outcome)
        finally:
            effects.close()
        return self._finish(result, effects.records)

    async def _invoke(self, prepared: _Prepared, params: Params, context: Context, limit_s: float) -> Any:
        call = prepared.action.run
        if prepared.is_async:
            name = f"action {prepared.name} (step {context.step} of run {context.run.id})"
            return await self._isolation.coroutine(lambda: call(params, context), limit_s, name)
        return await self._isolation.function(lambda: call(params, context), limit_s)

    def _judge(self, prepared: _Prepared, outcome: Any) -> Result:
        if isinstance(outcome, Raised):
            return self._failure(prepared, outcome.error)
        if outcome is None:
            return Succeeded(None)
        if inspect.isawaitable(outcome):
            _dispose(outcome)
            return Failed("the action returned something to await: declare it with async def", False, "bad-output")
        try:
            raw = dumps(outcome)
            if len(raw) > self._settings.max_output_bytes:
                raise Malformed(f"{len(raw)} bytes; engine.max_output_bytes is {self._settings.max_output_bytes}")
            return Succeeded(self._redaction.data(loads(raw), raw))
        except Malformed as error:
            return Failed(f"the action's output can't be kept: {error}", False, "bad-output")

    def _failure(self, prepared: _Prepared, error: BaseException) -> Failed:
        leaves = list(_leaves(error))
        classes = tuple(dict.fromkeys(name for leaf in leaves for name in _classes(leaf)))
        if rejects := [leaf for leaf in leaves if isinstance(leaf, Reject)]:
            return Failed("; ".join(map(storable.reason, rejects)), False, "rejected")
        if retries := [leaf for leaf in leaves if isinstance(leaf, Retry)]:
            return Failed("; ".join(map(storable.reason, retries)), True, "retry", _after_s(retries), classes=classes)
        # At debug only: a poison message would fill the log with its traceback on every attempt.
        self._redaction.logger(prepared.log, {}).debug("the action raised", exc_info=error)
        return Failed("; ".join(map(storable.error, leaves)), True, "error", classes=classes)

    def _finish(self, result: Result, deliveries: tuple[DeliveryRecord, ...]) -> Result:
        if isinstance(result, Succeeded):
            return Succeeded(result.output, deliveries) if deliveries else result
        text = self._redaction.text(storable.text(result.error))
        return Failed(text, result.retryable, result.kind, result.after_s, deliveries, result.classes)

    def _unknown(self, name: str) -> Failed:
        why = self._broken.get(name)
        text = f"the plugin of the action {name} can't be used: {why}" if why else f"no action is named {name}"
        return Failed(self._redaction.text(storable.text(text)), False, "unknown-action")


def _prepare(name: str, action: Action, default_s: float) -> _Prepared:
    return _Prepared(
        name=name,
        action=action,
        is_async=_is_async(action.run),
        timeout_s=action.timeout.total_seconds() if action.timeout is not None else default_s,
        log=logging.getLogger(f"appliance.actions.{name}"),
    )


def _is_async(call: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)


def _check(model: type[Params], params: Any) -> Params:
    return model.model_validate({} if params is None else params)


def _only_async(*_: Any, **__: Any) -> Any:
    raise Reject("ctx.deliver and ctx.publish need an action that is declared with async def")


def _invalid(error: ValidationError) -> str:
    # Never the input: parameters may hold secrets.
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, p['loc'])) or 'parameters'}: {p['msg']}" for p in problems)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _classes(error: BaseException) -> Iterator[str]:
    """The names that policies by error may use: of its class and those above it, then of what it was raised from."""
    general = (BaseException, Exception, object)
    for one in (error, error.__cause__):
        if one is not None:
            yield from (kind.__name__ for kind in type(one).__mro__ if kind not in general)


def _after_s(retries: list[Retry]) -> float | None:
    """The longest wait that was asked for; what is no number (in a subclass of theirs) doesn't count."""
    asked = [after for leaf in retries if isinstance(after := getattr(leaf, "after_s", None), int | float)]
    return min(max(asked), MAX_AFTER_S) if asked else None


def _dispose(outcome: Any) -> None:
    close = getattr(outcome, "close", None)
    if close is not None:
        close()
