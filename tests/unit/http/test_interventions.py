"""What people may do to runs and events: how it is asked for over HTTP, and how it is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from appliance.errors import Conflict, NotFound, StoreUnavailable
from tests.unit.http.fakes import API_KEY, Fakes

KEY = {"Authorization": f"Bearer {API_KEY}"}
RUN = "/api/v1/runs/r"


@pytest.mark.parametrize(
    ("path", "body", "call"),
    [
        (f"{RUN}/pause", None, ("pause", "r", "api")),
        (f"{RUN}/resume", None, ("resume", "r", "api")),
        (f"{RUN}/retry", None, ("retry", "r", "api")),
        (f"{RUN}/cancel", None, ("cancel", "r", "api")),
        (f"{RUN}/cancel", {}, ("cancel", "r", "api")),
        (f"{RUN}/cancel", {"force": True}, ("cancel", "r", "api", {"force": True})),
        (f"{RUN}/rerun", None, ("rerun", "r", "api")),
        (f"{RUN}/rerun", {"from": "a", "revision": "current"}, ("rerun", "r", "api", {"start": "a", "current": True})),
        (f"{RUN}/rerun", {"from": None, "revision": "same"}, ("rerun", "r", "api")),
        (f"{RUN}/steps/a%5B0%5D%232/settle", {"as": "retry"}, ("settle", "r", "a[0]#2", "retry", "api")),
        (f"{RUN}/steps/a/settle", {"as": "succeeded", "output": [1]},
         ("settle", "r", "a", "succeeded", "api", {"output": [1]})),
        (f"{RUN}/steps/a/settle", {"as": "failed", "error": "no"},
         ("settle", "r", "a", "failed", "api", {"error": "no"})),
        ("/api/v1/events/replay", {"uids": ["u", "v"]}, ("replay", ["u", "v"], "api")),
        ("/api/v1/events/replay", {"uids": ["u"], "workflow": "w", "priority": "low"},
         ("replay", ["u"], "api", {"workflow": "w", "priority": "low"})),
    ],
)  # fmt: skip
async def test_what_is_asked_for_reaches_the_engine(
    client: httpx.AsyncClient, fakes: Fakes, path: str, body: Any, call: tuple[Any, ...]
) -> None:
    response = await client.post(path, json=body, headers=KEY) if body is not None else await client.post(
        path, headers=KEY
    )  # fmt: skip
    assert response.status_code == 202, response.text
    assert fakes.control.calls == [call]


async def test_an_event_is_replayed_by_its_senders_id(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.history.items["order/1"] = {"uid": "u", "id": "order/1"}
    response = await client.post("/api/v1/events/order%2F1/replay", json={"workflow": "w"}, headers=KEY)
    assert response.json() == {"id": "order/1", "event": "u", "runs": [{"id": "new", "workflow": "w"}]}
    assert fakes.control.calls == [("replay", ["u"], "api", {"workflow": "w"})]
    assert (await client.post("/api/v1/events/nothing/replay", headers=KEY)).status_code == 404


async def test_an_event_is_sent_to_a_run_in_the_short_form_or_whole(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.post(f"{RUN}/events", json={"type": "paid", "data": {"n": 1}}, headers=KEY)
    ((_, subject, _, options),) = fakes.control.calls
    event = options["event"]
    assert (subject, event.type, event.data, event.source, event.key) == ("r", "paid", {"n": 1}, "/api/v1/events", None)
    assert response.json() == {"id": event.id, "uid": event.uid, "status": "accepted"}
    whole = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "paid"}
    headers = KEY | {"Content-Type": "application/cloudevents+json"}
    await client.post(f"{RUN}/events", json=whole, headers=headers)
    assert fakes.control.calls[-1][3]["event"].key is not None
    for body, status in (({"data": 1}, 422), ({"type": "t", "data": "x" * 300_000}, 413)):
        assert (await client.post(f"{RUN}/events", json=body, headers=KEY)).status_code == status
    form = await client.post(f"{RUN}/events", data={"type": "t"}, headers=KEY)
    assert form.status_code == 415


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("cancel", {"force": "yes"}, "force: expected true or false, got 'yes'."),
        ("cancel", {"forced": True}, "forced: unknown; there is force."),
        ("cancel", [], None),
        ("rerun", {"from": 1}, "from: expected a text, got 1."),
        ("rerun", {"from": ""}, "from: expected a text, got ''."),
        ("rerun", {"revision": 3}, "revision: expected one of same, current, got 3."),
        ("steps/a/settle", {}, "as: missing; expected one of succeeded, failed, retry."),
        ("steps/a/settle", {"as": "done"}, "as: expected one of succeeded, failed, retry, got 'done'."),
        ("steps/a/settle", {"as": "retry", "output": None}, "output: goes with succeeded only."),
        ("steps/a/settle", {"as": "succeeded", "error": "x"}, "error: goes with failed only."),
        ("../events/replay", {}, "uids: expected a list of 1 to 200 texts."),
        ("../events/replay", {"uids": []}, "uids: expected a list of 1 to 200 texts."),
        ("../events/replay", {"uids": [1]}, "uids: expected a list of 1 to 200 texts."),
        ("../events/replay", {"uids": [str(n) for n in range(201)]}, "uids: expected a list of 1 to 200 texts."),
        ("../events/replay", {"uids": ["u", "u"]}, "uids: one of them stands there twice."),
        ("../events/replay", {"uids": ["u"], "priority": "urgent"},
         "priority: expected one of high, normal, low, got 'urgent'."),
    ],
)  # fmt: skip
async def test_a_wrong_body_is_refused_by_the_member_at_fault(
    client: httpx.AsyncClient, fakes: Fakes, path: str, body: Any, detail: str | None
) -> None:
    where = f"{RUN}/{path}" if not path.startswith("..") else f"/api/v1/{path[3:]}"
    response = await client.post(where, json=body, headers=KEY)
    problem = response.json()
    assert (response.status_code, fakes.control.calls) == (422, [])
    if detail is None:
        assert problem["type"] == "urn:appliance:problem:not-an-object"
    else:
        assert (problem["detail"], problem["attribute"]) == (detail, detail.partition(":")[0])


async def test_a_form_is_no_body_of_an_intervention(client: httpx.AsyncClient, fakes: Fakes) -> None:
    assert (await client.post(f"{RUN}/cancel", data={"force": "true"}, headers=KEY)).status_code == 415
    assert (await client.post(f"{RUN}/cancel", content=b"{", headers=KEY)).status_code == 400
    assert fakes.control.calls == []


@pytest.mark.parametrize(
    ("refusal", "status"), [(Conflict("x"), 409), (NotFound("x"), 404), (StoreUnavailable("x"), 503)]
)
async def test_the_engines_refusals_are_answers(
    client: httpx.AsyncClient, fakes: Fakes, refusal: Exception, status: int
) -> None:
    fakes.control.refusal = refusal
    bodies: dict[str, Any] = {"steps/a/settle": {"as": "retry"}, "events": {"type": "t"}}
    for path in ("cancel", "pause", "resume", "retry", "rerun", "events", "steps/a/settle"):
        response = await client.post(f"{RUN}/{path}", json=bodies.get(path, {}), headers=KEY)
        assert (response.status_code, response.json()["detail"]) == (status, "x"), path
