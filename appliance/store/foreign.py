"""Reading a source: somebody else's PostgreSQL, of which nothing is taken for granted.

Each look is a read-only transaction of its own, with time limits that the server keeps and one that we keep should it
say nothing any more. The query stands in brackets; window, order and limit go around it, so that rows with the same
cursor value are told apart by their keys, and none is passed over at the end of a page. Values come as texts: what
can't be an event is then found row by row.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg
from psycopg import sql

from appliance.settings import SourceSettings
from appliance.sources.definition import Source, SourceError, missing_column
from appliance.sources.mapping import Column, Row
from appliance.sources.values import BYTEA, INTEGERS, TIMESTAMP, TIMESTAMPTZ, is_plain, moment_of
from appliance.workflows import wallclock

KINDS = {TIMESTAMPTZ: "timestamptz", TIMESTAMP: "timestamp", **dict.fromkeys(INTEGERS, "integer")}
_LEAST = -(2**63)
_PAGE_BYTES = 16_777_216
"""Bytes of one page, a single large row aside: a batch of large rows is read in several."""
_MARGIN_S = 5.0
"""How much longer than its statement may take we wait for the server's word."""
_FIRST, _LAST = "0001-01-01", "10000-01-01"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_BEHIND = "{cursor} > {p2} AND $3::text IS NULL"
_BEHIND_KEY = """{cursor} >= {p2} AND ({cursor} > {p2} OR coalesce({key}, '') COLLATE "C" > $3::text)"""
_PAGE = """
WITH page AS MATERIALIZED (
    SELECT {value} AS c, {key} AS k, {selected} FROM {query}
    WHERE {finite} AND {behind} ORDER BY {cursor}, coalesce({key}, '') COLLATE "C" LIMIT $4
), sized AS (
    SELECT page.*, {size} AS size FROM page
), summed AS (
    SELECT sized.*, sum(LEAST(size, $5)) OVER (
        ORDER BY c, coalesce(k, '') COLLATE "C" ROWS UNBOUNDED PRECEDING
    ) AS total FROM sized
)
SELECT (SELECT count(*) FROM page), c, k, size, {shown} FROM summed
WHERE total - LEAST(size, $5) < $6 ORDER BY c, coalesce(k, '') COLLATE "C"
"""


class Shape(NamedTuple):
    """What the query gives: its columns, and the kind of its cursor (timestamptz, timestamp, integer)."""

    columns: tuple[Column, ...]
    kind: str


class Place(NamedTuple):
    """Where to go on: behind the row with this cursor value and key, or (no key) behind all with this value."""

    cursor: int | None = None
    key: str | None = None


class Page(NamedTuple):
    """Rows in the order of cursor and key; whether there may be more behind them."""

    rows: list[Row]
    full: bool


class Reader:
    """One connection for one source. Everything raises SourceError."""

    def __init__(self, source: Source, url: str, settings: SourceSettings) -> None:
        self._source = source
        self._url = url
        self._connect_s = settings.connect_timeout.total_seconds()
        self._statement_s = settings.statement_timeout.total_seconds()
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Reader:
        with self._told():
            async with asyncio.timeout(self._connect_s + _MARGIN_S):
                self._connection = await psycopg.AsyncConnection.connect(
                    self._url,
                    autocommit=True,
                    prepare_threshold=None,  # a pooler may hand out another server every time
                    cursor_factory=psycopg.AsyncRawCursor,
                    connect_timeout=max(2, round(self._connect_s)),
                    application_name="appliance",
                    client_encoding="UTF8",
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                    tcp_user_timeout=20_000,
                )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def shape(self) -> Shape:
        """What the query gives, checked against what the file names."""
        async with self._look() as cursor:
            await cursor.execute(self._around("SELECT * FROM {query} LIMIT 0"))
            columns = tuple(Column(column.name, column.type_code) for column in cursor.description or ())
            names = [column.name for column in columns]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise SourceError(f"query: two columns are named {twice[0]!r}; name one of them with AS")
            if (missing := missing_column(self._source, names)) is not None:
                raise SourceError(missing)
            types = {column.name: column.oid for column in columns}
            if binary := [column.name for column in columns if column.oid == BYTEA]:
                raise SourceError(
                    f"query: the column {binary[0]!r} is bytea, which JSON can't hold: leave it out, "
                    f"or select encode({binary[0]}, 'base64')"
                )
            oid = types[self._source.cursor]
            if oid not in KINDS:
                await cursor.execute(b"SELECT format_type($1, NULL)", [oid])
                found = await cursor.fetchone()
                name = found[0] if found else oid
                raise SourceError(
                    f"cursor: the column {self._source.cursor!r} is {name}; expected timestamptz, timestamp or a "
                    "whole number"
                )
        return Shape(columns, KINDS[oid])

    async def clock(self, kind: str) -> int:
        """The server's present time as a cursor value of that kind; not for whole numbers."""
        async with self._look() as cursor:
            await cursor.execute(b"SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
            found = await cursor.fetchone()
        now = int(found[0]) if found else 0
        if kind == "timestamptz":
            return now
        shown = moment_of(now, None).astimezone(wallclock.zone(self._source.timezone)).replace(tzinfo=UTC)
        return (shown - _EPOCH) // timedelta(microseconds=1)

    async def head(self, shape: Shape) -> int | None:
        """The greatest cursor value of all rows; None if there is none."""
        statement = "SELECT {value} FROM {query} WHERE {finite} ORDER BY {cursor} DESC LIMIT 1"
        async with self._look() as cursor:
            await cursor.execute(self._around(statement, shape), [_least(shape.kind)])
            found = await cursor.fetchone()
        return int(found[0]) if found else None

    async def count(self, shape: Shape, after: int, until: int, limit: int) -> int:
        """How many rows, told apart by cursor and key, are behind ``after``, up to ``until``; ``limit`` at most."""
        statement = (
            "SELECT count(*) FROM (SELECT DISTINCT {cursor}, {key} FROM {query} "
            "WHERE {finite} AND {cursor} > {p2} AND {cursor} <= {p3}"
            " LIMIT $4) AS counted"
        )
        values = [_least(shape.kind), _text(after, shape.kind), _text(until, shape.kind), limit]
        async with self._look() as cursor:
            await cursor.execute(self._around(statement, shape), values)
            found = await cursor.fetchone()
        return int(found[0]) if found else 0

    async def page(self, shape: Shape, place: Place, limit: int, max_bytes: int) -> Page:
        """The next rows behind ``place``. One of more than ``max_bytes`` comes without its values."""
        parts = [self._value_of(column) for column in shape.columns]
        names = [sql.Identifier(f"v{number}") for number in range(len(parts))]
        selected = [sql.SQL("{} AS {}").format(part, name) for part, name in zip(parts, names, strict=True)]
        bytes_of = [sql.SQL("coalesce(octet_length({}), 0)").format(name) for name in names]
        shown = [sql.SQL("CASE WHEN size <= $5 THEN {} END").format(name) for name in names]
        query = self._around(
            _PAGE.replace("{behind}", _BEHIND if place.key is None else _BEHIND_KEY),
            shape,
            selected=sql.SQL(", ").join(selected),
            size=sql.SQL(" + ").join(bytes_of),
            shown=sql.SQL(", ").join(shown),
        )
        after = _least(shape.kind) if place.cursor is None else _text(place.cursor, shape.kind)
        async with self._look() as cursor:
            await cursor.execute(query, [_least(shape.kind), after, place.key, limit, max_bytes, _PAGE_BYTES])
            found: Sequence[Sequence[Any]] = await cursor.fetchall()
        rows = [Row(int(row[1]), row[2], int(row[3]), tuple(row[4:])) for row in found]
        return Page(rows, full=bool(found) and (int(found[0][0]) == limit or len(rows) < int(found[0][0])))

    @contextlib.asynccontextmanager
    async def _look(self) -> AsyncIterator[psycopg.AsyncCursor[Any]]:
        """A cursor in a read-only transaction that is rolled back."""
        connection = self._connection
        if connection is None:
            raise SourceError("not connected")
        limit_ms = int(self._statement_s * 1000)
        alarm = asyncio.get_running_loop().call_later(self._statement_s + _MARGIN_S, _hang_up, connection)
        try:
            with self._told():
                # In one message, without parameters: the simple protocol.
                await connection.execute(
                    "BEGIN READ ONLY; SET LOCAL default_transaction_read_only = on; SET LOCAL timezone = 'UTC'; "
                    "SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL bytea_output = 'hex';"
                    f"SET LOCAL extra_float_digits = 1; SET LOCAL statement_timeout = {limit_ms}; "
                    f"SET LOCAL lock_timeout = {limit_ms}"
                )
                async with connection.cursor() as cursor:
                    yield cursor
                await connection.execute(b"ROLLBACK")
        except BaseException:
            await connection.close()
            raise
        finally:
            alarm.cancel()

    def _around(self, statement: str, shape: Shape | None = None, **parts: sql.Composable) -> sql.Composed:
        """``statement`` with the query in brackets; a comment at its end ends there."""
        kind = shape.kind if shape is not None else "integer"
        column = sql.Identifier(self._source.cursor)
        low = sql.SQL("$1::{}").format(sql.SQL(_type(kind)))
        finite = sql.SQL("{c} > {low}" if kind == "integer" else "{c} >= {low} AND {c} < {high}").format(
            c=column, low=low, high=sql.SQL(f"'{_LAST}'::{_type(kind)}")
        )
        micros = sql.SQL("{}::bigint" if kind == "integer" else "(extract(epoch FROM {}) * 1000000)::bigint")
        return sql.SQL(statement).format(
            query=sql.SQL("(\n{}\n) AS source").format(sql.SQL(self._source.query)),
            cursor=column,
            value=micros.format(column),
            key=self._key(),
            finite=finite,
            p2=sql.SQL(f"$2::{_type(kind)}"),
            p3=sql.SQL(f"$3::{_type(kind)}"),
            **parts,
        )

    def _key(self) -> sql.Composable:
        """The key as one text; null if one of its columns is."""
        columns = [sql.Identifier(name) for name in self._source.key]
        if len(columns) == 1:
            return sql.SQL("{}::text").format(columns[0])
        null = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(column) for column in columns)
        values = sql.SQL(", ").join(columns)
        return sql.SQL("CASE WHEN {} THEN NULL ELSE json_build_array({})::text END").format(null, values)

    def _value_of(self, column: Column) -> sql.Composable:
        name = sql.Identifier(column.name)
        return sql.SQL("{}::text" if is_plain(column.oid) else "to_json({})::text").format(name)

    @contextlib.contextmanager
    def _told(self) -> Any:
        """Turn whatever goes wrong with the database into a SourceError without a secret in it."""
        try:
            yield
        except (psycopg.Error, OSError, TimeoutError, UnicodeError, ValueError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            for secret in _secrets(self._url):
                text = text.replace(secret, "***")
            raise SourceError(f"{text:.500}") from None


def _type(kind: str) -> str:
    return "bigint" if kind == "integer" else kind


def _least(kind: str) -> str:
    return str(_LEAST) if kind == "integer" else _FIRST


def _text(cursor: int, kind: str) -> str:
    """A cursor value as PostgreSQL reads it."""
    if kind == "integer":
        return str(cursor)
    shown = moment_of(cursor, None).replace(tzinfo=None).isoformat(" ")
    return f"{shown}+00" if kind == "timestamptz" else shown


def _secrets(url: str) -> list[str]:
    """What is secret in a URL, in both spellings."""
    try:
        parts = urlsplit(url)
        found = [parts.password or "", *parse_qs(parts.query).get("password", [])]
    except ValueError:
        return [url]
    return sorted({spelling for text in found if text for spelling in (text, unquote(text))} | {url}, key=len)[::-1]


def _hang_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """Shut the socket: whoever waits for a reply then sees the end of the connection (see ``recorder.py``)."""
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
