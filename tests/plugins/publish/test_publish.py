"""publish: a new event, once however often the step is tried, and no endless chain of them."""

from __future__ import annotations

import pytest
from appliance_publish import action
from pydantic import ValidationError

from appliance.events import new_event
from appliance.plugin import Reject
from appliance.testing import run_action


async def test_publishes_the_event_and_names_it() -> None:
    outcome = await run_action(
        action,
        {
            "type": "order.paid",
            "data": {"total": 5},
            "subject": "order 7",
            "source": "shop",
            "priority": "high",
            "attributes": {"tenant": "x", "vip": True},
        },
    )

    event, priority = outcome.published[0]
    assert outcome.output == {"id": event.id}
    assert priority == "high"
    assert (event.type, event.data, event.subject, event.source) == ("order.paid", {"total": 5}, "order 7", "shop")
    assert event.attributes["tenant"] == "x"
    assert event.attributes["vip"] is True


async def test_a_repeated_attempt_publishes_the_same_event() -> None:
    first = await run_action(action, {"type": "a"}, idempotency_key="one")
    again = await run_action(action, {"type": "a"}, idempotency_key="one", attempt=2)
    other = await run_action(action, {"type": "a"}, idempotency_key="two")

    assert first.output == again.output != other.output
    assert first.published[0][0].key == again.published[0][0].key


async def test_each_event_of_a_chain_counts_a_hop_and_the_chain_ends() -> None:
    event = new_event("root", {}, source="tests")
    root = event.id
    for hop in range(1, 17):
        event = (await run_action(action, {"type": "again"}, event=event, idempotency_key=f"k{hop}")).published[0][0]
        assert (event.attributes["hops"], event.attributes["correlationid"]) == (hop, root)

    with pytest.raises(Reject, match="longer than"):
        await run_action(action, {"type": "again"}, event=event)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"type": ""},
        {"type": "a" * 1025},
        {"type": "a", "priority": "urgent"},
        {"type": "a", "attributes": {"n": [1]}},
        {"type": "a", "source": ""},
        {"type": "a", "id": "mine"},
    ],
)
async def test_refuses_what_is_no_event(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        await run_action(action, wrong)


async def test_the_chains_attributes_are_not_the_workflows_to_set() -> None:
    with pytest.raises(Reject, match="hops"):
        await run_action(action, {"type": "a", "attributes": {"hops": 0}})
