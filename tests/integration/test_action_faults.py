"""The standard actions against servers that misbehave, through the engine's runner and the real outbound client."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.actions import ActionRunner, Failed, Succeeded
from appliance.events import Event, new_event
from appliance.identifiers import uuid7
from appliance.outbound import make_client
from appliance.plugin import RunInfo
from appliance.registry import Registry
from appliance.settings import EngineSettings, OutboundSettings, SmtpSettings
from tests.smtp_sink import DROP, HANG, SmtpSink, smtp_sink

EVENT = new_event("form_submitted", {"email": "ann@example.org"}, source="tests")
MAIL = {"to": ["ann@example.org", "bo@example.org"], "subject": "Hello", "body": "Hi"}
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Engine:
    """A runner as the process has it, with the standard actions."""

    def __init__(self, runner: ActionRunner) -> None:
        self.runner = runner

    async def attempt(self, name: str, params: dict[str, Any], **more: Any) -> Succeeded | Failed:
        run = RunInfo(id=uuid7(), workflow="contact", revision=1)
        return await self.runner.run(name, params, EVENT, run, "step", 1, more.pop("key", "key-1"), **more)


@asynccontextmanager
async def engine(folder: Path, smtp: SmtpSettings | None = None, **outbound: Any) -> AsyncIterator[Engine]:
    async def publisher(event: Event, priority: str) -> None: ...

    settings = OutboundSettings(**{"allowed_networks": (ip_network("127.0.0.0/8"),), **outbound})
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(make_client(settings))
        registry = Registry.load(smtp=smtp or SmtpSettings())
        resources = await stack.enter_async_context(registry.open(data_dir=folder, config_dir=folder, http=http))
        yield Engine(
            ActionRunner(
                registry, resources, http=http, settings=EngineSettings(), publisher=publisher, secrets={"t": "hunter2"}
            )
        )


@asynccontextmanager
async def mail_engine(folder: Path, **settings: Any) -> AsyncIterator[tuple[Engine, SmtpSink]]:
    async with smtp_sink() as sink:
        smtp = SmtpSettings(host="127.0.0.1", port=sink.port, use_tls=False, **settings)
        async with engine(folder, smtp) as made:
            yield made, sink


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/hook"
        listener.close()


def says(status: str, *headers: str, body: bytes = b"") -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = "\r\n".join((f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers))
        writer.write(head.encode() + b"\r\n\r\n" + body)

    return answer


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.005)


async def test_stalled_mail_ends_at_the_attempts_deadline_and_others_go_on(tmp_path: Path) -> None:
    async with mail_engine(tmp_path) as (made, sink):
        sink.say("RCPT", HANG, HANG)
        stalled = asyncio.create_task(made.attempt("send_email", MAIL, timeout_s=0.2))
        assert isinstance(await made.attempt("log", {"message": "meanwhile"}), Succeeded)
        result = await stalled

        assert isinstance(result, Failed)
        assert (result.kind, result.retryable) == ("timeout", True)
        assert {(d.recipient, d.status) for d in result.deliveries} == {
            ("ann@example.org", "failed"),
            ("bo@example.org", "failed"),
        }
        assert made.runner.abandoned == 0
        assert isinstance(await made.attempt("send_email", MAIL), Succeeded)


async def test_mail_refused_for_now_and_for_good_is_told_apart_by_recipient(tmp_path: Path) -> None:
    async with mail_engine(tmp_path) as (made, sink):
        sink.say("RCPT TO:<bo@example.org>", "451 greylisted")
        first = await made.attempt("send_email", MAIL)
        assert isinstance(first, Failed)
        assert (first.kind, first.retryable) == ("retry", True)

        sent = {(d.channel, d.recipient): d.message_id for d in first.deliveries if d.status == "sent"}
        assert set(sent) == {("email", "ann@example.org")}
        sink.say("RCPT TO:<bo@example.org>", "550 no such user")
        second = await made.attempt("send_email", MAIL, delivered_before=sent)
        assert isinstance(second, Failed)
        assert (second.kind, second.retryable) == ("rejected", False)
        assert [(d.recipient, d.status) for d in second.deliveries] == [("bo@example.org", "rejected")]
        assert [mail.recipients for mail in sink.received] == [("ann@example.org",)]


async def test_mail_that_died_after_its_data_is_repeated_under_the_same_message_id(tmp_path: Path) -> None:
    async with mail_engine(tmp_path) as (made, sink):
        sink.say(".", f"{DROP} kept")
        one = {**MAIL, "to": "ann@example.org"}
        first = await made.attempt("send_email", one)
        second = await made.attempt("send_email", one)

    assert isinstance(first, Failed)
    assert first.retryable
    assert isinstance(second, Succeeded)
    assert len({mail.message["Message-ID"] for mail in sink.received}) == 1


async def test_the_closed_engine_says_goodbye_to_the_mail_server(tmp_path: Path) -> None:
    async with mail_engine(tmp_path) as (made, sink):
        await made.attempt("send_email", MAIL)
    assert "QUIT" in sink.commands


async def test_too_many_requests_are_repeated_when_the_server_says(tmp_path: Path) -> None:
    async with engine(tmp_path) as made, server(says("429 Too Many Requests", "Retry-After: 30")) as url:
        result = await made.attempt("webhook", {"url": url, "json": {}})

    assert isinstance(result, Failed)
    assert (result.retryable, result.after_s) == (True, 30)


async def test_nobody_is_put_off_for_ever(tmp_path: Path) -> None:
    async with engine(tmp_path) as made, server(says("503 Busy", "Retry-After: 99999999999")) as url:
        result = await made.attempt("webhook", {"url": url})

    assert isinstance(result, Failed)
    assert result.after_s == 86_400


@pytest.mark.parametrize("place", ["outbound", "parameter", "step"])
async def test_a_slow_loris_meets_a_total_deadline(place: str, tmp_path: Path) -> None:
    outbound: dict[str, Any] = {"timeout": timedelta(milliseconds=100)} if place == "outbound" else {}
    params = {"timeout": "100ms"} if place == "parameter" else {}
    more: dict[str, Any] = {"timeout_s": 0.1} if place == "step" else {}
    async with engine(tmp_path, **outbound) as made, server(drip) as url:
        start = time.monotonic()
        result = await made.attempt("webhook", {"url": url, **params}, **more)

    assert isinstance(result, Failed)
    assert result.retryable
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "answer",
    [
        says("200 OK", body=b"x" * 5_000_000),
        says("200 OK", "Content-Encoding: gzip", body=gzip.compress(bytes(30_000_000))),
        says("200 OK", "Content-Encoding: br", body=b"????"),
    ],
    ids=["huge", "gzip bomb", "unknown packing"],
)
async def test_a_huge_or_packed_answer_is_cut_and_the_delivery_stands(answer: Answer, tmp_path: Path) -> None:
    async with engine(tmp_path, max_response_bytes=100_000) as made, server(answer) as url:
        result = await made.attempt("webhook", {"url": url})

    assert isinstance(result, Succeeded)
    assert result.output["status"] == 200
    assert [d.status for d in result.deliveries] == ["sent"]


async def test_a_redirect_is_not_followed_into_the_house(tmp_path: Path) -> None:
    async with engine(tmp_path) as made, server(says("302 Found", "Location: http://169.254.169.254/")) as url:
        result = await made.attempt("webhook", {"url": url})

    assert isinstance(result, Failed)
    assert (result.kind, result.retryable) == ("rejected", False)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:6379/", "http://localhost/", "http://[::1]/", "http://169.254.169.254/"]
)
async def test_inner_addresses_are_out_of_bounds(url: str, tmp_path: Path) -> None:
    async with engine(tmp_path, allowed_networks=()) as made:
        result = await made.attempt("webhook", {"url": url})

    assert isinstance(result, Failed)
    assert (result.kind, result.retryable) == ("rejected", False)
    assert "not a public address" in result.error


async def test_a_closed_port_means_later(tmp_path: Path) -> None:
    async with engine(tmp_path) as made:
        result = await made.attempt("webhook", {"url": "http://127.0.0.1:1/"})

    assert isinstance(result, Failed)
    assert (result.kind, result.retryable) == ("retry", True)


async def test_a_secret_that_comes_back_is_not_kept(tmp_path: Path) -> None:
    async with engine(tmp_path) as made, server(says("400 Bad", body=b"your token hunter2 is wrong")) as url:
        refused = await made.attempt("webhook", {"url": f"{url}?t=hunter2"})
    async with engine(tmp_path) as made, server(says("200 OK", body=b"hello hunter2")) as url:
        echoed = await made.attempt("webhook", {"url": url})

    assert "hunter2" not in repr((refused, echoed))
    assert isinstance(echoed, Succeeded)
    assert echoed.output["body"] == "hello [secret]"


async def test_many_webhooks_at_once_share_connections(tmp_path: Path) -> None:
    connections: set[int] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(id(writer))
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with engine(tmp_path, max_connections=4) as made:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        results = await asyncio.gather(*(made.attempt("webhook", {"url": url, "method": "GET"}) for _ in range(100)))
        listener.close()

    assert all(isinstance(result, Succeeded) for result in results)
    assert len(connections) <= 4


def test_a_thread_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    program = """
import asyncio, threading
from pathlib import Path
import httpx
from appliance.engine.actions import ActionRunner
from appliance.events import new_event
from appliance.plugin import Action, Params, RunInfo
from appliance.registry import Registry
from appliance.resources import Place, Resources
from appliance.settings import EngineSettings

class NoParams(Params):
    pass

async def main():
    http = httpx.AsyncClient()
    registry = Registry.of({"hang": Action(params=NoParams, run=lambda params, ctx: threading.Event().wait())})
    runner = ActionRunner(registry, Resources(Place(Path(), Path(), http)), http=http, settings=EngineSettings(),
                          publisher=None, secrets={})
    result = await runner.run("hang", {}, new_event("t", {}, source="s"), RunInfo("r", "w", 1), "s", 1, "k", 0.01)
    print(result.kind, runner.abandoned)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "timeout 1\n"), done.stderr
