"""One replica: every part, wired. What starts and stops it, in which order, is :mod:`appliance.supervisor`."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from typing import Any

import httpx

from appliance.bookkeeping import Bookkeeper
from appliance.catalog import Catalog
from appliance.editor import Editor
from appliance.engine.actions import ActionRunner
from appliance.engine.attribution import Attributed
from appliance.engine.control import Control
from appliance.engine.drive import Driver
from appliance.engine.entrance import Entrance
from appliance.engine.executor import Executor
from appliance.engine.gatekeeper import Gatekeeper
from appliance.engine.impact import Impact
from appliance.engine.inlets import Inlets
from appliance.engine.intake import Intake
from appliance.engine.lifecycle import Lifecycle
from appliance.engine.order import Order
from appliance.engine.outbox import OutboxLoop
from appliance.engine.polling import Poller, Sending
from appliance.engine.recovery import Recovery, Surroundings
from appliance.engine.schedules import Ticker
from appliance.engine.tasks import Tasks
from appliance.engine.timers import Timers
from appliance.engine.timetable import Timetable
from appliance.links import Links
from appliance.registry import Registry
from appliance.resources import Resources
from appliance.settings import Settings
from appliance.store.definitions import DefinitionStore
from appliance.store.gates import Gates
from appliance.store.history import History
from appliance.store.outbox import Outbox
from appliance.store.pool import Pool, open_connection
from appliance.store.queues import Queues
from appliance.store.recorder import Recorder
from appliance.store.recovery import RecoveryStore
from appliance.store.runs import Runs
from appliance.store.sources import SourceStore
from appliance.store.trace import Traces
from appliance.stream import client as stream_client
from appliance.stream.consumer import Consumer
from appliance.stream.group import Foundation, Group
from appliance.stream.inspection import eviction_policy
from appliance.stream.keys import Keys
from appliance.stream.leases import Leases
from appliance.stream.ledger import Ledger
from appliance.stream.precedence import Unsettled
from appliance.stream.presence import Presence
from appliance.stream.producer import Producer
from appliance.stream.reclaim import Reclaimer


def consumer_name(configured: str) -> str:
    """This replica's name in the group: the configured one, or one that no other process ever has."""
    return configured or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def _link_key(settings: Settings) -> str:
    """The supervisor fills it in from the data folder; without either, links end with the process."""
    return settings.link_key.get_secret_value() if settings.link_key is not None else secrets.token_urlsafe(32)


class Replica:
    """The parts. Making it connects to nothing."""

    def __init__(
        self,
        settings: Settings,
        urls: tuple[str, str],
        pool: Pool,
        registry: Registry,
        resources: Resources,
        http: httpx.AsyncClient,
        on_founded: Callable[[Foundation], Any],
    ) -> None:
        redis_url, database_url = urls
        stream, engine = settings.stream, settings.engine
        self.settings = settings
        self.secrets = {name: value.get_secret_value() for name, value in settings.secrets.items()}
        self.keys = Keys(settings.namespace)
        self.consumer_name = consumer_name(stream.consumer)
        self.commander = stream_client.commander(redis_url, stream)
        self.reader = stream_client.reader(redis_url, stream)
        self.producer = Producer(self.commander, self.keys, settings.ingest, lambda: self.consumer.found())
        self.pool = pool
        self.outbox_table = Outbox(pool, lambda: open_connection(database_url, settings.store))
        self.outbox = OutboxLoop(self.outbox_table, self.producer, engine.timer_poll.total_seconds())
        self.intake: Intake | Producer = self.producer
        if settings.ingest.durability == "postgres":
            self.intake = Intake(self.outbox_table, self.outbox, self.producer, settings.ingest)
        self.runs = Runs(pool)
        self.history = History(pool)
        self.queues = Queues(pool)
        self.traces = Traces(pool, self.history)
        self.recorder = Recorder(
            lambda: open_connection(database_url, settings.store),
            batch=settings.store.commit_batch,
            timeout_s=settings.store.statement_timeout.total_seconds() + 5,
        )
        definitions = DefinitionStore(pool)
        self.catalog = Catalog(definitions, registry.actions, settings.config_dir)
        self.editor = Editor(self.catalog, definitions, registry.actions)
        self.timers = Timers(pool, self.producer, engine.timer_poll.total_seconds())
        self.ticker = Ticker(pool, self.intake, self.catalog, engine.timer_poll.total_seconds())
        self.timetable = Timetable(pool, self.catalog)
        sending = Sending(self.intake.backlog, self.producer.put, self.outbox.note)
        self.poller = Poller(SourceStore(pool), sending, settings, self.secrets, self.consumer_name)
        self.inlets = Inlets(self.poller.folder, SourceStore(pool), settings, self.secrets)
        self.lifecycle = Lifecycle(
            engine.lifecycle_events,
            lambda kind: self.catalog.matcher.wants(kind) or self.catalog.listeners.wants(kind),
            engine.max_hops,
            self.outbox.expect,
        )
        self.tasks = Tasks(pool, self.timers.expect, engine.max_output_bytes)
        self.links = Links(_link_key(settings), settings.http.public_url or "http://127.0.0.1:8000")
        self.control = Control(pool, self.runs, self.catalog, self.timers.expect, self.lifecycle, self._let_in)
        self.impact = Impact(pool, self.catalog)
        self.actions = ActionRunner(
            registry,
            resources,
            http=http,
            settings=engine,
            publisher=self.intake.publish,
            secrets=self.secrets,
        )
        self.leases = Leases(
            self.keys,
            stream.group,
            self.consumer_name,
            stream.lease.total_seconds(),
            lambda: stream_client.renewer(redis_url),
        )
        self.driver = Driver(
            self.actions,
            self.recorder,
            self.catalog,
            secrets=self.secrets,
            max_depth=engine.max_depth,
            park_after_s=engine.park_after.total_seconds(),
            may_hold=lambda: self.consumer.may_hold(),
            on_timer=self.timers.expect,
            task_link=self.links.task,
            announce=self.lifecycle,
            incoming=self.runs.incoming,
        )
        self.gatekeeper = Gatekeeper(
            Gates(
                pool,
                lambda: open_connection(database_url, settings.store),
                timeout_s=settings.store.statement_timeout.total_seconds() + 5,
                hold_s=max(1.0, settings.store.statement_timeout.total_seconds() / 2),
            ),
            self.catalog,
            self.timers.expect,
        )
        self.executor = Executor(
            self.catalog,
            self.runs,
            self.recorder,
            self.driver,
            self.leases,
            self.keys,
            self.timers.expect,
            Entrance(self.gatekeeper, self.catalog),
            Order(self.catalog, self.runs, Unsettled(self.commander, self.keys, stream.group), self.keys),
        )
        self.group = Group(self.commander, self.reader, self.keys, stream.group, self.consumer_name)
        self.consumer = Consumer(
            self.commander,
            self.group,
            self.leases,
            Attributed(self.executor, RecoveryStore(pool)),
            (stream, engine),
            on_founded=on_founded,
            can_commit=lambda: self.recorder.healthy and self.gatekeeper.healthy and not self.catalog.unusable,
        )
        self.reclaimer = Reclaimer(self.group, self.leases, self.consumer, stream)
        self.bookkeeper = Bookkeeper(Ledger(self.commander, self.keys, stream.group), pool)
        self.presence = Presence(self.commander, self.keys, stream.group, self.consumer_name)
        around = Surroundings(
            self._before_a_sweep,
            self._signs_of_loss,
            self.leases.__contains__,
            self.runs.look_back,
            self.timers.expect,
        )
        self.recovery = Recovery(RecoveryStore(pool), self.presence, self.producer, around)

    async def recover(self) -> dict[str, int | bool]:
        """Put back to work what was lost, however young; says how much of each kind that was."""
        return (await self.recovery.sweep(grace_s=0.0, thorough=True)).as_dict()

    async def _before_a_sweep(self) -> None:
        await self.consumer.found()
        await self.outbox.settle(0.0)
        await self.bookkeeper.complete()

    async def _let_in(self, workflow_id: int) -> None:
        await self.gatekeeper.freed(workflow_id)

    async def _signs_of_loss(self) -> object:
        return await self.bookkeeper.signs(), await self.presence.server()

    async def eviction_policy(self) -> str:
        """What Redis does when its memory is full; raises StreamUnavailable."""
        return await eviction_policy(self.commander)

    async def close_clients(self) -> None:
        """Close the connections to Redis."""
        await self.reader.aclose()
        await self.commander.aclose()
        await self.outbox_table.close()
