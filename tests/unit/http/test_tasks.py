"""Human tasks through the API, and through signed links that need no key."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from appliance.errors import Conflict, StoreUnavailable
from tests.unit.http.fakes import API_KEY, Fakes

KEY = {"X-API-Key": API_KEY}
TASK = "0197f000-0000-7000-8000-000000000001"
OTHER = "0197f000-0000-7000-8000-000000000002"
FORM = {
    "type": "object",
    "required": ["reply", "amount"],
    "properties": {
        "reply": {"type": "string", "title": "Reply <b>", "description": "What we & they say.", "minLength": 3},
        "amount": {"type": "integer", "minimum": 1},
        "colour": {"enum": ["red", "blue"]},
        "urgent": {"type": "boolean"},
        "lines": {"type": "array", "items": {"type": "object", "required": ["n"]}},
    },
}
GOOD = {"reply": "Yes & no\r\n", "amount": "5", "colour": "blue", "lines": '[{"n": 1}]'}


@pytest.fixture(autouse=True)
def task(fakes: Fakes) -> dict[str, Any]:
    made = {
        "id": TASK,
        "run_id": "r",
        "step": "approve",
        "workflow": "w",
        "status": "open",
        "title": "Answer <script>",
        "description": "Line one\nline {{fields}} <two>",
        "assignee": None,
        "group": None,
        "form": FORM,
        "due_at": "2030-01-31T09:00:00.000Z",
        "closed_at": None,
        "answered_by": None,
    }
    fakes.tasks.tasks[TASK] = made
    return made


def link(fakes: Fakes, task_id: str = TASK) -> str:
    return fakes.links.task(task_id).removeprefix("http://appliance")


class Page(HTMLParser):
    """The elements of a page by tag, and the text in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def control(self, name: str) -> dict[str, str | None]:
        (found,) = [attrs for _, attrs in self.tags if attrs.get("name") == name]
        return found


# --- the API ---------------------------------------------------------------------------------------------------------


async def test_tasks_are_listed_by_their_filters(client: httpx.AsyncClient, fakes: Fakes) -> None:
    query = f"status=open&assignee=ann&group=g&workflow=w&run_id={OTHER}&limit=3&cursor={TASK}"
    response = await client.get(f"/api/v1/tasks?{query}", headers=KEY)
    assert response.json() == {"items": [{"id": "x"}], "next_cursor": "next"}
    chosen = {"status": "open", "assignee": "ann", "group": "g", "workflow": "w", "run_id": OTHER}
    assert fakes.tasks.calls == [("list", chosen, {"cursor": TASK, "limit": 3})]
    assert (await client.get("/api/v1/tasks?status=done", headers=KEY)).status_code == 422


async def test_an_open_task_is_shown_with_the_link_that_answers_it(client: httpx.AsyncClient, fakes: Fakes) -> None:
    shown = (await client.get(f"/api/v1/tasks/{TASK}", headers=KEY)).json()
    assert (shown["form"], shown["link"]) == (FORM, fakes.links.task(TASK))
    assert (await client.get(shown["link"])).status_code == 200
    fakes.tasks.tasks[TASK]["status"] = "expired"
    assert (await client.get(f"/api/v1/tasks/{TASK}", headers=KEY)).json()["link"] is None
    assert (await client.get(f"/api/v1/tasks/{OTHER}", headers=KEY)).status_code == 404


async def test_a_task_is_answered_once(client: httpx.AsyncClient, fakes: Fakes) -> None:
    body = {"answer": {"reply": "Yes", "amount": 5}, "by": "ann"}
    first = await client.post(f"/api/v1/tasks/{TASK}/answer", json=body, headers=KEY)
    assert (first.status_code, first.json()) == (
        200,
        {"id": TASK, "status": "answered", "run_id": "r", "step": "approve"},
    )
    assert fakes.tasks.calls == [("answer", TASK, body["answer"], "ann", "api")]
    again = await client.post(f"/api/v1/tasks/{TASK}/answer", json=body, headers=KEY)
    assert (again.status_code, again.json()["type"]) == (409, "urn:appliance:problem:conflict")


async def test_an_answer_that_doesnt_fit_is_told_path_by_path(client: httpx.AsyncClient) -> None:
    body = {"answer": {"reply": "Yes", "amount": 0, "lines": [{}]}}
    response = await client.post(f"/api/v1/tasks/{TASK}/answer", json=body, headers=KEY)
    assert (response.status_code, response.json()["type"]) == (422, "urn:appliance:problem:input")
    assert response.json()["errors"] == [
        {"path": "answer.amount", "detail": "expected 1 or more"},
        {"path": "answer.lines[0].n", "detail": "is missing"},
    ]


@pytest.mark.parametrize(
    ("verb", "body", "attribute"),
    [
        ("answer", {}, "answer"),
        ("answer", {"answer": 1, "from": "x"}, "from"),
        ("answer", {"answer": 1, "by": 7}, "by"),
        ("assign", {}, "assignee"),
        ("assign", {"assignee": 7}, "assignee"),
        ("assign", {"owner": "x"}, "owner"),
    ],
)
async def test_a_wrong_body_is_named(client: httpx.AsyncClient, verb: str, body: Any, attribute: str) -> None:
    response = await client.post(f"/api/v1/tasks/{TASK}/{verb}", json=body, headers=KEY)
    assert (response.status_code, response.json()["attribute"]) == (422, attribute)


async def test_a_task_is_given_to_somebody_else(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.post(f"/api/v1/tasks/{TASK}/assign", json={"assignee": None, "group": "g"}, headers=KEY)
    assert response.json() == {"id": TASK, "assignee": None, "group": "g"}
    assert fakes.tasks.calls == [("assign", TASK, {"assignee": None, "group": "g"}, "api")]


# --- the link --------------------------------------------------------------------------------------------------------


async def test_the_page_shows_the_form_and_changes_nothing(client: httpx.AsyncClient, fakes: Fakes) -> None:
    for method in ("GET", "HEAD", "GET"):
        response = await client.request(method, link(fakes), headers={"Sec-Purpose": "prefetch"})
        assert response.status_code == 200
    assert fakes.tasks.calls == []
    page = Page(response.text)
    assert page.control("amount") == {
        "id": "f1", "name": "amount", "type": "number", "step": "1", "min": "1", "required": "", "value": "",
    }  # fmt: skip
    assert page.control("reply")["aria-describedby"] == "f0-hint"
    assert page.control("urgent")["type"] == "checkbox"
    assert "required" not in page.control("urgent")
    assert [attrs["value"] for tag, attrs in page.tags if tag == "option"] == ["", "red", "blue"]
    labelled = {attrs.get("for") for tag, attrs in page.tags if tag == "label"}
    assert {page.control(name)["id"] for name in ("reply", "amount", "colour", "lines")} <= labelled
    assert "31 January 2030, 09:00 UTC" in page.words


async def test_the_page_escapes_what_others_wrote_and_runs_no_script(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.get(link(fakes))
    page = Page(response.text)
    assert not {tag for tag, _ in page.tags} & {"script", "b", "two", "img", "iframe"}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") or name == "style" for name in attrs)]
    for text in ("Answer <script>", "Reply <b>", "What we & they say.", "line {{fields}} <two>"):
        assert text in page.words
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "form-action 'self'" in policy
    assert response.headers["referrer-policy"] == "same-origin"
    assert response.headers["cache-control"] == "no-store"


async def test_a_posted_form_answers(client: httpx.AsyncClient, fakes: Fakes, task: dict[str, Any]) -> None:
    task["assignee"] = "ann"
    response = await client.post(link(fakes), data={**GOOD, "urgent": "true"}, headers={"Origin": "http://appliance"})
    assert response.status_code == 200
    assert "Thank you" in response.text
    answer = {"reply": "Yes & no\n", "amount": 5, "colour": "blue", "urgent": True, "lines": [{"n": 1}]}
    assert fakes.tasks.calls == [("answer", TASK, answer, "ann", "link")]


async def test_a_multipart_form_answers_too(client: httpx.AsyncClient, fakes: Fakes) -> None:
    files: Any = {"reply": (None, "Yes"), "amount": (None, "5"), "template_id": (None, "t")}
    assert (await client.post(link(fakes), files=files)).status_code == 200
    answer = {"reply": "Yes", "amount": 5, "urgent": False, "template_id": "t"}
    assert fakes.tasks.calls == [("answer", TASK, answer, "link", "link")]


async def test_json_answers_through_a_link(client: httpx.AsyncClient, fakes: Fakes) -> None:
    body = {"answer": {"reply": "Yes", "amount": 5}, "by": "bot"}
    assert (await client.post(link(fakes), json=body)).json()["status"] == "answered"
    assert fakes.tasks.calls[-1][3:] == ("bot", "link")
    again = await client.post(link(fakes), json=body)
    assert (again.status_code, again.headers["content-type"]) == (409, "application/problem+json")
    assert (await client.post(f"/tasks/{TASK}?sig=x", json=body)).json()["status"] == 404


async def test_mistakes_stand_beside_their_fields_and_what_was_typed_is_kept(
    client: httpx.AsyncClient, fakes: Fakes
) -> None:
    typed = {"reply": '"<', "amount": "many", "colour": "blue", "urgent": "true", "lines": "{"}
    response = await client.post(link(fakes), data=typed)
    assert response.status_code == 422
    assert fakes.tasks.calls == []
    page = Page(response.text)
    errors = {attrs["id"]: text for attrs, text in _paragraphs(response.text) if "error" in str(attrs.get("class"))}
    assert errors["f0-error-0"] == "Expected at least 3 characters"
    assert errors["f1-error-0"] == "Expected a whole number"
    assert errors["f4-error-0"].startswith("Not JSON")
    assert page.control("amount") | {"value": "many", "aria-invalid": "true"} == page.control("amount")
    assert page.control("amount")["aria-describedby"] == "f1-error-0"
    assert [attrs["value"] for tag, attrs in page.tags if tag == "option" and "selected" in attrs] == ["blue"]
    assert "checked" in page.control("urgent")
    assert re.search(r"<textarea[^>]*>\n&quot;&lt;</textarea>", response.text)
    assert [attrs for _, attrs in page.tags if attrs.get("role") == "alert"]


def _paragraphs(text: str) -> list[tuple[dict[str, str], str]]:
    found = re.findall(r'<p class="([^"]*)" id="([^"]*)">(.*?)</p>', text)
    return [({"class": kind, "id": ident}, unescape(words)) for kind, ident, words in found]


async def test_what_no_field_is_for_is_told_above_the_form(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.tasks.tasks[TASK]["form"] = {**FORM, "additionalProperties": False}
    response = await client.post(link(fakes), data={**GOOD, "<evil>": "1"})
    assert response.status_code == 422
    assert "<li>&lt;evil&gt;: unknown" in response.text


@pytest.mark.parametrize(
    ("status", "title"), [("answered", "Already answered"), ("expired", "Too late"), ("cancelled", "No longer needed")]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_closed_task_has_a_page_that_says_so(
    client: httpx.AsyncClient, fakes: Fakes, method: str, status: str, title: str
) -> None:
    fakes.tasks.tasks[TASK]["status"] = status
    response = await client.request(method, link(fakes), data=GOOD if method == "POST" else None)
    assert response.status_code == 409
    assert title in response.text
    assert "<form" not in response.text


async def test_whoever_is_beaten_in_the_last_moment_is_told(
    client: httpx.AsyncClient, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def beaten(*_: Any) -> dict[str, Any]:
        fakes.tasks.tasks[TASK]["status"] = "expired"
        raise Conflict("too late")

    monkeypatch.setattr(fakes.tasks, "answer", beaten)
    response = await client.post(link(fakes), data=GOOD)
    assert (response.status_code, "Too late" in response.text) == (409, True)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_wrong_signature_looks_like_a_task_that_never_was(
    client: httpx.AsyncClient, fakes: Fakes, method: str
) -> None:
    signature = fakes.links.signature(OTHER)
    paths = [f"/tasks/{TASK}?sig={signature}", f"/tasks/{TASK}", f"/tasks/{TASK}?sig=", link(fakes, OTHER), "/tasks/x"]
    data = GOOD if method == "POST" else None
    answers = [await client.request(method, path, data=data) for path in paths]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert len({frozenset(answer.headers.items()) for answer in answers}) == 1
    assert fakes.tasks.calls == []


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://appliance.evil.example"])
async def test_a_form_on_another_site_is_refused(client: httpx.AsyncClient, fakes: Fakes, origin: str) -> None:
    response = await client.post(link(fakes), data=GOOD, headers={"Origin": origin})
    assert response.status_code == 403
    assert fakes.tasks.calls == []


async def test_the_public_address_is_an_origin_of_ours(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.links.base = "https://people.example/flow"
    path = fakes.links.task(TASK).removeprefix("https://people.example/flow")
    response = await client.post(path, data=GOOD, headers={"Origin": "https://people.example"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"x" * 30_000, {"Content-Type": "application/x-www-form-urlencoded"}, 413),
        (b"a=%ff", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, 400),
        (b"x", {"Content-Type": "text/plain"}, 415),
    ],
)
async def test_a_body_that_cant_be_read_is_refused(
    client: httpx.AsyncClient, fakes: Fakes, content: bytes, headers: dict[str, str], status: int
) -> None:
    response = await client.post(link(fakes), content=content, headers=headers)
    assert response.status_code == status
    assert fakes.tasks.calls == []


async def test_while_the_store_is_away_the_link_says_so(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.tasks.refusal = StoreUnavailable("away", retry_after_s=3)
    response = await client.post(link(fakes), data=GOOD)
    assert (response.status_code, response.headers["retry-after"]) == (503, "3")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
