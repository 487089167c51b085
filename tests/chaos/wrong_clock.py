"""A clock that a test moves in the processes of its replicas, while they run. See ``clock/sitecustomize.py``."""

from __future__ import annotations

import os
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.chaos.site import SETTINGS


class WrongClock:
    """``settings`` make a replica go by it. Moving it is one write of eight bytes: a jump, as others see it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.offset_s = 0.0
        self._write()
        here = str(Path(__file__).parent / "clock")
        self.settings = {
            "CHAOS_CLOCK": str(self._file),
            "PYTHONPATH": os.pathsep.join([here, SETTINGS["PYTHONPATH"]]),
        }

    def now(self) -> datetime:
        """What it shows."""
        return datetime.fromtimestamp(time.time() + self.offset_s, UTC)

    def set_off(self, by: timedelta) -> None:
        """Let it be wrong by so much."""
        self.offset_s = by.total_seconds()
        self._write()

    def show(self, moment: datetime) -> None:
        """Let it show this moment, and go on from there."""
        self.set_off(moment - datetime.now(UTC))

    def _write(self) -> None:
        mode = "r+b" if self._file.exists() else "w+b"
        with self._file.open(mode) as file:  # in place: the processes have it mapped
            file.write(struct.pack("d", self.offset_s))
