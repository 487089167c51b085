"""``python -m tests.bench``: every figure beside the raw limit it is to be measured by. About five minutes."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Awaitable, Callable

import uvloop

from tests.bench import durable, ingest, latency, memory, shaping, sources, throughput
from tests.bench.stand import Servers, servers

EVENTS = 20_000
ROUNDS = 3
WORKFLOWS = 10_000
PARKED = 1_000_000


def row(name: str, value: str, ratio: str = "", goal: str = "") -> None:
    """One line of the table."""
    print(f"{name:<58}{value:>16}  {ratio:>12}  {goal}", flush=True)


async def median(measure: Callable[[], Awaitable[float]]) -> float:
    """The median of three runs: the machine's speed drifts."""
    return statistics.median([await measure() for _ in range(ROUNDS)])


async def consuming(stand: Servers) -> None:
    """Events a second. Raw and ours take turns, so that a drift hits both."""
    one = [throughput.workflow("one")]
    pairs = [(await throughput.raw(stand, EVENTS), await throughput.ours(stand, EVENTS, one)) for _ in range(ROUNDS)]
    raw = statistics.median(r for r, _ in pairs)
    ours = statistics.median(o for _, o in pairs)
    ratio = statistics.median(o / r for r, o in pairs)
    row("R: read 100, decode, one history row each, acknowledge", f"{raw:,.0f}/s")
    row("one workflow, one instant action: event, run and step", f"{ours:,.0f}/s", f"{ratio:.2f} R", "at least 0.3 R")
    many = [*one, *(throughput.workflow(f"other-{n}", type=f"other.{n}") for n in range(WORKFLOWS - 1))]
    with_many = await median(lambda: throughput.ours(stand, EVENTS, many))
    row(
        f"the same with {WORKFLOWS:,} workflows loaded",
        f"{with_many:,.0f}/s",
        f"{with_many / ours:.2f}",
        "at least 0.8",
    )
    same = [*one, *(throughput.workflow(f"w{n}", when=_equals(n)) for n in range(WORKFLOWS - 1))]
    with_same = await median(lambda: throughput.ours(stand, EVENTS, same))
    row("the same, all on one event type, told apart by a field", f"{with_same:,.0f}/s", f"{with_same / ours:.2f}")


def _equals(number: int) -> dict[str, object]:
    return {"path": "data.email", "op": "==", "value": f"nobody{number}@example.org"}


async def taking_in(stand: Servers) -> None:
    """Requests a second."""
    number = 20_032
    async with stand.postgres.fresh_database() as database_url:
        rounds = [
            [await ingest.requests_per_second(kind, stand.redis_url, number, database_url) for kind in ingest.KINDS]
            for _ in range(ROUNDS)
        ]
    bare, ours, durable = (statistics.median(figures) for figures in zip(*rounds, strict=True))
    row("POST: a bare Starlette handler that shares pipelines", f"{bare:,.0f}/s")
    ratio = statistics.median(o / b for b, o, _ in rounds)
    row("POST /submit", f"{ours:,.0f}/s", f"{ratio:.2f}", "at least 0.7")
    ratio = statistics.median(d / o for _, o, d in rounds)
    row("the same with ingest.durability = postgres", f"{durable:,.0f}/s", f"{ratio:.2f}")


async def waiting(stand: Servers) -> None:
    """Milliseconds, at 200 events a second."""
    bare = await latency.bare(stand, 1000, 200.0)
    acted, settled = await latency.ours(stand, 1000, 200.0)
    row("XADD to a bare blocking reader, p50 / p99", f"{bare.p50:.1f} / {bare.p99:.1f} ms")
    row("XADD to the action, p50 / p99", f"{acted.p50:.1f} / {acted.p99:.1f} ms", f"{acted.p50 / bare.p50:.1f} x")
    row(
        "XADD to acknowledged, p50 / p99",
        f"{settled.p50:.1f} / {settled.p99:.1f} ms",
        f"{settled.p50 / bare.p50:.1f} x",
    )


async def growing(stand: Servers) -> None:
    """MiB."""
    backlog = 100_000
    before, most = await memory.growth(stand, backlog)
    row(
        f"resident memory, backlog of {backlog:,}: before / most",
        f"{before:.0f} / {most:.0f} MiB",
        f"+{most - before:.0f} MiB",
    )


async def lasting(stand: Servers) -> None:
    """Runs of many steps, and parked ones."""
    one = await median(lambda: durable.runs_per_second(stand, durable.sequence(1), 10_000))
    ten = await median(lambda: durable.runs_per_second(stand, durable.sequence(10), 2_000))
    wide = await median(lambda: durable.runs_per_second(stand, durable.parallel(10), 2_000))
    row("runs of one instant step", f"{one:,.0f}/s")
    row("runs of ten, one after the other", f"{ten:,.0f}/s", f"{10 * ten / one:.2f} a step")
    row("runs of ten at once", f"{wide:,.0f}/s", f"{10 * wide / one:.2f} a step")
    alone, _ = await durable.beside_parked(stand, 10_000, 0)
    beside, each = await durable.beside_parked(stand, 10_000, PARKED)
    row(f"runs of one step beside {PARKED:,} parked ones", f"{beside:,.0f}/s", f"{beside / alone:.2f}", "about 1")
    row("bytes of the database for each parked run", f"{each:,.0f}")
    fired = await durable.firing(stand, PARKED, 20_000, 1_000.0)
    late = f"{fired.median_s * 1000:.0f} / {fired.worst_s * 1000:.0f} ms"
    row(f"timers fired at 1,000/s beside {PARKED:,} parked", f"{fired.per_second:,.0f}/s", late, "late: at most 1 s")
    fired = await durable.firing(stand, 0, 20_000, 1e6)
    row("timers fired when all are due at once", f"{fired.per_second:,.0f}/s", f"{fired.per_second / one:.2f}")


async def polling(stand: Servers) -> None:
    """Rows a second of somebody's table."""
    row(
        "rows of a polled table that become events",
        f"{await median(lambda: sources.rows_per_second(stand, 20_000)):,.0f}/s",
    )


async def shaping_floods(stand: Servers) -> None:
    """Flow control: events a second, and what it adds to the cost of each."""
    number = 10_000
    pairs = [
        ((await shaping.shaped(stand, number, {})).per_second, (await shaping.beside(stand, number)).per_second)
        for _ in range(ROUNDS)
    ]
    plain = statistics.median(p for p, _ in pairs)
    ratio = statistics.median(b / p for p, b in pairs)
    row("no flow control", f"{plain:,.0f}/s")
    row("the same beside workflows that have all of it", f"{plain * ratio:,.0f}/s", f"{ratio:.2f}", "about 1")
    for name, control in shaping.PARTS.items():
        found = await shaping.shaped(stand, number, control)
        added = (1 / found.per_second - 1 / plain) * 1e6
        row(name, f"{found.per_second:,.0f}/s", f"{added:+,.0f} us", f"{found.runs:,} runs")
    queue = await shaping.shaped(stand, 500, {"ordering_key": "all"})
    row("one key in strict order, each run after the end of the last", f"{queue.per_second:,.0f}/s")
    usual, beside = await shaping.served(stand, 0), await shaping.served(stand, number)
    row(
        f"ten events of a tenant right behind {number:,} of another",
        f"{beside * 1000:,.0f} ms",
        f"{beside / usual:.1f} x",
        "usual latency x 3, once the flood is read",
    )


PARTS = {
    "consuming": consuming,
    "ingest": taking_in,
    "latency": waiting,
    "memory": growing,
    "durable": lasting,
    "sources": polling,
    "shaping": shaping_floods,
}


async def main(names: list[str]) -> None:
    """Run the parts named, or all."""
    async with servers() as stand:
        for name in names or PARTS:
            await PARTS[name](stand)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1:]))
