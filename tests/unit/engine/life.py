"""One run in a test's hands: what happens to it is said step by step, at times of the test's choice."""

from __future__ import annotations

from typing import Any

import orjson

from appliance.engine import snapshot
from appliance.engine.core import advance
from appliance.engine.state import (
    ACTIVE,
    TERMINAL,
    ActionFailed,
    ActionSucceeded,
    Ask,
    Call,
    Cancelled,
    Close,
    Command,
    Facts,
    Finish,
    Input,
    Listen,
    Resumed,
    Retried,
    RunAction,
    RunState,
    Signal,
    Started,
    StepState,
    Take,
)
from appliance.workflows.compile import compile_workflow
from appliance.workflows.revision import Workflow

Step = dict[str, Any]
VIEW = {"type": "t", "id": "e", "data": {"n": 1, "zero": 0, "lines": ["a", "b", "c"]}}


def flow(*steps: Step, **more: Any) -> Workflow:
    """A compiled workflow of these steps."""
    return compile_workflow({"name": "w", "trigger": {"event": "t"}, "steps": [*steps], **more}, actions=None)


def act(step_id: str, **more: Any) -> Step:
    """A step that is an action."""
    return {"id": step_id, "action": "x", **more}


def undoable(step_id: str, **more: Any) -> Step:
    """An action with a compensation."""
    return act(step_id, compensate={"action": "undo"}, **more)


ONCE: Step = {"retry": {"max_attempts": 1}}
QUICK: Step = {"retry": {"max_attempts": 2, "initial": "10s", "jitter": False}}


class Life:
    """A run from its start. After every turn its state is written down and read again, as between two replicas."""

    def __init__(
        self, workflow: Workflow | Step, *steps: Step, view: dict[str, Any] | None = None, **more: Any
    ) -> None:
        self.workflow = workflow if isinstance(workflow, Workflow) else flow(workflow, *steps, **more)
        self.facts = Facts(VIEW, input={"given": 1}, run={"id": "r"}, memo={})
        self.state = RunState()
        self.now = 0.0
        self.commands: tuple[Command, ...] = ()
        self._signals = 0
        self.given(Started())

    # --- what happens ------------------------------------------------------------------------------------------------

    def given(self, what: Input, after_s: float = 1.0) -> tuple[Command, ...]:
        """What the run asks for when this happens, some seconds later."""
        state, self.commands = advance(self.workflow, self.facts, self.state, what, self.now)
        self.now += after_s
        self.state = read_again(state)
        return self.commands

    def ok(self, key: str, output: Any = None) -> tuple[Command, ...]:
        return self.given(ActionSucceeded(key, output))

    def fail(self, key: str, error: str = "no", *, retryable: bool = False, **more: Any) -> tuple[Command, ...]:
        return self.given(ActionFailed(key, error, retryable, **more))

    def wake(self, at: float | None = None, *, lost: bool = True) -> tuple[Command, ...]:
        """It is taken up again, at this time."""
        self.now = self.now if at is None else at
        return self.given(Resumed(lost=lost))

    def signal(self, key: str, kind: str, payload: Any) -> tuple[Command, ...]:
        self._signals += 1
        return self.given(Resumed((Signal(f"s{self._signals}", key, kind, payload),), lost=False))

    def event(self, type: str, key: str = "", **data: Any) -> tuple[Command, ...]:
        return self.signal(key, "event", {"type": type, "id": f"e{self._signals}", "data": data})

    def answer(self, key: str, **answer: Any) -> tuple[Command, ...]:
        return self.signal(key, "answer", {"answer": answer, "by": "ada"})

    def child(self, key: str, status: str = "succeeded", output: Any = None) -> tuple[Command, ...]:
        told = {"status": status, "output": output, "outcome": None, "error": None}
        return self.signal(key, "child", told)

    def settle(self, key: str, status: str, **more: Any) -> tuple[Command, ...]:
        return self.signal(key, "settle", {"status": status, **more})

    def cancel(self) -> tuple[Command, ...]:
        return self.given(Cancelled("enough"))

    def retry(self) -> tuple[Command, ...]:
        """A person lets it try again, and it is taken up."""
        assert not [c for c in self.given(Retried()) if isinstance(c, RunAction)], "attempts begin when it is taken up"
        return self.wake()

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def asked(self) -> list[str]:
        """The attempts that the last turn asked for."""
        return [command.key for command in self.commands if isinstance(command, RunAction)]

    def of(self, kind: type[Command]) -> list[Any]:
        """The last turn's commands of a kind."""
        return [command for command in self.commands if isinstance(command, kind)]

    @property
    def over(self) -> str | None:
        """How the run ended."""
        return self.state.status if self.state.status in TERMINAL else None

    def status(self, key: str) -> str:
        return self.state.steps[key].status

    def statuses(self) -> dict[str, str]:
        return {key: visit.status for key, visit in self.state.steps.items()}

    def output(self, key: str) -> Any:
        return self.state.steps[key].output

    def standing(self) -> list[str]:
        """The keys of the steps at which it stands, blocks left out."""
        return [v.key for v in self.state.steps.values() if v.status in ACTIVE and v.key not in self.state.blocks]


def read_again(state: RunState) -> RunState:
    """A state as the next replica reads it; it must be the same."""
    kept = orjson.loads(orjson.dumps(snapshot.pack(state, "timer") or {}))
    result = snapshot.result(state) if state.finished_at is not None else None
    steps = {key: visit._replace(first_at=None) for key, visit in state.steps.items()}
    read = snapshot.unpack(kept, state.status, steps, state.error, state.finished_at, result)
    read = read._replace(inbox=state.inbox)
    assert {k: _known(v) for k, v in read.steps.items()} == {k: _known(v) for k, v in state.steps.items()}
    if state.status not in TERMINAL:
        assert read._replace(steps={}) == state._replace(steps={})
    return read


def _known(visit: StepState) -> StepState:
    """Of a step that is over nobody asks any more when its first attempt began."""
    return visit if visit.status in ACTIVE else visit._replace(first_at=None)


__all__ = [
    "ONCE", "QUICK", "VIEW", "Ask", "Call", "Close", "Finish", "Life", "Listen", "Take", "act", "flow", "undoable",
]  # fmt: skip
