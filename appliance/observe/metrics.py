"""Every metric of the appliance, by name; ``docs/metrics.md`` lists them for operators.

One :data:`METRICS` for the process. Names and labels are public: they change only with a line in the changelog. Labels
take few values (statuses, workflows' actions), never an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from appliance.observe.tally import Tally

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BATCH = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as its documentation shows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str


class Metrics:
    """The metrics, one attribute each, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._ingest()
        self._stream()
        self._runs()
        self._store()
        self._process()

    def _ingest(self) -> None:
        self.http_requests = self._counter("http_requests", "HTTP requests answered.", "route", "method", "status")
        self.http_seconds = self._histogram("http_request_seconds", "Time to answer an HTTP request.", "route")
        self.events_accepted = self._counter(
            "events_accepted", "Events taken in by this replica's HTTP side, once Redis had them.", "priority"
        )
        self.events_duplicate = self._counter("events_duplicate", "Events refused by ingest as duplicates.")
        self.ingest_refused = self._counter(
            "ingest_refused", "Events not taken in: overload, rate, unavailable, malformed, too-large.", "reason"
        )

        self.source_rows = self._counter(
            "source_rows",
            "Rows of polling sources, by what became of them: event, repeat, refused, missed.",
            "source",
            "outcome",
        )
        self.source_polls = self._counter("source_polls", "Looks at polling sources, ok or error.", "source", "result")
        self.source_poll_seconds = self._histogram("source_poll_seconds", "Duration of one look at a source.", "source")
        self.source_failures = self._gauge("source_failures", "Looks at a source that failed in a row.", "source")
        self.source_polled = self._gauge(
            "source_polled_timestamp_seconds", "Unix time of the last look at a source that worked.", "source"
        )
        self.outbox_sent = self._counter("outbox_sent", "Events that the outbox put into a stream later.")

    def _stream(self) -> None:
        self.entries_read = self._counter("entries_read", "Entries delivered to this replica.", "priority")
        self.entries_settled = self._counter("entries_settled", "Entries acknowledged, by outcome.", "outcome")
        self.entries_reclaimed = self._counter("entries_reclaimed", "Entries taken over after their lease ran out.")
        self.entries_vanished = self._counter(
            "entries_vanished", "Pending entries that somebody removed from the stream: their content is lost."
        )
        self.entries_in_flight = self._gauge("entries_in_flight", "Entries this replica works on or holds for a retry.")
        self.backlog = self._gauge("backlog_entries", "Entries not yet settled, over all replicas.", "priority")
        self.lag = self._gauge("backlog_lag_seconds", "Age of the oldest entry that is not settled.", "priority")
        self.leases_lost = self._counter("leases_lost", "Leases that ran out while this replica worked on the entry.")
        self.groups_recreated = self._counter(
            "groups_recreated", "Consumer groups that had vanished and were made again: Redis lost data."
        )
        self.recovered = self._counter(
            "recovered", "What had been lost with Redis's data and was put back to work.", "kind"
        )
        self.stream_errors = self._counter("stream_errors", "Commands to Redis that failed.")
        self.handler_errors = self._counter("handler_errors", "Unexpected errors while an entry was worked on.")

    def _runs(self) -> None:
        self.runs_started = self._counter("runs_started", "Runs begun.")
        self.runs_finished = self._counter("runs_finished", "Runs that ended, by their status.", "status")
        self.attempts_failed = self._counter("attempts_failed", "Attempts of steps that failed, by kind.", "kind")
        self.action_seconds = self._tally("action_seconds", "Duration of one attempt of an action.", "action")
        self.actions_abandoned = self._gauge(
            "actions_abandoned", "Actions that still run although their attempt is over: they ignored cancellation."
        )
        self.chains_cut = self._counter(
            "chains_cut", "Events about the ends of runs that were not made because of engine.max_hops."
        )
        self.dead_letters = self._counter("dead_letters", "Dead letters made, by kind.", "kind")
        self.timers_fired = self._counter("timers_fired", "Timers that fell due and were put into a stream.")
        self.timer_delay_seconds = self._histogram("timer_delay_seconds", "How late timers fired.")
        self.schedules_fired = self._counter("schedules_fired", "Slots of schedules whose event was put into a stream.")
        self.event_seconds = self._tally(
            "event_seconds", "Time from an event's entry into the stream to its acknowledgement."
        )
        self.queue_runs = self._gauge(
            "queue_runs", "Runs that wait for places of flow control, over all replicas; counted up to 10,000."
        )
        self.workflows = self._gauge("workflows", "Enabled workflows in the catalog.")
        self.definitions_refused = self._counter("definitions_refused", "Workflow definitions refused, files and API.")

        self.flow_held = self._counter(
            "flow_held", "Times that flow control had a run wait, by the part of it that did.", "reason"
        )
        self.flow_skipped = self._counter("flow_skipped", "Events that started no run, by outcome.", "reason")
        self.flow_let_in = self._counter("flow_let_in", "Runs that waited for places and got them.")
        self.flow_seconds = self._histogram("flow_decision_seconds", "Duration of one batch of flow control.")

    def _store(self) -> None:
        self.commit_seconds = self._histogram("commit_seconds", "Duration of one group commit.")
        self.commit_batch = self._histogram("commit_batch_entries", "Entries in one group commit.", buckets=_BATCH)
        self.commits_fenced = self._counter(
            "commits_fenced", "Outcomes not written because another replica's newer result was there."
        )
        self.store_errors = self._counter("store_errors", "Transactions that PostgreSQL could not take.")
        self.partitions_dropped = self._counter("partitions_dropped", "Partitions dropped after their retention.")

    def _process(self) -> None:
        self.loop_lag_seconds = self._histogram("loop_lag_seconds", "How late the event loop was for its heartbeat.")
        self.loop_stalled = self._gauge("loop_stalled", "1 while the event loop is blocked.")
        self.loop_stalls = self._counter("loop_stalls", "Times that the event loop was blocked beyond the warning.")
        self.server_restarts = self._counter("server_restarts", "Restarts of an embedded server.", "server")
        self.logs_suppressed = self._counter("logs_suppressed", "Log records left out because they repeat too often.")
        self.ready = self._gauge("ready", "1 while /readyz answers 200.")
        self.build = Info("appliance_build", "The version that runs.", registry=self.registry)

    def describe(self) -> Iterator[Metric]:
        """What there is, by name as Prometheus shows it, in alphabetical order."""
        yield from sorted(filter(None, map(_described, vars(self).values())), key=lambda metric: metric.name)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"appliance_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"appliance_{name}", description, labels, registry=self.registry)

    def _histogram(self, name: str, description: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(f"appliance_{name}", description, labels, registry=self.registry, buckets=buckets)

    def _tally(self, name: str, description: str, label: str | None = None) -> Tally:
        return Tally(f"appliance_{name}", description, label, _SECONDS, self.registry)


def _described(metric: object) -> Metric | None:
    if isinstance(metric, Tally):
        return Metric(metric.name, "histogram", metric.labels, metric.description)
    if not isinstance(metric, Counter | Gauge | Histogram | Info):
        return None
    kind = type(metric).__name__.lower()
    name = metric._name + {"counter": "_total", "info": "_info"}.get(kind, "")
    return Metric(name, kind, tuple(metric._labelnames), metric._documentation)


METRICS = Metrics()
