"""What is asked about runs that arrive, and what is written of the decisions about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from appliance.engine.gates import PLACES, Arrival, Decision, Decisions, Go, Gone, Leave, Wait, decide
from appliance.engine.state import CANCELLED, TIMER, WAITING
from appliance.events import dumps, loads
from appliance.store.gates import Asked, Found, Writing
from appliance.store.rows import EventRow, OutcomeRow, RunRow, TimerRow
from appliance.stream.entry import HANDLED
from appliance.workflows.flow_control import LANE

_METERED = ("rate_limit", "throttle", "debounce", "batch")
_AHEAD, _ALL = 2, 1000
"""How many of those who wait in a lane are looked up: to see who comes first, and for a singleton."""
_GOES_ON: dict[str, Any] = {"stage": PLACES}
_PARKED = dumps({"by": TIMER}).decode()


class Request(NamedTuple):
    """A run that asks whether it may go on."""

    arrival: Arrival
    run: RunRow | None
    """As it is inserted if it goes on (``running``, version 1, state ``{"by": null}``); None: it is there already."""
    event: EventRow | None
    """To be inserted if it isn't there, without an outcome; None: it stands recorded."""
    sole: bool
    """Nothing else is done for this event: where the decision is not Go, its outcome is ``handled``."""
    valid: Callable[[], bool]
    """Whether the entry's lease is still ours; asked right before each try."""


class Ruling(NamedTuple):
    """Decisions by run, and what is to be written. ``leaves`` and ``held``: how many new ones, by outcome and part."""

    made: Mapping[str, Decision]
    writing: Writing
    leaves: Counter[str]
    held: Counter[str]


def asked_of(requests: Iterable[Request]) -> Asked:
    """What has to be known to decide."""
    asked = Asked()
    for request in requests:
        arrival, control = request.arrival, request.arrival.control
        asked.runs.append(arrival.run_id)
        if request.run is None:
            asked.woken.append(arrival.run_id)
        asked.meters.update(arrival.keys[part].digest for part in _METERED if part in arrival.keys)
        for slots in control.slots:
            digest = arrival.keys[slots.part].digest
            asked.places[digest] = max(slots.limit + 1, asked.places.get(digest, 0))
        if control.slots:
            most = _ALL if control.singleton is not None else _AHEAD
            asked.lanes[arrival.keys[LANE].digest] = (arrival.workflow_id, most)
        if control.batch is not None and request.run is not None:
            asked.joined.append((arrival.event_uid, arrival.workflow_id))
    return asked


def rule(requests: Sequence[Request], found: Found, now: float) -> Ruling:
    """Decide about ``requests``, for which ``found`` stands recorded."""
    runs = found.floor.runs
    for request in requests:
        arrival = request.arrival
        if arrival.woken and found.holders.get(arrival.run_id) not in (None, TIMER):
            # Another entry has it in hand: fencing tells the two apart.
            runs[arrival.run_id] = runs[arrival.run_id]._replace(held=False)
    stood = frozenset(found.holders)
    there = [request for request in requests if request.run is not None or request.arrival.run_id in stood]
    decisions = decide([request.arrival for request in there], found.floor, now)
    ruling = Ruling(decisions.made, Writing(), Counter(), Counter())
    for run_id, request in {request.arrival.run_id: request for request in there}.items():
        if run_id in stood:
            _rule_standing(ruling, request, decisions, found.flows[run_id], now)
        elif request.run is not None:
            _rule_fresh(ruling, request.arrival, request.run, decisions.made[run_id], now)
    _put_events(ruling, requests)
    _put_rest(ruling.writing, decisions, now)
    return ruling


def _rule_fresh(ruling: Ruling, arrival: Arrival, row: RunRow, decision: Decision, now: float) -> None:
    """A run that isn't there yet."""
    writing = ruling.writing
    if isinstance(decision, Go):
        writing.runs.append(row._replace(details=_with_flow(row.details, _GOES_ON)))
    elif isinstance(decision, Wait):
        details = _with_flow(row.details, _flow(decision))
        writing.runs.append(row._replace(status=WAITING, state=_PARKED, details=details))
        _put_timer(ruling, arrival, decision)
    elif isinstance(decision, Leave):
        result = dumps({"outcome": decision.outcome, "output": None}).decode()
        left = row._replace(status=CANCELLED, finished_at=now, updated_at=now, error=decision.error, result=result)
        writing.runs.append(left)
        ruling.leaves[decision.outcome] += 1
        writing.put_skipped.append((arrival.workflow_id, decision.outcome, 1))


def _rule_standing(ruling: Ruling, request: Request, decisions: Decisions, flow: str | None, now: float) -> None:
    """A run that is there."""
    writing, run_id = ruling.writing, request.arrival.run_id
    decision = decisions.made[run_id]
    if isinstance(decision, Go | Wait):
        noted = _GOES_ON if isinstance(decision, Go) else _flow(decision)
        if flow is None or loads(flow.encode()) != noted:
            writing.note_flow.append((run_id, dumps(noted).decode(), isinstance(decision, Wait)))
        if run_id not in decisions.queue:
            writing.no_queue.append(run_id)
    if isinstance(decision, Wait):
        _put_timer(ruling, request.arrival, decision)
        if request.arrival.returns:
            writing.park.append(run_id)
    elif isinstance(decision, Leave):
        _put_leave(writing, run_id, decision, now)


def _put_leave(writing: Writing, run_id: str, leave: Leave, now: float) -> None:
    """A run that is held ends; one that a step called does so itself, so that its caller hears of it."""
    writing.leave.append((run_id, leave.outcome, leave.error, now))
    writing.cancel.append((run_id, True))


def _put_timer(ruling: Ruling, arrival: Arrival, wait: Wait) -> None:
    ruling.held[wait.part.partition(".")[0]] += 1
    if wait.due_at is not None:
        ruling.writing.timers.append(TimerRow(arrival.run_id, "", wait.due_at, arrival.priority))


def _put_events(ruling: Ruling, requests: Iterable[Request]) -> None:
    rows: dict[str, EventRow] = {}
    for request in requests:
        over = request.sole and not isinstance(ruling.made.get(request.arrival.run_id, Gone()), Go)
        if request.event is not None:
            row = request.event._replace(outcome=HANDLED if over else None)
            rows[row.uid] = row if over else rows.get(row.uid, row)
        elif over:
            ruling.writing.outcomes.append(OutcomeRow(request.arrival.event_uid, HANDLED))
    ruling.writing.events += rows.values()


def _put_rest(writing: Writing, decisions: Decisions, now: float) -> None:
    writing.put_places += decisions.places
    writing.put_queue += decisions.queue.values()
    writing.wake += decisions.due.items()
    writing.put_batched += decisions.joins
    for run_id, leave in decisions.ended.items():
        _put_leave(writing, run_id, leave, now)
    writing.cancel += [(run_id, False) for run_id in decisions.cancels]
    for digest, meter in decisions.meters.items():
        if meter is None:
            writing.no_meters.append(digest)
        else:
            writing.put_meters.append(meter)
    skipped: Counter[tuple[int, str]] = Counter()
    for workflow_id, reason, number in writing.put_skipped:
        skipped[workflow_id, reason] += number
    writing.put_skipped = [(*at, number) for at, number in skipped.items()]


def _flow(wait: Wait) -> dict[str, Any]:
    return {"stage": wait.stage, "until": wait.due_at, "part": wait.part, "key": wait.key}


def _with_flow(details: str | None, flow: Mapping[str, Any]) -> str:
    return dumps({**(loads(details.encode()) if details else {}), "flow": flow}).decode()
