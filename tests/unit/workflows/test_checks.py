"""Every static check of the kinds of steps: where, what is wrong, and that nothing else is reported."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.errors import DefinitionError
from appliance.plugin import Action, Params
from appliance.workflows.compile import compile_workflow
from appliance.workflows.flow import call_cycles, call_key
from appliance.workflows.loader import parse_document
from appliance.workflows.revision import Workflow


class Message(Params):
    message: str = ""


async def nothing(params: Any, ctx: Any) -> None:
    return None


ACTIONS = {"log": Action(params=Message, run=nothing)}
AFTER = "{id: z, action: log}"


def workflow(text: str, **more: Any) -> Workflow:
    steps = parse_document(text.encode()).data
    return compile_workflow({"name": "w", "trigger": {"event": "t"}, "steps": steps, **more}, actions=ACTIONS)


def says(name: str, template: str) -> str:
    return f"{{id: {name}, action: log, with: {{message: '{template}'}}}}"


@pytest.mark.parametrize(
    ("steps", "key", "words"),
    [
        # kinds and keys
        ("{id: a, action: log, timeout: 1s, wait: {event: x}}", "[0]", "this has action and wait"),
        ("{id: a, chose: []}", "[0].chose", "did you mean choose?"),
        ("{id: a, wait: {event: x}, forever: true, timeout: 5s}", "[0].timeout", "deadline: how long to wait"),
        ("{id: a, action: log, deadline: {after: 1d}}", "[0].deadline", "an action takes no deadline"),
        ("{id: a, action: log, forever: true}", "[0].forever", "an action takes no forever"),
        ("{id: a, delay: 1s, compensate: {action: log}}", "[0].compensate", "a delay takes no compensate"),
        ("{id: a, transform: 1, retry: {}}", "[0].retry", "a transform takes no retry"),
        ("{id: a, end: done, next: end}", "[0].next", "an end takes no next"),
        ("{id: a, choose: [{next: end}], on_error: end}", "[0].on_error", "a choose takes no on_error"),
        ("{id: a, wait: {event: x, deadline: {after: 1d}}, forever: true}", "[0].wait.deadline", "beside its kind"),
        # effects, retries, compensations
        ("{id: a, action: log, effects: once}", "[0].effects", "'at_least_once' or 'at_most_once'"),
        ("{id: a, action: log, effects: at_most_once, retry: {}}", "[0].retry", "never repeated"),
        ("{id: a, action: log, retry: {by_error: {tiemout: {}}}}", "[0].retry.by_error.tiemout", "no kind of failure"),
        (
            "{id: a, action: log, retry: {by_error: {timeout: {initial: 0s}}}}",
            "[0].retry.by_error.timeout.initial",
            "not a positive duration",
        ),
        (
            "{id: a, action: log, retry: {by_error: {timeout: {by_error: {}}}}}",
            "[0].retry.by_error.timeout.by_error",
            "doesn't belong here",
        ),
        ("{id: a, action: log, compensate: {action: lgo}}", "[0].compensate.action", "did you mean log?"),
        (
            "{id: a, action: log, compensate: {action: log, with: {mesage: x}}}",
            "[0].compensate.with.mesage",
            "did you mean message?",
        ),
        (
            "{id: a, action: log, compensate: {action: log, with: {message: '{{ steps.b }}'}}}",
            "[0].compensate.with",
            "there is no step 'b'",
        ),
        (
            "{id: a, action: log, compensate: {action: log, with: {message: '{{ task.link }}'}}}",
            "[0].compensate.with.message",
            "unknown name 'task'",
        ),
        # choose
        ("{id: a, choose: []}", "[0].choose", "at least 1"),
        ("{id: a, choose: [{when: {path: x, op: exists}}]}", "[0].choose[0]", "either next or steps"),
        ("{id: a, choose: [{next: end}, {next: end}]}", "[0].choose[1]", "the branch before it is always taken"),
        ("{id: a, choose: [{when: {path: x, op: '~'}, next: end}]}", "[0].choose[0].when.op", "unknown operator"),
        ("{id: a, choose: [{when: {path: secrets.x, op: exists}, next: end}]}", "[0].choose[0].when", "can't be seen"),
        ("{id: a, choose: [{next: b}]}, {id: b, action: log}, {id: c, action: lgo}", "[2].action", "did you mean log?"),
        ("{id: a, choose: [{next: z}]}, {id: b, action: log}, " + AFTER, "[1]", "nothing leads to 'b'"),
        ("{id: a, choose: [{next: x}]}", "[0].choose[0].next", "there is no step 'x'"),
        (
            "{id: a, choose: [{when: {path: x, op: exists}, steps: [" + says("b", "x") + "]}, "
            "{steps: [" + says("c", "{{ steps.b.output }}") + "]}]}",
            "[0].choose[1].steps[0].with",
            "stands in another branch of 'a'",
        ),
        (
            "{id: a, action: log, next: c}, {id: b, choose: [{steps: [{id: c, action: log}]}]}",
            "[0].next",
            "nothing jumps into a list of steps",
        ),
        # parallel
        ("{id: a, parallel: {branches: {}}}", "[0].parallel.branches", "at least 1"),
        ("{id: a, parallel: {branches: {x: []}}}", "[0].parallel.branches.x", "at least 1"),
        ("{id: a, parallel: {branches: {x y: [" + AFTER + "]}}}", "[0].parallel.branches.x y", "expected a letter"),
        ("{id: a, parallel: {join: 2, branches: {x: [" + AFTER + "]}}}", "[0].parallel.join", "there is 1 branch"),
        ("{id: a, parallel: {join: 0, branches: {x: [" + AFTER + "]}}}", "[0].parallel.join", "a number from 1 to 1"),
        (
            "{id: a, parallel: {join: most, branches: {x: [" + AFTER + "]}}}",
            "[0].parallel.join",
            "all, any, or how many",
        ),
        (
            "{id: a, parallel: {branches: {x: [" + AFTER + "], y: [{id: c, end: done}]}}}",
            "[0].parallel.join",
            "y always ends the run",
        ),
        (
            "{id: a, parallel: {branches: {x: [{id: b, action: log}], y: ["
            + says("c", "{{ steps.b.output }}")
            + "]}}}",
            "[0].parallel.branches.y[0].with",
            "stands in another branch of 'a'",
        ),
        (
            "{id: a, parallel: {branches: {x: [" + says("c", "{{ steps.a.output }}") + "]}}}",
            "[0].parallel.branches.x[0].with",
            "the block around this step",
        ),
        (
            "{id: a, parallel: {branches: {x: [{id: b, action: log, next: z}]}}}, " + AFTER,
            "[0].parallel.branches.x[0].next",
            "a jump stays in its branch",
        ),
        (
            "{id: a, parallel: {branches: {x: [{id: b, action: log, next: end}, " + AFTER + "]}}}",
            "[0].parallel.branches.x[1]",
            "nothing leads to 'z'",
        ),
        # for_each
        ("{id: a, for_each: {items: x, steps: [" + AFTER + "]}}", "[0].for_each.items", "a text is no list"),
        ("{id: a, for_each: {items: {}, steps: [" + AFTER + "]}}", "[0].for_each.items", "expected a list"),
        ("{id: a, for_each: {items: [1], as: run, steps: [" + AFTER + "]}}", "[0].for_each.as", "a meaning of its own"),
        ("{id: a, for_each: {items: [1], as: a-b, steps: [" + AFTER + "]}}", "[0].for_each.as", "expected a letter"),
        ("{id: a, for_each: {items: [1], concurrency: 0, steps: [" + AFTER + "]}}", "[0].for_each.concurrency", "1"),
        (
            "{id: a, for_each: {items: '{{ item }}', steps: [" + AFTER + "]}}",
            "[0].for_each.items",
            "unknown name 'item'",
        ),
        (
            "{id: a, for_each: {items: [1], as: line, steps: [" + says("b", "{{ item }}") + "]}}",
            "[0].for_each.steps[0].with.message",
            "unknown name 'item'",
        ),
        (
            "{id: a, for_each: {items: [1], steps: [" + AFTER + "]}}, " + says("c", "{{ steps.z.output }}"),
            "[1].with",
            "only its own steps see it",
        ),
        (
            "{id: a, for_each: {items: [1], steps: ["
            + AFTER
            + "]}}, {id: c, action: log, if: {path: item.x, op: exists}}",
            "[1].if",
            "there is no item here",
        ),
        # wait
        ("{id: a, wait: {event: x}}", "[0]", "forever: true"),
        ("{id: a, wait: {event: x}, forever: true, deadline: {after: 1d}}", "[0]", "there is a deadline"),
        ("{id: a, wait: {evnt: x}, forever: true}", "[0].wait.evnt", "did you mean event?"),
        ("{id: a, wait: {event: x, match: {path: a..b, value: 1}}, forever: true}", "[0].wait.match.path", "no path"),
        ("{id: a, wait: {event: x, match: [{path: a}]}, forever: true}", "[0].wait.match[0].value", "missing"),
        ("{id: a, wait: {event: x, match: {path: a, value: null}}, forever: true}", "[0].wait.match.value", "by null"),
        (
            "{id: a, wait: {event: x, match: {path: a, value: '{{ secrets.x }}'}}, forever: true}",
            "[0].wait.match.value",
            "unknown name 'secrets'",
        ),
        ("{id: a, wait: {event: x}, deadline: {after: soon}}", "[0].deadline.after", "expected a duration"),
        ("{id: a, wait: {event: x}, deadline: {until: 2030-01-01}}", "[0].deadline.until", "a time with an offset"),
        ("{id: a, wait: {event: x}, deadline: {}}", "[0].deadline", "either after or until"),
        ("{id: a, wait: {event: x}, deadline: {after: 1d, next: b}}", "[0].deadline.next", "there is no step 'b'"),
        (
            "{id: b, action: log}, {id: a, wait: {event: x}, deadline: {after: 1d, next: b}}",
            "[1].deadline.next",
            "later",
        ),
        # human_task
        ("{id: a, human_task: {}}", "[0].human_task.title", "title is missing"),
        ("{id: a, human_task: {title: x, form: {type: array}}}", "[0].human_task.form", "an answer is an object"),
        (
            "{id: a, human_task: {title: x, form: {type: object, properties: {a: {type: strin}}}}}",
            "[0].human_task.form.properties.a.type",
            "expected string",
        ),
        ("{id: a, human_task: {title: x, reminders: [1d]}}", "[0].human_task.reminders", "nobody is told"),
        (
            "{id: a, human_task: {title: x, notify: {action: log}, reminders: [2d, 1d]}}",
            "[0].human_task.reminders[1]",
            "not later than the one before",
        ),
        (
            "{id: a, human_task: {title: x, notify: {action: log}, reminders: [soon]}}",
            "[0].human_task.reminders[0]",
            "expected a duration",
        ),
        ("{id: a, human_task: {title: x, notify: {action: lgo}}}", "[0].human_task.notify.action", "did you mean log?"),
        ("{id: a, human_task: {title: '{{ secrets.x }}'}}", "[0].human_task.title", "unknown name 'secrets'"),
        ("{id: a, human_task: {title: x}, forever: true, deadline: {after: 1d}}", "[0]", "there is a deadline"),
        # workflow, transform, end
        ("{id: a, workflow: w}", "[0].workflow", "calls itself"),
        ("{id: a, workflow: '{{ event.x }}'}", "[0].workflow", "can't depend on the data"),
        ("{id: a, workflow: {nmae: x}}", "[0].workflow.nmae", "did you mean name?"),
        ("{id: a, transform: {logic: {foo: [1]}}}", "[0].transform.logic", "unknown operator"),
        ("{id: a, transform: {logic: {var: steps.b.output}}}", "[0].transform.logic", "there is no step 'b'"),
        ("{id: a, transform: '{{ now }}'}", "[0].transform", "unknown name 'now'"),
        ("{id: a, end: {outcom: x}}", "[0].end.outcom", "did you mean outcome?"),
        ("{id: a, end: '{{ event.x }}'}", "[0].end", "can't depend on the data"),
        ("{id: a, end: {status: cancelled}}", "[0].end.status", "'succeeded' or 'failed'"),
        ("{id: a, end: done}, " + AFTER, "[1]", "nothing leads to 'z'"),
        # delays
        ("{id: a, delay: {fo: 1h}}", "[0].delay.fo", "did you mean for?"),
        (
            "{id: a, delay: {for: 1h, business_hours: {from: '9', to: '17:00'}}}",
            "[0].delay.business_hours.from",
            "expected a time",
        ),
        (
            "{id: a, delay: {for: 1h, business_hours: {from: '09:00', to: '17:00', days: [mo]}}}",
            "[0].delay.business_hours.days",
            "expected mon, tue",
        ),
    ],
)
def test_a_wrong_step(steps: str, key: str, words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        workflow(f"[{steps}]")
    found = {problem.key: str(problem) for problem in refused.value.problems}
    assert f"steps{key}" in found, found
    assert words in found[f"steps{key}"]
    assert len(found) <= 2  # an unknown key and the one that is missing instead


def test_what_expressions_may_name() -> None:
    see = "{{ steps.first.output }}"
    compiled = workflow(f"""
      - {says("first", "x")}
      - id: pick
        choose:
          - steps: [{says("a1", see)}, {says("a2", "{{ steps.a1.output }}{{ steps.pick.output }}")}]
      - id: both
        parallel:
          branches:
            x: [{says("x1", see)}, {says("x2", "{{ steps.x1.output }}{{ steps.a1.output }}")}]
      - id: each
        for_each:
          items: "{{{{ steps.both.output }}}}"
          steps:
            - {says("e1", see)}
            - {{id: e2, action: log, with: {{message: "{{{{ steps.e1.output }}}}{{{{ item }}}}"}},
               compensate: {{action: log, with: {{message: "{{{{ item }}}}{{{{ index }}}}{{{{ steps.e1 }}}}"}}}}}}
            - {{id: e3, action: log, if: {{path: item.sku, op: exists}}}}
      - {says("last", "{{ steps.each.output }}{{ steps.x1.output }}{{ steps.a1.output }}{{ input }}{{ error }}")}
    """)
    assert len(compiled.steps) == 13


def test_what_runs_at_the_end_sees_what_has_run() -> None:
    undo = "{action: log, with: {message: '{{ steps.b.output }}'}}"
    handler = [{"id": "h", "action": "log", "with": {"message": "{{ steps.b.output }}{{ error.step }}"}}]
    text = f"[{{id: a, action: log, compensate: {undo}}}, {{id: b, action: log}}]"
    assert workflow(text, on_error=handler, output="{{ steps.b.output }}").on_error == 1
    for text, key, more in (
        (f"[{says('a', '{{ steps.h.output }}')}]", "steps[0].with", {"on_error": [{"id": "h", "action": "log"}]}),
        ("[{id: a, action: log}]", "output", {"on_error": [{"id": "h", "action": "log"}], "output": "{{ steps.h }}"}),
    ):
        with pytest.raises(DefinitionError, match="only runs when the run ends") as refused:
            workflow(text, **more)
        assert refused.value.problems[0].key == key


def test_too_much_is_refused() -> None:
    deep: dict[str, Any] = {"id": "s0", "action": "log"}
    for number in range(1, 12):
        deep = {"id": f"s{number}", "for_each": {"items": [1], "steps": [deep]}}
    with pytest.raises(DefinitionError, match="nested deeper than 10 blocks"):
        compile_workflow({"name": "w", "trigger": "manual", "steps": [deep]}, actions=None)
    wide = [
        {
            "id": f"p{b}",
            "for_each": {"items": [1], "steps": [{"id": f"s{b}-{n}", "action": "log"} for n in range(1000)]},
        }
        for b in range(3)
    ]
    with pytest.raises(DefinitionError, match="more than 2000 steps"):
        compile_workflow({"name": "w", "trigger": "manual", "steps": wide}, actions=None)


def test_problems_are_placed_where_they_stand() -> None:
    document = parse_document(
        b"name: w\ntrigger: manual\nsteps:\n- id: p\n  parallel:\n    branches:\n      mail:\n"
        b"      - id: a\n        wait:\n          event: x\n"
    )
    with pytest.raises(DefinitionError) as refused:
        compile_workflow(document.data, actions=None, file="w.yaml", lines=document.lines)
    [problem] = refused.value.problems
    assert str(problem).startswith("w.yaml:8:9: steps[0].parallel.branches.mail[0]: waits for ever")


def calling(name: str, *called: str) -> Workflow:
    steps: list[dict[str, Any]] = [{"id": f"s{n}", "workflow": each} for n, each in enumerate(called)]
    steps.append({"id": "last", "end": None})
    return compile_workflow({"name": name, "trigger": "manual", "steps": steps}, actions=None)


def test_where_a_call_stands() -> None:
    definition = {"steps": [{"id": "a"}, {"for_each": {"steps": [{"workflow": "x"}, {"workflow": {"name": "y"}}]}}]}
    assert call_key(definition, "x") == "steps[1].for_each.steps[0].workflow"
    assert call_key(definition, "y") == "steps[1].for_each.steps[1].workflow"
    assert call_key(definition, "z") is None


def test_cycles_of_calls() -> None:
    flows = {
        name: calling(name, *called)
        for name, called in {
            "a": ("x", "b"), "b": ("c",), "c": ("a",), "d": ("a",), "x": (), "lost": ("gone",),
        }.items()
    }  # fmt: skip
    assert call_cycles(flows) == [
        ("a", ("a", "b", "c", "a")),
        ("b", ("b", "c", "a", "b")),
        ("c", ("c", "a", "b", "c")),
    ]
    assert call_cycles({name: flows[name] for name in ("a", "b", "d")}) == []
