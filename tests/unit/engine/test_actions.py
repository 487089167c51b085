"""One attempt: whatever an action does, ActionRunner.run returns a verdict."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import model_validator

from appliance.engine.actions import ActionRunner, DeliveryRecord, Failed, Succeeded
from appliance.errors import Overloaded
from appliance.events import Event, new_event
from appliance.identifiers import uuid7
from appliance.plugin import Action, Context, Environment, Params, Reject, Retry, RunInfo
from appliance.registry import Registry
from appliance.resources import Place, Resources
from appliance.settings import EngineSettings

RUN = RunInfo(id=uuid7(), workflow="contact", revision=1)
HTTP = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200)))


class NoParams(Params):
    pass


class Greeting(Params):
    name: str
    times: int = 1


class Harness:
    """A runner over one action named ``act``, with what it published."""

    def __init__(
        self,
        run: Callable[..., Any],
        *,
        params: type[Params] = NoParams,
        secrets: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        settings = more.pop("settings", EngineSettings(max_output_bytes=1024, max_hops=3))
        self.published: list[tuple[Event, str]] = []
        self.event = more.pop("event", new_event("test", {}, source="tests"))
        self.refuse: Exception | None = None
        self.runner = ActionRunner(
            Registry.of({"act": Action(params=params, run=run, **more)}),
            Resources(Place(Path("/nowhere"), Path("/nowhere"), HTTP)),
            http=HTTP,
            settings=settings,
            publisher=self._publish,
            secrets=secrets or {},
        )

    async def _publish(self, event: Event, priority: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.published.append((event, priority))

    async def attempt(self, params: Any = None, *, name: str = "act", **more: Any) -> Succeeded | Failed:
        return await self.runner.run(name, params, self.event, RUN, "greet", 1, "key-1", **more)


async def failed(harness: Harness, params: Any = None, **more: Any) -> Failed:
    result = await harness.attempt(params, **more)
    assert isinstance(result, Failed)
    return result


async def verdict(harness: Harness) -> Failed:
    """How an attempt failed, but for the names of exceptions behind it."""
    return (await failed(harness))._replace(classes=())


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_hands_the_checked_parameters_and_the_context_to_an_async_action() -> None:
    async def greet(params: Greeting, ctx: Context) -> dict[str, Any]:
        return {"text": f"Hello {params.name}" * params.times, "key": ctx.idempotency_key, "step": ctx.step}

    result = await Harness(greet, params=Greeting).attempt({"name": "Ann"})

    assert result == Succeeded({"text": "Hello Ann", "key": "key-1", "step": "greet"})


async def test_takes_parameters_that_were_checked_before() -> None:
    async def greet(params: Greeting, ctx: Context) -> str:
        return params.name

    assert await Harness(greet, params=Greeting).attempt(Greeting(name="Bo")) == Succeeded("Bo")


async def test_runs_a_plain_function_in_another_thread() -> None:
    def where(params: NoParams, ctx: Context) -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await Harness(where).attempt() == Succeeded(False)


async def test_names_every_wrong_parameter_but_never_its_value() -> None:
    async def greet(params: Greeting, ctx: Context) -> None: ...

    result = await failed(Harness(greet, params=Greeting), {"name": ["hunter2"], "colour": "hunter2"})

    assert (result.kind, result.retryable) == ("invalid-params", False)
    assert "name: " in result.error
    assert "colour: Extra inputs are not permitted" in result.error
    assert "hunter2" not in result.error


async def test_names_the_exceptions_behind_a_failure_for_policies_by_error() -> None:
    async def act(params: NoParams, ctx: Context) -> None:
        raise ExceptionGroup("g", [ConnectionRefusedError(), ValueError("v")])

    classes = (await failed(Harness(act))).classes
    assert classes == ("ConnectionRefusedError", "ConnectionError", "OSError", "ValueError")


async def test_an_unknown_action_is_a_clear_failure() -> None:
    async def act(params: NoParams, ctx: Context) -> None: ...

    result = await failed(Harness(act), name="vanished")

    assert result == Failed("no action is named vanished", False, "unknown-action")


async def test_reject_is_final_and_retry_says_when() -> None:
    async def reject(params: NoParams, ctx: Context) -> None:
        raise Reject("no such mailbox")

    async def retry(params: NoParams, ctx: Context) -> None:
        raise Retry("busy", after="7")

    assert await verdict(Harness(reject)) == Failed("no such mailbox", False, "rejected")
    assert await verdict(Harness(retry)) == Failed("busy", True, "retry", 7.0)


async def test_nobody_can_ask_for_a_retry_after_the_end_of_days() -> None:
    async def act(params: NoParams, ctx: Context) -> None:
        raise Retry("busy", after="9" * 400)

    assert (await failed(Harness(act))).after_s == 86_400


async def test_the_task_is_named_after_the_action() -> None:
    async def act(params: NoParams, ctx: Context) -> str:
        task = asyncio.current_task()
        return task.get_name() if task is not None else ""

    assert await Harness(act).attempt() == Succeeded(f"action act (step greet of run {RUN.id})")


async def test_the_verdict_inside_an_exception_group_counts() -> None:
    async def act(params: NoParams, ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(raising(Retry("later", after=3)))
            group.create_task(raising(Retry("later still", after=9)))

    async def raising(error: Exception) -> None:
        raise error

    assert await verdict(Harness(act)) == Failed("later; later still", True, "retry", 9.0)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "CancelledError"),
        (GeneratorExit(), "GeneratorExit"),
        (Unprintable(), "Unprintable: (its text can't be made)"),
        (ValueError("a\0b\ud800"), "ValueError: a\\0b\\ud800"),
    ],
)
@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
async def test_whatever_is_raised_fails_the_attempt_only(error: BaseException, text: str, plain: bool) -> None:
    async def act(params: NoParams, ctx: Context) -> None:
        raise error

    def plain_act(params: NoParams, ctx: Context) -> None:
        raise error

    result = await verdict(Harness(plain_act if plain else act))

    assert result == Failed(text, True, "error")


async def test_an_action_that_cancels_its_own_task_fails() -> None:
    async def act(params: NoParams, ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    assert await verdict(Harness(act)) == Failed("CancelledError", True, "error")


class OddRetry(Retry):
    def __init__(self) -> None:
        self.after_s = "soon"  # type: ignore[assignment]


class OddReject(Reject):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (Retry(None), Failed("None", True, "retry")),  # type: ignore[arg-type]
        (Retry(""), Failed("Retry", True, "retry")),
        (OddRetry(), Failed("OddRetry", True, "retry")),
        (OddReject(), Failed("OddReject", False, "rejected")),
        (Reject("a\0b"), Failed("a\\0b", False, "rejected")),
        (ExceptionGroup("g", [Retry("later"), Reject("never")]), Failed("never", False, "rejected")),
        (
            BaseExceptionGroup("g", [SystemExit(1), ValueError("v")]),
            Failed("SystemExit: 1; ValueError: v", True, "error"),
        ),
    ],
    ids=repr,
)
async def test_verdicts_that_were_put_together_oddly_are_still_verdicts(error: BaseException, result: Failed) -> None:
    async def act(params: NoParams, ctx: Context) -> None:
        raise error

    assert await verdict(Harness(act)) == result


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(2), KeyboardInterrupt()])
async def test_a_validator_that_raises_fails_the_attempt_only(error: BaseException) -> None:
    class Trap(Params):
        @model_validator(mode="before")
        @classmethod
        def _trap(cls, value: Any) -> Any:
            raise error

    async def act(params: Trap, ctx: Context) -> None: ...

    assert (await failed(Harness(act, params=Trap))).kind == "error"


async def test_deliveries_can_always_be_stored() -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        first = await ctx.deliver("sms", "a\0b\ud800", number)
        second = await ctx.deliver("sms", "x" * 5000, number)
        again = await ctx.deliver("sms", "x" * 5000, number)
        other = await ctx.deliver("sms", "x" * 4999, number)
        return [first.message_id, second.recipient == "x" * 5000, again.repeated, other.repeated]

    async def number() -> str:
        return 7  # type: ignore[return-value]

    result = await Harness(act).attempt()

    assert isinstance(result, Succeeded)
    assert result.output == ["7", True, True, False]
    assert result.deliveries[0] == DeliveryRecord("sms", "a\\0b\\ud800", "sent", "7")
    assert all(len(delivery.recipient.encode()) < 1700 for delivery in result.deliveries)

    before = {(d.channel, d.recipient): d.message_id for d in result.deliveries}
    assert await Harness(act).attempt(delivered_before=before) == Succeeded(["7", True, True, True])


async def test_an_address_that_holds_a_secret_is_masked_and_still_known_the_next_time() -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        return (await ctx.deliver("webhook", f"https://hooks.example.com/{ctx.secrets['hook']}", sent)).repeated

    async def sent() -> None: ...

    harness = Harness(act, secrets={"hook": "hunter2-hunter2"})
    first = await harness.attempt()
    assert first.deliveries == (DeliveryRecord("webhook", "https://hooks.example.com/[secret]", "sent"),)

    before = {(d.channel, d.recipient): d.message_id for d in first.deliveries}
    assert await harness.attempt(delivered_before=before) == Succeeded(True)


async def test_a_long_error_is_cut() -> None:
    async def act(params: NoParams, ctx: Context) -> None:
        raise ValueError("x" * 100_000)

    assert len((await failed(Harness(act))).error) < 2100


async def test_the_steps_limit_beats_the_actions_own() -> None:
    async def hang(params: NoParams, ctx: Context) -> None:
        await asyncio.Event().wait()

    harness = Harness(hang, timeout=timedelta(hours=1))

    result = await failed(harness, timeout_s=0.01)

    assert (result.kind, result.retryable, result.error) == ("timeout", True, "the action did not finish within 0.01 s")
    assert harness.runner.abandoned == 0


async def test_swallowed_cancellation_is_counted_until_the_action_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.engine.isolation.CLEAN_UP_S", 0.01)
    release = asyncio.Event()
    late: list[str] = []

    async def stubborn(params: NoParams, ctx: Context) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        try:
            await ctx.deliver("sms", "+1", unreachable)
        except Reject as error:
            late.append(error.reason)

    async def unreachable() -> str:
        late.append("sent")
        return "never"

    harness = Harness(stubborn, timeout=timedelta(milliseconds=10))
    result = await failed(harness)
    assert (result.kind, harness.runner.abandoned) == ("timeout", 1)

    release.set()
    await until(lambda: harness.runner.abandoned == 0)
    assert late == ["this attempt is over: its deliveries and events would not be recorded"]


async def test_a_hanging_thread_is_written_off_and_its_place_given_to_another() -> None:
    release = threading.Event()

    def act(params: Greeting, ctx: Context) -> str:
        if params.name == "hang":
            release.wait()
        return params.name

    harness = Harness(act, params=Greeting, settings=EngineSettings(threads=1))
    result = await failed(harness, {"name": "hang"}, timeout_s=0.01)
    assert (result.kind, harness.runner.abandoned) == ("timeout", 1)

    assert await harness.attempt({"name": "next"}) == Succeeded("next")
    release.set()
    await until(lambda: harness.runner.abandoned == 0)


async def test_no_more_threads_than_the_limit_work_at_once() -> None:
    running: list[int] = []
    most: list[int] = []
    gate = threading.Barrier(2)

    def act(params: NoParams, ctx: Context) -> None:
        running.append(1)
        most.append(len(running))
        gate.wait(5)
        running.pop()

    harness = Harness(act, settings=EngineSettings(threads=2))
    results = await asyncio.gather(*(harness.attempt() for _ in range(6)))

    assert all(result == Succeeded(None) for result in results)
    assert max(most) == 2


async def test_cancelling_the_caller_cancels_the_action() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def act(params: NoParams, ctx: Context) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    caller = asyncio.create_task(Harness(act).attempt())
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert ended.is_set()


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ({"f": object()}, "not JSON data"),
        ({"n": 2**70}, "not JSON data"),
        ("\ud800", "not JSON data"),
        ("a\0b", "NUL"),
        ("x" * 2000, "engine.max_output_bytes is 1024"),
    ],
)
async def test_output_that_is_no_storable_json_fails_for_good(output: Any, why: str) -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        return output

    result = await failed(Harness(act))

    assert (result.kind, result.retryable) == ("bad-output", False)
    assert why in result.error


async def test_output_that_refers_to_itself_fails() -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        output: list[Any] = []
        output.append(output)
        return output

    assert (await failed(Harness(act))).kind == "bad-output"


async def test_the_output_is_what_a_later_reader_will_see() -> None:
    shared = {"when": timedelta, "list": (1, 2)}

    async def act(params: NoParams, ctx: Context) -> Any:
        return {1: shared["list"]}

    assert await Harness(act).attempt() == Succeeded({"1": [1, 2]})


async def test_a_plain_function_that_returns_a_coroutine_is_told_what_to_do() -> None:
    async def inner() -> None: ...

    def act(params: NoParams, ctx: Context) -> Awaitable[None]:
        return inner()

    result = await failed(Harness(act))

    assert (result.kind, result.error) == (
        "bad-output",
        "the action returned something to await: declare it with async def",
    )


async def test_records_deliveries_and_skips_those_made_before() -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        first = await ctx.deliver("sms", "+1", ok)
        second = await ctx.deliver("sms", "+2", ok)
        again = await ctx.deliver("sms", "+1", ok)
        assert await asyncio.gather(ctx.deliver("sms", "+3", refuse), return_exceptions=True)
        await ctx.deliver("sms", "+4", busy)
        return [first.repeated, second.repeated, again.repeated]

    sent: list[int] = []

    async def ok() -> str:
        sent.append(1)
        return f"m{len(sent)}"

    async def refuse() -> str:
        raise Reject("no such number")

    async def busy() -> str:
        raise Retry("busy")

    result = await failed(Harness(act), delivered_before={("sms", "+2"): "m0"})

    assert result.deliveries == (
        DeliveryRecord("sms", "+1", "sent", "m1"),
        DeliveryRecord("sms", "+3", "rejected", None, "no such number"),
        DeliveryRecord("sms", "+4", "failed", None, "busy"),
    )
    assert len(sent) == 1


async def test_a_delivery_that_a_timeout_cuts_off_is_of_unknown_outcome() -> None:
    async def act(params: NoParams, ctx: Context) -> None:
        await ctx.deliver("sms", "+1", hang)

    async def hang() -> str:
        await asyncio.Event().wait()
        return ""

    result = await failed(Harness(act), timeout_s=0.01)

    assert result.deliveries == (DeliveryRecord("sms", "+1", "failed", None, "interrupted: it may have been sent"),)


async def test_publishes_an_event_that_a_repeated_attempt_can_not_double() -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        return [
            await ctx.publish(type="a", data={"n": 1}, subject="s", priority="high", attributes={"tenant": "x"}),
            await ctx.publish(type="a", data={"n": 1}),
        ]

    harness = Harness(act, event=new_event("root", {}, source="tests", attributes={"hops": 1}))
    first, second = await harness.attempt(), await harness.attempt()

    assert isinstance(first, Succeeded)
    assert first == second
    assert first.output[0] != first.output[1]
    event, priority = harness.published[0]
    again, _ = harness.published[2]
    assert (event.id, event.key) == (again.id, again.key)
    assert (priority, event.type, event.subject, event.source) == ("high", "a", "s", "workflow:contact")
    assert event.attributes == {"tenant": "x", "hops": 2, "correlationid": harness.event.id, "causationid": RUN.id}


async def test_a_chain_of_events_ends_at_the_limit() -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        return await ctx.publish(type="a")

    event = new_event("root", {}, source="tests", attributes={"hops": 3, "correlationid": "c"})
    result = await failed(Harness(act, event=event))

    assert (result.kind, result.retryable) == ("rejected", False)
    assert "longer than 3" in result.error


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": ""},
        {"type": "a", "priority": "urgent"},
        {"type": "a", "data": object()},
        {"type": "a", "attributes": {"hops": "0"}},
        {"type": "a", "attributes": {"tenant": ["x"]}},
        {"type": "a", "data": "\0"},
    ],
)
async def test_an_event_that_nobody_could_read_is_not_published(wrong: dict[str, Any]) -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        return await ctx.publish(**wrong)

    harness = Harness(act)

    assert (await failed(harness)).kind == "rejected"
    assert harness.published == []


async def test_publishing_waits_for_a_full_stream() -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        return await ctx.publish(type="a")

    harness = Harness(act)
    harness.refuse = Overloaded("the backlog is full", retry_after_s=5)

    assert await verdict(harness) == Failed("a could not be published: the backlog is full", True, "retry", 5.0)


async def test_a_plain_function_can_not_deliver() -> None:
    def act(params: NoParams, ctx: Context) -> Any:
        return ctx.deliver("sms", "+1", lambda: asyncio.sleep(0, ""))

    assert (await failed(Harness(act))).kind == "rejected"


async def test_secrets_stay_out_of_output_errors_and_log(caplog: pytest.LogCaptureFixture) -> None:
    async def act(params: NoParams, ctx: Context) -> Any:
        ctx.log.warning("using %s", ctx.secrets["token"], extra={"fields": {"again": [ctx.secrets["token"]]}})
        if ctx.secrets["token"] == 'pass"word':
            return {"echo": f"it is {ctx.secrets['token']}", "n": 1}
        raise ValueError(ctx.secrets["token"])

    with caplog.at_level(logging.DEBUG, "appliance.actions"):
        kept = await Harness(act, secrets={"token": 'pass"word', "other": "123456"}).attempt()
        raised = await failed(Harness(act, secrets={"token": "hunter2-hunter2"}))

    assert kept == Succeeded({"echo": "it is [secret]", "n": 1})
    assert raised.error == "ValueError: [secret]"
    assert "hunter2" not in caplog.text
    assert 'pass"word' not in caplog.text
    assert {key: vars(caplog.records[0])[key] for key in ("fields", "action", "run", "step")} == {
        "fields": {"again": ["[secret]"]},
        "action": "act",
        "run": RUN.id,
        "step": "greet",
    }


async def test_an_action_gets_its_resource_and_fails_retryably_without_it(tmp_path: Path) -> None:
    @asynccontextmanager
    async def opener(environment: Environment) -> AsyncIterator[str]:
        if environment.settings["broken"]:
            raise OSError("no route")
        yield "the pool"

    async def act(params: NoParams, ctx: Context) -> Any:
        return ctx.resource

    async def attempt(broken: bool) -> Succeeded | Failed:
        action = Action(params=NoParams, run=act, resource=opener)
        registry = Registry.of({"act": action}, {"act": {"broken": broken}})
        async with registry.open(data_dir=tmp_path, config_dir=tmp_path, http=HTTP) as resources:
            runner = ActionRunner(
                registry, resources, http=HTTP, settings=EngineSettings(), publisher=publisher, secrets={}
            )
            return await runner.run("act", {}, new_event("t", {}, source="s"), RUN, "s", 1, "k")

    async def publisher(event: Event, priority: str) -> None: ...

    assert await attempt(broken=False) == Succeeded("the pool")
    failure = await attempt(broken=True)
    assert isinstance(failure, Failed)
    assert (failure.retryable, failure.error) == (
        True,
        "what the action act needs is not open: OSError: no route",
    )


async def test_an_instant_action_costs_next_to_nothing() -> None:
    """Guards the fast path against a timer, a thread or a copy per attempt; 15 µs is the aim, 60 µs the alarm."""

    async def act(params: Greeting, ctx: Context) -> dict[str, str]:
        return {"hello": params.name}

    harness = Harness(act, params=Greeting)
    took: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            await harness.attempt({"name": "Ann"})
        took.append((time.perf_counter() - start) / 100)

    assert min(took) < 60e-6, f"{min(took) * 1e6:.1f} µs"
