"""Runs of one ``ordering_key`` begin in the order of their entries, whichever replicas have those in hand.

The gatekeeper orders what has come to it. This keeps an entry from going there while an earlier one of the same key may
not have been: one that is worked on here is waited for; of those that others have, or nobody, the stream and its group
tell. An earlier entry is no obstacle once its run is recorded (it then stands in the queue before the later one), once
it is settled, or if it leads to no such run.

For the executor, with every entry of an event::

    order.enter(entry)                              # at once when it is taken up, nothing awaited before
    try:
        ...                                         # decode, claim, look up, match
        if not await order.may_pass(entry, {ordering digest: run id, ...}):     # of the runs that are not recorded yet
            return Later(patience)
        ...                                         # the gatekeeper
        order.passed(entry)                         # all gates of the event are passed, or it has no ordered run
        ...                                         # drive
    finally:
        order.left(entry)

Internal work is not entered. While ``needed`` is false nothing has to be called.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from appliance.batching import Batcher
from appliance.errors import Malformed, NotFound, StreamUnavailable
from appliance.events import FIELD_WORK, PRIORITIES, Event, decode_entry
from appliance.identifiers import run_id_for
from appliance.rules.matcher import Matcher
from appliance.stream.entry import Entry
from appliance.stream.keys import Keys
from appliance.stream.precedence import PAGE, Precedence, Rank, Unsettled, rank_of
from appliance.workflows.flow_control import key_of
from appliance.workflows.revision import Revision

ORDERING = "ordering"
_LIMIT = 500
_REMEMBERED = 20_000
"""Entries of which is remembered what they lead to, and entries that are remembered to be no obstacle."""
_MANY = 200
"""Unsettled earlier entries from which on all of them are looked up, so that the next look begins behind them."""
_FIRST = b"0-0"


class Definitions(Protocol):
    """What this needs of the catalog."""

    @property
    def matcher(self) -> Matcher:
        """The rules in force; another object when they change."""
        ...

    def current(self, name: str) -> Revision:
        """The revision in force of a workflow, disabled or not; NotFound."""
        ...


class Recorded(Protocol):
    """What this needs of the runs that stand recorded."""

    async def recorded(self, run_ids: list[str]) -> set[str]:
        """Those of these runs that have a row; StoreUnavailable."""
        ...


class _Wish(NamedTuple):
    """An entry that wants to pass with runs of these keys."""

    entry_id: bytes
    rank: Rank
    keys: frozenset[str]


class Order:
    """One per process."""

    def __init__(self, definitions: Definitions, runs: Recorded, unsettled: Unsettled, keys: Keys) -> None:
        self._definitions = definitions
        self._here = Precedence()
        self._needed = False
        self._matcher: Matcher | None = None
        self._streams = {
            priority: _Stream(priority, definitions, runs, unsettled, keys.stream(priority)) for priority in PRIORITIES
        }
        self._asking: dict[str, Batcher[_Wish, bool]] = {
            priority: Batcher(stream.ahead, limit=_LIMIT, name=f"order {priority}")
            for priority, stream in self._streams.items()
        }

    @property
    def needed(self) -> bool:
        """Whether a workflow in force keeps an order."""
        if self._matcher is not self._definitions.matcher:
            self._matcher = self._definitions.matcher
            self._needed = any(_is_ordered(rule.payload) for rule in self._matcher.rules)
        return self._needed

    def enter(self, entry: Entry) -> None:
        """The replica takes an entry up."""
        self._here.enter(entry)

    async def may_pass(self, entry: Entry, runs: Mapping[str, str]) -> bool:
        """Whether an entry may go to the gatekeeper with these runs (by digest of their ordering key).

        Waits for earlier entries that are worked on here. False: an earlier one is elsewhere, or nobody can tell at the
        moment; to be asked again later. Raises StoreUnavailable.
        """
        entered = entry in self._here
        self._here.know(entry, runs)
        try:
            return not runs or await self._is_next(entry, runs)
        except StreamUnavailable:
            return False
        finally:
            if not entered:  # internal work, or the rules have just changed: nobody will say that it has left
                self._here.leave(entry)

    async def _is_next(self, entry: Entry, runs: Mapping[str, str]) -> bool:
        self._streams[entry.priority].note(entry.id, runs)
        await self._here.clear(entry)
        wish = _Wish(entry.id, rank_of(entry.id), frozenset(runs))
        return not await self._asking[entry.priority].submit(wish)

    def passed(self, entry: Entry) -> None:
        """All ordered runs that an entry leads to are recorded, or there are none. Nothing for one not entered."""
        if entry in self._here:
            self._streams[entry.priority].clear(entry.id)
            self._here.leave(entry)

    def left(self, entry: Entry) -> None:
        """An entry is not in hand any more, whether it has passed or not; again does nothing."""
        self._here.leave(entry)


class _Stream:
    """What is known of the unsettled entries of one stream."""

    def __init__(
        self, priority: str, definitions: Definitions, runs: Recorded, unsettled: Unsettled, name: str
    ) -> None:
        self._priority = priority
        self._definitions = definitions
        self._runs = runs
        self._unsettled = unsettled
        self._name = name
        self._matcher: Matcher | None = None
        self._floor = _FIRST
        """No entry up to here is an obstacle: nothing that is unsettled can appear below what was handed out."""
        self._clear: OrderedDict[bytes, None] = OrderedDict()
        self._known: OrderedDict[bytes, Mapping[str, str]] = OrderedDict()

    def note(self, entry_id: bytes, runs: Mapping[str, str]) -> None:
        """What an entry leads to: by digest of the ordering key, the run."""
        self._look_anew()
        self._known[entry_id] = runs
        _bound(self._known)

    def clear(self, entry_id: bytes) -> None:
        """An entry is no obstacle."""
        self._clear[entry_id] = None
        self._known.pop(entry_id, None)
        _bound(self._clear)

    async def ahead(self, wishes: Sequence[_Wish]) -> list[bool]:
        """For each, whether an earlier entry of one of its keys may not have been at the gate yet."""
        self._look_anew()
        before, after, rising = max(wishes, key=lambda wish: wish.rank).entry_id, self._floor, True
        matcher = self._matcher
        first: dict[str, Rank] = {}
        while True:
            page = await self._unsettled.page(self._priority, after, before)
            runs_of = await self._runs_of([entry_id for entry_id in page if entry_id not in self._clear])
            for rank, key in await self._unrecorded(runs_of, wishes):
                first[key] = min(rank, first.get(key, rank))
            rising = rising and self._matcher is matcher and self._rise(page)
            if len(page) < PAGE:
                return [any(first.get(key, wish.rank) < wish.rank for key in wish.keys) for wish in wishes]
            after = page[-1]

    def _look_anew(self) -> None:
        """Other rules make other runs of the same entries."""
        if self._matcher is not self._definitions.matcher:
            self._matcher = self._definitions.matcher
            self._floor = _FIRST
            self._clear.clear()
            self._known.clear()

    async def _runs_of(self, ids: Sequence[bytes]) -> dict[bytes, Mapping[str, str]]:
        """What entries lead to. Those that lead to no ordered run are cleared, and left out."""
        found = {entry_id: self._known[entry_id] for entry_id in ids if entry_id in self._known}
        missing = [entry_id for entry_id in ids if entry_id not in found]
        for entry_id, fields in zip(missing, await self._unsettled.contents(self._priority, missing), strict=True):
            if fields is not None and (runs := self._led_to(entry_id, fields)):
                found[entry_id] = runs
                self.note(entry_id, runs)
            else:
                self.clear(entry_id)
        return found

    async def _unrecorded(
        self, runs_of: Mapping[bytes, Mapping[str, str]], wishes: Sequence[_Wish]
    ) -> list[tuple[Rank, str]]:
        """(rank, key) of the runs that are not recorded; those that are in nobody's way may be missing."""
        last: dict[str, Rank] = {}
        for wish in wishes:
            for key in wish.keys:
                last[key] = max(wish.rank, last.get(key, wish.rank))
        asked = [(rank_of(entry_id), key, run) for entry_id, runs in runs_of.items() for key, run in runs.items()]
        if len(runs_of) < _MANY:
            asked = [(rank, key, run) for rank, key, run in asked if key in last and rank < last[key]]
        if not asked:
            return []
        recorded = await self._runs.recorded([run for _, _, run in asked])
        for entry_id, runs in runs_of.items():
            if recorded.issuperset(runs.values()):
                self.clear(entry_id)
        return [(rank, key) for rank, key, run in asked if run not in recorded]

    def _rise(self, page: Sequence[bytes]) -> bool:
        """Whether the whole page is in nobody's way."""
        for entry_id in page:
            if entry_id not in self._clear:
                return False
            self._floor = entry_id
        return True

    def _led_to(self, entry_id: bytes, fields: Mapping[bytes, bytes]) -> dict[str, str]:
        if FIELD_WORK in fields:
            return {}
        try:
            event = decode_entry(self._name, entry_id, fields)
        except Malformed:
            return {}
        return dict(ordered_runs(event, self._definitions))


def ordered_runs(event: Event, definitions: Definitions) -> Iterator[tuple[str, str]]:
    """For each run that an event leads to and that keeps an order: (digest of its ordering key, run id)."""
    view = event.view()
    revisions = {rule.workflow: rule.payload for rule in definitions.matcher.match(view)}
    if event.start is not None and event.start[0] not in revisions:
        with contextlib.suppress(NotFound):
            revisions[event.start[0]] = definitions.current(event.start[0])
    for name, revision in revisions.items():
        if _is_ordered(revision):
            slots = next(slots for slots in revision.workflow.control.slots if slots.part == ORDERING)
            key = key_of(revision.workflow_id, ORDERING, slots.key, {"event": view, "input": event.data})
            yield key.digest, run_id_for(event.uid, name)


def _is_ordered(revision: Revision) -> bool:
    control = revision.workflow.control
    return control is not None and bool(control.ordered)


def _bound(remembered: OrderedDict[bytes, Any]) -> None:
    while len(remembered) > _REMEMBERED:
        remembered.popitem(last=False)
