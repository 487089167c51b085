"""What must hold of flow control at rest, from what the sink saw and what the rows say; in words, what doesn't."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tests.chaos.gauge import Attempt, Gauge, at_once, counted
from tests.chaos.shapes import BATCH, MOST, MOST_OF_KEY, ORDERED, PACE, RATE
from tests.chaos.tables import Tables
from tests.servers import wait_until

_Rows = list[tuple[Any, ...]]
_EMPTY_S = 20.0
"""Longer than it takes a sweep to come round."""


async def nobody_waits(tables: Tables) -> None:
    """Wait until no row holds a run up, or is kept for one."""

    async def empty() -> bool:
        return await tables.rows(
            "SELECT (SELECT count(*) FROM queue), (SELECT count(*) FROM places), (SELECT count(*) FROM timers)"
        ) == [(0, 0, 0)]

    await wait_until(empty, "queue, places and timers to be empty", _EMPTY_S)


async def broken(tables: Tables, gauge: Gauge, frozen: Mapping[int, float]) -> list[str]:
    """Every invariant that is broken, with an example."""
    over = dict(
        await tables.rows(
            "SELECT id::text, extract(epoch FROM finished_at)::float8 FROM runs WHERE status = 'cancelled'"
        )
    )
    attempts = counted(gauge.attempts, over, frozen)
    return [
        *_limits(attempts),
        *await _order(tables, attempts),
        *await _one_run(tables),
        *await _left_out(tables),
        *await _rates(tables),
        *await _batches(tables),
        *await _last_ones(tables),
        *await _pace(tables, attempts),
    ]


def _limits(attempts: Iterable[Attempt]) -> Iterable[str]:
    of: dict[tuple[str, str | None], list[Attempt]] = defaultdict(list)
    for each in attempts:
        of[each.workflow, None].append(each)
        of[each.workflow, each.key].append(each)
    for (workflow, key), theirs in of.items():
        limit = MOST.get(workflow) if key is None else MOST_OF_KEY.get(workflow)
        if limit is not None and len(most := at_once(theirs)) > limit:
            yield f"{len(most)} runs of {workflow} at work at once, key {key}, limit {limit}: {most}"


async def _order(tables: Tables, attempts: Iterable[Attempt]) -> list[str]:
    """An event that was put back into the stream has another place in it: its run may have begun before."""
    first: dict[str, float] = {}
    for each in attempts:
        first[each.run] = min(each.begun, first.get(each.run, each.begun))
    rows = await tables.rows(
        "SELECT w.name, e.data ->> 'key', r.id::text, split_part(e.entry_id, '-', 1)::int8, "
        "split_part(e.entry_id, '-', 2)::int8 FROM runs r JOIN workflows w ON w.id = r.workflow_id "
        "JOIN events e ON e.uid = r.event_uid WHERE e.counted IS NULL ORDER BY 4, 5"
    )
    found, latest = [], dict[tuple[str, str], tuple[float, str]]()
    for name, key, run, *_ in rows:
        if name in ORDERED and run in first:
            before, other = latest.get((name, key), (0.0, ""))
            if first[run] < before:
                found.append(f"{name}, key {key}: run {run} began {before - first[run]:.3f} s before {other}")
            latest[name, key] = max((before, other), (first[run], run))
    return found[:5]


async def _one_run(tables: Tables) -> list[str]:
    """Each event has a run of its own, which may be that of a batch, or is in the batch of another."""
    rows = await tables.rows(
        "WITH members AS (SELECT b.event_uid, r.event_uid AS first_uid FROM batched b JOIN runs r ON r.id = b.run_id) "
        "SELECT e.uid::text, substr(e.type, 6), "
        "(SELECT count(*) FROM runs r JOIN workflows w ON w.id = r.workflow_id "
        " WHERE r.event_uid = e.uid AND r.origin IS NULL AND 'flow.' || w.name = e.type), "
        "(SELECT count(*) FROM members m WHERE m.event_uid = e.uid AND m.event_uid = m.first_uid), "
        "(SELECT count(*) FROM members m WHERE m.event_uid = e.uid AND m.event_uid <> m.first_uid) "
        "FROM events e WHERE e.type LIKE 'flow.%'"
    )
    found = []
    alone, first, member = (1, 0, 0), (1, 1, 0), (0, 0, 1)
    fine = {"lots": (first, member), "adopting": (alone, first, member)}
    for uid, kind, *numbers in rows:
        if tuple(numbers) not in fine.get(kind, (alone,)):
            found.append(f"event {uid} of {kind} has (runs, own batches, others' batches) {numbers}")
    return found[:5]


async def _left_out(tables: Tables) -> list[str]:
    rows = await tables.rows(
        "SELECT w.name, r.result ->> 'outcome', count(*), bool_and(coalesce(r.error, '') <> '') "
        "FROM runs r JOIN workflows w ON w.id = r.workflow_id "
        "WHERE r.status = 'cancelled' AND r.result ->> 'outcome' IS NOT NULL GROUP BY 1, 2"
    )
    found = [f"a run of {name} that was {outcome} doesn't say why" for name, outcome, _, said in rows if not said]
    left = {(name, outcome): number for name, outcome, number, _ in rows}
    told = {
        (name, reason): number
        for name, reason, number in await tables.rows(
            "SELECT w.name, reason, count FROM skipped s JOIN workflows w ON w.id = s.workflow_id"
        )
    }
    if left != told:
        found.append(
            f"left out: {set(left.items()) - set(told.items())}, counted: {set(told.items()) - set(left.items())}"
        )
    return found


async def _rates(tables: Tables) -> list[str]:
    rows = await tables.rows(
        "SELECT e.data ->> 'lot', count(*), count(*) FILTER (WHERE r.result ->> 'outcome' = 'rate_limited') "
        "FROM runs r JOIN workflows w ON w.id = r.workflow_id JOIN events e ON e.uid = r.event_uid "
        "WHERE w.name = 'rated' GROUP BY 1"
    )
    return [
        f"of {number} events of {lot} {number - left} have begun, not {min(RATE, number)}"
        for lot, number, left in rows
        if number - left != min(RATE, number)
    ][:5]


async def _batches(tables: Tables) -> list[str]:
    rows = await tables.rows(
        "SELECT r.id::text, r.status::text, r.result -> 'output' -> 'all', "
        "(SELECT array_agg(e.id ORDER BY b.position) FROM batched b JOIN events e ON e.uid = b.event_uid "
        " WHERE b.run_id = r.id), (SELECT id FROM events WHERE uid = r.event_uid) "
        "FROM runs r JOIN workflows w ON w.id = r.workflow_id WHERE w.name = 'lots'"
    )
    found = []
    for run, status, seen, events, own in rows:
        if own not in (events or ()) or len(events) > BATCH:
            found.append(f"the batch {run} of {own} has {events}")
        elif status == "succeeded" and seen != events:
            found.append(f"the batch {run} saw {seen}, not {events}")
    return found[:5]


async def _last_ones(tables: Tables) -> list[str]:
    """The last event of each key isn't left out by ``debounce``."""
    rows = await tables.rows(
        "SELECT DISTINCT ON (e.data ->> 'key') r.id::text, e.data ->> 'key', r.result ->> 'outcome' "
        "FROM runs r JOIN workflows w ON w.id = r.workflow_id JOIN events e ON e.uid = r.event_uid "
        "WHERE w.name = 'calm' AND e.counted IS NULL ORDER BY e.data ->> 'key', "
        "split_part(e.entry_id, '-', 1)::int8 DESC, split_part(e.entry_id, '-', 2)::int8 DESC"
    )
    return [f"the last event of {key} was left out: run {run}" for run, key, outcome in rows if outcome == "debounced"]


async def _pace(tables: Tables, attempts: Iterable[Attempt]) -> list[str]:
    """No run begins before the ones before it can have had their turns."""
    ((since,),) = await tables.rows(
        "SELECT min(extract(epoch FROM r.started_at)::float8) FROM runs r JOIN workflows w ON w.id = r.workflow_id "
        "WHERE w.name = 'paced'"
    )
    first: dict[str, dict[str, float]] = defaultdict(dict)
    for each in attempts:
        if each.workflow == "paced":
            first[each.key][each.run] = min(each.begun, first[each.key].get(each.run, each.begun))
    found = []
    for key, runs in first.items():
        early = [
            number for number, at in enumerate(sorted(runs.values())) if at < since + (number + 1 - PACE) / PACE - 0.1
        ]
        if early:
            found.append(f"{len(early)} runs of {key} began before their turns")
    return found


async def summary(tables: Tables) -> str:
    """How many runs were left out, by reason."""
    rows = await tables.rows("SELECT reason, sum(count)::int8 FROM skipped GROUP BY 1 ORDER BY 1")
    return ", ".join(f"{number} {reason}" for reason, number in Counter(dict(rows)).items())
