"""A place where replicas share two servers and call one sink: what most scenarios start from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis

from tests.chaos.api import api_of
from tests.chaos.appliance_process import Fleet
from tests.chaos.invariants import Accepted, Findings, inspect, quiet, repeats
from tests.chaos.sinks import HttpSink
from tests.servers import wait_until

LEASE_S = 2.0
HEAL_TIMEOUT_S = 30.0
"""Long after a lease, a reclaim interval and the retries of the workflow below; not a measure of quality."""

SETTINGS = {
    "APPLIANCE_STREAM__LEASE": f"{LEASE_S:g}s",
    "APPLIANCE_STREAM__BLOCK": "200ms",
    "APPLIANCE_OUTBOUND__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    "APPLIANCE_LOG__FORMAT": "json",
    "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parent / "plugin"), *filter(None, [os.environ.get("PYTHONPATH")])]
    ),
}
_CALL = """
name: call
trigger: {{event: form_submitted, when: {{path: template_id, op: "==", value: call}}}}
steps:
  - id: call
    action: webhook
    with: {{url: "{url}", json: {{n: "{{{{ event.data.n }}}}"}}}}
    retry: {{max_attempts: 20, initial: 20ms, max: 500ms}}
"""
_CHAOS = """
name: chaos
trigger: {event: form_submitted, when: {path: template_id, op: "==", value: chaos}}
steps:
  - id: misbehave
    action: chaos
    with: {how: "{{ event.data.how }}", seconds: "{{ event.data.seconds }}"}
    timeout: 1s
    retry: {max_attempts: 2, initial: 10ms}
"""


@dataclass(slots=True)
class Site:
    """The servers' URLs, the replicas, the sink that their workflow ``call`` calls, and what was accepted."""

    redis_url: str
    database_url: str
    fleet: Fleet
    sink: HttpSink
    accepted: Accepted = field(default_factory=Accepted)

    async def at_rest(self, timeout_s: float = HEAL_TIMEOUT_S) -> None:
        """I4: wait until nothing is pending, unread or left in the streams."""

        async def settled() -> bool:
            return await quiet(self.redis_url)

        try:
            await wait_until(settled, "nothing is pending", timeout_s)
        except AssertionError as error:
            findings = await inspect(self.redis_url, self.database_url, self.accepted)
            tails = "\n".join(replica.tail(15) for replica in self.fleet.replicas[-3:])
            raise AssertionError(f"{error}\n{findings.violations}\n{tails}") from None

    async def check(
        self, *, most_repeated: int, one_life: bool = True, faults: int = 0, lost: int | None = 0
    ) -> Findings:
        """All invariants at rest, and how many effects were repeated at most; prints the summary line.

        ``one_life`` says that Redis never lost its data: the ledger's counters then cover all that the tables hold.
        ``faults`` are those that left no line in a log. ``lost`` events are known to have gone with Redis's data;
        None: the ledger isn't looked at.
        """
        await self.at_rest()
        findings = await inspect(self.redis_url, self.database_url, self.accepted)
        repeated, nameless = repeats(request.key for request in self.sink.requests)
        findings.violations += nameless
        print(findings.summary(len(self.accepted), self.fleet.faults_struck() + faults, repeated))  # noqa: T201
        findings.assert_none()
        assert repeated <= most_repeated, self.sink.repeated()
        if lost is not None:
            await self._compare_ledger(findings, one_life, lost)
        return findings

    async def _compare_ledger(self, findings: Findings, one_life: bool, lost: int) -> None:
        """The product's own ledger must have a difference of 0 and say what the rows say."""
        alive = next((r for r in self.fleet.replicas if r.process.returncode is None), None)
        if alive is None:
            return
        async with api_of(alive) as api:
            account = await api.balanced(lost=lost)
        counted = {
            "handled": findings.handled,
            "unmatched": findings.unmatched,
            "duplicate": findings.duplicates,
            "dead": findings.dead + findings.letters,
        }
        if one_life:
            assert {name: account[name] for name in counted} == counted, account
        else:  # of what was settled when a life ended only the number is known
            assert sum(account[name] for name in counted) == sum(counted.values()), (account, counted)


async def empty(redis_url: str) -> None:
    """Forget what earlier tests left in the streams."""
    async with Redis.from_url(redis_url, protocol=2) as redis:
        await redis.flushall()


@asynccontextmanager
async def open_site(
    redis_url: str,
    database_url: str,
    *,
    through: tuple[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Site]:
    """A site on two servers; ``through`` are the URLs that the replicas use instead (those of proxies)."""
    # A short path, because a Unix socket's may have a hundred bytes only.
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        redis, database = through or (redis_url, database_url)
        fleet = Fleet(Path(folder), redis_url=redis, database_url=database, settings={**SETTINGS, **(settings or {})})
        async with HttpSink() as sink, fleet:
            fleet.workflow("call", _CALL.format(url=sink.url))
            fleet.workflow("chaos", _CHAOS)
            yield Site(redis_url, database_url, fleet, sink)
