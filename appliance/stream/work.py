"""Internal work as stream entries: one field ``work`` with a JSON object.

Timers that fell due, redrives and retries travel like events, so that load balancing, retry, reclaim, back-pressure and
dead-lettering exist once. The ledger counts these entries apart from accepted events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.errors import Malformed
from appliance.events import dumps, loads
from appliance.identifiers import is_uuid

WAKE = "wake"
REDO = "redo"
_KINDS = frozenset({WAKE, REDO})


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of internal work.

    ``wake``: the timer of step ``key`` of ``run`` fell due. ``redo``: handle again what dead letter ``letter`` keeps.
    ``reopens`` says that a dead event was taken out of the ledger's ``dead``
    when this was enqueued, so that its outcome is to be counted again.
    """

    kind: str
    run: str = ""
    key: str = ""
    letter: str = ""
    reopens: bool = False

    def encode(self) -> bytes:
        """The value of the entry's ``work`` field."""
        document: dict[str, Any] = {"kind": self.kind}
        for name in ("run", "key", "letter", "reopens"):
            if value := getattr(self, name):
                document[name] = value
        return dumps(document)


def decode_work(raw: bytes) -> Work:
    """The reverse of :meth:`Work.encode`; raises Malformed."""
    document = loads(raw)
    if not isinstance(document, dict) or document.get("kind") not in _KINDS:
        raise Malformed(f"work: expected an object with kind {', '.join(sorted(_KINDS))}", code="work")
    try:
        work = Work(**document)
    except TypeError as error:
        raise Malformed(f"work: {error}", code="work") from None
    named = work.run if work.kind == WAKE else work.letter
    if not isinstance(named, str) or not is_uuid(named) or not isinstance(work.key, str):
        raise Malformed(f"work: {work.kind} of no run or letter", code="work")
    return work
