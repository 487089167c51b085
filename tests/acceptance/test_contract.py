"""The contract, asked of the real process on its own embedded servers: nothing but a start, HTTP and XADD."""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from tests.chaos.api import Api, api_of
from tests.chaos.appliance_process import Fleet, Replica
from tests.chaos.sinks import HttpSink, Reply
from tests.servers import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKFLOW = {
    "name": "Send Email on Form Submission",
    "definition": {
        "trigger": {
            "type": "form_submitted",
            "conditions": {"path": "template_id", "op": "==", "value": "form_submitted"},
        },
        "initial_step_id": "step1",
        "steps": [
            {
                "id": "step1",
                "name": "Send Email Notification",
                "type": "auto_action",
                "actions": [
                    {
                        "type": "send_email",
                        "config": {
                            "to_path": "data.email",
                            "subject": "Form Submission Confirmation - {template_id}",
                            "body": "Hello,\n\nYour form submission has been received.\n\n"
                            "Submission ID: {submission_id}\nTemplate: {template_id}\n\nThank you!",
                        },
                    }
                ],
                "transitions": [],
            }
        ],
    },
}
FORM = {
    "template_id": "form_submitted",
    "data": {"email": "user@example.com", "name": "John Doe", "message": "Hello world"},
    "org_id": "org_123",
}

ORDERS = """
name: orders
trigger: {event: order.paid}
steps:
  - {id: note, action: log, with: {message: "paid {{ event.data.total }}"}}
"""
ANYTHING = """
name: anything
trigger: {event: redis.entry}
steps:
  - {id: note, action: log, with: {message: "{{ event.data.colour }}"}}
"""
CALLS = """
name: calls
trigger: {event: form_submitted, when: {path: template_id, op: "==", value: call}}
steps:
  - id: call
    action: webhook
    with: {url: "{{ event.data.url }}", json: {n: "{{ event.data.n }}"}}
    retry: {max_attempts: 2, initial: 10ms}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica() -> AsyncIterator[Replica]:
    """One process for the module: these tests don't disturb each other."""
    # A short path: a Unix socket's may have a hundred bytes only.
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as folder:
        fleet = Fleet(Path(folder), settings={"APPLIANCE_OUTBOUND__ALLOWED_NETWORKS": '["127.0.0.0/8"]'})
        async with fleet:
            fleet.workflow("orders", ORDERS)
            fleet.workflow("anything", ANYTHING)
            fleet.workflow("calls", CALLS)
            yield await fleet.start()


@pytest_asyncio.fixture(loop_scope="module")
async def api(replica: Replica) -> AsyncIterator[Api]:
    async with api_of(replica) as asked:
        yield asked


@pytest_asyncio.fixture(loop_scope="module")
async def streams(replica: Replica) -> AsyncIterator[Redis]:
    """The embedded Valkey, as another system sees it."""
    async with Redis.from_url(f"unix://{replica.data_dir}/valkey/valkey.sock", protocol=2) as client:
        yield client


async def _entry_of(streams: Redis, fields: dict[Any, Any], priority: str = "normal") -> str:
    entry: Any = await streams.xadd(f"appliance:events:{priority}", fields)
    return str(entry.decode())


async def test_a_form_becomes_a_mail_with_a_history(replica: Replica, api: Api) -> None:
    created = await api.http.post("/workflows", json=WORKFLOW)
    assert created.status_code == 201, created.text
    assert created.json()["name"] == WORKFLOW["name"]
    assert created.json()["revision"] == 1
    again = await api.http.post("/workflows", json=WORKFLOW)
    assert again.json()["revision"] == 1, "the same definition is the same revision"

    async with replica.client(api_key=None) as stranger:
        submitted = await stranger.post("/submit", json=FORM)
    assert submitted.status_code == 202, submitted.text
    event_id = submitted.json()["id"]
    assert submitted.json() == {"id": event_id, "submission_id": event_id, "status": "accepted"}

    run = await api.finished_run(event_id)
    assert (run["workflow"], run["revision"], run["status"]) == (WORKFLOW["name"], 1, "succeeded")
    assert [(step["id"], step["status"], step["attempt"]) for step in run["steps"]] == [("step1", "succeeded", 1)]

    (mail,) = (replica.data_dir / "outbox").glob("*.eml")
    message = email.message_from_bytes(mail.read_bytes(), policy=email.policy.default)
    assert message["To"] == "user@example.com"
    assert message["Subject"] == "Form Submission Confirmation - form_submitted"
    body = message.get_content().replace("\r\n", "\n")
    assert body.strip() == (
        "Hello,\n\nYour form submission has been received.\n\n"
        f"Submission ID: {event_id}\nTemplate: form_submitted\n\nThank you!"
    )
    event = await api.get(f"events/{event_id}")
    assert (event["type"], event["data"], event["outcome"]) == ("form_submitted", FORM["data"], "handled")
    assert event["attributes"]["org_id"] == "org_123"
    await api.balanced()


async def test_the_workflow_can_be_listed_and_read(api: Api) -> None:
    listed = await api.http.get("/workflows")
    assert "orders" in json.dumps(listed.json())
    (orders,) = [w for w in (await api.get("workflows"))["items"] if w["name"] == "orders"]
    assert (await api.http.get(f"/workflows/{orders['id']}")).json()["name"] == "orders"


@pytest.mark.parametrize(
    ("fields", "workflow"),
    [
        ({"type": "order.paid", "data": '{"total": 5}'}, "orders"),
        (
            {
                "any": json.dumps(
                    {"specversion": "1.0", "id": "x-1", "source": "s", "type": "order.paid", "data": {"total": 5}}
                )
            },
            "orders",
        ),
        ({"colour": "red", "size": "12"}, "anything"),
    ],
    ids=["type-and-data", "cloudevent-in-one-field", "flat-fields"],
)
async def test_a_foreign_entry_runs_its_workflow(
    api: Api, streams: Redis, fields: dict[str, str], workflow: str
) -> None:
    entry = await _entry_of(streams, fields)

    async def event() -> dict[str, Any] | None:
        items = (await api.get("events"))["items"]
        return next((item for item in items if item["entry_id"] == entry and item["outcome"]), None)

    found = await wait_until(event, f"entry {entry} is an event with an outcome", 15)
    assert found["outcome"] == "handled"
    run = await api.finished_run(found["uid"])
    assert (run["workflow"], run["status"]) == (workflow, "succeeded")
    await api.balanced()


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "order.paid", "data": "{not json"},
        {b"type": b"order.paid", b"data": b'"\xff\xfe"'},
        {"type": "order.paid", "data": '"\\u0000"'},
        {"event": '{"specversion": "1.0", "id": "only"}'},
        {b"\xff": b"\xfe"},
    ],
    ids=["bad-json", "not-utf8", "nul", "missing-attributes", "binary-names"],
)
async def test_what_cannot_be_decoded_is_set_aside_byte_for_byte(
    api: Api, streams: Redis, fields: dict[Any, Any]
) -> None:
    entry = await _entry_of(streams, fields, "high")

    async def letter() -> dict[str, Any] | None:
        items = (await api.get("dead-letters", status="open"))["items"]
        return next((item for item in items if item["entry_id"] == entry), None)

    found = await wait_until(letter, f"entry {entry} is a dead letter", 15)
    assert (found["kind"], found["stream"]) == ("entry", "high")
    whole = await api.get(f"dead-letters/{found['id']}")
    raw = [(base64.b64decode(name), base64.b64decode(value)) for name, value in whole["fields"]]
    encoded = [
        (n if isinstance(n, bytes) else n.encode(), v if isinstance(v, bytes) else v.encode())
        for n, v in fields.items()
    ]
    assert raw == encoded
    await api.balanced()
    assert await streams.xlen("appliance:events:high") == 0
    await api.post(f"dead-letters/{found['id']}/discard", status=202)
    assert (await api.get(f"dead-letters/{found['id']}"))["status"] == "discarded"


async def test_the_same_key_is_the_same_submission_concurrently_too(api: Api) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"template_id": "nobody-listens", "data": {}}
    answers = await asyncio.gather(*(api.http.post("/submit", json=body, headers=headers) for _ in range(10)))
    first = [a.json()["id"] for a in answers if a.status_code == 202]
    assert len(first) == 1
    others = [a.json() for a in answers if a.status_code == 200]
    assert others == [{"id": first[0], "submission_id": first[0], "status": "duplicate"}] * 9
    await api.balanced()
    assert (await api.get(f"events/{first[0]}"))["outcome"] == "unmatched"


async def test_the_same_cloudevent_over_both_doors_is_one_event(api: Api, streams: Redis) -> None:
    event = {"specversion": "1.0", "id": "both-1", "source": "shop", "type": "order.paid", "data": {"total": 1}}
    before = (await api.balanced())["duplicate"]
    answer = await api.http.post(
        "/api/v1/events", content=json.dumps(event), headers={"Content-Type": "application/cloudevents+json"}
    )
    assert answer.status_code == 202, answer.text
    await _entry_of(streams, {"event": json.dumps(event)})

    async def counted() -> bool:
        return bool((await api.get("ledger"))["duplicate"] == before + 1)

    await wait_until(counted, "the second one is counted as a duplicate", 15)
    assert len(await api.runs("both-1")) == 1
    await api.balanced()


async def test_a_refused_call_is_a_dead_letter_that_can_be_redriven(api: Api) -> None:
    async with HttpSink() as sink:
        sink.script(Reply(status=400))
        event_id = await api.submit("call", {"url": sink.url, "n": 7})
        run = await api.finished_run(event_id)
        assert run["status"] == "failed"
        (step,) = run["steps"]
        assert (step["status"], step["attempt"]) == ("failed", 1)
        assert "400" in step["error"]
        (letter,) = (await api.get("dead-letters", status="open", run_id=run["id"]))["items"]
        assert (letter["kind"], letter["step"]) == ("step", "call")
        await api.balanced()

        await api.post(f"dead-letters/{letter['id']}/redrive", status=202)

        async def succeeded() -> bool:
            return bool((await api.get(f"runs/{run['id']}"))["status"] == "succeeded")

        await wait_until(succeeded, "the redriven run succeeds", 15)
        first, second = sink.requests
        assert json.loads(second.body) == {"n": 7}
        assert first.key == second.key
        assert first.key
    assert (await api.get(f"dead-letters/{letter['id']}"))["status"] == "redriven"
    await api.balanced()
    refused = await api.http.post(f"/api/v1/dead-letters/{letter['id']}/redrive")
    assert refused.status_code == 409


async def test_a_call_is_retried_with_the_same_key(api: Api) -> None:
    async with HttpSink() as sink:
        sink.script(Reply(status=503))
        run = await api.finished_run(await api.submit("call", {"url": sink.url, "n": 1}))
        assert run["status"] == "succeeded"
        (step,) = run["steps"]
        assert step["attempt"] == 2
        assert [attempt["attempt"] for attempt in step["attempts"]] == [1]
        assert sink.repeated() == {sink.requests[0].key: 2}


async def test_an_html_form_is_a_submission_too(api: Api) -> None:
    answer = await api.http.post("/submit", data={"template_id": "nobody-listens", "email": "a@example.org"})
    assert answer.status_code == 202, answer.text
    event_id = answer.json()["id"]

    async def outcome() -> dict[str, Any] | None:
        found = await api.http.get(f"/api/v1/events/{event_id}")
        return found.json() if found.status_code == 200 and found.json()["outcome"] else None

    event = await wait_until(outcome, "the form has an outcome", 15)
    assert event["data"] == {"email": "a@example.org"}


async def test_only_submit_is_open(replica: Replica) -> None:
    async with replica.client(api_key=None) as stranger:
        for method, path in (("GET", "/api/v1/runs"), ("POST", "/workflows"), ("GET", "/api/v1/ledger")):
            refused = await stranger.request(method, path, json={} if method == "POST" else None)
            assert refused.status_code == 401, path
            assert refused.headers["content-type"] == "application/problem+json"
        for path in ("/livez", "/readyz", "/startupz", "/health"):
            assert (await stranger.get(path)).status_code == 200, path
    async with replica.client(api_key="wrong") as stranger:
        assert (await stranger.get("/api/v1/runs")).status_code == 401


async def test_the_explanation_names_the_criterion_and_what_it_saw(api: Api) -> None:
    event_id = await api.submit("nobody-listens")
    await api.balanced()
    stored = await api.get(f"events/{event_id}/explain")
    verdicts = {verdict["workflow"]: verdict for verdict in stored["verdicts"]}
    assert not verdicts["calls"]["matched"]
    assert "nobody-listens" in json.dumps(verdicts["calls"])
    assert not verdicts["orders"]["matched"]
    pasted = await api.post("explain", {"type": "order.paid", "data": {}})
    assert {v["workflow"]: v["matched"] for v in pasted["verdicts"]}["orders"] is True
