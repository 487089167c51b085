"""The token bucket, on a clock of its own."""

from __future__ import annotations

import pytest

from appliance.http.problems import HttpProblem
from appliance.http.rate import TokenBucket


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(bucket: TokenBucket, count: int = 1) -> str:
    """How long to wait, in seconds, as the header says."""
    with pytest.raises(HttpProblem) as caught:
        bucket.take(count)
    assert caught.value.status == 429
    return caught.value.headers["Retry-After"]


def test_a_second_holds_its_rate_and_no_more() -> None:
    clock = Clock()
    bucket = TokenBucket(10, clock)
    for _ in range(10):
        bucket.take()
    assert refused(bucket) == "1"
    clock.now += 0.1
    bucket.take()
    assert refused(bucket) == "1"
    clock.now += 60
    for _ in range(10):
        bucket.take()
    refused(bucket)


def test_a_rate_below_one_still_lets_one_through() -> None:
    clock = Clock()
    bucket = TokenBucket(0.1, clock)
    bucket.take()
    assert refused(bucket) == "10"
    clock.now += 10
    bucket.take()


def test_a_batch_beyond_the_burst_leaves_a_debt() -> None:
    clock = Clock()
    bucket = TokenBucket(10, clock)
    bucket.take(30)
    assert refused(bucket) == "3"
    clock.now += 2
    refused(bucket)
    clock.now += 0.1
    bucket.take()


def test_zero_is_no_limit() -> None:
    bucket = TokenBucket(0, Clock())
    for _ in range(1000):
        bucket.take(1000)
