"""What the scenarios of durable workflows share: a site with the mixed load's workflows, its tables, and chance.

CHAOS_KILLS says how many replicas die (given in the long form, by ``make chaos``), CHAOS_SEED which, and all the rest.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.chaos.mixture import ONCE, install
from tests.chaos.site import Site, open_site
from tests.chaos.storm import Storm
from tests.chaos.tables import Tables, open_tables

LONG = "CHAOS_KILLS" in os.environ
_MOST_KILLS = 60
HEAL_S = 60.0
"""Long enough for leases, timers and retries on a busy machine; not a measure of quality."""
CONCURRENCY = 20
AT_ONCE = 3
"""Attempts of one run that may be under way at once: branches, items and notices."""
SETTINGS = {"APPLIANCE_ENGINE__CONCURRENCY": str(CONCURRENCY), "APPLIANCE_ENGINE__TIMER_POLL": "200ms"}


@dataclass(slots=True)
class Scene:
    """The place, what its tables say, and chance."""

    site: Site
    tables: Tables
    dice: random.Random

    def storm(self, short: int) -> Storm:
        """Of ``short`` deaths, or as many as were asked for."""
        kills = min(int(os.environ.get("CHAOS_KILLS", short)), _MOST_KILLS)
        return Storm(self.site.fleet, self.dice, kills, freezes=LONG)

    async def check(
        self, *, deaths: int = 0, blind: int = 0, losses: int = 0, lost: int = 0, accounts: bool = True
    ) -> None:
        """Everything that must hold at rest; ``blind`` of the deaths left no line in a log.

        ``losses`` says how often Redis lost something, and ``lost`` how many events went with it. Without ``accounts``
        the ledger's counters aren't looked at.
        """
        await self.site.at_rest()
        violations = await self.tables.violations()
        assert not violations, "\n".join(violations)
        once = [request.key for request in self.site.sink.requests if request.path in ONCE]
        assert len(set(once)) == len(once), "what is done at most once was done twice"
        await self.site.check(
            most_repeated=(deaths + 2 * losses) * CONCURRENCY * AT_ONCE,  # what both replicas had under way
            faults=blind + losses,
            one_life=not losses,
            lost=lost if accounts else None,
        )


@pytest.fixture
async def scene(redis_url: str, database_url: str) -> AsyncIterator[Scene]:
    """A scene without any replica yet."""
    seed = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed}")  # noqa: T201
    async with open_site(redis_url, database_url, settings=SETTINGS) as site, open_tables(database_url) as tables:
        install(site.fleet, site.sink.url)
        yield Scene(site, tables, random.Random(seed))
