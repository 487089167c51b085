"""What the HTTP side counts, into the metrics of :mod:`appliance.observe.metrics`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import Counter

from appliance.errors import ApplianceError
from appliance.events import PRIORITIES
from appliance.http.body import Disconnected
from appliance.http.problems import problem_of
from appliance.http.services import AcceptedEvent
from appliance.observe.metrics import METRICS

_REASONS: Mapping[str, str] = {
    "overloaded": "overload",
    "rate-limit": "rate",
    "stream-unavailable": "unavailable",
    "unavailable": "unavailable",
    "too-large": "too-large",
}
"""Problem code -> reason; any other refusal is ``malformed``."""

_ACCEPTED: Mapping[str, Counter] = {priority: METRICS.events_accepted.labels(priority) for priority in PRIORITIES}
NO_ROUTE = "(none)"
"""The route of requests that have none: a path is a stranger's choice, and no label."""


class RouteMeter:
    """Counts and times the answers of one operation."""

    def __init__(self, method: str, route: str) -> None:
        self._method = method
        self._route = route
        self._seconds = METRICS.http_seconds.labels(route)
        self._by_status: dict[int, Counter] = {}

    def answered(self, status: int, seconds: float) -> None:
        """One answer, and how long it took."""
        counter = self._by_status.get(status)
        if counter is None:
            counter = METRICS.http_requests.labels(self._route, self._method, str(status))
            self._by_status[status] = counter
        counter.inc()
        self._seconds.observe(seconds)


def count_accepted(accepted: AcceptedEvent, priority: str) -> None:
    """One event that Redis has, or had before."""
    if accepted.duplicate:
        METRICS.events_duplicate.inc()
    else:
        _ACCEPTED[priority].inc()


@contextmanager
def counting_refusals() -> Iterator[None]:
    """Count what is refused while events are taken in; errors leave it as problems."""
    try:
        yield
    except Disconnected:
        raise
    except ApplianceError as error:
        problem = problem_of(error)
        if problem.code != "internal":
            METRICS.ingest_refused.labels(_REASONS.get(problem.code, "malformed")).inc()
        raise problem from error
