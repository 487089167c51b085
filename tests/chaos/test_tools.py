"""The tools that prove the promise are proved themselves: a proxy that passes everything would prove nothing."""

from __future__ import annotations

import asyncio
from email.message import EmailMessage
from typing import Any

import aiosmtplib
import httpx
import psycopg
import pytest
import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from appliance.identifiers import uuid7
from tests.chaos.invariants import Accepted, inspect, leaks, repeats
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.sinks import HttpSink, Reply, SmtpSink


def _client(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url, socket_timeout=0.2, retry=Retry(NoBackoff(), 0), protocol=2)


async def test_a_dropped_reply_did_reach_the_server(redis_url: str, valkey: redis.asyncio.Redis) -> None:
    async with Proxy.to_url(redis_url) as proxy, _client(proxy.url) as client:
        assert await client.set("a", "1")
        proxy.mode = Mode.DROP_REPLY
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.set("b", "1")
        assert await valkey.get("b") == b"1"


async def test_a_black_hole_swallows_the_request_and_keeps_the_connection(
    redis_url: str, valkey: redis.asyncio.Redis
) -> None:
    async with Proxy.to_url(redis_url) as proxy, _client(proxy.url) as client:
        await client.ping()
        proxy.mode = Mode.BLACK_HOLE
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.set("b", "1")
        assert await valkey.get("b") is None
        proxy.mode = Mode.PASS
        assert await client.set("c", "1")


async def test_cut_and_refuse_close_connections(redis_url: str) -> None:
    async with Proxy.to_url(redis_url) as proxy, _client(proxy.url) as client:
        await client.ping()
        assert await proxy.cut() == 1
        assert proxy.open_connections == 0
        proxy.mode = Mode.REFUSE
        with pytest.raises((redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)):
            await client.ping()
        assert proxy.accepted >= 2


async def test_the_proxy_speaks_for_postgresql_too(database_url: str) -> None:
    async with (
        Proxy.to_url(database_url) as proxy,
        await psycopg.AsyncConnection.connect(proxy.url, autocommit=True) as connection,
    ):
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
        await proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")


async def test_the_mail_sink_follows_its_script() -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Message-ID"] = "a@example.org", "b@example.org", "<1@example.org>"
    message.set_content("hello\n.\nthere")
    async with SmtpSink() as sink:
        sink.script("RCPT", "450 4.2.0 greylisted")
        sink.script("DATA", "take-and-close")

        async def send() -> None:
            await aiosmtplib.send(message, hostname=sink.host, port=sink.port, start_tls=False)

        with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
            await send()
        with pytest.raises(aiosmtplib.SMTPException):
            await send()
        await send()
        assert [mail.recipients for mail in sink.mails] == [("b@example.org",)] * 2
        assert sink.mails[0].message.get_payload() == "hello\r\n.\r\nthere\r\n"
        assert sink.repeated() == {"<1@example.org>": 2}


async def test_the_http_sink_misbehaves_as_told_and_remembers_keys() -> None:
    async with HttpSink() as sink, httpx.AsyncClient(timeout=0.3, trust_env=False) as client:

        async def post() -> httpx.Response:
            return await client.post(sink.url, json={}, headers={"Idempotency-Key": "k"})

        sink.script(Reply(429, headers=(("Retry-After", "2"),)), Reply(behave="close"), Reply(behave="hang"))
        assert (await post()).headers["Retry-After"] == "2"
        with pytest.raises(httpx.RemoteProtocolError):
            await post()
        with pytest.raises(httpx.ReadTimeout):
            await post()
        assert (await post()).status_code == 200
        assert sink.repeated() == {"k": 4}
        sink.gate.clear()
        waiting = asyncio.create_task(post())
        with pytest.raises(httpx.ReadTimeout):
            await waiting
        assert len(sink.requests) == 5


def test_repeats_are_counted_and_nameless_effects_are_violations() -> None:
    assert repeats(["a", "b", "a", "a"]) == (2, [])
    assert repeats(["a", None, None])[1] == ["I5: 2 effects without an idempotency key"]


_EVENT = """INSERT INTO events (uid, id, source, type, time, received_at, stream, entry_id, outcome)
VALUES (%s, %s, 's', 't', now(), now(), 'normal', '1-0', %s)"""


async def _insert(database_url: str, uid: str, event_id: str | None, outcome: str | None) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        partitions = await connection.execute("SELECT FROM pg_inherits WHERE inhparent = 'events'::regclass")
        if partitions.rowcount == 0:
            await connection.execute("CREATE TABLE events_all PARTITION OF events DEFAULT")
        await connection.execute(_EVENT, (uid, event_id, outcome))


async def test_an_event_that_is_nowhere_is_lost(redis_url: str, database_url: str, valkey: redis.asyncio.Redis) -> None:
    uid = uuid7()
    await _insert(database_url, uid, None, "unmatched")
    entry: Any = await valkey.xadd("appliance:events:normal", {"type": "t"})
    waiting = entry.decode()
    accepted = Accepted({uid, "nowhere"}, {("normal", "1-0"), ("normal", waiting), ("normal", "9-9")})
    findings = await inspect(redis_url, database_url, accepted, at_rest=False)
    assert findings.lost == ["nowhere", "normal/9-9"]
    assert findings.unmatched == 1
    with pytest.raises(AssertionError, match="nowhere"):
        findings.assert_none()
    at_rest = await inspect(redis_url, database_url, Accepted())
    assert at_rest.violations == ["I4: appliance:events:normal still holds 1 entries"]


async def test_an_event_without_an_outcome_is_no_settled_event(redis_url: str, database_url: str) -> None:
    uid = uuid7()
    await _insert(database_url, uid, "theirs", None)
    findings = await inspect(redis_url, database_url, Accepted({"theirs"}))
    assert findings.lost == ["theirs"]
    assert "I1: 1 events without an outcome" in findings.violations


async def test_a_handled_event_needs_a_run(redis_url: str, database_url: str) -> None:
    uid = uuid7()
    await _insert(database_url, uid, None, "handled")
    findings = await inspect(redis_url, database_url, Accepted({uid}))
    assert findings.violations == [f"a handled event without a run: {uid}"]


async def test_a_secret_is_found_wherever_it_leaked(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("INSERT INTO audit_log (actor, action, subject) VALUES ('a', 'b', 'the s3cret word')")
    assert await leaks(database_url, "s3cret", {"log": "nothing", "metrics": "a s3cret"}) == [
        "metrics",
        "table audit_log",
    ]
