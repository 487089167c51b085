"""Requests to the running process: the API of ``docs/api.md``, with its answers turned into exit codes.

The standard library's client, because it loads in a few milliseconds and reads no proxy from the environment.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import click

from appliance.cli.exits import Exit, Failure
from appliance.cli.target import Target, find_target

API = "/api/v1"
_PAGE = 100
"""Items asked for at once; more would only make the first line appear later."""
_PAGES = 50
"""Pages asked for in one list: with a filter that is about a million events looked at."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and its JSON body (None when there was none; text when it was not JSON)."""

    status: int
    body: Any


class Client:
    """One process, one request at a time. Errors leave as :class:`Failure` with the exit code that they mean."""

    def __init__(self, target: Target, timeout_s: float, data_dir: Path | None = None) -> None:
        self.target = target
        self.data_dir = data_dir
        """The data folder that was named on the command line."""
        self._timeout_s = timeout_s

    def get(self, path: str, **query: Any) -> Any:
        """The JSON that ``path`` answers; parameters that are None are left out."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        return self._checked("GET", f"{path}?{urlencode(given)}" if given else path)

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """Send ``body`` as JSON and return the answer's."""
        return self._checked("POST", path, body, headers)

    def page(self, path: str, limit: int, cursor: str | None = None, **query: Any) -> dict[str, Any]:
        """Up to ``limit`` items of a list, newest first, over as many pages as it takes.

        A filtered page may hold few items, or none, and yet not be the last; after ``_PAGES`` of them the caller gets
        what was found, and the cursor to go on with.
        """
        items: list[Any] = []
        for _ in range(_PAGES):
            part = self.get(path, limit=min(_PAGE, limit - len(items)), cursor=cursor, **query)
            items += part["items"]
            cursor = part.get("next_cursor")
            if cursor is None or len(items) >= limit:
                break
        return {"items": items, "next_cursor": cursor}

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request, whatever the status of its answer. Failure only when there is no answer."""
        connection, prefix = self._connection()
        sent = {"Accept": "application/json", "User-Agent": "appliance-cli", **(headers or {})}
        if self.target.api_key is not None:
            sent["Authorization"] = f"Bearer {self.target.api_key}"
        payload = None
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
            payload = json.dumps(body, ensure_ascii=False).encode()
        try:
            connection.request(method, prefix + path, payload, sent)
            response = connection.getresponse()
            return Answer(response.status, _decode(response.read()))
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Failure(
                f"no answer from {self.target.url} ({reason}): is `appliance run` running there? "
                "(--url, --data-dir or APPLIANCE_URL say where)",
                Exit.UNAVAILABLE,
            ) from None
        finally:
            connection.close()

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        if self.target.url is None:
            raise Failure(
                f"no appliance serves from {self.target.origin} (start one, or say where with --url)", Exit.UNAVAILABLE
            )
        try:
            parts = urlsplit(self.target.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if host is None or parts.scheme not in ("http", "https"):
            raise Failure(f"{self.target.origin}: not an http(s) URL: {self.target.url}", Exit.USAGE)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context), parts.path
        return http.client.HTTPConnection(host, port, timeout=self._timeout_s), parts.path

    def _checked(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        answer = self.ask(method, path, body, headers)
        if answer.status < 300:
            return answer.body
        raise failure_of(answer)


def failure_of(answer: Answer) -> Failure:
    """What an answer that is no success means."""
    return Failure(_reason(answer), _exit_code(answer.status))


def connected(
    command: Callable[Concatenate[Client, P], R],
) -> Callable[P, R]:
    """Give a command the options that say which process to talk to, and the :class:`Client` as first argument."""

    def invoke(
        url: str | None, api_key: str | None, data_dir: Path | None, timeout: float, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        client = Client(find_target(url=url, api_key=api_key, data_dir=data_dir), timeout, data_dir)
        return command(client, *args, **kwargs)

    decorated: Any = update_wrapper(invoke, command)
    for option in reversed(CONNECTION):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


CONNECTION = (
    click.option("--url", metavar="URL", help="Where the process listens. [APPLIANCE_URL, else found in the data dir]"),
    click.option("--api-key", metavar="KEY", help="Key of the API. [APPLIANCE_API_KEY, else found in the data dir]"),
    click.option(
        "--data-dir", type=click.Path(path_type=Path), help="Data folder of a process here. [APPLIANCE_DATA_DIR, data]"
    ),
    click.option("--timeout", type=click.FloatRange(0.1), default=30.0, show_default=True, help="Seconds to wait."),
)
"""Options of every command that talks to the running process."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def quoted(segment: str) -> str:
    """An id or name as one segment of a path, or as a value in a query."""
    return quote(segment, safe="")


def _decode(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode("utf-8", "replace")


def _reason(answer: Answer) -> str:
    """What an RFC 9457 problem says, in one line."""
    body = answer.body
    if not isinstance(body, dict):
        return f"HTTP {answer.status}" + (f": {body:.200}" if isinstance(body, str) else "")
    problems = body.get("problems")
    if isinstance(problems, list) and problems:
        return f"{body.get('title')}: " + "; ".join(_problem(problem) for problem in problems)
    return str(body.get("detail") or body.get("title") or f"HTTP {answer.status}")


def _problem(problem: Any) -> str:
    if not isinstance(problem, dict):
        return str(problem)
    parts = (problem.get("key"), problem.get("message") or problem.get("detail"))
    return ": ".join(str(part) for part in parts if part)


def _exit_code(status: int) -> Exit:
    if status in (401, 403):
        return Exit.DENIED
    if status in (404, 409, 410, 412, 428):
        return Exit.NOT_FOUND
    return Exit.UNAVAILABLE if status in (429, 502, 503, 504) else Exit.FAILED
