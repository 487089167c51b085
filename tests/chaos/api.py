"""The questions that scenarios ask a replica, over its API alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.chaos.appliance_process import API_KEY, Replica
from tests.chaos.invariants import Accepted
from tests.servers import wait_until

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
SETTLE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Api:
    """One replica, asked."""

    http: httpx.AsyncClient

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON of a path under ``/api/v1``, which must answer 200."""
        answer = await self.http.get(f"/api/v1/{path}", params=query)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def post(self, path: str, body: Any = None, *, status: int = 200) -> Any:
        """The JSON that a POST under ``/api/v1`` answers, which must have that status."""
        answer = await self.http.post(f"/api/v1/{path}", json=body)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def submit(self, template_id: str, data: dict[str, Any] | None = None, *, key: str | None = None) -> str:
        """Submit a form; returns the id that 202 (or 200, for a duplicate) names."""
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = await self.http.post("/submit", json={"template_id": template_id, "data": data or {}}, headers=headers)
        assert answer.status_code in (200, 202), f"{answer.status_code} {answer.text}"
        return str(answer.json()["id"])

    async def runs(self, event_id: str) -> list[dict[str, Any]]:
        """The runs of an event."""
        items: list[dict[str, Any]] = (await self.get("runs", event_id=event_id))["items"]
        return items

    async def finished_run(self, event_id: str, timeout_s: float = SETTLE_TIMEOUT_S) -> dict[str, Any]:
        """Wait until the event has exactly one run and that is finished; returns it with its steps."""

        async def one() -> dict[str, Any] | None:
            runs = await self.runs(event_id)
            assert len(runs) <= 1, runs
            return runs[0] if runs and runs[0]["status"] in FINISHED else None

        run = await wait_until(one, f"the run of event {event_id} is finished", timeout_s)
        found: dict[str, Any] = await self.get(f"runs/{run['id']}")
        return found

    async def balanced(self, timeout_s: float = SETTLE_TIMEOUT_S, *, lost: int = 0) -> dict[str, int]:
        """Wait until nothing is in flight; returns the ledger, whose difference must then be 0.

        If Redis ``lost`` events, it is at most so many: what came in since the counters were last saved isn't known.
        """

        async def at_rest() -> dict[str, int] | None:
            account: dict[str, int] = await self.get("ledger")
            return account if account["in_flight"] == 0 else None

        account: dict[str, int] = await wait_until(at_rest, "nothing is in flight", timeout_s)
        assert 0 <= account["difference"] <= lost, account
        parts = ("handled", "unmatched", "duplicate", "dead", "in_flight")
        assert account["accepted"] == sum(account[part] for part in parts) + account["difference"], account
        return account


@asynccontextmanager
async def api_of(replica: Replica) -> AsyncIterator[Api]:
    """An :class:`Api` with the right key."""
    async with replica.client(api_key=API_KEY) as client:
        yield Api(client)


async def load(
    replica: Replica, accepted: Accepted, *, template_id: str, count: int, clients: int = 8, key: str | None = None
) -> None:
    """Submit ``count`` forms over some connections, noting what is accepted; ends early when nobody answers any more.

    Each form carries its number, and with ``key`` an Idempotency-Key, so that the same load can be sent again.
    """
    numbers = iter(range(count))

    async def one_client() -> None:
        async with api_of(replica) as api:
            for number in numbers:
                try:
                    event_id = await api.submit(template_id, {"n": number}, key=key and f"{key}-{number}")
                except (httpx.TransportError, AssertionError):
                    return  # it is gone or stopping: what it did not accept, it need not account for
                accepted.ids.add(event_id)

    await asyncio.gather(*(one_client() for _ in range(clients)))
