"""The names of everything that the appliance keeps in Redis.

======================================  ==========================================================================
``{namespace}:events:high|normal|low``  the streams
``{namespace}:ledger:high|normal|low``  hashes: the ledger's counters of each stream (see ``lua/settle.lua``)
``{namespace}:settled:{priority}``      sets with a time to live: settled entries that another replica may have in hand
``{namespace}:key:{digest}``            texts with a time to live: what a sender's key stands for
``{namespace}:sent:{marker}``           texts with a time to live: the entry that was added under this name
======================================  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.events import PRIORITIES


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names under one namespace."""

    namespace: str

    def stream(self, priority: str) -> str:
        """The stream of a priority."""
        return f"{self.namespace}:events:{priority}"

    def ledger(self, priority: str) -> str:
        """The hash with the ledger's counters of a stream."""
        return f"{self.namespace}:ledger:{priority}"

    def settled(self, priority: str) -> str:
        """The ids of entries that were settled after they had changed hands (see ``lua/settle.lua``)."""
        return f"{self.namespace}:settled:{priority}"

    def dedupe(self, key: str) -> str:
        """Where ingest remembers a sender's key."""
        return f"{self.namespace}:key:{key}"

    def marker(self, name: str) -> str:
        """Where it is remembered that an entry was added (see ``lua/resend.lua``)."""
        return f"{self.namespace}:sent:{name}"

    @property
    def streams(self) -> dict[str, str]:
        """Priority -> stream, in the order in which they are served."""
        return {priority: self.stream(priority) for priority in PRIORITIES}
