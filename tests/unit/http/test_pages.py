"""The pages for browsers."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import httpx

from appliance.http.pages import message_page
from tests.unit.http.fakes import Fakes


class Page(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


async def test_the_index_needs_nothing_from_elsewhere_and_runs_no_script(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(response.text)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "embed"}
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") or name == "style" for name in attrs)]
    targets = [attrs.get("href") or attrs.get("action") or "" for _, attrs in page.tags]
    assert not [target for target in targets if target and not target.startswith(("/", "data:"))]


async def test_the_policy_allows_exactly_the_pages_own_style(client: httpx.AsyncClient) -> None:
    response = await client.get("/")
    policy = response.headers["content-security-policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


async def test_the_sample_form_works_as_it_stands(client: httpx.AsyncClient, fakes: Fakes) -> None:
    page = Page((await client.get("/")).text)
    (form,) = [attrs for tag, attrs in page.tags if tag == "form"]
    fields = [attrs for tag, attrs in page.tags if tag in ("input", "textarea")]
    data = {str(attrs["name"]): attrs.get("value") or "text" for attrs in fields}
    assert data["template_id"] == "contact"
    response = await client.request(str(form["method"]), str(form["action"]), data=data)
    assert response.status_code == 202
    assert set(fakes.producer.last.data) == {"name", "email", "message"}


async def test_every_link_of_the_index_leads_somewhere(client: httpx.AsyncClient) -> None:
    page = Page((await client.get("/")).text)
    links = [str(attrs["href"]) for tag, attrs in page.tags if tag == "a"]
    assert links
    for link in links:
        assert (await client.get(link)).status_code == 200, link


def test_a_message_escapes_what_it_is_given() -> None:
    page = message_page(200, "<b>", "<i>&", '"><script>').body.decode()
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<script>" not in page
