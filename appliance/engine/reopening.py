"""A failed run that is tried again: its blocks are opened again, and their branches go on where they were cut off."""

from __future__ import annotations

from appliance.engine import blocks
from appliance.engine.state import ACTIVE, CANCELLED, RETRYING, RUNNING, StepState, path_of
from appliance.engine.steps import behind
from appliance.engine.turn import Turn


def reopen(turn: Turn, failed: StepState) -> None:
    """Open the blocks around a failed step again, and go on with their other branches."""
    visit = failed
    reopened: list[tuple[str, int]] = []
    while (above := turn.parent(turn.step(visit), path_of(visit.key), visit.seq)) is not None:
        visit, branch = above
        progress = turn.blocks[visit.key]
        ends = {number: end for number, end in progress.ends.items() if number != branch}
        turn.set_block(visit.key, progress._replace(ends=ends))
        turn.put(visit._replace(status=RUNNING, finished_at=None, error=None))
        reopened.append((visit.key, branch))
    for key, branch in reopened:
        progress = turn.blocks[key]
        for number in range(progress.begun):
            if number != branch and number not in progress.ends:
                _go_on_in(turn, turn.steps[key], number)


def _go_on_in(turn: Turn, block: StepState, branch: int) -> None:
    """Go on in a branch where it was cut off: with what was cancelled, behind what was done, or at the beginning."""
    step, path = turn.step(block), path_of(block.key)
    each = step.kind == "for_each"
    thread, path = (step.threads[0], (*path, branch)) if each else (step.threads[branch], path)
    mine = [
        visit
        for visit in turn.steps.values()
        if visit.seq > block.seq
        and (known := turn.known(visit)) is not None
        and known.thread == thread
        and path_of(visit.key) == path
    ]
    if not mine:
        blocks.begin_branch(turn, step, path_of(block.key), branch)
    elif mine[-1].status == CANCELLED:
        due_now(turn, mine[-1])
    elif mine[-1].status not in ACTIVE:
        turn.todo.append((behind(turn, mine[-1]), thread, path, mine[-1].key))


def due_now(turn: Turn, visit: StepState) -> None:
    """To be begun anew at the next turn, with all its attempts."""
    turn.put(
        visit._replace(
            status=RETRYING,
            attempt=0,
            first_at=turn.now,
            started_at=None,
            finished_at=None,
            due_at=turn.now,
            error=None,
        )
    )
