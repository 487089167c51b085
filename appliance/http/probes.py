"""What machines ask about the process: alive, ready, started, health in detail, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request

from appliance.http.operations import Operation
from appliance.http.reply import Reply, json_reply
from appliance.http.services import Health


class Probes:
    """The endpoints. All but the metrics are open, so they say nothing that a stranger may not read."""

    def __init__(self, health: Callable[[], Health], metrics: CollectorRegistry) -> None:
        self._health = health
        self._metrics = metrics

    def operations(self) -> tuple[Operation, ...]:
        """All of them."""

        def probe(path: str, handler: Any, summary: str) -> Operation:
            return Operation(
                method="GET",
                path=path,
                handler=handler,
                summary=summary,
                open=True,
                answer="Health",
                statuses=(200, 503),
            )

        return (
            probe("/livez", self.live, "503 when the process should be restarted"),
            probe("/readyz", self.ready, "503 while no traffic should be sent here"),
            probe("/startupz", self.started, "503 until everything has started"),
            probe("/health", self.health, "The state of every part; 503 while not ready"),
            Operation(
                method="GET",
                path="/metrics",
                handler=self.metrics,
                summary="Prometheus metrics",
                answer="Text",
                answer_type="text/plain",
            ),
        )

    async def live(self, request: Request) -> Reply:
        """Dead when a loop has ended or the event loop stalls."""
        dead = self._health().dead
        return _probe_reply(not dead, list(dead))

    async def ready(self, request: Request) -> Reply:
        """Ready when started, alive, and nothing stands against it."""
        health = self._health()
        return _probe_reply(health.ready, _reasons(health))

    async def started(self, request: Request) -> Reply:
        """Started once, for good."""
        health = self._health()
        return _probe_reply(health.started, [] if health.started else ["starting"])

    async def health(self, request: Request) -> Reply:
        """The reasons and the details."""
        health = self._health()
        document = {**_verdict(health.ready, _reasons(health)), "details": dict(health.details)}
        return json_reply(document, 200 if health.ready else 503)

    async def metrics(self, request: Request) -> Reply:
        """The text format, version 0.0.4."""
        headers = ((b"content-type", CONTENT_TYPE_PLAIN_0_0_4.encode()), (b"cache-control", b"no-store"))
        return Reply(200, generate_latest(self._metrics), headers)


def _reasons(health: Health) -> list[str]:
    return [*([] if health.started else ["starting"]), *health.dead, *health.unready]


def _probe_reply(ok: bool, reasons: list[str]) -> Reply:
    return json_reply(_verdict(ok, reasons), 200 if ok else 503)


def _verdict(ok: bool, reasons: list[str]) -> dict[str, Any]:
    return {"status": "ok" if ok else "unavailable", "reasons": reasons}
