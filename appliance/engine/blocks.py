"""How threads end: branches are joined, items follow each other, failures go up, losers are cancelled."""

from __future__ import annotations

from appliance.engine.state import (
    ACTIVE,
    CANCELLED,
    FAILED,
    RUNNING,
    SUCCEEDED,
    TERMINAL,
    UNKNOWN,
    WAITING,
    Block,
    Close,
    Path,
    RunAction,
    StepState,
    path_of,
)
from appliance.engine.turn import Turn, threads_in
from appliance.workflows.revision import CONTINUE, END, Step

PARKED_KINDS = frozenset({"wait", "human_task", "workflow"})
"""Kinds of steps that have rows of their own while they wait."""


def leave(turn: Turn, done: StepState) -> None:
    """Go on behind a step that is over, unless what is around it is over as well."""
    live = turn.is_live(done)
    turn.put(done)
    if live:
        step = turn.step(done)
        turn.todo.append((step.follow, step.thread, path_of(done.key), done.key))


def give_up(turn: Turn, failed: StepState) -> None:
    """A step failed for good: go where ``on_error`` points, or let the failure go up."""
    live = turn.is_live(failed)
    visit = turn.put(failed._replace(status=FAILED, finished_at=turn.now, due_at=None))
    if not live:
        return
    step, path = turn.step(visit), path_of(visit.key)
    if step.on_error is None:
        _fail_thread(turn, step, path, visit)
    elif step.on_error == CONTINUE:
        turn.todo.append((step.follow, step.thread, path, visit.key))
    elif step.on_error == END:
        turn.todo.append((None, step.thread, path, visit.key))
    else:
        turn.todo.append((turn.workflow.by_id[step.on_error], step.thread, path, visit.key))


def end_thread(turn: Turn, thread: int, path: Path, last: str | None) -> None:
    """A thread went through; ``last`` is the key of its last step."""
    found = turn.workflow.threads[thread]
    if found.parent is None:
        if thread == 0 and turn.ending is None:
            end_run(turn, SUCCEEDED)
        return
    above = turn.parent(turn.workflow.steps[found.first], path)
    if above is not None:
        block, branch = above
        _branch_ended(turn, block, branch, last)


def end_run(turn: Turn, status: str, error: str | None = None) -> None:
    """The run is about to end: what is parked is cancelled, attempts under way are finished, nothing new begins."""
    turn.ending = status
    if error is not None:
        turn.error = error
    stop(turn)


def stop(turn: Turn) -> None:
    """Nothing new begins in any thread, and what stands is cancelled."""
    turn.todo.clear()
    cancel(turn, [visit for visit in turn.steps.values() if visit.status in ACTIVE])


def cancel(turn: Turn, visits: list[StepState]) -> None:
    """Cancel what is parked among these; what may have its effect meanwhile is left to finish."""
    for visit in visits:
        step = turn.step(visit)
        if _is_left(turn, step, visit):
            continue
        if step.kind in PARKED_KINDS and visit.status == WAITING:
            turn.commands.append(Close(visit.key, step.kind, CANCELLED))
            close_notice(turn, step, path_of(visit.key))
        turn.put(visit._replace(status=CANCELLED, finished_at=turn.now, due_at=None))


def _is_left(turn: Turn, step: Step, visit: StepState) -> bool:
    """Whether a visit goes on although its thread doesn't.

    An attempt that is under way is recorded, what is unknown is settled, and a called run that is to be undone if it
    succeeds is asked to end, which it may do as it likes.
    """
    if visit.status == UNKNOWN:
        return True
    if visit.status == RUNNING and step.kind == "action":
        return not _not_made_yet(turn, step, visit)
    if visit.status != WAITING or step.kind != "workflow" or step.compensate is None:
        return False
    if visit.error is None:
        turn.commands.append(Close(visit.key, step.kind, CANCELLED))
        turn.put(visit._replace(due_at=None, error="asked to end"))
    return True


def _not_made_yet(turn: Turn, step: Step, visit: StepState) -> bool:
    """Whether the attempt was only asked for in this very turn: then it is not made at all.

    One that was lost, and is made again to find out whether there is something to undo, is.
    """
    before = turn.before.get(visit.key)
    if before is not None and before.status == RUNNING and step.compensate is not None:
        return False
    asked = [c for c in turn.commands if isinstance(c, RunAction) and c.key == visit.key]
    for command in asked:
        turn.commands.remove(command)
    return bool(asked)


def close_notice(turn: Turn, step: Step, path: Path) -> None:
    """Whoever was about to be told of a task that is closed needn't be told again."""
    if step.task is None or step.task.notify is None:
        return
    notice = turn.latest(turn.workflow.steps[step.task.notify], path)
    if notice is not None and notice.status not in TERMINAL and notice.status != RUNNING:
        turn.put(notice._replace(status=CANCELLED, finished_at=turn.now, due_at=None))


def open_block(turn: Turn, visit: StepState, total: int) -> None:
    """Begin the branches of a block: of a ``for_each`` as many as may run at once."""
    step, path = turn.step(visit), path_of(visit.key)
    if total == 0:
        leave(turn, visit._replace(status=SUCCEEDED, finished_at=turn.now, output=[] if step.items is not None else {}))
        return
    begun = min(total, step.concurrency) if step.kind == "for_each" else total
    turn.set_block(visit.key, Block(total, begun))
    for branch in range(begun):
        begin_branch(turn, step, path, branch)


def begin_branch(turn: Turn, step: Step, path: Path, branch: int) -> None:
    """Begin a branch of a block in ``path``, or an item."""
    if step.kind == "for_each":
        thread, path = step.threads[0], (*path, branch)
    else:
        thread = step.threads[branch]
    turn.todo.append((turn.workflow.threads[thread].first, thread, path, None))


def _branch_ended(turn: Turn, visit: StepState, branch: int, last: str | None) -> None:
    block = turn.blocks.get(visit.key)
    if visit.status != RUNNING or block is None:
        return
    step = turn.step(visit)
    block = block._replace(ends={**block.ends, branch: last or ""})
    won = sum(end is not None for end in block.ends.values())
    if won >= (step.join if step.kind == "parallel" else block.total):
        _close_block(turn, visit, block)
        return
    if block.begun < block.total:
        block = block._replace(begun=block.begun + 1)
        begin_branch(turn, step, path_of(visit.key), block.begun - 1)
    turn.set_block(visit.key, block)


def _close_block(turn: Turn, visit: StepState, block: Block) -> None:
    step = turn.step(visit)
    losers = turn.within(visit)
    ends = {branch: turn.steps[key].output if key else None for branch, key in block.ends.items() if key is not None}
    if step.kind == "for_each":
        output: object = [ends.get(index) for index in range(block.total)]
    else:
        names = [turn.workflow.threads[thread].name for thread in step.threads]
        output = {name: ends.get(branch) for branch, name in enumerate(names)}
    turn.set_block(visit.key, None)
    _drop_todo(turn, visit)
    leave(turn, visit._replace(status=SUCCEEDED, finished_at=turn.now, output=output))
    cancel(turn, losers)


def _fail_thread(turn: Turn, step: Step, path: Path, failed: StepState) -> None:
    """A failure that no ``on_error`` takes: it fails the block around it if that can't be joined any more."""
    above = turn.parent(step, path)
    if above is not None:
        _branch_failed(turn, *above, failed)
    elif step.thread == 0:
        turn.at = turn.at or failed.key
        end_run(turn, FAILED, failed.error)
    elif turn.phase and step.thread != turn.workflow.on_error:
        turn.error = f"{turn.error or turn.ending}; {failed.step}: {failed.error}"
    elif step.thread == turn.workflow.on_error:
        turn.error = f"{turn.error}; on_error, {failed.step}: {failed.error}"


def _branch_failed(turn: Turn, visit: StepState, branch: int, failed: StepState) -> None:
    block = turn.blocks.get(visit.key)
    if visit.status != RUNNING or block is None:
        return
    step = turn.step(visit)
    block = block._replace(ends={**block.ends, branch: None})
    turn.set_block(visit.key, block)
    lost = sum(end is None for end in block.ends.values())
    need = step.join if step.kind == "parallel" else block.total
    if block.total - lost >= need:
        return
    losers = turn.within(visit)
    _drop_todo(turn, visit)
    if not turn.phase and turn.at is None:
        turn.at = failed.key
    give_up(turn, visit._replace(error=f"{failed.step}: {failed.error}"))
    if turn.ending is None or turn.phase:
        turn.at = turn.at if turn.phase else None
        turn.set_block(visit.key, None)
        cancel(turn, losers)


def _drop_todo(turn: Turn, visit: StepState) -> None:
    """Branches of a block that is over and have not begun their next step don't begin it."""
    inside = threads_in(turn.workflow, turn.step(visit).index)
    path = path_of(visit.key)
    kept = [job for job in turn.todo if job[1] not in inside or job[2][: len(path)] != path]
    turn.todo.clear()
    turn.todo.extend(kept)
