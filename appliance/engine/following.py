"""Parked runs of a workflow that says ``revisions: follow`` go on in the revision in force, where they can."""

from __future__ import annotations

import contextlib
import logging
from typing import Protocol

from appliance.batching import Batcher
from appliance.engine.changes import CANCEL, RETRY
from appliance.engine.succession import gaps
from appliance.errors import NotFound
from appliance.store.runs import StoredRun
from appliance.workflows.revision import Revision, Workflow

log = logging.getLogger(__name__)

_LIMIT = 1000
_MAX_SAID = 1000
"""Reasons that are remembered as logged."""


class Definitions(Protocol):
    """What this needs of the catalog."""

    @property
    def version(self) -> int:
        """Of what is in force here; another replica may have newer ones for a second."""
        ...

    async def catch_up(self, version: int) -> None:
        """Take over what another replica changed, up to ``version`` at least."""
        ...

    def current(self, name: str) -> Revision:
        """The revision in force of a workflow; NotFound."""
        ...


class Following:
    """Says in which revision a parked run goes on. The one in force decides whether runs follow."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._looks: Batcher[None, None] = Batcher(self._look, limit=_LIMIT, name="following")
        self._said: set[tuple[int, int, tuple[str, ...]]] = set()

    async def revision(self, run: StoredRun, own: Revision) -> Revision:
        """The one in force, or the run's ``own`` if runs don't follow, or this one can't; raises StoreUnavailable."""
        if self._target(own) is None:
            return own
        # What is in force here may be older than what another replica has moved the run to: never back to that.
        await self._looks.submit(None)
        target = self._target(own)
        if target is None:
            return own
        reasons = obstacles(run, own.workflow, target.workflow)
        if not reasons:
            return target
        self._say(run, own, target, reasons)
        return own

    async def _look(self, asking: list[None]) -> list[None]:
        """Take over what is in force by now: one question for all who ask at the same time."""
        await self._definitions.catch_up(self._definitions.version + 1)
        return asking

    def _target(self, own: Revision) -> Revision | None:
        """The revision in force, if it is another one and runs follow it."""
        with contextlib.suppress(NotFound):
            current = self._definitions.current(own.workflow.name)
            if current.id != own.id and current.workflow.follows:
                return current
        return None

    def _say(self, run: StoredRun, own: Revision, target: Revision, reasons: tuple[str, ...]) -> None:
        """Once for each reason, not for each run: there may be a million of them."""
        what = (own.id, target.id, reasons)
        if what in self._said:
            return
        if len(self._said) >= _MAX_SAID:
            self._said.clear()
        self._said.add(what)
        log.warning(
            "runs of %r stay on revision %d, for they can't go on in revision %d: %s (as run %s, and maybe others)",
            own.workflow.name,
            own.number,
            target.number,
            "; ".join(reasons),
            run.id,
        )


def obstacles(run: StoredRun, old: Workflow, new: Workflow) -> tuple[str, ...]:
    """Why a parked run of ``old`` doesn't go on in ``new``, in words for people; empty: it does."""
    if run.asked == CANCEL:
        return ("it is being cancelled",)
    if run.asked == RETRY:
        return ("it is about to be tried again",)
    if "rerun" in run.details and run.state.ending is None and not run.state.active():
        return ("it is a rerun that has not begun, and the revision of those was chosen",)
    return gaps(old, new, run.state)
