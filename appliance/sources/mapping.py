"""From a row to its event."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from appliance.errors import Malformed
from appliance.events import Event, from_cloudevent
from appliance.identifiers import key_uuid
from appliance.sources.definition import Source
from appliance.sources.values import Values, moment_of, time_text
from appliance.templating import TemplateError
from appliance.workflows import wallclock


class Column(NamedTuple):
    """A column of the result: its name, and its type's OID."""

    name: str
    oid: int


class Row(NamedTuple):
    """A row as it was read. ``values`` are texts of PostgreSQL, None for null, and missing in a row that is too large.

    ``cursor`` counts microseconds since 1970 or is the whole number; ``key`` is null where one of its columns is.
    """

    cursor: int
    key: str | None
    size: int
    values: tuple[str | None, ...]


class Mapper:
    """Makes events of the rows of one source. ``kind`` is that of the cursor: timestamptz, timestamp or integer."""

    def __init__(self, source: Source, columns: Sequence[Column], kind: str, max_bytes: int) -> None:
        zone = wallclock.zone(source.timezone)
        self._source = source
        self._columns = columns
        self._kind = kind
        self._max_bytes = max_bytes
        self._zone = zone if kind == "timestamp" else None
        self._values = Values(zone, decimals_as_text=source.decimals == "text")

    def event(self, row: Row) -> Event:
        """The row's event; raises Malformed with the reason why it can't be one."""
        if row.key is None:
            raise Malformed("its key is null")
        if row.size > self._max_bytes:
            raise Malformed(f"the row has {row.size} bytes, more than {self._max_bytes} (ingest.max_event_bytes)")
        try:
            mapped = self._source.event.render({"row": self._data(row)})
        except TemplateError as error:
            raise Malformed(str(error)) from None
        document = {
            **mapped["attributes"],
            "source": f"source:{self._source.name}",
            "id": row.key,
            "type": _text(mapped["type"]),
            "subject": _text(mapped["subject"]),
            "time": mapped["time"] if mapped["time"] is not None else self._time(row),
            "data": mapped["data"],
        }
        return from_cloudevent(document, key=event_key(self._source.name, row.key))

    def _data(self, row: Row) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for column, text in zip(self._columns, row.values, strict=True):
            try:
                data[column.name] = None if text is None else self._values.read(column.oid, text)
            except (ValueError, OverflowError) as error:
                raise Malformed(f"column {column.name}: {error}") from None
        return data

    def _time(self, row: Row) -> str:
        if self._kind == "integer":
            return time_text(datetime.now(UTC))
        try:
            return time_text(moment_of(row.cursor, self._zone))
        except OverflowError:
            raise Malformed("its cursor is no time between the years 1 and 9999") from None


def event_key(source: str, row_key: str | None) -> str:
    """What all events of one row share: their key."""
    return key_uuid("source", source, row_key or "")


def _text(value: Any) -> Any:
    """Numbers and booleans are texts in a type or subject; what else is none is refused later."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value
