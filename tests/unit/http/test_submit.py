"""POST /submit."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from appliance.errors import Malformed, Overloaded, StreamUnavailable
from appliance.http.app import create_app
from appliance.http.submit import prefers_html
from appliance.settings import HttpSettings, IngestSettings, Settings
from tests.unit.http.fakes import API_KEY, Fakes

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
PARTS = {"Content-Type": "multipart/form-data; boundary=b"}


async def test_json_becomes_a_form_submitted_event(client: httpx.AsyncClient, fakes: Fakes) -> None:
    body = {"template_id": "contact", "data": {"email": "a@example.org", "n": 1}, "org_id": "org_1"}
    response = await client.post("/submit", json=body)
    event = fakes.producer.last
    assert response.status_code == 202
    assert response.json() == {"id": event.id, "submission_id": event.id, "status": "accepted"}
    assert (event.type, event.source, event.uid) == ("form_submitted", "/submit", event.id)
    assert event.data == body["data"]
    assert event.attributes == {"template_id": "contact", "org_id": "org_1", "submission_id": event.id}
    assert event.key is None
    assert fakes.producer.events[-1][1] == "normal"


async def test_without_a_key_the_same_submission_is_two_events(client: httpx.AsyncClient, fakes: Fakes) -> None:
    answers = [(await client.post("/submit", json={"template_id": "t"})).json()["id"] for _ in range(2)]
    assert len(set(answers)) == len(fakes.producer.events) == 2


@pytest.mark.parametrize("second", ["k-1", '"k-1"', " k-1 "])
async def test_the_second_answer_to_a_key_names_the_first_event(
    client: httpx.AsyncClient, fakes: Fakes, second: str
) -> None:
    body = {"template_id": "contact"}
    first = await client.post("/submit", json=body, headers={"Idempotency-Key": "k-1"})
    again = await client.post("/submit", json=body, headers={"Idempotency-Key": second})
    assert again.status_code == 200
    assert again.json() == {**first.json(), "status": "duplicate"}
    assert len(fakes.producer.events) == 1


async def test_a_key_counts_per_form_and_organisation(client: httpx.AsyncClient, fakes: Fakes) -> None:
    for body in ({"template_id": "a"}, {"template_id": "b"}, {"template_id": "a", "org_id": "o"}):
        response = await client.post("/submit", json=body, headers={"Idempotency-Key": "k"})
        assert response.status_code == 202
    assert len(fakes.producer.events) == 3


@pytest.mark.parametrize("key", ["", '""', "x" * 257])
async def test_an_unusable_key_is_refused(client: httpx.AsyncClient, key: str) -> None:
    response = await client.post("/submit", json={"template_id": "t"}, headers={"Idempotency-Key": key})
    assert (response.status_code, response.json()["attribute"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "not-json"),
        (b"", JSON, 400, "not-json"),
        (b'{"template_id": NaN}', JSON, 400, "not-json"),
        (b'{"template_id": "\\ud800"}', JSON, 400, "not-json"),
        (b'{"template_id": "\xff"}', JSON, 400, "not-utf8"),
        (b"[]", JSON, 422, "not-an-object"),
        (b'{"template_id": "a\\u0000"}', JSON, 422, "nul-character"),
        (b'{"template_id":"t","data":{"a":[[[[1]]]]}}', JSON, 422, "too-deep"),
        (b"[" * 6000 + b"]" * 6000, JSON, 422, "too-deep"),
        (b'{"template_id":"t","data":{"a":"' + b"x" * 20_000 + b'"}}', JSON, 413, "too-large"),
        (b"{}", {"Content-Type": "application/json; charset=latin-1"}, 415, "unsupported-media-type"),
        (b"a", {"Content-Type": "text/plain"}, 415, "unsupported-media-type"),
        (b"a", {}, 415, "unsupported-media-type"),
        (b'{"template_id":"t"}', {**JSON, "Content-Encoding": "gzip"}, 415, "unsupported-media-type"),
        (b"template_id=t", {**FORM, "Content-Encoding": "br"}, 415, "unsupported-media-type"),
        (b"template_id=%ff", FORM, 400, "not-utf8"),
        (b"template_id=\xff", FORM, 400, "not-utf8"),
        (b"template_id=t&a=%00", FORM, 422, "nul-character"),
        (b"template_id=t&" + b"a=1&" * 1000, FORM, 413, "too-large"),
        (b"template_id=t&template_id=u", FORM, 422, "attribute"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "bad-form"),
        (b"x", PARTS, 400, "bad-form"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", PARTS, 400, "bad-form"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx', PARTS, 400, "bad-form"),
    ],
)  # fmt: skip
async def test_what_can_not_be_taken_is_a_problem_of_its_own(
    client: httpx.AsyncClient, fakes: Fakes, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    response = await client.post("/submit", content=body, headers=headers)
    assert (response.status_code, response.json()["type"]) == (status, f"urn:appliance:problem:{code}")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert fakes.producer.events == []


@pytest.mark.parametrize(
    ("body", "attribute"),
    [
        ({"data": {}}, "template_id"),
        ({"template_id": ""}, "template_id"),
        ({"template_id": 7}, "template_id"),
        ({"template_id": "x" * 1025}, "template_id"),
        ({"template_id": "t", "data": []}, "data"),
        ({"template_id": "t", "org_id": 7}, "org_id"),
        ({"template_id": "t", "dta": {}}, "dta"),
    ],
)
async def test_a_wrong_attribute_is_named(client: httpx.AsyncClient, body: dict[str, Any], attribute: str) -> None:
    response = await client.post("/submit", json=body)
    assert (response.status_code, response.json()["attribute"]) == (422, attribute)
    assert attribute in response.json()["detail"]


async def test_a_chunked_body_is_cut_off_at_the_limit(client: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks() -> Any:
        nonlocal sent
        while sent < 10_000_000:
            sent += 10_000
            yield b" " * 10_000

    response = await client.post("/submit", content=chunks(), headers=JSON)
    assert response.status_code == 413


async def test_a_urlencoded_form_is_taken_with_repeated_fields_as_lists(
    client: httpx.AsyncClient, fakes: Fakes
) -> None:
    body = b"template_id=contact&org_id=o&name=J%C3%BCrgen+X&tag=a&tag=b&tag=c&empty="
    response = await client.post("/submit", content=body, headers=FORM)
    assert response.status_code == 202
    assert response.json()["status"] == "accepted"
    event = fakes.producer.last
    assert event.data == {"name": "Jürgen X", "tag": ["a", "b", "c"], "empty": ""}
    assert event.attributes["org_id"] == "o"


async def test_an_empty_org_is_no_org(client: httpx.AsyncClient, fakes: Fakes) -> None:
    await client.post("/submit", content=b"template_id=t&org_id=", headers=FORM)
    assert "org_id" not in fakes.producer.last.attributes


async def test_a_multipart_form_is_taken(client: httpx.AsyncClient, fakes: Fakes) -> None:
    files: list[tuple[str, tuple[str | None, str]]] = [
        ("template_id", (None, "contact")),
        ("naïve", (None, "é" * 500)),
        ("tag", (None, "a")),
        ("tag", (None, "b")),
        ("attachment", ("", "")),
    ]
    response = await client.post("/submit", files=files)
    assert response.status_code == 202
    assert fakes.producer.last.data == {"naïve": "é" * 500, "tag": ["a", "b"], "attachment": ""}


async def test_a_file_is_refused_by_the_name_of_its_field(client: httpx.AsyncClient, fakes: Fakes) -> None:
    files: list[tuple[str, tuple[str | None, str]]] = [("template_id", (None, "t")), ("cv", ("cv.pdf", "%PDF"))]
    response = await client.post("/submit", files=files)
    assert (response.status_code, response.json()["attribute"]) == (422, "cv")
    assert response.json()["type"] == "urn:appliance:problem:file-upload"
    assert fakes.producer.events == []


async def test_json_sent_as_a_form_is_told_so(client: httpx.AsyncClient) -> None:
    response = await client.post("/submit", content=b'{"template_id": "t"}', headers=FORM)
    assert response.status_code == 422
    assert "application/json" in response.json()["detail"]


async def test_a_form_field_can_be_the_idempotency_key(client: httpx.AsyncClient, fakes: Fakes) -> None:
    body = b"template_id=t&_idempotency_key=k"
    first = await client.post("/submit", content=body, headers=FORM)
    again = await client.post("/submit", content=body, headers=FORM)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert fakes.producer.last.data == {}


async def test_a_browser_gets_a_page(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.post("/submit", content=b"template_id=t", headers={**FORM, **BROWSER})
    assert response.status_code == 202
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "Thank you" in response.text
    assert fakes.producer.last.id in response.text


async def test_a_browser_gets_its_problem_as_a_page_that_escapes(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.producer.refusal = Overloaded("<script>", retry_after_s=3)
    response = await client.post("/submit", content=b"template_id=t", headers={**FORM, **BROWSER})
    assert (response.status_code, response.headers["retry-after"]) == (503, "3")
    assert "&lt;script&gt;" in response.text
    assert "<script" not in response.text


@pytest.mark.parametrize(
    "target",
    ["/thanks", "/thanks?a=b#c", "https://forms.example.com/thanks", "http://FORMS.example.com", "https://forms.example.com"],
)  # fmt: skip
async def test_a_form_may_redirect_to_this_server_and_to_listed_hosts(client: httpx.AsyncClient, target: str) -> None:
    response = await client.post("/submit", data={"template_id": "t", "_redirect": target})
    assert (response.status_code, response.headers["location"]) == (303, target)


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "https://evil.example",
        "https://forms.example.com.evil.example",
        "https://forms.example.com@evil.example",
        "https://evil.example#@forms.example.com",
        "https://evil.example\\@forms.example.com",
        "https://forms.example.com:8443/",
        "https:forms.example.com",
        "https:///evil.example",
        "javascript:alert(1)",
        "data:text/html,x",
        "thanks",
        "/" + "x" * 3000,
        "https://forms.example.com:x/",
        "https://[::1",
        "/ü",
    ],
)
async def test_an_open_redirect_is_refused_and_nothing_is_accepted(
    client: httpx.AsyncClient, fakes: Fakes, target: str
) -> None:
    response = await client.post("/submit", data={"template_id": "t", "_redirect": target})
    assert (response.status_code, response.json()["type"]) == (422, "urn:appliance:problem:redirect")
    assert fakes.producer.events == []


@pytest.mark.parametrize(
    ("error", "status", "code", "after"),
    [
        (Overloaded("full", retry_after_s=5), 503, "overloaded", "5"),
        (StreamUnavailable("away", retry_after_s=0.2), 503, "stream-unavailable", "1"),
        (Malformed("too large", code="too-large"), 413, "too-large", None),
        (RuntimeError("secret"), 500, "internal", None),
    ],
)
async def test_what_the_producer_raises_is_told(
    client: httpx.AsyncClient, fakes: Fakes, error: Exception, status: int, code: str, after: str | None
) -> None:
    fakes.producer.refusal = error
    response = await client.post("/submit", json={"template_id": "t"})
    assert (response.status_code, response.json()["type"]) == (status, f"urn:appliance:problem:{code}")
    assert response.headers.get("retry-after") == after
    assert "secret" not in response.text


async def test_the_rate_limit_answers_429(fakes: Fakes) -> None:
    settings = Settings(ingest=IngestSettings(rate_limit=2))
    transport = httpx.ASGITransport(create_app(fakes.services(settings)))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answers = [await client.post("/submit", json={"template_id": "t"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert answers[-1].json()["type"] == "urn:appliance:problem:rate-limit"
    assert answers[-1].headers["retry-after"] == "1"


async def test_submit_wants_the_key_when_it_is_closed(fakes: Fakes) -> None:
    settings = Settings(http=HttpSettings(submit_open=False))
    transport = httpx.ASGITransport(create_app(fakes.services(settings)))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        assert (await client.post("/submit", json={"template_id": "t"})).status_code == 401
        with_key = await client.post("/submit", json={"template_id": "t"}, headers={"X-API-Key": API_KEY})
        assert with_key.status_code == 202


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("text/html", True),
        (BROWSER["Accept"], True),
        ("text/html;q=0.5, application/json", False),
        ("text/html;q=0.9, */*;q=0.1", True),
        ("text/html;q=oops, */*", False),
        ("text/html, application/json", False),
    ],
)
def test_html_is_for_those_who_prefer_it(accept: str | None, expected: bool) -> None:
    assert prefers_html(accept) is expected
