"""The pages for browsers: the index with its sample form, and the answers to forms. Nothing comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files

from appliance.http.problems import HttpProblem
from appliance.http.reply import RawHeaders, Reply

_PLACE = re.compile(r"{{(\w+)}}")


def index_page() -> Reply:
    """``GET /``: what this is, a working sample form, and where to look next."""
    return Reply(200, filled("index.html", {}), page_headers())


def message_page(status: int, title: str, text: str, reference: str | None = None) -> Reply:
    """A short answer to a form: ``title`` and ``text`` are plain text, ``reference`` an id to quote."""
    line = f"<p class=reference>Reference <code>{escape(reference)}</code></p>" if reference else ""
    values = {"title": escape(title), "text": escape(text), "reference": line}
    return Reply(status, filled("message.html", values), page_headers())


def problem_page(problem: HttpProblem) -> Reply:
    """A problem, for somebody who posted a form with a browser; status and ``Retry-After`` are the problem's."""
    page = message_page(problem.status, "That did not work", problem.detail)
    own = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in problem.headers.items()]
    return Reply(problem.status, page.body, (*page.headers, *own))


def filled(name: str, values: Mapping[str, str]) -> bytes:
    """A page of this folder with its ``{{places}}`` filled in: HTML, in which what others wrote is escaped."""
    everything = {"style": _file("style.css"), **values}
    # In one pass: what is filled in may itself look like a place.
    return _PLACE.sub(lambda match: everything[match[1]], _file(name)).encode("utf-8", "replace")


@cache
def page_headers(referrer: str = "no-referrer") -> RawHeaders:
    """The headers of every page: nothing from elsewhere, no scripts, no framing.

    ``referrer``: a form on a page without referrer is sent without its origin; ``same-origin`` lets it be checked.
    """
    digest = base64.b64encode(hashlib.sha256(_file("style.css").encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    return (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", referrer.encode()),
        (b"x-content-type-options", b"nosniff"),
    )


@cache
def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text("utf-8")
