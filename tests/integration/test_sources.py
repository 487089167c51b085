"""Polling sources against real servers: each row is one event, whoever reads, whenever it commits, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from appliance.engine.inlets import Inlets, try_all
from appliance.engine.outbox import OutboxLoop
from appliance.engine.polling import Poller, Sending
from appliance.errors import Fenced, Malformed, NotFound
from appliance.events import Event, decode_entry
from appliance.settings import IngestSettings, Settings, StoreSettings, StreamSettings
from appliance.store.history import Page
from appliance.store.outbox import Outbox
from appliance.store.pool import Pool, checked_out, open_connection, open_pool
from appliance.store.sources import SourceState, SourceStore
from appliance.stream import client as stream_client
from appliance.stream.keys import Keys
from appliance.stream.producer import Producer
from tests.chaos.proxy import Mode, Proxy
from tests.servers import PostgresServer, wait_until

START = datetime(2026, 1, 1, tzinfo=UTC)
LATEST = (datetime(9999, 1, 1, tzinfo=UTC), "ffffffff-ffff-ffff-ffff-ffffffffffff")
SUBSCRIPTIONS = """
name: subscriptions
postgresql: "{{ secrets.shop }}"
query: SELECT id, email, plan, created_at FROM subscriptions
cursor: created_at
key: id
every: 100ms
lag: 1h
start: beginning
event:
  type: subscription.created
  subject: "{{ row.email }}"
"""
TABLE = """
CREATE TABLE subscriptions (
    id serial PRIMARY KEY, email text NOT NULL, plan text, created_at timestamptz NOT NULL DEFAULT now()
)
"""


class Stand:
    """A shop's database, ours, and pollers between them."""

    def __init__(self, pool: Pool, producer: Producer, loop: OutboxLoop, keys: Keys, redis: Any, folder: Path) -> None:
        self.pool, self.producer, self.loop, self.keys, self.redis = pool, producer, loop, keys, redis
        self.folder = folder
        self.shop_url = ""
        self.shop: psycopg.AsyncConnection[Any]
        self._stack = contextlib.AsyncExitStack()

    def write(self, text: str, name: str = "subscriptions") -> None:
        (self.folder / "sources").mkdir(exist_ok=True)
        (self.folder / "sources" / f"{name}.yaml").write_text(text)

    def poller(self, holder: str = "one", **sources: str) -> Poller:
        settings = Settings.model_validate(
            {"config_dir": self.folder, "engine": {"timer_poll": "20ms"}, "sources": sources, "ingest": self.ingest}
        )
        sending = Sending(self.producer.backlog, self.producer.put, self.loop.note)
        return Poller(SourceStore(self.pool), sending, settings, {"shop": self.shop_url}, holder)

    ingest: dict[str, Any] = {}  # noqa: RUF012 - a test replaces it

    @contextlib.asynccontextmanager
    async def running(self, *pollers: Poller) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(poller.run_forever()) for poller in pollers]
        try:
            yield
        finally:
            for poller in pollers:
                poller.stop()
            await asyncio.wait_for(asyncio.gather(*tasks), 10)

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        cursor = await self.shop.execute(statement, values)
        return await cursor.fetchall() if cursor.description else []

    async def insert(self, count: int, at: datetime | None = None, plan: str = "basic") -> list[int]:
        found = await self.sql(
            "INSERT INTO subscriptions (email, plan, created_at) SELECT 'p' || n || '@example.org', %s, "
            "coalesce(%s, clock_timestamp()) FROM generate_series(1, %s) n RETURNING id",
            plan,
            at,
            count,
        )
        return [row[0] for row in found]

    async def events(self) -> list[Event]:
        found = []
        for stream in self.keys.streams.values():
            found += [decode_entry(stream, id, fields) for id, fields in await self.redis.xrange(stream)]
        return found

    async def ids(self) -> list[str]:
        return sorted((event.id for event in await self.events()), key=int)

    async def has(self, count: int) -> bool:
        return len(await self.events()) >= count

    async def state(self, name: str = "subscriptions") -> SourceState:
        (state,) = await SourceStore(self.pool).states([name])
        return state

    async def ours(self, statement: str, *values: Any) -> list[Any]:
        async with checked_out(self.pool) as connection:
            return list(await (await connection.execute(statement.encode(), values)).fetchall())

    async def polls(self, count: int = 2, name: str = "subscriptions") -> None:
        """Wait until the source was looked at again, from the beginning of a scan to its end."""
        for _ in range(count):
            ((turn,),) = await self.ours("SELECT turn FROM sources WHERE name = %s", name)

            async def later(turn: int = turn) -> bool:
                ((now, held),) = await self.ours("SELECT turn, held_until FROM sources WHERE name = %s", name)
                return bool(now > turn and held is None)

            await wait_until(later, "another look")


@pytest_asyncio.fixture
async def stand(
    redis_url: str, database_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> AsyncIterator[Stand]:
    keys = Keys(Settings().namespace)
    commander = stream_client.commander(redis_url, StreamSettings())
    pool = await open_pool(database_url, StoreSettings())
    producer = Producer(commander, keys, IngestSettings())
    outbox = Outbox(pool, lambda: open_connection(database_url, StoreSettings()))
    stand = Stand(pool, producer, OutboxLoop(outbox, producer, 0.05), keys, commander, tmp_path)
    async with postgres_server.fresh_database(migrated=False) as stand.shop_url:
        stand.shop = await psycopg.AsyncConnection.connect(stand.shop_url, autocommit=True)
        await stand.sql(TABLE)
        yield stand
        await stand.shop.close()
    await outbox.close()
    await pool.close()
    await commander.aclose()


async def test_a_row_is_an_event(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS)
    await stand.sql("INSERT INTO subscriptions (email, plan, created_at) VALUES ('a@b.c', 'pro', %s)", START)
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(1), "the event")
        await stand.insert(1)
        await wait_until(lambda: stand.has(2), "the second event")
        await stand.polls()
    first, second = await stand.events()
    assert (first.id, first.source, first.type, first.subject) == (
        "1",
        "source:subscriptions",
        "subscription.created",
        "a@b.c",
    )
    assert first.data == {"id": 1, "email": "a@b.c", "plan": "pro", "created_at": "2026-01-01T00:00:00Z"}
    assert (first.time, second.id) == ("2026-01-01T00:00:00.000Z", "2")
    state = await stand.state()
    assert (state.events, state.repeats, state.refused, state.missed, state.error) == (2, 0, 0, 0, None)


async def test_each_of_many_rows_with_one_time_is_an_event_once(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS + "batch: 7\n")
    moment = datetime.now(UTC)
    await stand.insert(100, moment)
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(100), "the events")
        await stand.insert(10, moment)
        await wait_until(lambda: stand.has(110), "those that came to the tie later")
        await stand.polls()
    assert await stand.ids() == [str(n) for n in range(1, 111)]


async def test_rows_that_commit_late_are_found(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS)
    slow = await psycopg.AsyncConnection.connect(stand.shop_url)
    async with stand.running(stand.poller()):
        await stand.insert(3)
        await slow.execute("INSERT INTO subscriptions (email) VALUES ('late@example.org')")
        await stand.insert(3)
        await wait_until(lambda: stand.has(6), "the newer rows")
        await stand.polls()
        assert await stand.ids() == ["1", "2", "3", "5", "6", "7"]
        await slow.commit()
        await wait_until(lambda: stand.has(7), "the late row")
        await stand.polls()
    await slow.close()
    assert await stand.ids() == [str(n) for n in range(1, 8)]
    state = await stand.state()
    assert (state.events, state.late, state.repeats) == (7, 1, 0)


@pytest.mark.parametrize("start", ["now", "beginning"])
async def test_whole_numbers_that_commit_late_are_found(stand: Stand, start: str) -> None:
    text = SUBSCRIPTIONS.replace("cursor: created_at", "cursor: id").replace("lag: 1h", "lag: 1500ms\nbatch: 5")
    stand.write(text.replace("start: beginning", f"start: {start}"))
    await stand.insert(12, START)
    slow = await psycopg.AsyncConnection.connect(stand.shop_url)
    first = {"now": 0, "beginning": 12}[start]
    async with stand.running(stand.poller()):
        await wait_until(lambda: _read(stand), "the first look")
        await wait_until(lambda: stand.has(first), "the events")
        await stand.polls(4)
        await slow.execute("INSERT INTO subscriptions (email) VALUES ('late@example.org')")
        await stand.insert(7)
        await wait_until(lambda: stand.has(first + 7), "the newer rows")
        await stand.polls(3)
        assert "13" not in await stand.ids()
        await slow.commit()
        await wait_until(lambda: stand.has(first + 8), "the late row")
        await wait_until(lambda: _floor(stand, 20), "the floor follows")
        await stand.polls()
    await slow.close()
    assert await stand.ids() == [str(n) for n in range(13 - first, 21)]
    assert (await stand.state()).repeats == 0
    assert await stand.ours("SELECT count(*) FROM source_rows") == [(0,)]


async def _floor(stand: Stand, least: int) -> bool:
    return ((await stand.state()).floor or 0) >= least


async def test_rows_that_come_later_than_the_lag_are_counted(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS.replace("lag: 1h", "lag: 0s"))
    slow = await psycopg.AsyncConnection.connect(stand.shop_url)
    async with stand.running(stand.poller()):
        await stand.insert(1)
        await wait_until(lambda: stand.has(1), "the first row")
        await stand.polls(3)
        await slow.execute("INSERT INTO subscriptions (email) VALUES ('late@example.org')")
        await stand.insert(3)
        await wait_until(lambda: stand.has(4), "the newer rows")
        await stand.polls(3)
        await slow.commit()

        async def missed() -> bool:
            return (await stand.state()).missed > 0

        await wait_until(missed, "the row is counted")
    await slow.close()
    assert await stand.ids() == ["1", "3", "4", "5"]
    assert (await stand.state()).missed == 1


async def test_three_replicas_and_writers_of_all_kinds(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS.replace("lag: 1h", "lag: 5s") + "batch: 20\n")

    async def write(number: int) -> None:
        dice = random.Random(number)
        async with await psycopg.AsyncConnection.connect(stand.shop_url) as connection:
            for _ in range(25):
                count = dice.randint(1, 5)
                await connection.execute(
                    "INSERT INTO subscriptions (email) SELECT 'x@example.org' FROM generate_series(1, %s)", [count]
                )
                await connection.execute("SELECT pg_sleep(%s)", [dice.random() / 20])
                await (connection.rollback() if dice.random() < 0.1 else connection.commit())

    async with stand.running(*(stand.poller(holder) for holder in ("one", "two", "three"))):
        await asyncio.gather(*(write(number) for number in range(6)))
        rows = [str(row[0]) for row in await stand.sql("SELECT id FROM subscriptions ORDER BY id")]
        await wait_until(lambda: stand.has(len(rows)), "all events")
        await stand.polls(3)
    assert await stand.ids() == rows
    state = await stand.state()
    assert (state.events, state.repeats, state.missed) == (len(rows), 0, 0)


async def test_a_restart_goes_on_where_the_last_one_ended(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS)
    await stand.insert(5, START)
    for expected in (5, 10):
        async with stand.running(stand.poller()):
            await wait_until(lambda n=expected: stand.has(n), "the events")  # type: ignore[misc]
            await stand.polls()
        await stand.insert(5)
    assert await stand.ids() == [str(n) for n in range(1, 11)]
    # Whatever was forgotten about the source: the key of a row tells that it has an event.
    await stand.ours("DELETE FROM sources RETURNING 1")
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(15), "the events")
        await stand.polls()
    assert await stand.ids() == [str(n) for n in range(1, 16)]
    assert (await stand.state()).repeats == 10


async def test_a_source_that_starts_now_leaves_out_what_was_there(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS.replace("start: beginning", "start: now"))
    await stand.insert(5)
    async with stand.running(stand.poller()):
        await wait_until(lambda: _read(stand), "the first look")
        await stand.insert(2)
        await wait_until(lambda: stand.has(2), "the events")
        await stand.polls()
    assert await stand.ids() == ["6", "7"]


async def _read(stand: Stand) -> bool:
    found = await SourceStore(stand.pool).states(["subscriptions"])
    return bool(found and found[0].polled_at)


async def test_a_row_of_the_far_future_hides_no_other(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS.replace("lag: 1h", "lag: 2s"))
    await stand.insert(1, datetime(2099, 1, 1, tzinfo=UTC))
    await stand.sql("INSERT INTO subscriptions (email, created_at) VALUES ('never@example.org', 'infinity')")
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(1), "the event from the future")
        await stand.polls()
        await stand.insert(2)
        await wait_until(lambda: stand.has(3), "the others")
        await stand.polls()
    assert await stand.ids() == ["1", "3", "4"]


WRONG = {
    "cursor: created": ("cursor: created_at", "no column 'created'; did you mean created_at?"),
    "key: uid": ("key: id", "key: the query has no column 'uid'"),
    'subject: "{{ row.emial }}"': (
        'subject: "{{ row.email }}"',
        "event: the query has no column 'emial'; did you mean",
    ),
    "query: SELECT id, photo, created_at, email FROM subscriptions": (
        "query: SELECT id, email, plan, created_at FROM subscriptions",
        "the column 'photo' is bytea",
    ),
    "query: SELECT id, id, created_at, email FROM subscriptions": (
        "query: SELECT id, email, plan, created_at FROM subscriptions",
        "two columns are named 'id'",
    ),
    "query: SELECT id, email, created_at::date AS created_at FROM subscriptions": (
        "query: SELECT id, email, plan, created_at FROM subscriptions",
        "the column 'created_at' is date; expected timestamptz, timestamp or a whole number",
    ),
    "query: SELECT id, email, created_at FROM nowhere": (
        "query: SELECT id, email, plan, created_at FROM subscriptions",
        'relation "nowhere" does not exist',
    ),
    "query: SELECT id, email, created_at, nextval('subscriptions_id_seq') FROM subscriptions": (
        "query: SELECT id, email, plan, created_at FROM subscriptions",
        "read-only transaction",
    ),
    "query: SELECT id, email, created_at, pg_sleep(5)::text AS s FROM subscriptions": (
        "query: SELECT id, email, plan, created_at FROM subscriptions",
        "statement timeout",
    ),
    'postgresql: "{{ secrets.other }}"': ('postgresql: "{{ secrets.shop }}"', "postgresql: there is no such secret"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_source_that_is_wrong_says_why_and_moves_nothing(stand: Stand, wrong: str) -> None:
    right, message = WRONG[wrong]
    await stand.sql("ALTER TABLE subscriptions ADD photo bytea")
    await stand.insert(2, START)
    stand.write(SUBSCRIPTIONS.replace(right, wrong))
    async with stand.running(stand.poller(statement_timeout="500ms")):
        await wait_until(lambda: _failed(stand), "the error")
        state = await stand.state()
        assert message in (state.error or "")
        assert await stand.events() == []
        stand.write(SUBSCRIPTIONS)
        await wait_until(lambda: stand.has(2), "the events, once the file is corrected")
        await stand.polls()
    assert (await stand.state()).error is None


async def _failed(stand: Stand) -> bool:
    found = await SourceStore(stand.pool).states(["subscriptions"])
    return bool(found and found[0].failures)


async def test_a_database_that_is_away_is_read_when_it_is_back(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    stand.write(SUBSCRIPTIONS)
    stand.write(SUBSCRIPTIONS.replace("name: subs", "name: other-subs").replace("secrets.shop", "secrets.direct"), "b")
    async with Proxy.to_url(stand.shop_url) as proxy:
        proxy.mode = Mode.REFUSE
        poller = stand.poller(connect_timeout="2s", statement_timeout="200ms")
        poller._secrets = {"shop": proxy.url.replace("@127", ":hunter2@127"), "direct": stand.shop_url}
        async with stand.running(poller):
            await stand.insert(1)
            await wait_until(lambda: _failed(stand), "the error")
            await wait_until(lambda: stand.has(1), "the other source isn't hurt")
            await wait_until(lambda: poller.health().get("subscriptions") == "failing", "everybody can see it")
            state = await stand.state()
            proxy.mode = Mode.PASS
            await wait_until(lambda: stand.has(2), "the event, once the server is back")
            await stand.polls()
            assert (await stand.state()).error is None
            proxy.mode = Mode.BLACK_HOLE
            await stand.insert(1)
            await wait_until(lambda: _failed(stand), "a server that doesn't answer is noticed", 20)
            proxy.mode = Mode.PASS
            await wait_until(lambda: stand.has(4), "the event", 20)
            assert poller.health().keys() == {"subscriptions", "other-subscriptions"}
    assert state.error
    assert "hunter2" not in f"{state.error} {caplog.text}"
    assert Counter(event.source for event in await stand.events()) == {
        "source:subscriptions": 2,
        "source:other-subscriptions": 2,
    }


async def test_rows_that_cant_be_an_event_are_told_and_tried_again(stand: Stand) -> None:
    await stand.sql("ALTER TABLE subscriptions ADD price float8, ADD total numeric, ADD at timestamp")
    await stand.insert(3, START)
    await stand.sql("UPDATE subscriptions SET price = 'NaN' WHERE id = 1")
    await stand.sql("UPDATE subscriptions SET total = 12345678901234567.89 WHERE id = 2")
    await stand.sql("UPDATE subscriptions SET email = repeat('x', 5000) WHERE id = 3")
    await stand.sql("INSERT INTO subscriptions (email, at) VALUES ('ok', '2026-11-21 12:00'), ('bad', 'infinity')")
    stand.write(SUBSCRIPTIONS.replace("id, email, plan, created_at", "*"))
    stand.ingest = {"max_event_bytes": 4096}
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(1), "the good row")
        await stand.polls()
    assert await stand.ids() == ["4"]
    reasons = {row[0]: row[2] for row in await SourceStore(stand.pool).refusals("subscriptions", LATEST, 10)}
    assert reasons == {
        "1": "column price: NaN is no JSON number",
        "2": "column total: 12345678901234567.89 has more digits than a JSON number carries; decimals: text keeps them",
        "3": "the row has 5028 bytes, more than 4096 (ingest.max_event_bytes)",
        "5": "column at: infinity is no time between the years 1 and 9999",
    }
    state = await stand.state()
    assert (state.events, state.refused, state.refusals) == (1, 4, 4)
    stand.write(SUBSCRIPTIONS.replace("plan, created_at", "total, created_at") + "decimals: text\n")
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(4), "those that can be events now")
        await stand.polls()
    assert await stand.ids() == ["1", "2", "4", "5"]
    by_id = {event.id: event for event in await stand.events()}
    assert by_id["2"].data["total"] == "12345678901234567.89"
    rest = await SourceStore(stand.pool).refusals("subscriptions", LATEST, 10)
    assert [row[0] for row in rest] == ["3"]


async def test_values_become_json(stand: Stand) -> None:
    await stand.sql(
        """CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE all_kinds (
            id int, tiny smallint, big bigint, yes boolean, ratio float8, price numeric(10, 2), at timestamptz,
            clock timestamp, day date, time time, span interval, uid uuid, doc jsonb, raw json, tags text[], mood mood,
            address inet, nothing text
        )"""
    )
    await stand.sql(
        """INSERT INTO all_kinds VALUES (1, 2, 9007199254740993, true, 0.1, 12.50, '2026-07-01 12:00:00.123456+02',
            '2026-07-01 12:00', '2026-07-01', '09:30', '1 day 2 hours', 'd8b0d0c6-2f3b-4b5e-9a53-7a2f6b1c0001',
            '{"a": [1, null]}', '{"b": 1.5}', '{a,"b c"}', 'glad', '10.0.0.1', null)"""
    )
    stand.write(
        """
name: kinds
postgresql: "{{ secrets.shop }}"
query: SELECT * FROM all_kinds -- all of it
cursor: clock
key: [id, tiny]
every: 100ms
start: beginning
timezone: Europe/Berlin
priority: high
event:
  type: "kind.{{ row.mood }}"
  subject: "{{ row.id }}"
  data: {row: "{{ row }}", cheap: "{{ row.price < 20 }}"}
  attributes: {tenant: "{{ row.tags[0] }}"}
"""
    )
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(1), "the event")
    (event,) = await stand.events()
    assert (event.id, event.type, event.subject, event.attributes) == ("[1, 2]", "kind.glad", "1", {"tenant": "a"})
    assert event.time == "2026-07-01T10:00:00.000Z"
    assert event.data == {
        "cheap": True,
        "row": {
            "id": 1,
            "tiny": 2,
            "big": 9007199254740993,
            "yes": True,
            "ratio": 0.1,
            "price": 12.5,
            "at": "2026-07-01T10:00:00.123456Z",
            "clock": "2026-07-01T10:00:00Z",
            "day": "2026-07-01",
            "time": "09:30:00",
            "span": "P1DT2H",
            "uid": "d8b0d0c6-2f3b-4b5e-9a53-7a2f6b1c0001",
            "doc": {"a": [1, None]},
            "raw": {"b": 1.5},
            "tags": ["a", "b c"],
            "mood": "glad",
            "address": "10.0.0.1/32",
            "nothing": None,
        },
    }
    assert await stand.redis.xlen(stand.keys.stream("high")) == 1


async def test_who_lost_the_claim_writes_nothing(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS)
    await stand.insert(3, START)
    store = SourceStore(stand.pool)
    frozen, other = stand.poller("frozen"), stand.poller("other")
    frozen.folder.scan()
    await store.keep(["subscriptions"])
    (claim,) = await store.claim(["subscriptions"], "frozen", 0.0, 1)
    assert await store.claim(["other"], "x", 1.0, 1) == []
    async with stand.running(other):
        await wait_until(lambda: stand.has(3), "the hold ran out: another one reads")
        await stand.polls()
    with pytest.raises(Fenced):
        await frozen.read(frozen.folder.sources["subscriptions"], claim, 0.0)
    assert await stand.ids() == ["1", "2", "3"]


async def test_a_held_source_is_left_alone(stand: Stand) -> None:
    store = SourceStore(stand.pool)
    await store.keep(["subscriptions"])
    (claim,) = await store.claim(["subscriptions"], "one", 60.0, 5)
    assert await store.claim(["subscriptions"], "two", 60.0, 5) == []
    await store.release(claim, 0.0, 60.0)
    (again,) = await store.claim(["subscriptions"], "two", 60.0, 5)
    assert again.turn > claim.turn


async def test_large_rows_come_in_several_pages(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS)
    await stand.insert(100, START)
    await stand.sql("UPDATE subscriptions SET plan = repeat('x', 200000)")
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(100), "the events", 30)
        await stand.polls()
    assert await stand.ids() == [str(n) for n in range(1, 101)]


async def test_a_full_backlog_is_not_added_to(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    stand.write(SUBSCRIPTIONS + "batch: 10\n")
    await stand.insert(50, START)
    stand.ingest = {"max_backlog": 15}
    async with stand.running(stand.poller()):
        await wait_until(lambda: stand.has(20), "two pages")
        await wait_until(lambda: "backlog is full" in caplog.text, "the rest waits")
    assert len(await stand.events()) == 20


async def test_files_come_change_and_go(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    poller = stand.poller()
    async with stand.running(poller):
        assert poller.health() == {}
        stand.write(SUBSCRIPTIONS)
        await stand.insert(1, START)
        await wait_until(lambda: stand.has(1), "the event")
        stand.write(SUBSCRIPTIONS + "enabled: false\n")
        await wait_until(lambda: poller.health() == {"subscriptions": "off"}, "it is off")
        await stand.insert(1)
        stand.write(SUBSCRIPTIONS.replace("type: subscription", "type: sub") + "evry: 1s\n")
        await wait_until(lambda: "unknown key 'evry'; did you mean every?" in caplog.text, "the mistake is told")
        assert poller.folder.broken.keys() == {"subscriptions.yaml"}
        stand.write(SUBSCRIPTIONS.replace("type: subscription", "type: sub"))
        await wait_until(lambda: stand.has(2), "the event by the changed file")
    assert [event.type for event in await stand.events()] == ["subscription.created", "sub.created"]


async def test_a_preview_shows_what_the_next_look_gives_and_moves_nothing(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS)
    await stand.insert(2, START)
    poller = stand.poller()
    poller.folder.scan()
    settings = Settings.model_validate({"config_dir": stand.folder})
    inlets = Inlets(poller.folder, SourceStore(stand.pool), settings, {"shop": stand.shop_url})
    assert [item["state"] for item in await inlets.list_sources()] == ["new"]
    found = await inlets.preview("subscriptions", 1)
    assert (found["error"], found["known"], found["refused"]) == (None, 0, [])
    assert found["columns"] == ["id", "email", "plan", "created_at"]
    assert [event["id"] for event in found["events"]] == ["1"]
    assert await stand.ours("SELECT 1 FROM sources UNION ALL SELECT 1 FROM outbox") == []
    async with stand.running(poller):
        await wait_until(lambda: stand.has(2), "the events")
        await stand.polls()
    await stand.insert(1)
    found = await inlets.preview("subscriptions", 10)
    assert [event["id"] for event in found["events"]] == ["3"]
    (item,) = await inlets.list_sources()
    assert (item["state"], item["cursor"], item["events"]) == ("ok", "2026-01-01T00:00:00Z", 2)
    assert await inlets.refused("subscriptions") == Page([], None)
    with pytest.raises(NotFound):
        await inlets.preview("nothing", 1)
    with pytest.raises(Malformed):
        await inlets.refused("subscriptions", cursor="x")
    nowhere = Inlets(poller.folder, SourceStore(stand.pool), settings, {"shop": "postgresql://127.0.0.1:1/x"})
    assert "refused" in (await nowhere.preview("subscriptions", 1))["error"]
    assert await try_all(list(poller.folder.sources.values()), {"shop": stand.shop_url}, settings) == [None]


async def test_rows_that_share_a_key_are_one_event_and_the_rest_are_repeats(stand: Stand) -> None:
    stand.write(SUBSCRIPTIONS.replace("key: id", "key: plan").replace("lag: 1h", "lag: 0s"))
    async with stand.running(stand.poller()):
        for _ in range(8):
            await stand.insert(2, plan="basic")
            await stand.insert(1, plan="pro")
            await stand.polls()
    assert sorted(event.id for event in await stand.events()) == ["basic", "pro"]
    state = await stand.state()
    assert (state.events, state.repeats, state.missed) == (2, 22, 0)
