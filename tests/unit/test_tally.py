"""The cheap histogram shows what the client library's own would."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from appliance.observe.tally import Tally

BOUNDS = (0.001, 0.5, 1, 60)


def exposed(registry: CollectorRegistry) -> list[str]:
    """What a scrape shows, without the times at which series were made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([0.0, 0.001, 0.002, 0.5, 1.0, 59.5, 60.0, 61.0])))
)
def test_it_shows_what_the_library_would(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("seconds", "How long.", "who", BOUNDS, ours)
    histogram = Histogram("seconds", "How long.", ["who"], buckets=BOUNDS, registry=theirs)
    for who, value in observed:
        tally.series(who).observe(value)
        histogram.labels(who).observe(value)
    assert exposed(ours) == exposed(theirs)


def test_without_a_label() -> None:
    registry = CollectorRegistry()
    Tally("seconds", "How long.", None, BOUNDS, registry).series().observe(2)
    assert 'seconds_bucket{le="60.0"} 1.0' in exposed(registry)
    assert "seconds_count 1.0" in exposed(registry)
