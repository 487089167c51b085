"""The kinds of steps: from what is written in each to the fields of the compiled one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.errors import Problem
from appliance.rules.criteria import normal_path
from appliance.templating import NAMES, Template, has_expression
from appliance.workflows.forms import schema_mistakes
from appliance.workflows.graph import RESERVED, Graph, Node
from appliance.workflows.models import CallModel, EffectModel, EndModel, HumanTaskModel, MatchModel, StepModel
from appliance.workflows.problems import dotted
from appliance.workflows.revision import END, Branch, Step, Task, Wait
from appliance.workflows.values import Values, deadline_of

CORE_NAMES = tuple(name for name in NAMES if name != "secrets")
"""What the pure core renders sees these; it knows no secrets, since what it makes is stored."""
_RESERVED_NAMES = frozenset({*NAMES, "events", "index", "task", "loop", "true", "false", "none"})

_INSTEAD = {
    **{("timeout", kind): "deadline: how long to wait" for kind in ("wait", "human_task", "workflow")},
    ("deadline", "action"): "timeout: the limit of one attempt",
    ("with", "workflow"): "workflow: {name, input}",
    ("next", "end"): "nothing: the run is over",
}
"""What to write instead of a key that a kind of step doesn't take."""

Fields = dict[str, Any]


class Compiler:
    """Compiles the nodes of one graph. ``name`` is the workflow's; its expressions see ``more`` beside the usual."""

    def __init__(self, name: str, graph: Graph, values: Values, more: tuple[str, ...] = ()) -> None:
        self._name = name
        self._more = more
        self._graph = graph
        self._values = values
        self._kinds: Mapping[str, Callable[[Node, StepModel], Fields]] = {
            "action": self._action,
            "delay": self._delay,
            "choose": self._choose,
            "parallel": self._parallel,
            "for_each": self._for_each,
            "wait": self._wait,
            "human_task": self._human_task,
            "workflow": self._workflow,
            "transform": self._transform,
            "end": self._end,
        }

    def hide(self, node: Node) -> None:
        """Add the hidden steps that a step needs."""
        model, key = node.model, node.key
        if model is None:
            return
        if model.compensate is not None:
            self._graph.hide(f"{node.id}.compensate", "action", node, f"{key}.compensate", model.compensate)
        if model.human_task is not None and model.human_task.notify is not None:
            effect = model.human_task.notify
            self._graph.hide(f"{node.id}.notify", "action", node, f"{key}.human_task.notify", effect)
        if model.deadline is not None and model.deadline.next == END:
            self._graph.hide(f"{node.id}.late", "transform", node, key)  # a time limit leads to a step, so to this one

    def step(self, node: Node, fields: Fields | None = None) -> Step:
        """The compiled step; ``fields`` are those of a step that isn't written as one."""
        if fields is None:
            fields = self._written(node, node.model) if node.model is not None else self._hidden(node)
        return Step(
            id=node.id,
            index=node.index,
            kind=node.kind,
            thread=node.chain.thread,
            after=_index(self._graph.after(node) if not node.hidden else None),
            follow=_index(self._graph.follow(node)),
            owner=_index(node.owner),
            state=node.state,
            **fields,
        )

    def names(self, node: Node, *more: str, secrets: bool = False) -> tuple[str, ...]:
        """What templates see at a step: the items around it, too."""
        items = [block for block, _ in self._graph.lineage(node) if block.kind == "for_each"]
        own = [
            block.model.for_each.as_ for block in items if block.model is not None and block.model.for_each is not None
        ]
        index = ["index"] if items else []
        return tuple(dict.fromkeys([*(NAMES if secrets else CORE_NAMES), *self._more, *own, *index, *more]))

    @property
    def outer_names(self) -> tuple[str, ...]:
        """What the workflow's own ``output`` sees."""
        return tuple(name for name in (*CORE_NAMES, *self._more) if name != "error")

    # --- what all steps have -----------------------------------------------------------------------------------------

    def _written(self, node: Node, model: StepModel) -> Fields:
        graph, key = self._graph, node.key
        for word in model.misplaced():
            article = "an" if node.kind[0] in "ae" else "a"
            self._problem(f"{article} {node.kind} takes no {word}", f"{key}.{word}", _INSTEAD.get((word, node.kind)))
        graph.check_jump(node, model.next, f"{key}.next")
        graph.check_jump(node, model.on_error, f"{key}.on_error", RESERVED)
        fields: Fields = {
            "condition": self._values.condition(model.if_, f"{key}.if", node),
            "next": model.next,
            "on_error": model.on_error,
            "compensate": _index(graph.by_id.get(f"{node.id}.compensate")) if model.compensate is not None else None,
        }
        if model.deadline is not None:
            due, inner = self._values.deadline(model.deadline, node, self.names(node))
            target = graph.check_jump(node, model.deadline.next, f"{inner}.next")
            if model.deadline.next == END:
                target = graph.by_id.get(f"{node.id}.late")
            fields["deadline"] = deadline_of(due, _index(target))
        return fields | self._kinds[node.kind](node, model)

    def _hidden(self, node: Node) -> Fields:
        effect = node.effect
        if effect is None:
            return {}
        task = ("task",) if node.id.endswith(".notify") else ()
        return self._effect(node, effect, self.names(node, *task, secrets=True))

    def _effect(self, node: Node, model: StepModel | EffectModel, names: tuple[str, ...]) -> Fields:
        key, values = node.key, self._values
        timeout = model.timeout
        return {
            "action": model.action,
            "params": values.template(model.with_, f"{key}.with", node, names),
            "retry": values.retry(model.retry, f"{key}.retry"),
            "timeout_s": values.positive(timeout.total_seconds(), f"{key}.timeout") if timeout is not None else None,
        }

    def _template(self, value: Any, key: str, node: Node) -> Template | None:
        return self._values.template(value, key, node, self.names(node))

    def _problem(self, message: str, key: str, expected: str | None = None) -> None:
        self._values.problems.append(Problem(message, key, expected=expected))

    # --- kinds -------------------------------------------------------------------------------------------------------

    def _action(self, node: Node, model: StepModel) -> Fields:
        once = model.effects == "at_most_once"
        if once and "retry" in model.model_fields_set:
            self._problem("an attempt that is made at most once is never repeated", f"{node.key}.retry", "no retry")
        return {**self._effect(node, model, self.names(node, secrets=True)), "at_most_once": once}

    def _delay(self, node: Node, model: StepModel) -> Fields:
        delay, hours = self._values.delay(model.delay, f"{node.key}.delay", node, self.names(node))
        return {"delay": delay, "hours": hours}

    def _choose(self, node: Node, model: StepModel) -> Fields:
        branches, always = [], False
        for number, branch in enumerate(model.choose or ()):
            key = f"{node.key}.choose[{number}]"
            condition = self._values.condition(branch.when, f"{key}.when", node)
            if always:
                self._problem("the branch before it is always taken", key, "a when in every branch but the last")
            always = always or branch.when is None
            target = self._graph.check_jump(node, branch.next, f"{key}.next")
            if (inner := node.chains.get(number)) is not None:
                target = inner.nodes[0] if inner.nodes else None
            branches.append(Branch(condition, _index(target)))
        return {"branches": tuple(branches)}

    def _parallel(self, node: Node, model: StepModel) -> Fields:
        if model.parallel is None:
            return {}
        count, join = len(model.parallel.branches), model.parallel.join
        need = {"all": count, "any": 1}[join] if isinstance(join, str) else join
        if not 1 <= need <= count:
            shown = f"there {'is 1 branch' if count == 1 else f'are {count} branches'}"
            key = f"{node.key}.parallel.join"
            self._problem(f"{need} can't be joined: {shown}", key, f"all, any, or a number from 1 to {count}")
        return {"threads": tuple(node.threads), "join": need}

    def _for_each(self, node: Node, model: StepModel) -> Fields:
        loop, key = model.for_each, f"{node.key}.for_each"
        if loop is None:
            return {}
        if isinstance(loop.items, str) and not has_expression(loop.items):
            self._problem("a text is no list", f"{key}.items", 'a list, or a template: "{{ event.data.lines }}"')
        if loop.as_ in _RESERVED_NAMES:
            self._problem(f"{loop.as_!r} has a meaning of its own", f"{key}.as", "another name")
        return {
            "threads": tuple(node.threads),
            "items": self._template(loop.items, f"{key}.items", node),
            "concurrency": loop.concurrency,
            "item_name": loop.as_,
        }

    def _wait(self, node: Node, model: StepModel) -> Fields:
        wait, key = model.wait, f"{node.key}.wait"
        if wait is None:
            return {}
        if (model.deadline is None) != model.forever:
            message = "waits for ever if no such event comes" if model.deadline is None else "there is a deadline"
            self._problem(message, node.key, "either deadline: {after: 2d, next: step}, or forever: true")
        matches = []
        for number, match in enumerate(_listed(wait.match)):
            inner = f"{key}.match[{number}]" if isinstance(wait.match, list) else f"{key}.match"
            matches.append(self._match(match, inner, node))
        events = dict.fromkeys(_listed(wait.event))
        condition = self._values.condition(wait.when, f"{key}.when", node)
        return {"wait": Wait(tuple(events), tuple(m for m in matches if m is not None), condition)}

    def _match(self, match: MatchModel, key: str, node: Node) -> tuple[str, Template] | None:
        if match.value is None:
            self._problem("no event is known by null", f"{key}.value", "a value, or a template")
        if not all(match.path.split(".")):
            self._problem(f"no path: {match.path!r:.80}", f"{key}.path", "a dotted path, such as data.order_id")
        template = self._template(match.value, f"{key}.value", node)
        return (normal_path(match.path), template) if template is not None else None

    def _human_task(self, node: Node, model: StepModel) -> Fields:
        task, key = model.human_task, f"{node.key}.human_task"
        if task is None:
            return {}
        if model.forever and model.deadline is not None:
            self._problem("there is a deadline", node.key, "either deadline: {after: 2d, next: step}, or forever: true")
        about = {
            "title": task.title,
            "description": task.description,
            "assignee": task.assignee,
            "group": task.group,
        }
        template = self._template(about, key, node)
        self.check_schema(task.form, f"{key}.form")
        if task.form.get("type") != "object":
            self._problem("an answer is an object", f"{key}.form", "type: object")
        reminders = self._reminders(task, key)
        notify = _index(self._graph.by_id.get(f"{node.id}.notify")) if task.notify is not None else None
        return {"task": Task(template, task.form, notify, reminders) if template is not None else None}

    def _reminders(self, task: HumanTaskModel, key: str) -> tuple[float, ...]:
        if task.reminders and task.notify is None:
            self._problem("nobody is told", f"{key}.reminders", "notify, the action that tells people")
        seconds = [r.total_seconds() for r in task.reminders]
        for number, (before, after) in enumerate(zip([0.0, *seconds], seconds, strict=False)):
            if after <= before:
                message = "not later than the one before" if number else "not a positive duration"
                self._problem(message, f"{key}.reminders[{number}]", "durations that grow: [1d, 2d]")
        return tuple(seconds)

    def check_schema(self, schema: Any, key: str) -> None:
        """Note what is wrong with a JSON Schema."""
        for mistake in schema_mistakes(schema):
            self._problem(mistake.expected, dotted(key, mistake.path))

    def _workflow(self, node: Node, model: StepModel) -> Fields:
        call = model.workflow
        name, given = (call.name, call.input) if isinstance(call, CallModel) else (str(call), {})
        key = f"{node.key}.workflow"
        if has_expression(name):
            self._problem("which workflow is called can't depend on the data", key, "the name of a workflow")
        elif name == self._name:
            self._problem("the workflow calls itself", key, "the name of another workflow")
        return {"flow": name, "params": self._template(given, f"{key}.input", node)}

    def _transform(self, node: Node, model: StepModel) -> Fields:
        key = f"{node.key}.transform"
        if isinstance(model.transform, dict) and [*model.transform] == ["logic"]:
            return {"logic": self._values.logic(model.transform["logic"], f"{key}.logic", node)}
        return {"params": self._template(model.transform, key, node)}

    def _end(self, node: Node, model: StepModel) -> Fields:
        end = model.end if isinstance(model.end, EndModel) else EndModel(outcome=model.end)
        key = f"{node.key}.end"
        if end.outcome is not None and has_expression(end.outcome):
            self._problem("an outcome can't depend on the data", key, "a word; what depends on the data is output")
        params = self._template(end.output, f"{key}.output", node) if end.output is not None else None
        return {"outcome": end.outcome, "params": params, "fails": end.status == "failed"}


def _index(node: Node | None) -> int | None:
    return node.index if node is not None else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value is not None else []
