"""Polling sources as people see them: how each is, which rows were refused, what the next look would give."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from appliance.engine.scan import Scan
from appliance.errors import Malformed, NotFound
from appliance.events import format_time
from appliance.identifiers import is_uuid
from appliance.settings import Settings, format_duration, parse_duration
from appliance.sources.definition import Source, SourceError
from appliance.sources.folder import SourceFolder
from appliance.sources.values import moment_of, time_text
from appliance.store.foreign import Reader
from appliance.store.history import Page
from appliance.store.sources import Claim, SourceState, SourceStore

MAX_PREVIEW = 100
"""Most events that a preview shows."""
_PAGES = 20
_LATEST = (datetime.max.replace(tzinfo=UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff")


class Inlets:
    """Reads; raises StoreUnavailable when our PostgreSQL is away, NotFound for a source that no file defines."""

    def __init__(
        self, folder: SourceFolder, store: SourceStore, settings: Settings, secrets: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._store = store
        self._settings = settings
        self._secrets = secrets

    async def list_sources(self) -> list[dict[str, Any]]:
        """All sources by name, disabled ones too, and behind them the files that are refused.

        ``state`` is ok, failing, new (not read yet), off, or refused (then ``name`` is the file's).
        """
        names = sorted(self._folder.sources)
        states = {state.name: state for state in await self._store.states(names)} if names else {}
        items = [_item(self._folder.sources[name], states.get(name)) for name in names]
        broken = sorted(self._folder.broken.items())
        return items + [{"name": file, "state": "refused", "error": str(error)} for file, error in broken]

    async def refused(self, name: str, *, cursor: str | None = None, limit: int = 50) -> Page:
        """Rows that can't be an event, the latest first: ``key, cursor, error, at``. Raises Malformed for a cursor."""
        self._source(name)
        states = await self._store.states([name])
        basis = states[0].basis if states else None
        rows = await self._store.refusals(name, _place(cursor) if cursor is not None else _LATEST, limit + 1)
        items = [
            {"key": row[0], "cursor": _shown(basis, row[1]), "error": row[2], "at": format_time(row[3])}
            for row in rows[:limit]
        ]
        last = rows[limit - 1] if len(rows) > limit else None
        return Page(items, f"{last[3].astimezone(UTC).isoformat()}/{last[4]}" if last is not None else None)

    async def preview(self, name: str, limit: int) -> dict[str, Any]:
        """What the next look would give, without moving anything: at most ``limit`` events.

        ``events`` are CloudEvents, ``refused`` rows that can't be one, ``known`` how many rows were passed over because
        they have an event already. ``error`` says why the source can't be read; then the rest is empty.
        """
        source = self._source(name)
        found: dict[str, Any] = {"name": name, "error": None, "columns": [], "events": [], "refused": [], "known": 0}
        try:
            await self._peek(source, limit, found)
        except SourceError as error:
            found["error"] = str(error)
        return found

    async def _peek(self, source: Source, limit: int, found: dict[str, Any]) -> None:
        claim = await self._store.one(source.name) or _new(source.name)
        async with Reader(source, source.url(self._secrets), self._settings.sources) as reader:
            shape = await reader.shape()
            found["columns"] = [column.name for column in shape.columns]
            scan = Scan(source, reader, shape, self._settings, lambda: claim.now_s)
            claim = await scan.peek(claim)
            for _ in range(_PAGES):
                step = await scan.step(claim, self._store)
                keys = [event.key for event in step.events if event.key is not None]
                known = await self._store.known(keys)
                new = [event for event in step.events if event.key not in known]
                found["known"] += len(known)
                found["events"] += [event.to_cloudevent() for event in new[: limit - len(found["events"])]]
                found["refused"] += [
                    {"key": refusal.row_key, "error": refusal.error}
                    for refusal in step.refused[: limit - len(found["refused"])]
                ]
                claim = step.after
                if not claim.scanning or len(found["events"]) >= limit:
                    return

    def _source(self, name: str) -> Source:
        if name not in self._folder.sources:
            raise NotFound(f"there is no source {name!r}")
        return self._folder.sources[name]


async def try_out(source: Source, secrets: Mapping[str, str], settings: Settings) -> None:
    """Connect and look at the query's columns; raises SourceError."""
    async with Reader(source, source.url(secrets), settings.sources) as reader:
        await reader.shape()


async def try_all(sources: Sequence[Source], secrets: Mapping[str, str], settings: Settings) -> list[str | None]:
    """What is wrong with each, or None."""
    results = await asyncio.gather(*(try_out(s, secrets, settings) for s in sources), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, SourceError):
            raise result
    return [str(result) if result is not None else None for result in results]


def _item(source: Source, state: SourceState | None) -> dict[str, Any]:
    item: dict[str, Any] = {
        "name": source.name,
        "state": "off" if not source.enabled else "new",
        "every": format_duration(parse_duration(source.every_s)),
        "lag": format_duration(parse_duration(source.lag_s)),
        "cursor": None,
    }
    if state is None:
        return item
    if source.enabled and (state.polled_at is not None or state.failures):
        item["state"] = "failing" if state.failures else "ok"
    times = {"polled_at": state.polled_at, "due_at": state.due_at, "error_at": state.error_at}
    counts = ("events", "repeats", "refused", "late", "missed", "failures")
    return {
        **item,
        "cursor": _shown(state.basis, state.newest if state.newest is not None else state.floor),
        "floor": _shown(state.basis, state.floor),
        "scanning": state.scanning,
        **{name: format_time(when) if when is not None else None for name, when in times.items()},
        **{name: getattr(state, name) for name in counts},
        "refusals": state.refusals,
        "held_by": state.held_by if state.held else None,
        "error": state.error,
    }


def _shown(basis: str | None, cursor: int | None) -> str | None:
    """A cursor value as people read it."""
    if basis is None or cursor is None:
        return None
    if basis.endswith(" integer"):
        return str(cursor)
    try:
        text = time_text(moment_of(cursor, None))
    except OverflowError:
        return str(cursor)
    return text if basis.endswith(" timestamptz") else text.removesuffix("Z")


def _place(cursor: str) -> tuple[datetime, str]:
    at, _, key = cursor.partition("/")
    try:
        when = datetime.fromisoformat(at)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None or not is_uuid(key):
        raise Malformed("cursor: not one that a page gave", code="cursor")
    return when, key


def _new(name: str) -> Claim:
    """A source that nobody has taken notice of yet."""
    return Claim(name, "", None, 0, None, None, None, None, None, False, [], {}, 0, datetime.now(UTC).timestamp())
