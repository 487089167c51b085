"""Signed links."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from appliance.identifiers import uuid7
from appliance.links import Links

TASK = "0197f000-0000-7000-8000-000000000000"


def test_a_link_leads_to_its_task_and_is_signed_for_it_only() -> None:
    links = Links("k" * 32, "https://a.example/flow/")
    url = urlsplit(links.task(TASK))
    assert (url.scheme, url.netloc, url.path) == ("https", "a.example", f"/flow/tasks/{TASK}")
    (signature,) = parse_qs(url.query)["sig"]
    assert len(signature) == 43
    assert links.signed(TASK, signature)
    for other in (uuid7(), TASK.upper(), "", "ü"):
        assert not links.signed(other, signature)


@pytest.mark.parametrize("wrong", ["", "x", "ü", "\udc80", "A" * 43, "A" * 10_000])
def test_another_signature_is_wrong(wrong: str) -> None:
    assert not Links("k" * 32, "http://x").signed(TASK, wrong)


def test_the_same_key_makes_the_same_links_and_another_key_others() -> None:
    first, again, other = Links("k" * 32, "http://a"), Links("k" * 32, "http://b"), Links("l" * 32, "http://a")
    assert again.signed(TASK, first.signature(TASK))
    assert not other.signed(TASK, first.signature(TASK))
    with pytest.raises(ValueError, match="empty"):
        Links("", "http://a")
