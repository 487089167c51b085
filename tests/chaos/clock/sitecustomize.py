"""Imported by Python itself when this folder is on its path: the file CHAOS_CLOCK says how wrong the clock is here.

The file holds one double: seconds that are added to the time of day. ``datetime.now`` and the servers go on as they
were; what the engine does by the time of day goes by ``time.time``.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

_NS = 1_000_000_000


def _move(path: str) -> None:
    with open(path, "r+b") as file:
        offset = mmap.mmap(file.fileno(), 8)
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + struct.unpack("d", offset[:8])[0]
    time.time_ns = lambda: real_ns() + int(struct.unpack("d", offset[:8])[0] * _NS)


if "CHAOS_CLOCK" in os.environ:
    _move(os.environ["CHAOS_CLOCK"])
