"""What must hold after every fault, counted from the tables and streams themselves.

Nothing here uses the product's own code for the ledger or for queries: a mistake there must not hide itself. The
numbers are those of the list of invariants in ``docs/internals.md``:

I1 every accepted event reaches an outcome · I2 no entry leaves its stream before its outcome is committed · I3 one run
per (event, workflow), one recorded result per (run, step) · I4 nothing stays pending · I5 repeated effects are bounded
and carry the same key · I6 memory, descriptors and threads return to where they were · I8 no secret leaks. (I7, that
others progress, is for each scenario to check.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from redis.asyncio import Redis

PRIORITIES = ("high", "normal", "low")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Accepted:
    """What the scenario was told is accepted: ids that an answer 202 named, and entries that it added itself."""

    ids: set[str] = field(default_factory=set)
    entries: set[tuple[str, str]] = field(default_factory=set)
    """(priority, entry id) of what was added by XADD."""

    def __len__(self) -> int:
        return len(self.ids) + len(self.entries)


@dataclass(slots=True)
class Findings:
    """The counts, and every violation in words."""

    handled: int = 0
    unmatched: int = 0
    dead: int = 0
    undecided: int = 0
    duplicates: int = 0
    letters: int = 0
    """Entries set aside that never became an event."""
    runs: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def assert_none(self) -> None:
        """AssertionError listing every violation."""
        assert not self.violations, "\n".join([*self.violations, repr(self)])

    def summary(self, accepted: int, faults: int, repeated: int) -> str:
        """The line that every scenario ends with."""
        return f"{accepted} accepted, {faults} faults, {len(self.lost)} lost, {repeated} repeated"


# A person who retries a run gives its step all its attempts again: they are numbered anew.
_RULES: tuple[tuple[str, LiteralString], ...] = (
    (
        "I3: more than one run of a workflow for an event",
        "SELECT event_uid, workflow_id, count(*) FROM runs WHERE origin IS NULL GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    (
        "I3: more than one recorded result of a step",
        "SELECT run_id, key, count(*) FROM steps GROUP BY 1, 2 HAVING count(*) > 1",
    ),
    (
        "I3: an attempt failed after its step had succeeded",
        "SELECT a.run_id, a.key, a.attempt, s.attempt FROM attempts a JOIN steps s USING (run_id, key) "
        "WHERE s.status = 'succeeded' AND (a.attempt >= s.attempt OR a.finished_at > s.finished_at) "
        "AND NOT EXISTS (SELECT FROM audit_log l WHERE l.action = 'run.retry' AND l.subject = a.run_id::text)",
    ),
    (
        "I3: the same attempt failed twice",
        "SELECT a.run_id, a.key, a.attempt, count(*) FROM attempts a WHERE NOT EXISTS "
        "(SELECT FROM audit_log l WHERE l.action = 'run.retry' AND l.subject = a.run_id::text) "
        "GROUP BY 1, 2, 3 HAVING count(*) > 1",
    ),
    (
        "a run without its event",
        "SELECT r.id, r.event_uid FROM runs r LEFT JOIN events e ON e.uid = r.event_uid "
        "WHERE r.origin IS NULL AND e.uid IS NULL",
    ),
    (
        "a step or attempt without its run",
        "SELECT run_id, key FROM (SELECT run_id, key FROM steps UNION ALL SELECT run_id, key FROM attempts) x "
        "LEFT JOIN runs r ON r.id = x.run_id WHERE r.id IS NULL",
    ),
    (
        "a finished run with a step that is not",
        "SELECT r.id, s.key, s.status FROM runs r JOIN steps s ON s.run_id = r.id "
        "WHERE r.status IN ('succeeded', 'failed', 'cancelled') AND s.status IN ('running', 'retrying', 'waiting')",
    ),
    (
        "a finished run that still has a timer",
        "SELECT r.id, t.key FROM runs r JOIN timers t ON t.run_id = r.id "
        "WHERE r.status IN ('succeeded', 'failed', 'cancelled')",
    ),
    (
        "a run that is finished without a time, or has a time without being finished",
        "SELECT id, status, finished_at FROM runs "
        "WHERE (status IN ('succeeded', 'failed', 'cancelled')) <> (finished_at IS NOT NULL)",
    ),
    (
        "a handled event without a run",
        "SELECT e.uid FROM events e LEFT JOIN runs r ON r.event_uid = e.uid "
        "WHERE e.outcome = 'handled' AND r.id IS NULL "
        "AND NOT EXISTS (SELECT FROM signals s WHERE s.event_uid = e.uid) "
        "AND NOT EXISTS (SELECT FROM batched b WHERE b.event_uid = e.uid)",
    ),
    (
        "an unmatched event with a run",
        "SELECT e.uid FROM events e JOIN runs r ON r.event_uid = e.uid "
        "WHERE e.outcome = 'unmatched' AND r.origin IS NULL",
    ),
    (
        "a dead event without an open dead letter",
        "SELECT e.uid FROM events e WHERE e.outcome = 'dead' "
        "AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.event_uid = e.uid)",
    ),
    (
        "two events for one sender's key",
        "SELECT key, count(*) FROM events WHERE key IS NOT NULL GROUP BY 1 HAVING count(*) > 1",
    ),
    (
        "an entry both counted as a duplicate and as an event",
        "SELECT d.uid FROM duplicates d JOIN events e ON e.uid = d.uid",
    ),
)
"""What no row may ever show, whatever is under way."""


async def inspect(
    redis_url: str,
    database_url: str,
    accepted: Accepted,
    *,
    namespace: str = "appliance",
    group: str = "appliance",
    at_rest: bool = True,
) -> Findings:
    """Check I1-I4. While traffic runs (``at_rest=False``) only what must hold at every moment is checked.

    The streams are read before the tables: an entry is acknowledged after its commit, so what is gone from its stream
    must be found in the tables, at any time.
    """
    async with Redis.from_url(redis_url, protocol=2) as redis:
        waiting_ids, waiting_entries = await _waiting(redis, namespace)
        stuck = await _stuck(redis, namespace, group) if at_rest else []
    findings = Findings(violations=stuck)
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("SET default_transaction_read_only = on")
        await _count(connection, findings)
        for name, query in _RULES:
            rows = await _rows(connection, query)
            findings.violations += [f"{name}: {', '.join(map(str, row))}" for row in rows[:5]]
        settled_ids, settled_entries = await _settled(connection)
    missing = accepted.ids - settled_ids - waiting_ids
    missing_entries = accepted.entries - settled_entries - waiting_entries
    findings.lost = sorted(missing) + sorted(f"{priority}/{entry}" for priority, entry in missing_entries)
    findings.violations += [
        f"I1/I2: accepted, not in its stream and without an outcome: {x}" for x in findings.lost[:10]
    ]
    if at_rest and findings.undecided:
        findings.violations.append(f"I1: {findings.undecided} events without an outcome")
    return findings


async def quiet(redis_url: str, *, namespace: str = "appliance", group: str = "appliance") -> bool:
    """I4 as a question: nothing is pending, nothing is unread, nothing is left in the streams."""
    async with Redis.from_url(redis_url, protocol=2) as redis:
        return not await _stuck(redis, namespace, group)


async def leaks(database_url: str, secret: str, texts: Mapping[str, str]) -> list[str]:
    """I8: where a seeded secret can be read: ``texts`` (logs, metrics, answers) and every column of every table."""
    found = [name for name, text in texts.items() if secret in text]
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        tables = await _rows(connection, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        for (table,) in tables:
            query = psycopg.sql.SQL("SELECT 1 FROM {} AS t WHERE strpos(t::text, %s) > 0 LIMIT 1")
            cursor = await connection.execute(query.format(psycopg.sql.Identifier(table)), (secret,))
            if await cursor.fetchone():
                found.append(f"table {table}")
    return found


@dataclass(frozen=True, slots=True)
class Footprint:
    """I6: what a process holds, from ``/proc``."""

    rss_bytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """The footprint of a process now."""
        proc = Path("/proc") / str(pid)
        status = (proc / "status").read_text()
        threads = next(line for line in status.splitlines() if line.startswith("Threads:"))
        resident = int((proc / "statm").read_text().split()[1]) * _PAGE_BYTES
        return cls(resident, len(list((proc / "fd").iterdir())), int(threads.split()[1]))


def repeats(keys: Iterable[str | None]) -> tuple[int, list[str]]:
    """I5: how many effects were repeated, and the violations: an effect without a key can't be told from another."""
    seen: dict[str | None, int] = {}
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
    nameless = seen.pop(None, 0)
    problems = [f"I5: {nameless} effects without an idempotency key"] if nameless else []
    return sum(n - 1 for n in seen.values()), problems


async def _count(connection: psycopg.AsyncConnection[Any], findings: Findings) -> None:
    outcomes = dict(await _rows(connection, "SELECT outcome::text, count(*) FROM events GROUP BY 1"))
    findings.handled = outcomes.get("handled", 0)
    findings.unmatched = outcomes.get("unmatched", 0)
    findings.dead = outcomes.get("dead", 0)
    findings.undecided = outcomes.get(None, 0)
    findings.runs = dict(await _rows(connection, "SELECT status::text, count(*) FROM runs GROUP BY 1"))
    ((findings.duplicates, findings.letters),) = await _rows(
        connection,
        "SELECT (SELECT count(*) FROM duplicates), "
        "(SELECT count(*) FROM dead_letters WHERE kind = 'entry' AND event_uid IS NULL)",
    )


async def _settled(connection: psycopg.AsyncConnection[Any]) -> tuple[set[str], set[tuple[str, str]]]:
    """Ids and entries that have an outcome: as an event, as a duplicate of one, or as a dead letter."""
    ids: set[str] = set()
    entries: set[tuple[str, str]] = set()
    for uid, event_id, stream, entry in await _rows(
        connection, "SELECT uid::text, id, stream, entry_id FROM events WHERE outcome IS NOT NULL"
    ):
        ids |= {uid, event_id}
        entries.add((stream, entry))
    entries |= {(stream, entry) for stream, entry in await _rows(connection, "SELECT stream, entry_id FROM duplicates")}
    letters = "SELECT stream, entry_id FROM dead_letters WHERE kind = 'entry'"
    entries |= {(stream, entry) for stream, entry in await _rows(connection, letters)}
    return ids, entries


async def _waiting(redis: Redis, namespace: str) -> tuple[set[str], set[tuple[str, str]]]:
    """Ids and entries that are in a stream now."""
    ids: set[str] = set()
    entries: set[tuple[str, str]] = set()
    for priority in PRIORITIES:
        present: Any = await redis.xrange(f"{namespace}:events:{priority}")
        for entry, fields in present:
            entries.add((priority, entry.decode()))
            ids.add(fields.get(b"uid", b"").decode("utf-8", "replace"))
            try:
                ids.add(str(json.loads(fields[b"event"])["id"]))
            except (KeyError, ValueError, TypeError):
                continue  # not one of our own entries
    return ids, entries


async def _stuck(redis: Redis, namespace: str, group: str) -> list[str]:
    found = []
    for priority in PRIORITIES:
        stream = f"{namespace}:events:{priority}"
        if length := await redis.xlen(stream):
            found.append(f"I4: {stream} still holds {length} entries")
        groups = await redis.xinfo_groups(stream) if await redis.exists(stream) else []
        found += [
            f"I4: {stream}: pending {each['pending']}, lag {each['lag']}"
            for each in groups
            if each["name"].decode() == group and (each["pending"] or each["lag"])
        ]
    return found


async def _rows(connection: psycopg.AsyncConnection[Any], query: LiteralString) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query)).fetchall()
