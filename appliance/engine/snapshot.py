"""A run's state as JSON, beside its step rows: where it failed, how far its blocks are, who moves it on.

Written into ``runs.state`` as long as a run is not over, and of failed, cancelled and state machine runs for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.engine.state import ACTIVE, SUCCEEDED, Block, RunState, StepState


def pack(state: RunState, holder: str | None) -> dict[str, Any] | None:
    """What is kept of ``state`` beside its steps; None when nothing is worth it."""
    if state.status == SUCCEEDED:
        return None if state.place is None else {"place": dict(state.place)}
    kept: dict[str, Any] = {"by": holder}
    if state.at is not None:
        kept["at"] = state.at
    first = {s.key: s.first_at for s in state.steps.values() if s.status in ACTIVE and s.first_at is not None}
    if first:
        kept["first_at"] = first
    if state.blocks:
        kept["blocks"] = {
            key: [b.total, b.begun, {str(i): end for i, end in b.ends.items()}] for key, b in state.blocks.items()
        }
    if state.ending is not None:
        kept |= {"phase": state.phase, "ending": state.ending, "outcome": state.outcome, "output": state.output}
    if state.place is not None:
        kept["place"] = dict(state.place)
    return kept


def result(state: RunState) -> dict[str, Any] | None:
    """How a run ended, if there is more to say than its status."""
    if state.outcome is None and state.output is None:
        return None
    return {"outcome": state.outcome, "output": state.output}


def unpack(
    kept: Mapping[str, Any],
    status: str,
    steps: Mapping[str, StepState],
    error: str | None,
    finished_at: float | None,
    ended: Mapping[str, Any] | None,
) -> RunState:
    """The state of which :func:`pack` made ``kept``, and :func:`result` ``ended``."""
    first = kept.get("first_at", {})
    ended = ended or {}
    blocks = {
        key: Block(total, begun, {int(index): end for index, end in ends.items()})
        for key, (total, begun, ends) in kept.get("blocks", {}).items()
    }
    return RunState(
        status=status,
        at=kept.get("at"),
        steps={s.key: s._replace(first_at=first.get(s.key, s.started_at)) for s in steps.values()},
        error=error,
        finished_at=finished_at,
        blocks=blocks,
        phase=kept.get("phase", ""),
        ending=kept.get("ending"),
        outcome=ended.get("outcome", kept.get("outcome")),
        output=ended.get("output", kept.get("output")),
        place=kept.get("place"),
    )
