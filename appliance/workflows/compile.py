"""From a definition to a :class:`Workflow`, with every check that can be made before an event comes."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import orjson
from pydantic import ValidationError

from appliance.errors import DefinitionError, Problem
from appliance.plugin import Action
from appliance.rules.matcher import Trigger
from appliance.templating import Template
from appliance.workflows import flow, flow_control, visibility
from appliance.workflows.graph import MAX_STEPS, Graph, Node
from appliance.workflows.kinds import Compiler
from appliance.workflows.machine import MachineDraft
from appliance.workflows.models import EffectModel, ScheduleModel, StepModel, TriggerModel, WorkflowModel
from appliance.workflows.parameters import check_parameters
from appliance.workflows.problems import details_of, from_details
from appliance.workflows.revision import Step, Thread, Workflow
from appliance.workflows.schedules import Schedule, parse_schedule
from appliance.workflows.values import Values, keyed

Lines = Mapping[str, tuple[int, int]]
"""Where each dotted key stands in its file: line and column, from 1."""
Actions = Mapping[str, Action]


def compile_workflow(
    definition: Any, *, actions: Actions | None, file: str | None = None, lines: Lines | None = None
) -> Workflow:
    """Check ``definition`` (JSON data in our own language) and compile it.

    Raises DefinitionError with every problem found, placed by ``file`` and ``lines``. With ``actions`` None, actions
    and their parameters aren't checked: a stored revision must load even when its plugin has gone.
    """
    try:
        model = WorkflowModel.model_validate(definition)
    except ValidationError as error:
        raise _placed(from_details(details_of(error), definition), file, lines) from None
    if problems := _misplaced(model):
        raise _placed(problems, file, lines)
    compilation = _Compilation(model, definition)
    workflow = compilation.workflow(actions)
    if compilation.problems:
        raise _placed(compilation.problems, file, lines)
    return workflow


def _misplaced(model: WorkflowModel) -> list[Problem]:
    """What can't stand together, or is missing, at the level of the workflow."""
    problems = []
    if model.trigger is None and model.inputs is None:
        expected = "{event: type}, {schedule: ...}, or the word manual"
        problems.append(Problem("trigger is missing", "trigger", expected=expected))
    if model.steps is None and model.states is None:
        problems.append(Problem("steps is missing", "steps", expected="steps, or states"))
    if model.steps is not None:
        for key in ("states", "initial", "correlate", "forever"):
            if key in model.model_fields_set:
                message = f"{key} belongs to a state machine, which has no steps"
                problems.append(Problem(message, key, expected="either steps or states"))
    return problems


class _Compilation:
    """The compilation of one definition. ``problems`` holds what is wrong with it, once it is compiled."""

    def __init__(self, model: WorkflowModel, definition: Any) -> None:
        self.problems: list[Problem] = []
        self._model = model
        self._definition = definition
        self._graph = Graph([])
        self._values = Values([])
        self._compiler = Compiler(model.name, self._graph, self._values, ("events",) if model.batch is not None else ())
        self._machine: MachineDraft | None = None
        self._on_error: int | None = None

    def workflow(self, actions: Actions | None) -> Workflow:
        """The compiled form; with problems, it isn't to be used."""
        model, graph, values = self._model, self._graph, self._values
        triggers, schedules = self._triggers()
        self._lay()
        named = not graph.problems
        steps = tuple(self._step(node) for node in graph.nodes)
        threads = tuple(self._thread(index) for index in range(len(graph.threads)))
        first = self._first()
        correlate, output = self._outer_templates()
        control = flow_control.compiled(model, values)
        self.problems += graph.problems + values.problems
        # Where names and jumps are wrong, what is said about the whole would be noise.
        if named:
            self.problems += visibility.check(graph, values.uses, is_batch=model.batch is not None)
        if not graph.problems:
            starts = [first, *([threads[self._on_error].first] if self._on_error is not None else [])]
            keys = [node.key for node in graph.nodes]
            self.problems += flow.check(steps, threads, starts, keys, forever=model.forever)
        for node in graph.nodes if actions is not None else ():
            self.problems += _check_action(node, actions or {})
        canonical = orjson.dumps(self._definition, option=orjson.OPT_SORT_KEYS)
        return Workflow(
            name=model.name,
            description=model.description,
            priority=model.priority,
            triggers=triggers,
            steps=steps,
            by_id=MappingProxyType({step.id: step.index for step in steps}),
            definition=orjson.loads(canonical),
            digest=hashlib.blake2b(canonical, digest_size=16).hexdigest(),
            enabled=model.enabled,
            threads=threads,
            first=first,
            order=model.order,
            inputs=model.inputs,
            output=output,
            on_error=self._on_error,
            machine=self._machine.compiled(correlate) if self._machine is not None and correlate is not None else None,
            schedules=schedules,
            compensates=any(step.compensate is not None for step in steps),
            follows=model.revisions == "follow",
            control=control,
        )

    def _outer_templates(self) -> tuple[Template | None, Template | None]:
        """The workflow's ``correlate`` and ``output``; its ``inputs`` are checked as well."""
        model, correlate, output = self._model, None, None
        if model.correlate is not None:
            correlate = self._values.template(model.correlate, "correlate", None, ("event",))
        if model.output is not None:
            names = self._compiler.outer_names
            output = self._values.template(model.output, "output", None, names)
        if model.inputs is not None:
            self._compiler.check_schema(model.inputs, "inputs")
        return correlate, output

    # --- triggers ----------------------------------------------------------------------------------------------------

    def _triggers(self) -> tuple[tuple[Trigger, ...], tuple[Schedule, ...]]:
        given = self._model.trigger
        if given is None or isinstance(given, str):
            return (), ()
        triggers: list[Trigger] = []
        schedules: list[Schedule] = []
        for index, trigger in enumerate(given if isinstance(given, list) else [given]):
            key = f"trigger[{index}]" if isinstance(given, list) else "trigger"
            if isinstance(trigger, ScheduleModel):
                schedules += self._schedule(trigger, key)
            else:
                triggers += self._events(trigger, f"{key}.when")
        return tuple(triggers), tuple(schedules)

    def _events(self, trigger: TriggerModel, key: str) -> list[Trigger]:
        noted = len(self._values.uses)
        condition = self._values.condition(trigger.when, key, None)
        del self._values.uses[noted:]  # a trigger has messages of its own
        for path in condition.paths if condition is not None else ():
            if path[0] in ("event", "steps") and len(path) > 1:
                shown = ".".join(path)
                expected = "a path in the event: data.email"
                self._values.problems.append(Problem(f"{shown} is not there yet", key, expected=expected))
        events = trigger.event if isinstance(trigger.event, list) else [trigger.event]
        return [Trigger(event, condition) for event in dict.fromkeys(events)]

    def _schedule(self, trigger: ScheduleModel, key: str) -> list[Schedule]:
        try:
            return [parse_schedule(trigger.schedule, trigger.timezone, trigger.misfire, trigger.misfire_limit)]
        except ValueError as error:
            self._values.problems.append(keyed(error, key))
            return []

    # --- the graph ---------------------------------------------------------------------------------------------------

    def _lay(self) -> None:
        model, graph = self._model, self._graph
        if model.states is not None:
            self._machine = MachineDraft(graph, model)
        else:
            graph.lay(model.steps or (), "steps", graph.thread(""))
        if model.on_error is not None:
            chain = graph.thread("on_error")
            self._on_error = chain.thread
            graph.lay(model.on_error, "on_error", chain)
        for node in tuple(graph.nodes):
            self._compiler.hide(node)
        if self._machine is not None:
            self._machine.connect()
        if len(graph.nodes) > MAX_STEPS:
            self._values.problems.append(Problem(f"more than {MAX_STEPS} steps", "steps", expected="several workflows"))

    def _step(self, node: Node) -> Step:
        machine = self._machine
        if machine is not None and node.state is not None and not node.hidden:
            return self._compiler.step(node, machine.fields(node, self._values, self._compiler.names(node)))
        return self._compiler.step(node)

    def _thread(self, index: int) -> Thread:
        draft = self._graph.threads[index]
        first = draft.chain.nodes[0].index if draft.chain.nodes else self._first()
        return Thread(index, draft.name, first, draft.parent.index if draft.parent is not None else None)

    def _first(self) -> int:
        return self._machine.first.index if self._machine is not None and self._machine.first is not None else 0


def _check_action(node: Node, actions: Actions) -> list[Problem]:
    """Whether the action of a step is there and takes the step's parameters."""
    model: StepModel | EffectModel | None = node.effect or node.model
    if model is None or model.action is None:
        return []
    action = actions.get(model.action)
    if action is not None:
        return check_parameters(action.params, model.with_, f"{node.key}.with")
    near = difflib.get_close_matches(model.action, actions, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = ", ".join(sorted(actions)) or "an installed action (there is none)"
    return [Problem(f"unknown action {model.action!r}{hint}", f"{node.key}.action", expected=known)]


def _placed(problems: list[Problem], file: str | None, lines: Lines | None) -> DefinitionError:
    placed = (_place(problem, file, lines or {}) for problem in dict.fromkeys(problems))
    return DefinitionError(*sorted(placed, key=lambda problem: (problem.line or 0, problem.column or 0)))


def _place(problem: Problem, file: str | None, lines: Lines) -> Problem:
    """The problem with the position of its key, or of the nearest key around it."""
    key = problem.key
    while key not in lines and key:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    line, column = lines.get(key, (None, None))
    return replace(problem, file=file, line=line, column=column)
