"""The recorder against a real PostgreSQL: grouped, fenced, and honest about what it does not know."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from psycopg.conninfo import conninfo_to_dict

from appliance.errors import Fenced, LeaseLost
from appliance.identifiers import run_id_for, uuid7
from appliance.settings import StoreSettings
from appliance.store.pool import Connection, open_connection
from appliance.store.recorder import Recorder, Refused
from appliance.store.rows import Change, EventRow, OutcomeRow, RunRow, RunUpdate, StepRow
from tests.chaos.proxy import Mode, Proxy
from tests.servers import wait_until


@pytest_asyncio.fixture
async def recorder(database_url: str) -> AsyncIterator[Recorder]:
    made = Recorder(lambda: open_connection(database_url, StoreSettings()), batch=500)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    connection = await open_connection(database_url, StoreSettings())
    yield connection
    await connection.close()


def event_row(uid: str, **changes: Any) -> EventRow:
    row = EventRow(
        uid, None, "/t", "t", None, "2026-01-01T00:00:00.000Z", time.time(), None, "{}", None, "normal", "1-0", None
    )  # fmt: skip
    return row._replace(**changes)


def run_row(run_id: str, uid: str, **changes: Any) -> RunRow:
    now = time.time()
    row = RunRow(run_id, uid, 1, 1, "running", 1, now, None, now, "normal", None, None, None)
    return row._replace(**changes)


def step_row(run_id: str, status: str = "succeeded", output: str | None = '{"n": 1}') -> StepRow:
    return StepRow(run_id, "a", 0, status, 1, time.time(), time.time(), None, output, None)


def whole(uid: str, **changes: Any) -> Change:
    run_id = run_id_for(uid, "w")
    return Change(
        events=[event_row(uid, outcome="handled")],
        runs=[run_row(run_id, uid, **changes)],
        steps=[step_row(run_id)],
    )


async def rows(db: Connection, statement: str) -> list[tuple[Any, ...]]:
    cursor = await db.execute(statement.encode())
    return list(await cursor.fetchall())


async def test_many_changes_are_one_transaction(recorder: Recorder, db: Connection) -> None:
    uids = [uuid7() for _ in range(50)]
    await asyncio.gather(*(recorder.record(whole(uid)) for uid in uids))
    assert await rows(db, "SELECT count(*), count(DISTINCT xmin::text) FROM events") == [(50, 1)]
    assert await rows(db, "SELECT count(*) FROM steps") == [(50,)]


async def test_the_second_record_of_a_run_is_fenced_and_its_neighbours_are_not(
    recorder: Recorder, db: Connection
) -> None:
    uid, other = uuid7(), uuid7()
    await recorder.record(whole(uid))
    results = await asyncio.gather(
        recorder.record(whole(other)), recorder.record(whole(uid, error="zombie")), return_exceptions=True
    )
    assert results[0] is None
    assert isinstance(results[1], Fenced)
    assert await rows(db, "SELECT count(*), count(error) FROM runs") == [(2, 0)]


async def test_an_update_needs_the_version_that_it_read(recorder: Recorder, db: Connection) -> None:
    uid = uuid7()
    run_id = run_id_for(uid, "w")
    await recorder.record(whole(uid))

    def update(status: str) -> Change:
        return Change(run_updates=[RunUpdate(run_id, status, 2, None, time.time(), None, None)])

    await recorder.record(update("waiting"))
    with pytest.raises(Fenced):
        await recorder.record(update("failed"))
    assert await rows(db, "SELECT status::text, version FROM runs") == [("waiting", 2)]


async def test_a_recorded_result_is_never_overwritten(recorder: Recorder, db: Connection) -> None:
    uid = uuid7()
    await recorder.record(whole(uid))
    await recorder.record(Change(steps=[step_row(run_id_for(uid, "w"), "failed", '{"n": 2}')]))
    assert await rows(db, "SELECT status::text, output->>'n' FROM steps") == [("succeeded", "1")]


async def test_what_can_not_be_stored_is_refused_alone(recorder: Recorder, db: Connection) -> None:
    good = [uuid7() for _ in range(9)]
    bad = Change(events=[event_row(uuid7(), source="a\0b")])
    results = await asyncio.gather(
        *(recorder.record(whole(uid)) for uid in good[:5]),
        recorder.record(bad),
        *(recorder.record(whole(uid)) for uid in good[5:]),
        return_exceptions=True,
    )
    assert [type(result) for result in results if result is not None] == [Refused]
    assert await rows(db, "SELECT count(*) FROM events") == [(9,)]


async def test_what_can_not_be_indexed_is_refused_and_does_not_stop_the_rest(
    recorder: Recorder, db: Connection
) -> None:
    """PostgreSQL's code for it (54000) looks like trouble of the server's, which is waited out."""
    chance = random.Random(1)
    bad = Change(events=[event_row(uuid7(), id="".join(chr(chance.randrange(0x10000, 0x1FFFF)) for _ in range(1000)))])
    async with asyncio.timeout(10):
        results = await asyncio.gather(recorder.record(whole(uuid7())), recorder.record(bad), return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], Refused)
    assert recorder.healthy


async def test_a_change_whose_lease_was_lost_is_dropped(recorder: Recorder, db: Connection) -> None:
    change = whole(uuid7())
    change.valid = lambda: False
    with pytest.raises(Fenced):
        await recorder.record(change)
    assert await rows(db, "SELECT count(*) FROM events") == [(0,)]


async def test_an_event_is_recorded_once_and_its_outcome_may_follow(recorder: Recorder, db: Connection) -> None:
    uid = uuid7()
    await recorder.record(Change(events=[event_row(uid)]))
    await recorder.record(Change(events=[event_row(uid, outcome="dead")]))
    assert await rows(db, "SELECT outcome FROM events") == [(None,)]
    await recorder.record(Change(outcomes=[OutcomeRow(uid, "dead")]))
    assert await rows(db, "SELECT outcome::text FROM events") == [("dead",)]


async def test_a_lost_reply_to_a_commit_is_re_read_and_not_guessed(database_url: str, db: Connection) -> None:
    """The commit succeeded and the connection died before we knew: the same change must not count as fenced."""
    async with Proxy.to_url(database_url) as proxy:
        recorder = Recorder(lambda: open_connection(proxy.url, StoreSettings()), batch=500)
        await recorder.record(whole(uuid7()))
        uid = uuid7()
        proxy.mode = Mode.DROP_REPLY
        recording = asyncio.create_task(recorder.record(whole(uid)))
        await wait_until(lambda: rows(db, f"SELECT 1 FROM runs WHERE event_uid = '{uid}'"), "the commit")  # noqa: S608
        proxy.mode = Mode.PASS
        await proxy.cut()
        await asyncio.wait_for(recording, 20)
        await recorder.close()
    assert await rows(db, "SELECT count(*) FROM runs") == [(2,)]


async def test_a_called_run_that_went_on_meanwhile_does_not_deny_the_commit(database_url: str, db: Connection) -> None:
    """The commit whose reply was lost made a run that another replica has begun by now."""
    async with Proxy.to_url(database_url) as proxy:
        recorder = Recorder(lambda: open_connection(proxy.url, StoreSettings()), batch=500)
        await recorder.record(whole(uuid7()))
        uid, child = uuid7(), uuid7()
        change = whole(uid)
        change.runs = [*change.runs, run_row(child, uid)]
        proxy.mode = Mode.DROP_REPLY
        recording = asyncio.create_task(recorder.record(change))
        await wait_until(lambda: rows(db, f"SELECT 1 FROM runs WHERE id = '{child}'"), "the commit")  # noqa: S608
        await db.execute(f"UPDATE runs SET version = 2, updated_at = now() WHERE id = '{child}'".encode())  # noqa: S608
        proxy.mode = Mode.PASS
        await proxy.cut()
        await asyncio.wait_for(recording, 20)
        await recorder.close()


async def test_a_lost_reply_is_not_forgotten_when_a_lease_of_the_batch_is_lost(
    database_url: str, db: Connection
) -> None:
    async with Proxy.to_url(database_url) as proxy:
        recorder = Recorder(lambda: open_connection(proxy.url, StoreSettings()), batch=500)
        await recorder.record(whole(uuid7()))
        uid = uuid7()
        loser, winner = whole(uuid7()), whole(uid)
        proxy.mode = Mode.DROP_REPLY
        both = asyncio.gather(*(recorder.record(change) for change in (loser, winner)), return_exceptions=True)
        await wait_until(lambda: rows(db, f"SELECT 1 FROM runs WHERE event_uid = '{uid}'"), "the commit")  # noqa: S608
        loser.valid = lambda: False
        await db.execute(f"UPDATE runs SET asked = 'pause' WHERE event_uid = '{uid}'".encode())  # noqa: S608
        proxy.mode = Mode.PASS
        await proxy.cut()
        lost, kept = await asyncio.wait_for(both, 20)
        assert isinstance(lost, LeaseLost)
        assert kept is None
        await recorder.close()


async def test_what_a_lost_reply_would_have_told_is_read_again(database_url: str, db: Connection) -> None:
    """What a person asks of the run, and that there are newer workflows."""
    async with Proxy.to_url(database_url) as proxy:
        recorder = Recorder(lambda: open_connection(proxy.url, StoreSettings()), batch=500)
        uid = uuid7()
        run_id = run_id_for(uid, "w")
        await recorder.record(whole(uid))
        await db.execute(b"UPDATE runs SET asked = 'pause'")
        await db.execute(b"UPDATE catalog_version SET version = 77")
        change = Change(run_updates=[RunUpdate(run_id, "running", 2, None, time.time(), None, None)])
        proxy.mode = Mode.DROP_REPLY
        recording = asyncio.create_task(recorder.record(change))
        await wait_until(lambda: rows(db, "SELECT 1 FROM runs WHERE version = 2"), "the commit")
        proxy.mode = Mode.PASS
        await proxy.cut()
        await asyncio.wait_for(recording, 20)
        await recorder.close()
    assert (change.asked, recorder.catalog_version) == ("pause", 77)


async def test_two_flushes_that_are_in_each_others_way_are_no_outage(
    recorder: Recorder, db: Connection, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = sorted(run_id_for(uuid7(), "w") for _ in range(2))
    now = time.time()
    await recorder.record(Change(runs=[run_row(first, uuid7()), run_row(second, uuid7())]))
    update = [RunUpdate(run_id, "waiting", 2, None, now, None, None) for run_id in (first, second)]
    other = await open_connection(database_url, StoreSettings())
    await other.execute(b"BEGIN")
    await other.execute(f"UPDATE runs SET error = 'x' WHERE id = '{second}'".encode())  # noqa: S608
    recording = asyncio.create_task(recorder.record(Change(run_updates=update)))
    await wait_until(lambda: rows(db, "SELECT 1 FROM pg_locks WHERE NOT granted"), "the flush to wait")
    await other.execute(f"UPDATE runs SET error = 'x' WHERE id = '{first}'".encode())  # noqa: S608
    await other.execute(b"COMMIT")
    await other.close()
    await asyncio.wait_for(recording, 20)
    assert await rows(db, "SELECT version FROM runs") == [(2,), (2,)]
    assert "commits are not possible" not in caplog.text


async def test_a_black_holed_connection_is_given_up(database_url: str, db: Connection) -> None:
    async with Proxy.to_url(database_url) as proxy:
        recorder = Recorder(lambda: open_connection(proxy.url, StoreSettings()), batch=500, timeout_s=0.3)
        await recorder.record(whole(uuid7()))
        proxy.mode = Mode.BLACK_HOLE
        recording = asyncio.create_task(recorder.record(whole(uuid7())))
        await wait_until(lambda: not recorder.healthy, "the recorder's alarm")
        proxy.mode = Mode.PASS
        await asyncio.wait_for(recording, 20)
        await recorder.close()
    assert await rows(db, "SELECT count(*) FROM runs") == [(2,)]


async def test_killed_connections_cost_a_retry_and_nothing_else(recorder: Recorder, db: Connection) -> None:
    await recorder.record(whole(uuid7()))
    await db.execute(
        b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        b"WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await recorder.record(whole(uuid7()))
    assert recorder.healthy
    assert await rows(db, "SELECT count(*) FROM runs") == [(2,)]


async def test_a_read_only_database_is_waited_out(recorder: Recorder, db: Connection, database_url: str) -> None:
    name = conninfo_to_dict(database_url)["dbname"]
    await db.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())
    recording = asyncio.create_task(recorder.record(whole(uuid7())))
    await wait_until(lambda: not recorder.healthy, "the recorder's alarm")
    assert not recording.done()
    await db.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = off'.encode())
    await db.execute(
        b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        b"WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await asyncio.wait_for(recording, 20)
    assert recorder.healthy


async def test_a_refused_transaction_leaves_a_connection_that_works(recorder: Recorder, db: Connection) -> None:
    """What psycopg meant to prepare behind the statement that failed was not: it must not be taken for prepared."""
    first = uuid7()
    await recorder.record(whole(first))
    for _ in range(12):
        with pytest.raises(Fenced):
            await recorder.record(whole(first))
    for _ in range(3):
        await recorder.record(whole(uuid7()))
    assert await rows(db, "SELECT count(*) FROM steps") == [(4,)]


async def test_what_can_not_be_sent_takes_nothing_of_its_batch_along(recorder: Recorder, db: Connection) -> None:
    """The steps are sent after the events and the runs: those must not be committed without them."""
    good, bad = whole(uuid7()), whole(uuid7())
    bad.steps = [bad.steps[0]._replace(error="a\0b")]
    results = await asyncio.gather(recorder.record(good), recorder.record(bad), return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], Refused)
    counts = "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM runs), (SELECT count(*) FROM steps)"
    assert await rows(db, counts) == [(1, 1, 1)]
