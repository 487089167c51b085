"""The plugin's own tests: they need appliance.testing and pytest-asyncio, and no server."""

from __future__ import annotations

import httpx
import pytest
from acme_sms import action
from pydantic import ValidationError

from appliance.plugin import Reject, Retry
from appliance.testing import Recorded, run_action

PARAMS = {"to": ["+491700000001", "+491700000002"], "text": "hello"}


@pytest.mark.asyncio
async def test_sends_to_each_number() -> None:
    ids = iter("ab")
    outcome = await run_action(
        action,
        PARAMS,
        settings={"sender": "Me"},
        secrets={"acme_token": "t"},
        http=lambda _: httpx.Response(201, json={"id": next(ids)}),
    )
    assert outcome.output == {"message_ids": ["a", "b"]}
    assert [(d.recipient, d.status, d.message_id) for d in outcome.deliveries] == [
        ("+491700000001", "sent", "a"),
        ("+491700000002", "sent", "b"),
    ]
    assert outcome.requests[0].headers["authorization"] == "Bearer t"
    assert len({request.headers["idempotency-key"] for request in outcome.requests}) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize(("status", "error"), [(429, Retry), (503, Retry), (400, Reject)])
async def test_an_answer_that_is_no_success(status: int, error: type[Exception]) -> None:
    recorded = Recorded()
    with pytest.raises(error):
        await run_action(action, PARAMS, http=lambda _: httpx.Response(status), recorded=recorded)
    assert len(recorded.deliveries) == 1


@pytest.mark.asyncio
async def test_refuses_what_is_no_number() -> None:
    with pytest.raises(ValidationError):
        await run_action(action, {"to": ["0170"], "text": "hello"})
