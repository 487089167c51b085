"""A source: its file, checked and compiled."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
from pydantic import ValidationError

from appliance.errors import ApplianceError, DefinitionError, Problem
from appliance.sources.models import EventModel, SourceModel
from appliance.sources.query import wrong_with
from appliance.templating import Template, TemplateError, compile_template, has_expression
from appliance.workflows import wallclock
from appliance.workflows.loader import read_document
from appliance.workflows.problems import details_of, from_details

_SCHEMES = ("postgresql", "postgres")
_URL = "postgresql://user@host/database"
_EXAMPLE = '"{{ secrets.shop_database }}"'
_NAMED = re.compile(r"""\brow\s*(?:\.\s*([A-Za-z_]\w*)|\[\s*(?:'([^']*)'|"([^"]*)")\s*\])""")
_METHODS = frozenset({"get", "items", "keys", "values"})


class SourceError(ApplianceError):
    """A source can't be read: its database is away, or the query isn't what its file says. Shows no secret."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source. Times are in seconds; ``digest`` changes with the file's content."""

    name: str
    digest: str
    enabled: bool
    connection: Template
    query: str
    cursor: str
    key: tuple[str, ...]
    every_s: float
    lag_s: float
    batch: int
    start: str
    timezone: str
    decimals: str
    priority: str
    event: Template
    """An object with the keys ``type, subject, time, data, attributes``."""
    named: frozenset[str]
    """The columns that the event's templates name."""

    def url(self, secrets: Mapping[str, str]) -> str:
        """Where the database is; raises SourceError. The result may have a password in it."""
        try:
            url = self.connection.render({"secrets": secrets})
        except TemplateError as error:
            raise SourceError(f"postgresql: there is no such secret ({error})") from None
        if not isinstance(url, str) or urlsplit(url).scheme not in _SCHEMES:
            raise SourceError(f"postgresql: expected a URL such as {_URL}")
        return url


def read_source(path: Path) -> Source:
    """The source in a file; raises DefinitionError, every problem of which names file, line and column."""
    document = read_document(path)
    try:
        return compile_source(document.data)
    except DefinitionError as error:
        raise DefinitionError(*(_placed(problem, str(path), document.lines) for problem in error.problems)) from None


def compile_source(definition: Any) -> Source:
    """Check a definition (JSON data) and compile it; raises DefinitionError with every problem."""
    model, event, problems = _models(definition)
    if model is None or event is None:
        raise DefinitionError(*problems)
    problems += _wrong(model)
    connection = _template(model.postgresql, "postgresql", "secrets", problems)
    mapping = _template(event.model_dump(), "event", "row", problems)
    if problems or connection is None or mapping is None:
        raise DefinitionError(*problems)
    return Source(
        name=model.name,
        digest=hashlib.blake2b(orjson.dumps(definition, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest(),
        enabled=model.enabled,
        connection=connection,
        query=model.query,
        cursor=model.cursor,
        key=(model.key,) if isinstance(model.key, str) else tuple(model.key),
        every_s=model.every.total_seconds(),
        lag_s=model.lag.total_seconds(),
        batch=model.batch,
        start=model.start,
        timezone=model.timezone,
        decimals=model.decimals,
        priority=model.priority,
        event=mapping,
        named=frozenset(_columns_named(event.model_dump())),
    )


def _models(definition: Any) -> tuple[SourceModel | None, EventModel | None, list[Problem]]:
    model = event = None
    problems: list[Problem] = []
    try:
        model = SourceModel.model_validate(definition)
    except ValidationError as error:
        problems += from_details(details_of(error), definition, known=tuple(SourceModel.model_fields))
    given = definition.get("event") if isinstance(definition, dict) else None
    if isinstance(given, dict):
        try:
            event = EventModel.model_validate(given)
        except ValidationError as error:
            problems += from_details(details_of(error), given, "event", tuple(EventModel.model_fields))
    return model, event, problems


def _wrong(model: SourceModel) -> Iterator[Problem]:
    """What is wrong with values whose kind is right."""
    if (why := wrong_with(model.query)) is not None:
        yield Problem(why, "query", expected="SELECT columns FROM table")
    columns = [model.key] if isinstance(model.key, str) else model.key
    if len(set(columns)) < len(columns):
        yield Problem("a column appears twice", "key")
    try:
        wallclock.zone(model.timezone)
    except ValueError as error:
        yield Problem(str(error).removeprefix("timezone: "), "timezone")
    if not has_expression(model.postgresql):
        yield from _wrong_url(model.postgresql)


def _wrong_url(text: str) -> Iterator[Problem]:
    """A URL as it stands: it may be one, but a password belongs to the secrets."""
    try:
        url = urlsplit(text)
        password = url.password or parse_qs(url.query).get("password")
    except ValueError:
        url, password = urlsplit(""), None
    if url.scheme not in _SCHEMES:
        yield Problem(
            "not a URL of PostgreSQL", "postgresql", expected=f"postgresql://user@host/database or {_EXAMPLE}"
        )
    elif password:
        yield Problem("a password doesn't belong in this file", "postgresql", expected=_EXAMPLE)


def _template(value: Any, key: str, name: str, problems: list[Problem]) -> Template | None:
    try:
        return compile_template(value, key=key, allowed=(name,))
    except DefinitionError as error:
        problems += error.problems
        return None


def _columns_named(value: Any) -> Iterator[str]:
    """The columns that texts with expressions name as ``row.name`` or ``row['name']``."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _columns_named(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _columns_named(inner)
    elif has_expression(value):
        for found in _NAMED.finditer(value):
            name = next(filter(None, found.groups()), "")
            if found[1] is None or name not in _METHODS:
                yield name


def missing_column(source: Source, columns: list[str]) -> str | None:
    """What the file names that the query's result doesn't have, or None."""
    wanted = [("cursor", source.cursor), *(("key", column) for column in source.key)]
    wanted += [("event", column) for column in sorted(source.named)]
    for key, column in wanted:
        if column not in columns:
            near = difflib.get_close_matches(column, columns, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"{key}: the query has no column {column!r}{hint} (it has {', '.join(columns)})"
    return None


def _placed(problem: Problem, file: str, lines: Mapping[str, tuple[int, int]]) -> Problem:
    """The problem with its place: that of its key, or of the nearest key around it."""
    key = problem.key
    while key and key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    line, column = lines.get(key, (1, 1))
    return Problem(problem.message, problem.key, file, line, column, problem.expected)
