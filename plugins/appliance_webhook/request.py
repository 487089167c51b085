"""Sending the request of ``webhook`` and judging the answer."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from typing import Any

import httpx
import orjson

from appliance.plugin import Context, Reject, Retry
from appliance_webhook.params import Webhook

MAX_BODY_BYTES = 131_072
"""Most that is read of an answer's body."""
MAX_TEXT = 16_384
"""Longest body that is kept when it is no JSON, in characters."""
_KEPT_HEADERS = ("content-type", "location", "etag", "retry-after", "x-request-id")
_LATER = frozenset({408, 425, 429})


async def run(params: Webhook, ctx: Context) -> dict[str, Any]:
    """Send an HTTP request; the output is ``status``, a few ``headers`` and the ``body``."""
    answer: dict[str, Any] = {}

    async def send() -> str | None:
        answer.update(await _exchange(params, ctx))
        _judge(params, answer)
        request_id: str | None = answer["headers"].get("x-request-id")
        return request_id

    delivered = await ctx.deliver("webhook", params.recipient(), send)
    return {"repeated": True, "message_id": delivered.message_id} if delivered.repeated else answer


async def _exchange(params: Webhook, ctx: Context) -> dict[str, Any]:
    content = _content(params)
    timeout: Any = params.timeout.total_seconds() if params.timeout is not None else httpx.USE_CLIENT_DEFAULT
    try:
        async with ctx.http.stream(
            params.method, params.url, content=content, headers=_headers(params, ctx, content), timeout=timeout
        ) as response:
            kept = {name: response.headers[name][:1000] for name in _KEPT_HEADERS if name in response.headers}
            return {"status": response.status_code, "headers": kept, **await _body(response)}
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise Reject(f"{params.recipient()}: {error}") from error
    except httpx.TimeoutException as error:
        raise Retry(f"{params.recipient()}: no answer in time ({error or type(error).__name__})") from error
    except httpx.TransportError as error:
        raise Retry(f"{params.recipient()}: {error or type(error).__name__}") from error


def _content(params: Webhook) -> bytes | None:
    if params.has_json:
        return orjson.dumps(params.json_, option=orjson.OPT_NON_STR_KEYS)
    return None if params.body is None else params.body.encode()


def _headers(params: Webhook, ctx: Context, content: bytes | None) -> dict[str, str]:
    headers = {"Idempotency-Key": ctx.idempotency_key, "User-Agent": "appliance"}
    if content is not None:
        headers["Content-Type"] = "application/json" if params.has_json else "text/plain; charset=utf-8"
    if params.secret is not None:
        headers |= _signature(params.secret.get_secret_value(), ctx.idempotency_key, content or b"")
    given = {name.lower() for name in params.headers}
    return {**{name: value for name, value in headers.items() if name.lower() not in given}, **params.headers}


def _signature(secret: str, message_id: str, content: bytes) -> dict[str, str]:
    """https://github.com/standard-webhooks/standard-webhooks, symmetric signatures."""
    stamp = str(int(time.time()))
    signed = b".".join((message_id.encode(), stamp.encode(), content))
    digest = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _key(secret: str) -> bytes:
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise Reject("secret: what follows whsec_ is not base64") from None


async def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        raw, cut = await _read(response)
    except httpx.DecodingError:
        return {"body": None}  # compressed, although it was asked not to be
    if not cut and "json" in response.headers.get("content-type", "") and b"\\u0000" not in raw:
        try:
            return {"body": orjson.loads(raw)}
        except orjson.JSONDecodeError:
            pass
    text = raw.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    cut = cut or len(text) > MAX_TEXT
    return {"body": text[:MAX_TEXT], "truncated": True} if cut else {"body": text}


async def _read(response: httpx.Response) -> tuple[bytes, bool]:
    """The body, and whether it was cut: what is too long for us is no failure of the request."""
    read = bytearray()
    try:
        async for part in response.aiter_raw():
            read += part
            if len(read) > MAX_BODY_BYTES:
                return bytes(read[:MAX_BODY_BYTES]), True
    except Reject:  # over outbound.max_response_bytes
        return bytes(read), True
    return bytes(read), False


def _judge(params: Webhook, answer: dict[str, Any]) -> None:
    status = answer["status"]
    if params.expects(status):
        return
    text = f"{params.recipient()} answered {status}"
    if status in _LATER or status >= 500:
        raise Retry(text, after=answer["headers"].get("retry-after"))
    if 300 <= status <= 399:
        raise Reject(f"{text}: redirects are not followed (to {answer['headers'].get('location', 'nowhere')})")
    body = answer["body"]
    raise Reject(f"{text}: {body[:200]}" if isinstance(body, str) and body else text)
