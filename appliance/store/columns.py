"""Columns of rows as PostgreSQL's binary arrays.

psycopg's own list dumper looks at every element twice and costs 0.25 µs for each; the recorder writes some 36 elements
an event. These two write the same bytes (the array format of PostgreSQL's ``array_send``) in half the time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain
from typing import Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEAD = struct.Struct("!iiIii")  # dimensions, has nulls, element type, length, lower bound
_LENGTH = struct.Struct("!i").pack
_NULL = _LENGTH(-1)
_TEXT, _TEXT_ARRAY = 25, 1009
_FLOAT8, _FLOAT8_ARRAY = 701, 1022
_FLOAT8_ELEMENT = struct.Struct("!id").pack


class TextColumn(list[str | None]):
    """A column of texts and nulls: sent as ``text[]``."""


class FloatColumn(list[float | None]):
    """A column of floats and nulls: sent as ``float8[]``."""


class _TextColumnDumper(Dumper):
    format = Format.BINARY
    oid = _TEXT_ARRAY

    def dump(self, obj: Any) -> bytes:
        texts = obj if None not in obj else [text for text in obj if text is not None]
        if "\0" in "".join(texts):
            raise psycopg.DataError("a text holds NUL (0x00), which PostgreSQL can't store")
        raws = [text.encode() for text in texts]
        pairs: Iterable[tuple[bytes, bytes]] = zip(map(_LENGTH, map(len, raws)), raws, strict=True)
        if len(texts) < len(obj):
            present = iter(pairs)
            pairs = [(_NULL, b"") if text is None else next(present) for text in obj]
        return _HEAD.pack(1, 1, _TEXT, len(obj), 1) + b"".join(chain.from_iterable(pairs))


class _FloatColumnDumper(Dumper):
    format = Format.BINARY
    oid = _FLOAT8_ARRAY

    def dump(self, obj: Any) -> bytes:
        parts = [_HEAD.pack(1, 1, _FLOAT8, len(obj), 1)]
        parts += [_NULL if number is None else _FLOAT8_ELEMENT(8, number) for number in obj]
        return b"".join(parts)


def register(connection: psycopg.AsyncConnection[Any]) -> None:
    """Teach a connection these two."""
    connection.adapters.register_dumper(TextColumn, _TextColumnDumper)
    connection.adapters.register_dumper(FloatColumn, _FloatColumnDumper)


def column(values: tuple[Any, ...]) -> list[Any]:
    """The column of these values that is sent fastest; integers are psycopg's."""
    for value in values:
        if value is None:
            continue
        if isinstance(value, str):
            return TextColumn(values)
        if isinstance(value, float):
            return FloatColumn(values)
        return list(values)
    return TextColumn(values)  # nothing but nulls
