"""Events that PostgreSQL has before Redis: accepted there, put into the streams, gone when they are settled."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Overloaded, StoreUnavailable
from appliance.events import Event, event_key, new_event
from appliance.replica import Replica
from appliance.store.outbox import packed
from appliance.store.pool import Connection
from tests.integration.test_heart import Heart, db, heart, instant, rows
from tests.servers import PostgresServer, start_postgres, start_valkey, wait_until

__all__ = ["db", "heart"]

POSTGRES: dict[str, Any] = {"durability": "postgres"}


def event(key: str | None = None) -> Event:
    return new_event("t", {}, source="/t", id=key, key=event_key("/t", key) if key else None)


async def store(db: Connection, given: Event, *, durable: bool, age_s: float = 0.0) -> None:
    """A row as another process would have left it."""
    await db.execute(
        "INSERT INTO outbox (uid, priority, entry, durable, created_at)"
        " VALUES (%s, 'normal', %s, %s, now() - make_interval(secs => %s))",
        [given.uid, packed(given), durable, age_s],
    )


async def _die(*_: Any) -> None:
    raise ZeroDivisionError


async def entry_ids(made: Replica) -> list[bytes]:
    client: Any = made.commander
    return [entry_id for entry_id, _ in await client.xrange(made.keys.stream("normal"))]


async def length(made: Replica) -> int:
    return int(await made.commander.xlen(made.keys.stream("normal")))


@contextlib.asynccontextmanager
async def outbox_of(made: Replica) -> Any:
    """The outbox's loop, running."""
    running = asyncio.create_task(made.outbox.run_forever())
    try:
        yield
    finally:
        made.outbox.stop()
        await running


async def test_an_accepted_event_is_handled_and_its_row_goes(heart: Heart, db: Connection) -> None:
    made = await heart.replica(ingest=POSTGRES)
    await heart.workflow("w", {"id": "only"})
    heart.behave["only"] = instant
    async with outbox_of(made):
        accepted = [await made.intake.submit(event(key)) for key in (None, "1", "2")]
        assert not any(each.duplicate for each in accepted)

        async def gone() -> bool:
            return await rows(db, "SELECT 1 FROM outbox") == []

        await wait_until(gone, "the rows to go")
    assert heart.calls["only"] == [1, 1, 1]
    assert await heart.ledger() == {"handled": 3, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_a_row_whose_event_is_under_way_stays_and_says_where_it_is(heart: Heart, db: Connection) -> None:
    made = await heart.idle(ingest=POSTGRES)
    accepted = await made.intake.submit(event())
    await made.intake.drain()
    (entry_id,) = await entry_ids(made)
    await made.outbox.settle(0.0)
    assert await rows(db, "SELECT uid::text, entry_id FROM outbox WHERE sent_at IS NOT NULL") == [
        (accepted.uid, entry_id.decode())
    ]
    await made.outbox.purge()
    assert len(await rows(db, "SELECT 1 FROM outbox")) == 1


async def test_of_one_key_one_event_is_accepted(heart: Heart, db: Connection) -> None:
    other = await heart.idle(ingest=POSTGRES)
    made = await heart.replica(ingest=POSTGRES)
    given = [event("same") for _ in range(10)]
    answers = await asyncio.gather(
        *(each.submit(one) for one, each in zip(given, [made.intake, other.intake] * 5, strict=True))
    )
    assert sum(not answer.duplicate for answer in answers) == 1
    assert len({answer.uid for answer in answers}) == 1
    assert {answer.event_id for answer in answers} == {"same"}
    await made.intake.drain()
    await other.intake.drain()
    await heart.at_rest()
    for each in (made, other):
        await each.outbox.settle(0.0)
    later = await made.intake.submit(event("same"))
    assert (later.duplicate, later.event_id) == (True, "same")
    assert (await heart.ledger())["unmatched"] == 1


async def test_events_are_accepted_while_redis_is_away(database_url: str, db: Connection, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        valkey = contextlib.AsyncExitStack()
        server = await valkey.enter_async_context(start_valkey(tmp_path / "v"))
        heart = Heart(server.url, database_url, tmp_path, stack)
        made = await heart.idle(ingest={**POSTGRES, "max_backlog": 5})
        await valkey.aclose()
        for key in ("1", None, "2"):
            assert not (await made.intake.submit(event(key))).duplicate
        assert (await made.intake.submit(event("1"))).duplicate

        async def refused() -> bool:
            with contextlib.suppress(Overloaded):
                await made.intake.submit(event())
                return False
            return True

        await wait_until(refused, "the backlog to be full")
        number = len(await rows(db, "SELECT 1 FROM outbox WHERE sent_at IS NULL"))
        assert number >= 5
        await made.intake.drain()
        async with start_valkey(tmp_path / "v"):
            await db.execute("UPDATE outbox SET created_at = created_at - interval '1 minute'")
            assert await made.outbox.fire() == number
            assert await made.outbox.fire() == 0
            assert await length(made) == number
            await stack.aclose()


async def test_without_postgresql_nothing_is_accepted(redis_url: str, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        postgres = contextlib.AsyncExitStack()
        server: PostgresServer = await postgres.enter_async_context(start_postgres(tmp_path / "p"))
        url = await postgres.enter_async_context(server.fresh_database())
        heart = Heart(redis_url, url, tmp_path, stack)
        made = await heart.idle(ingest=POSTGRES)
        await made.intake.submit(event())
        await made.intake.drain()
        await postgres.aclose()
        async with asyncio.timeout(10):
            with pytest.raises(StoreUnavailable):
                await made.intake.submit(event())
        assert await length(made) == 1


async def test_what_a_dead_process_left_is_put_in_by_another(heart: Heart, db: Connection) -> None:
    made = await heart.idle()
    once, durable, young = event(), event(), event()
    await store(db, once, durable=False)
    await store(db, durable, durable=True, age_s=60)
    await store(db, young, durable=True)
    assert await made.outbox.fire() == 2
    left: dict[Any, Any] = dict(await rows(db, "SELECT uid::text, sent_at IS NULL FROM outbox"))
    assert left == {durable.uid: False, young.uid: True}
    assert await length(made) == 2


async def test_a_crash_between_the_stream_and_the_commit_adds_nothing_twice(heart: Heart, db: Connection) -> None:
    made = await heart.replica()
    await heart.workflow("w", {"id": "only"})
    heart.behave["only"] = instant
    given = event("1")
    await store(db, given, durable=False)
    commit, made.outbox_table.mark = made.outbox_table.mark, _die  # type: ignore[assignment, method-assign]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await made.outbox.fire()
    made.outbox_table.mark = commit  # type: ignore[method-assign]
    assert await made.outbox.fire() == 1
    await heart.at_rest()
    assert heart.calls["only"] == [1]
    assert (await heart.ledger())["handled"] == 1


async def test_an_entry_that_nobody_read_is_put_in_again(heart: Heart, db: Connection) -> None:
    made = await heart.idle(ingest=POSTGRES)
    await heart.workflow("w", {"id": "only"})
    heart.behave["only"] = instant
    for _ in range(3):
        await made.intake.submit(event())
    await made.intake.drain()
    await made.bookkeeper.save()
    await made.commander.xdel(made.keys.stream("normal"), (await entry_ids(made))[0])
    assert (await made.recovery.sweep(grace_s=0.0, thorough=True)).resent == 1
    assert (await made.recovery.sweep(grace_s=0.0, thorough=True)).resent == 0
    await made.commander.flushall()
    assert (await made.recovery.sweep(grace_s=0.0, thorough=True)).resent == 3
    heart.run(made)
    await heart.at_rest()
    assert heart.calls["only"] == [1, 1, 1]
    assert await heart.ledger() == {"handled": 3, "unmatched": 0, "dead": 0, "in_flight": 0, "difference": 0}


async def test_an_event_that_can_not_be_handled_at_all_is_not_put_in_for_ever(heart: Heart, db: Connection) -> None:
    made = await heart.idle(ingest=POSTGRES)
    bad = event()
    await store(db, bad, durable=True, age_s=60)
    await db.execute("UPDATE outbox SET entry = json_build_object('uid', uid, 'event', '{}')")
    assert await made.outbox.fire() == 1
    heart.run(made)
    await wait_until(lambda: rows(db, "SELECT 1 FROM dead_letters"), "the dead letter")
    await heart.at_rest()
    assert (await made.recovery.sweep(grace_s=0.0, thorough=True)).total == 0
    assert await made.outbox.purge() == 1
    assert (await heart.ledger())["dead"] == 1


async def test_what_actions_publish_is_as_durable(heart: Heart, db: Connection) -> None:
    made = await heart.replica(ingest=POSTGRES)
    await heart.workflow("w", {"id": "only"})

    async def publish(ctx: Any) -> None:
        await ctx.publish(type="other", data={})

    heart.behave["only"] = publish
    await made.intake.submit(event())

    async def both() -> bool:
        ledger = await heart.ledger()
        return (ledger["handled"], ledger["unmatched"]) == (1, 1)

    await wait_until(both, "the event and what it led to")
    assert await rows(db, "SELECT count(*) FROM outbox") == [(2,)]
