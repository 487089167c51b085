"""Identifiers: UUID version 7 texts (RFC 9562), random for new things and derived for things that must be found again.

All are 36-character lower-case texts. Their first 48 bits are Unix milliseconds, so they sort by time, and a table
partitioned by ranges of them is partitioned by time (see ``store/partitions.py``).
"""

from __future__ import annotations

import hashlib
import os
import re
import time

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_uuid(text: str) -> bool:
    """Whether ``text`` is a UUID in the canonical lower-case form."""
    return _UUID.fullmatch(text) is not None


def uuid7(at_ms: int | None = None) -> str:
    """A new random UUIDv7 for ``at_ms`` (Unix milliseconds; now if left out)."""
    ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    return _layout(ms, os.urandom(10).hex())


def derived_uuid7(at_ms: int, *parts: str | bytes) -> str:
    """The UUIDv7 that the same ``at_ms`` and ``parts`` always give (74 bits of BLAKE2b instead of random ones)."""
    return _layout(at_ms, hashlib.blake2b(_join(parts), digest_size=10).hexdigest())


def run_id_for(event_uid: str, workflow: str) -> str:
    """The one run id of an (event, workflow) pair: its primary key is what makes the run unique."""
    # On every event's way: an uid has a fixed length, so this needs no separators.
    tail = hashlib.blake2b(f"{event_uid}{workflow}".encode(), digest_size=10).hexdigest()
    return f"{event_uid[:14]}7{tail[:3]}-{'89ab'[int(tail[3], 16) & 3]}{tail[4:7]}-{tail[7:19]}"


def task_id_for(run_id: str, key: str) -> str:
    """The id of the human task of a run's step: the same for every replica that makes it."""
    return derived_uuid7(milliseconds_of(run_id), "task", run_id, key)


def key_uuid(*parts: str | bytes) -> str:
    """A 128-bit digest of ``parts`` in UUID form: a dedupe key of fixed size. Not time-ordered."""
    h = hashlib.blake2b(_join(parts), digest_size=16).hexdigest()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def milliseconds_of(uid: str) -> int:
    """The Unix milliseconds in a UUIDv7's first 48 bits."""
    return int(uid[:8] + uid[9:13], 16)


def range_start(at_ms: int) -> str:
    """The smallest UUID whose time is ``at_ms``: a bound for range queries and partitions."""
    h = f"{max(0, min(at_ms, 0xFFFFFFFFFFFF)):012x}"
    return f"{h[:8]}-{h[8:]}-0000-0000-000000000000"


def _layout(ms: int, tail: str) -> str:
    h = f"{ms & 0xFFFFFFFFFFFF:012x}"
    variant = "89ab"[int(tail[3], 16) & 3]
    return f"{h[:8]}-{h[8:]}-7{tail[:3]}-{variant}{tail[4:7]}-{tail[7:19]}"


def _join(parts: tuple[str | bytes, ...]) -> bytes:
    # NUL-separated with a length prefix, so that ("a", "bc") and ("ab", "c") differ.
    raw = [p.encode("utf-8", "surrogatepass") if isinstance(p, str) else p for p in parts]
    return b"".join(len(p).to_bytes(4, "big") + p for p in raw)
