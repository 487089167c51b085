"""The definitions of other systems run to their effect: under the virtual clock, and on the real process."""

from __future__ import annotations

import email
import email.policy
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from appliance.registry import Registry
from appliance.story import Story
from tests.chaos.api import Api, api_of
from tests.chaos.appliance_process import Fleet, Replica
from tests.chaos.sinks import HttpSink
from tests.servers import wait_until

DATA = Path("tests/data/dialects")
ACTIONS = Registry.load({}).actions
USER = {"email": "ada@example.org", "name": "Ada"}


def definition(name: str) -> dict[str, Any]:
    """A definition as its system wrote it."""
    read: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text("utf-8"))
    return read


def story(*names: str) -> Story:
    return Story(*(DATA / f"{name}.json" for name in names), actions=ACTIONS)


def subjects(told: Story) -> list[str]:
    return [str(did.params["subject"]) for did in told.did("send_email")]


# --- under the virtual clock -----------------------------------------------------------------------------------------


def test_a_request_goes_through_its_states() -> None:
    told = story("000-request")
    run = told.start("MY_WORKFLOW", {"request_id": "R1"})
    assert run.at == ["pending"]
    told.event("REQUEST_RECEIVED", {"request_id": "R2"})
    assert run.at == ["pending"], "another request's"
    told.event("REQUEST_RECEIVED", {"request_id": "R1"})
    assert run.at == ["processing"]
    told.event("APPROVED", {"amount": 80, "email": "ada@example.org"}, subject="R1")
    assert (run.status, run.outcome) == ("succeeded", "approved")
    (mail,) = told.did("send_email")
    assert mail.params == {"to": "ada@example.org", "subject": "Approved", "body": "Your request is approved."}


def test_a_large_request_is_reviewed_and_expires() -> None:
    told = story("000-request")
    run = told.start("MY_WORKFLOW", {"request_id": "R1"})
    told.event("REQUEST_RECEIVED", {"request_id": "R1"})
    told.event("APPROVED", {"request_id": "R1", "amount": 5000})
    assert run.at == ["review"]
    told.wait("47h")
    assert run.at == ["review"]
    told.wait("1h")
    assert (run.status, run.outcome) == ("succeeded", "rejected")
    assert told.done == []


def test_a_form_is_confirmed() -> None:
    told = story("001-form")
    form = {"email": "user@example.com", "name": "John Doe", "message": "Hello world"}
    assert told.event("form_submitted", form, template_id="other") == []
    told.event("form_submitted", form, template_id="form_submitted", submission_id="s-1")
    assert told.status == "succeeded"
    (mail,) = told.did("send_email")
    assert mail.params["to"] == "user@example.com"
    assert mail.params["subject"] == "Form Submission Confirmation - form_submitted"
    assert "Submission ID: s-1\n" in mail.params["body"]


@pytest.mark.parametrize(("approved", "subject"), [(True, "Approved: 900"), (False, "Refused: 900")])
def test_a_form_waits_for_a_person(approved: bool, subject: str) -> None:
    told = story("001-approval")
    form = {"email": "user@example.com", "name": "John", "amount": 900, "manager": "boss@example.org"}
    told.event("form_submitted", form, template_id="expense")
    (task,) = told.tasks
    assert (task.title, task.assignee) == ("Approve 900 for John", "boss@example.org")
    told.wait("2d")
    assert told.done == []
    told.answer("ask", {"approved": approved})
    assert (told.status, subjects(told)) == ("succeeded", [subject])


def test_a_list_of_steps_waits_and_calls() -> None:
    told = story("002-demo")
    told.start("Demo Workflow", {"user": "demo"})
    assert told.done == []
    told.wait("2s")
    assert told.status == "succeeded"
    (call,) = told.done
    assert (call.step, call.action, call.at) == ("notify", "webhook", "2030-01-07T09:00:02.000Z")
    assert call.params["json"] == {"message": "Hello from workflow!"}
    assert call.params["headers"] == {"Content-Type": "application/json"}


def test_a_rule_welcomes_whose_address_is_verified() -> None:
    told = story("003-rule")
    assert told.event("user.created", {"user": USER | {"email_verified": False}}) == []
    assert told.event("user.created", {"user": USER}) == []
    told.event("user.created", {"user": USER | {"email_verified": True}})
    assert told.status == "succeeded"
    assert [did.params for did in told.done] == [{"to": "ada@example.org", "template": "welcome_email"}]


def test_an_automation_builds_data_and_notifies_if_there_are_any() -> None:
    told = story("003-workflow")
    told.start("Data Processing Workflow", {"file": {"name": "a.csv", "rows": 3}, "user": USER})
    (mail,) = told.did("notify")
    assert mail.params["to"] == ["ada@example.org"]
    assert (mail.params["subject"], mail.params["body"]) == ("a.csv is processed", "Hello Ada, 3 rows are in.")
    told.start("Data Processing Workflow", {"file": {"name": "b.csv", "rows": 0}, "user": USER})
    assert (told.status, told.run.steps()["notify"]) == ("succeeded", "skipped")
    assert len(told.done) == 1


@pytest.mark.parametrize(
    ("bought", "at_once", "later"),
    [
        ({"product_package": "united"}, "Welcome to United!", ["How is it, Ada?"]),
        ({"subscription": {"product": "podcast"}}, "Welcome to the podcast", []),
        ({"product_package": "premium"}, "Welcome!", []),
    ],
)
def test_a_json_logic_rule_takes_one_way(bought: dict[str, Any], at_once: str, later: list[str]) -> None:
    told = story("004-rule")
    told.event("user_buys_subscription", {"user": USER, **bought})
    assert subjects(told) == [at_once]
    told.wait("47h")
    assert subjects(told) == [at_once]
    told.wait("1h")
    assert (told.status, subjects(told)) == ("succeeded", [at_once, *later])


@pytest.mark.parametrize(("product", "welcome"), [("united", "Welcome to United, Ada"), ("podcast", "Welcome")])
def test_a_graph_is_walked_through(product: str, welcome: str) -> None:
    told = story("004-flow", "004-shared-flow")
    (run,) = told.event("user_buys_subscription", {"user": USER, "product": product})
    assert (subjects(told), run.at) == ([welcome], ["delay-1"])
    told.wait("2d")
    assert subjects(told) == [welcome, "Getting started, Ada"]
    assert run.status == "succeeded"
    assert [did.params["json"] for did in told.did("webhook")] == [{"user": "ada@example.org"}]


# --- on the real process ---------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica() -> AsyncIterator[Replica]:
    """One process for the module, with the templates that the definitions name."""
    with tempfile.TemporaryDirectory(prefix="appliance-", ignore_cleanup_errors=True) as folder:
        fleet = Fleet(Path(folder), settings={"APPLIANCE_OUTBOUND__ALLOWED_NETWORKS": '["127.0.0.0/8"]'})
        templates = fleet.config_dir / "templates"
        templates.mkdir()
        for name in ("welcome_email", "united_welcome", "podcast_welcome", "generic_welcome", "engagement_nudge"):
            text = "Subject: Hello\n\nThis is " + name + " for {{ event.data.user.name }}.\n"
            (templates / f"{name}.txt").write_text(text, "utf-8")
        fleet.workflow("form", (DATA / "001-form.json").read_text("utf-8"))  # JSON is YAML
        async with fleet:
            yield await fleet.start()


@pytest_asyncio.fixture(loop_scope="module")
async def api(replica: Replica) -> AsyncIterator[Api]:
    async with api_of(replica) as asked:
        yield asked


async def put(api: Api, document: dict[str, Any]) -> None:
    answer = await api.http.post("/api/v1/workflows", json=document)
    assert answer.status_code == 201, answer.text


async def publish(api: Api, type: str, data: dict[str, Any], **attributes: str) -> str:
    event = {"specversion": "1.0", "id": f"{type}-{len(json.dumps(data))}", "source": "/test", "type": type}
    answer = await api.http.post(
        "/api/v1/events",
        content=json.dumps({**event, **attributes, "data": data}),
        headers={"Content-Type": "application/cloudevents+json"},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def mails_to(replica: Replica, address: str) -> list[Any]:
    found = [
        email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        for path in (replica.data_dir / "outbox").glob("*.eml")
    ]
    return [mail for mail in found if mail["To"] == address]


async def ended(api: Api, run_id: str) -> dict[str, Any]:
    async def over() -> dict[str, Any] | None:
        answer = await api.http.get(f"/api/v1/runs/{run_id}")
        found: dict[str, Any] = answer.json()
        return found if answer.status_code == 200 and found["status"] in ("succeeded", "failed") else None

    run: dict[str, Any] = await wait_until(over, f"run {run_id} is over", 20)
    return run


@pytest.mark.asyncio(loop_scope="module")
async def test_transitions_through_the_api(api: Api, replica: Replica) -> None:
    await put(api, definition("000-request"))
    body = {"workflow_id": "MY_WORKFLOW", "payload": {"request_id": "R1"}}
    run_id = (await api.post("trigger", body, status=202))["run_id"]

    async def standing(state: str) -> None:
        async def there() -> bool:
            answer = await api.http.get("/api/v1/runs", params={"workflow": "MY_WORKFLOW", "status": "waiting"})
            steps = [
                step["id"]
                for item in answer.json()["items"]
                for step in (await api.get(f"runs/{item['id']}"))["steps"]
                if step["status"] == "waiting"
            ]
            return state in steps

        await wait_until(there, f"the request is {state}", 15)

    await standing("pending")
    await publish(api, "REQUEST_RECEIVED", {"request_id": "R1"})
    await standing("processing")
    await publish(api, "APPROVED", {"request_id": "R1", "amount": 80, "email": "request@example.org"})
    run = await ended(api, run_id)
    assert (run["status"], run["outcome"]) == ("succeeded", "approved")
    (mail,) = mails_to(replica, "request@example.org")
    assert mail["Subject"] == "Approved"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_form_workflow_from_a_file(api: Api, replica: Replica) -> None:
    run = await api.finished_run(await api.submit("form_submitted", {"email": "form@example.org"}))
    assert (run["workflow"], run["status"]) == ("Send Email on Form Submission", "succeeded")
    (mail,) = mails_to(replica, "form@example.org")
    assert mail["Subject"] == "Form Submission Confirmation - form_submitted"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_list_of_steps_through_the_api(api: Api) -> None:
    document = definition("002-demo")
    document["steps"][0]["config"]["duration"] = 0.2
    async with HttpSink() as sink:
        document["steps"][1]["config"]["url"] = sink.url
        await put(api, document)
        body = {"workflow_id": "Demo Workflow", "payload": {"user": "demo"}}
        run = await ended(api, (await api.post("trigger", body, status=202))["run_id"])
        assert run["status"] == "succeeded"
        assert [json.loads(request.body) for request in sink.requests] == [{"message": "Hello from workflow!"}]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_rule_through_the_api(api: Api, replica: Replica) -> None:
    await put(api, definition("003-rule"))
    user = {"email": "rule@example.org", "name": "Ada", "email_verified": True}
    run = await api.finished_run(await publish(api, "user.created", {"user": user}))
    assert (run["workflow"], run["status"]) == ("Welcome Email Automation", "succeeded"), run
    (mail,) = mails_to(replica, "rule@example.org")
    assert "This is welcome_email for Ada." in mail.get_content()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_graph_through_the_api_comes_back_as_it_was(api: Api, replica: Replica) -> None:
    document = definition("004-flow")
    async with HttpSink() as sink:
        for node in document["nodes"]:
            if node["type"] == "webhook":
                node["data"]["url"] = sink.url
            if node["type"] == "delay":
                node["data"] = {"seconds": 0.2}
        await put(api, definition("004-shared-flow"))
        await put(api, document)
        user = {"email": "graph@example.org", "name": "Ada"}
        uid = await publish(api, "user_buys_subscription", {"user": user, "product": "united"})
        (item,) = await wait_until(lambda: _runs_of(api, uid, "Subscription Welcome"), "the run", 15)
        run = await ended(api, item["id"])
        assert run["status"] == "succeeded", run
        assert [json.loads(request.body) for request in sink.requests] == [{"user": "graph@example.org"}]
    sent = {mail["Subject"] for mail in mails_to(replica, "graph@example.org")}
    assert sent == {"Welcome to United, Ada", "Getting started, Ada"}
    exported = await api.get("workflows/Subscription Welcome/export", **{"as": "react-flow"})
    assert exported == document
    ours = await api.get("workflows/Subscription Welcome/export", **{"as": "json"})
    before = (await api.get("workflows/Subscription Welcome"))["revision"]
    await put(api, ours)
    assert (await api.get("workflows/Subscription Welcome"))["revision"] == before


async def _runs_of(api: Api, uid: str, workflow: str) -> list[dict[str, Any]]:
    return [run for run in await api.runs(uid) if run["workflow"] == workflow]


@pytest.mark.asyncio(loop_scope="module")
async def test_what_can_not_be_translated_is_named(api: Api) -> None:
    document = definition("002-demo") | {"name": "refused"}
    document["steps"].append({"name": "ticket", "type": "create_ticket", "config": {"title": "x"}})
    answer = await api.http.post("/api/v1/workflows", json=document)
    assert answer.status_code == 422
    (problem,) = answer.json()["problems"]
    assert problem["key"] == "steps[2].type"
    assert "unknown action 'create_ticket'" in problem["message"]
