"""The process: what starts before what, what stops before what, and what ends it.

Start: data folder, embedded servers, PostgreSQL and its migrations, plugins, definitions, Redis, the loops, HTTP.
Stop: HTTP answers 503 and reading stops; actions finish within ``engine.grace``; commits and acknowledgements are
flushed, leases released; plugins close; the servers stop. A second signal ends the process at once: what was under way
is reclaimed, as after any kill. A loop that dies ends the process, with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from appliance import __version__
from appliance.configuration import secret_values
from appliance.datadir import DataDir
from appliance.embedded.postgres import EmbeddedPostgres
from appliance.embedded.valkey import EmbeddedValkey
from appliance.errors import StoreUnavailable, StreamUnavailable, Unavailable
from appliance.health import HealthMonitor
from appliance.http.app import create_app
from appliance.http.server import HttpServer
from appliance.http.services import Services
from appliance.observe import logs
from appliance.observe.metrics import METRICS
from appliance.observe.stall import StallWatchdog
from appliance.observe.systemd import Notifier
from appliance.outbound import make_client
from appliance.registry import Registry
from appliance.replica import Replica
from appliance.settings import Settings
from appliance.store import partitions
from appliance.store.migrate import migrate
from appliance.store.pool import checked_out, open_pool
from appliance.stream.group import Foundation
from appliance.workflows.schema import json_schema

EXIT_OK = 0
EXIT_FAILED = 70
"""EX_SOFTWARE: a loop died, an embedded server can't be kept up."""
EXIT_UNAVAILABLE = 69
"""EX_UNAVAILABLE: a server could not be reached at the start."""

_CONNECT_S = 60.0
"""How long the start waits for servers: containers come up in any order."""
_HOUSEKEEPING_S = 3600.0
_ALIVE_EVERY_S = 5.0

log = logging.getLogger("appliance.supervisor")


class Supervisor:
    """Holds the reasons to stop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.exit_code = EXIT_OK
        self._stop = asyncio.Event()
        self._reason = ""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = True
        self._main: asyncio.Task[Any] | None = None
        self.notifier = Notifier()
        engine = settings.engine
        self.watchdog = StallWatchdog(engine.stall_warning.total_seconds(), engine.stall_limit.total_seconds())

    @property
    def stopping(self) -> bool:
        """Whether the stop has begun."""
        return self._stop.is_set()

    def fail(self, reason: str) -> None:
        """End the process, with its reason."""
        if not self.stopping:
            log.critical("stopping: %s", reason)
            self.exit_code = EXIT_FAILED
            self._reason = reason
            self._stop.set()

    def signalled(self, number: int) -> None:
        """A first signal asks for an orderly stop (and cuts a start short), a second one ends the process."""
        name = signal.Signals(number).name
        if self.stopping:
            log.warning("%s: ending at once", name)
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: stopping", name)
        self._reason = name
        self._stop.set()
        if self._starting and self._main is not None:
            self._main.cancel()

    def watch(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a loop whose end, before the stop, ends the process."""
        task = asyncio.create_task(coroutine, name=name)
        self.watch_task(task)
        return task

    def watch_task(self, task: asyncio.Task[Any]) -> None:
        """The same for a task that runs already."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if self.stopping:
            return
        if task.cancelled():
            self.fail(f"{task.get_name()} was cancelled")
            return
        if (error := task.exception()) is not None:
            log.critical("%s died", task.get_name(), exc_info=error)
        self.fail(f"{task.get_name()} ended: {error!r}")

    async def run(self) -> int:
        """Start, serve until something asks for the stop, stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signalled, number)
        self._main = asyncio.current_task()
        self.watchdog.start()
        try:
            async with contextlib.AsyncExitStack() as stack:
                replica, server, monitor, datadir = await self._start(stack)
                await self._serve(replica, server, monitor, datadir)
        except asyncio.CancelledError:
            if not (self._starting and self.stopping):
                raise
        finally:
            self.watchdog.stop()
        log.info("stopped (%s)", self._reason)
        return self.exit_code

    async def _start(self, stack: contextlib.AsyncExitStack) -> tuple[Replica, HttpServer, HealthMonitor, DataDir]:
        settings = self.settings
        datadir = stack.enter_context(DataDir.open(settings.data_dir, ephemeral=settings.ephemeral))
        if settings.link_key is None:
            settings = settings.model_copy(update={"link_key": SecretStr(datadir.link_key())})
        api_key = settings.api_key.get_secret_value() if settings.api_key is not None else datadir.api_key()
        logs.configure(settings.log, [*secret_values(settings), api_key])
        urls = await self._servers(stack, datadir)
        pool = await patiently("PostgreSQL", lambda: open_pool(urls[1], settings.store))
        stack.push_async_callback(pool.close)
        for name in await migrate(urls[1]):
            log.info("migrated: %s", name)
        await self._housekeep(pool)
        registry = Registry.load(settings.plugins, smtp=settings.smtp)
        for name, why in registry.broken.items():
            log.error("plugin %s can't be used: %s", name, why)
        http = make_client(settings.outbound)
        stack.push_async_callback(http.aclose)
        resources = await stack.enter_async_context(
            registry.open(data_dir=datadir.path, config_dir=settings.config_dir, http=http)
        )
        replica = Replica(settings, urls, pool, registry, resources, http, self._founded)
        stack.push_async_callback(replica.close_clients)
        await replica.catalog.load()
        await patiently("Redis", replica.consumer.found)
        monitor = self._monitor(replica)
        services = Services(
            settings=settings,
            producer=replica.intake,
            catalog=replica.catalog,
            editor=replica.editor,
            impact=replica.impact,
            history=replica.history,
            control=replica.control,
            tasks=replica.tasks,
            links=replica.links,
            schedules=replica.timetable,
            sources=replica.inlets,
            queues=replica.queues,
            registry=registry,
            ledger=replica.bookkeeper.ledger,
            recover=replica.recover,
            trace=replica.traces.trace,
            health=monitor.health,
            schema=lambda: json_schema(registry.actions),
            api_key=api_key,
            metrics=METRICS.registry,
        )
        server = HttpServer(create_app(services), settings.http)
        return replica, server, monitor, datadir

    async def _servers(self, stack: contextlib.AsyncExitStack, datadir: DataDir) -> tuple[str, str]:
        """The URLs of Redis and PostgreSQL; starts what no URL is given for."""
        settings = self.settings
        postgres = EmbeddedPostgres(datadir, bin_dir=settings.postgres_bin_dir, on_failure=self.fail)
        valkey = EmbeddedValkey(datadir, binary=settings.redis_binary, on_failure=self.fail)
        if settings.database_url is None:
            await stack.enter_async_context(postgres)
        if settings.redis_url is None:
            await stack.enter_async_context(valkey)
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url is not None else valkey.url
        database_url = settings.database_url.get_secret_value() if settings.database_url is not None else postgres.url
        return redis_url, database_url

    def _monitor(self, replica: Replica) -> HealthMonitor:
        limit = self.settings.engine.max_abandoned

        def abandoned() -> str | None:
            METRICS.actions_abandoned.set(replica.actions.abandoned)
            METRICS.entries_in_flight.set(len(replica.leases))
            if replica.actions.abandoned >= limit:
                self.fail(f"{replica.actions.abandoned} actions ignore their cancellation (engine.max_abandoned)")
                return "actions ignore their cancellation"
            return None

        def unusable() -> str | None:
            if names := replica.catalog.unusable:
                return f"{', '.join(names)}: in force, but this release can't read it (see the log); nothing is read"
            return None

        def away() -> str | None:
            paused = replica.consumer.paused() and not replica.catalog.unusable
            return "it can't be reached or takes no commits" if paused else None

        sources: dict[str, Callable[[], str | None]] = {
            "postgresql": away,
            "workflows": unusable,
            "process": lambda: "stopping" if self.stopping else None,
            "actions": abandoned,
        }
        return HealthMonitor(
            replica.eviction_policy,
            self.watchdog,
            sources,
            lambda: {
                "consumer": replica.consumer_name,
                "active": replica.consumer.active,
                "workflows": len(replica.catalog.workflows()),
                "refused": sorted(replica.catalog.broken),
                "sources": replica.poller.health(),
            },
        )

    async def _serve(self, replica: Replica, server: HttpServer, monitor: HealthMonitor, datadir: DataDir) -> None:
        await server.start()
        replica.links.base = self.settings.http.public_url or server.url
        self.watch_task(server.running)
        await monitor.check()
        loops = [
            self.watch(replica.consumer.read_forever(), "reader"),
            self.watch(replica.reclaimer.run_forever(), "reclaimer"),
            self.watch(replica.timers.run_forever(), "timers"),
            self.watch(replica.gatekeeper.run_forever(), "flow control"),
            self.watch(replica.outbox.run_forever(), "outbox"),
            self.watch(replica.recovery.run_forever(), "recovery"),
            self.watch(replica.ticker.run_forever(), "schedules"),
            self.watch(replica.poller.run_forever(), "sources"),
        ]
        side = [
            self.watch(replica.catalog.run(), "catalog"),
            self.watch(replica.bookkeeper.run_forever(), "bookkeeper"),
            self.watch(monitor.run_forever(), "health"),
            self.watch(self._housekeep_forever(replica.pool), "housekeeping"),
        ]
        tune_collector()
        monitor.started = True
        self._starting = False
        datadir.announce(server.url, __version__)
        METRICS.build.info({"version": __version__})
        self.notifier.ready(f"serving on {server.url}")
        log.info("serving on %s", server.url)
        with contextlib.suppress(asyncio.CancelledError):
            await self._alive_until_stop()
        await self._shut_down(replica, server, loops, side)

    async def _alive_until_stop(self) -> None:
        interval_s = self.notifier.watchdog_interval_s or _ALIVE_EVERY_S
        while not self.stopping:
            self.notifier.alive()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(interval_s, _ALIVE_EVERY_S)):
                    await self._stop.wait()

    async def _shut_down(
        self, replica: Replica, server: HttpServer, loops: list[asyncio.Task[Any]], side: list[asyncio.Task[Any]]
    ) -> None:
        grace = self.settings.engine.grace
        self.notifier.stopping(grace.total_seconds() + 10.0)
        replica.timers.stop()
        replica.gatekeeper.stop()
        replica.recovery.stop()
        replica.ticker.stop()
        replica.poller.stop()
        await asyncio.gather(replica.consumer.stop(grace.total_seconds()), server.stop(grace))
        await replica.intake.drain()
        replica.outbox.stop()
        await asyncio.wait(loops, timeout=5.0)
        for task in side:
            task.cancel()
        await asyncio.wait(side, timeout=1.0)
        with contextlib.suppress(StreamUnavailable, StoreUnavailable):
            await replica.bookkeeper.save()
        await replica.recorder.close()
        await replica.gatekeeper.close()

    async def _founded(self, foundation: Foundation) -> None:
        """Groups were made anew: normal at the first start, data loss at any other time."""
        if not self._starting:
            METRICS.groups_recreated.inc(len(foundation.made))
            log.error("Redis lost the consumer group of %s: it was made again", ", ".join(foundation.made))
        for priority, counters in foundation.lost.items():
            log.error("the stream %s was lost; its ledger said %s", priority, dict(counters))

    async def _housekeep(self, pool: Any) -> None:
        store = self.settings.store
        now = datetime.now(UTC)
        async with checked_out(pool) as connection:
            await partitions.ensure(connection, store.partition, now)
        async with checked_out(pool) as connection:
            dropped = await partitions.drop_expired(connection, store.retention, now)
        if dropped:
            METRICS.partitions_dropped.inc(len(dropped))
            log.info("dropped expired history: %s", ", ".join(dropped))

    async def _housekeep_forever(self, pool: Any) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            try:
                await self._housekeep(pool)
            except StoreUnavailable as error:
                log.warning("housekeeping waits: %s", error)


async def run(settings: Settings) -> int:
    """Run one replica until it is asked to stop; returns the process's exit code. Raises ConfigurationError."""
    logs.configure(settings.log, secret_values(settings))
    try:
        return await Supervisor(settings).run()
    except Unavailable as error:
        log.critical("%s", error)
        return EXIT_UNAVAILABLE


def tune_collector() -> None:
    """What is there after the start stays, so the collector needn't look at it again, and looks more rarely.

    With the defaults it takes 13 % of the time in batches of 500 entries.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def patiently(what: str, attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Try until it works, for a minute; raises what the last try raised."""
    deadline = time.monotonic() + _CONNECT_S
    pause = 0.1
    while True:
        try:
            return await attempt()
        except Unavailable as error:
            if time.monotonic() + pause > deadline:
                raise
            log.warning("waiting for %s: %s", what, error)
        await asyncio.sleep(pause)
        pause = min(5.0, pause * 2)
