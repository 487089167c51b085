"""webhook: the request that goes out, and what each answer means."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import orjson
import pytest
from appliance_webhook import action
from appliance_webhook.request import MAX_BODY_BYTES, MAX_TEXT
from pydantic import ValidationError

from appliance.plugin import Reject, Retry
from appliance.testing import Recorded, run_action

URL = "https://hooks.example.com/in?token=hunter2"


def says(status: int = 200, **more: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, **more)


async def test_posts_json_with_the_idempotency_key() -> None:
    outcome = await run_action(
        action,
        {"url": URL, "json": {"text": "hi", "n": [1, None]}, "headers": {"X-Team": "ops"}},
        idempotency_key="key-7",
        http=says(201, json={"ok": True}, headers={"X-Request-Id": "r1", "X-Other": "y"}),
    )

    request = outcome.requests[0]
    assert (request.method, str(request.url)) == ("POST", URL)
    assert orjson.loads(request.content) == {"text": "hi", "n": [1, None]}
    assert request.headers["content-type"] == "application/json"
    assert (request.headers["idempotency-key"], request.headers["x-team"]) == ("key-7", "ops")
    assert outcome.output == {
        "status": 201,
        "headers": {"content-type": "application/json", "x-request-id": "r1"},
        "body": {"ok": True},
    }
    assert [(d.channel, d.recipient, d.status, d.message_id) for d in outcome.deliveries] == [
        ("webhook", "https://hooks.example.com/in", "sent", "r1")
    ]


@pytest.mark.parametrize(
    ("params", "content", "kind"),
    [
        ({"json": None}, b"null", "application/json"),
        ({"body": "a=ü", "headers": {"content-type": "text/x"}}, "a=ü".encode(), "text/x"),
        ({"body": ""}, b"", "text/plain; charset=utf-8"),
        ({"method": "GET"}, b"", None),
    ],
)
async def test_the_body_is_json_or_text_or_nothing(params: dict[str, Any], content: bytes, kind: str | None) -> None:
    request = (await run_action(action, {"url": URL, **params}, http=says())).requests[0]

    assert (request.content, request.headers.get("content-type")) == (content, kind)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://example.com/"},
        {"url": "file:///etc/passwd"},
        {"url": "https:///nowhere"},
        {"url": "hooks.example.com"},
        {"url": "https://user:pass@example.com/"},
        {"url": "https://example.com/a b"},
        {"url": "https://example.com/\r\nX: y"},
        {"json": {}, "body": "x"},
        {"method": "CONNECT"},
        {"method": "post"},
        {"headers": {"X-A": "b\r\nX-C: d"}},
        {"headers": {"X-A": "ü"}},
        {"headers": {"X A": "b"}},
        {"headers": {"": "b"}},
        {"headers": {"Host": "inside"}},
        {"headers": {"transfer-encoding": "chunked"}},
        {"headers": {"Content-Length": "3"}},
        {"timeout": 0},
        {"timeout": "1h"},
        {"expect": 99},
        {"expect": [200, 600]},
        {"colour": "red"},
    ],
    ids=repr,
)
async def test_refuses_parameters_that_are_no_plain_request(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        await run_action(action, {"url": URL, **wrong}, http=says())


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_an_answer_that_may_change_means_later(status: int) -> None:
    recorded = Recorded()
    with pytest.raises(Retry, match=f"answered {status}") as caught:
        await run_action(action, {"url": URL}, http=says(status, headers={"Retry-After": "7"}), recorded=recorded)

    assert caught.value.after_s == 7
    assert [delivery.status for delivery in recorded.deliveries] == ["failed"]


async def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    with pytest.raises(Retry) as caught:
        await run_action(action, {"url": URL}, http=says(503, headers={"Retry-After": date}))

    assert caught.value.after_s is not None
    assert 90 < caught.value.after_s <= 100


@pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 403, 404, 409, 410, 422])
async def test_any_other_answer_is_final(status: int) -> None:
    recorded = Recorded()
    with pytest.raises(Reject, match=f"answered {status}") as caught:
        await run_action(action, {"url": URL}, http=says(status, text="no such hook"), recorded=recorded)

    assert [delivery.status for delivery in recorded.deliveries] == ["rejected"]
    assert "hunter2" not in caught.value.reason
    assert len(recorded.requests) == 1


@pytest.mark.parametrize(
    ("expect", "status", "error"),
    [(204, 204, None), ([200, 404], 404, None), (201, 200, Reject), ([404], 503, Retry), (503, 503, None)],
)
async def test_the_workflow_may_say_what_success_is(expect: Any, status: int, error: type[Exception] | None) -> None:
    params = {"url": URL, "expect": expect}
    if error is None:
        assert (await run_action(action, params, http=says(status))).output["status"] == status
    else:
        with pytest.raises(error):
            await run_action(action, params, http=says(status))


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (httpx.ConnectError("refused"), Retry),
        (httpx.ReadTimeout("slow"), Retry),
        (httpx.RemoteProtocolError("garbage"), Retry),
        (httpx.UnsupportedProtocol("odd"), Reject),
        (httpx.InvalidURL("odd"), Reject),
        (Reject("not a public address"), Reject),
    ],
    ids=repr,
)
async def test_trouble_on_the_way_means_later_and_a_refused_address_is_final(
    raised: Exception, error: type[Exception]
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    recorded = Recorded()
    with pytest.raises(error):
        await run_action(action, {"url": URL}, http=handler, recorded=recorded)

    assert [delivery.status for delivery in recorded.deliveries] == ["failed" if error is Retry else "rejected"]


async def test_what_was_delivered_before_is_not_sent_again() -> None:
    before = {("webhook", "https://hooks.example.com/in"): "r1"}
    outcome = await run_action(action, {"url": URL}, delivered_before=before, http=says())

    assert outcome.requests == []
    assert outcome.output == {"repeated": True, "message_id": "r1"}


class Endless(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"text": "plain"}, {"body": "plain"}),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, {"body": "{"}),
        ({"content": b'"\\u0000"', "headers": {"content-type": "application/json"}}, {"body": '"\\u0000"'}),
        ({"content": b"\xff\0"}, {"body": "��"}),
        ({"content": b"[" * 5000, "headers": {"content-type": "application/json"}}, {"body": "[" * 5000}),
        ({"text": "y" * (MAX_TEXT + 1)}, {"body": "y" * MAX_TEXT, "truncated": True}),
        ({"stream": Endless()}, {"body": "x" * MAX_TEXT, "truncated": True}),
        ({"json": ["z" * (MAX_TEXT + 1)]}, {"body": ["z" * (MAX_TEXT + 1)]}),
    ],
    ids=["text", "broken JSON", "NUL", "binary", "deep JSON", "long text", "endless", "long JSON"],
)
async def test_the_body_is_kept_within_bounds(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    output = (await run_action(action, {"url": URL}, http=says(**answer))).output

    assert {name: output[name] for name in output if name in ("body", "truncated")} == expected
    assert len(orjson.dumps(output)) < MAX_BODY_BYTES * 2


@pytest.mark.parametrize("secret", ["whsec_" + base64.b64encode(b"0123456789abcdef").decode(), "0123456789abcdef"])
async def test_signs_as_standard_webhooks_do(secret: str) -> None:
    outcome = await run_action(
        action, {"url": URL, "json": {"a": 1}, "secret": secret}, idempotency_key="msg-1", http=says()
    )

    request = outcome.requests[0]
    stamp = request.headers["webhook-timestamp"]
    digest = hmac.new(b"0123456789abcdef", f"msg-1.{stamp}.".encode() + request.content, hashlib.sha256).digest()
    assert request.headers["webhook-id"] == "msg-1"
    assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert abs(int(stamp) - datetime.now(UTC).timestamp()) < 60


async def test_a_secret_that_is_no_base64_is_said_so_without_showing_it() -> None:
    with pytest.raises(Reject) as caught:
        await run_action(action, {"url": URL, "secret": "whsec_!!hunter2"}, http=says())

    assert "hunter2" not in caught.value.reason
