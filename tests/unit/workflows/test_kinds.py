"""What comes out for each kind of step: who follows whom, in which thread, with which hidden steps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from appliance.workflows.compile import compile_workflow
from appliance.workflows.loader import parse_document
from appliance.workflows.revision import RetryPolicy, Step, Thread, Workflow, due_at


def workflow(text: str, **more: Any) -> Workflow:
    steps = parse_document(text.encode()).data
    return compile_workflow({"name": "w", "trigger": {"event": "t"}, "steps": steps, **more}, actions=None)


def ways(compiled: Workflow) -> dict[str, tuple[str | None, str | None]]:
    """By id: what follows a step that is skipped, and what follows one that is done."""

    def name(index: int | None) -> str | None:
        return compiled.steps[index].id if index is not None else None

    return {step.id: (name(step.after), name(step.follow)) for step in compiled.steps}


def step(compiled: Workflow, name: str) -> Step:
    return compiled.steps[compiled.by_id[name]]


def test_plain_steps_are_one_thread() -> None:
    compiled = workflow("""
      - {id: a, action: log}
      - {id: b, action: log, next: d, on_error: c}
      - {id: c, delay: 1s, next: end}
      - {id: d, action: log, on_error: c2}
      - {id: e, action: log, next: end}
      - {id: c2, action: log}
    """)
    assert ways(compiled) == {
        "a": ("b", "b"),
        "b": ("c", "d"),
        "c": ("d", None),
        "d": ("e", "e"),
        "e": ("c2", None),
        "c2": (None, None),
    }
    assert compiled.threads == (Thread(0, "", 0),)
    assert (compiled.first, compiled.on_error, compiled.machine, compiled.compensates) == (0, None, None, False)
    assert (compiled.order, compiled.inputs, compiled.output, compiled.schedules) == (0, None, None, ())


def test_choose() -> None:
    compiled = workflow("""
      - id: pick
        choose:
          - {when: {path: data.n, op: ">", value: 9}, steps: [{id: big, action: log}, {id: huge, action: log}]}
          - {when: {path: data.n, op: ">", value: 5}, next: last}
          - {when: {path: data.n, op: ">", value: 3}, next: end}
          - {when: {path: data.n, op: ">", value: 1}, steps: [{id: small, action: log, next: last}]}
      - {id: middle, action: log}
      - {id: last, action: log}
    """)
    assert ways(compiled) == {
        "pick": ("middle", "middle"),
        "big": ("huge", "huge"),
        "huge": ("middle", "middle"),
        "small": ("middle", "last"),
        "middle": ("last", "last"),
        "last": (None, None),
    }
    pick = step(compiled, "pick")
    assert [branch.target for branch in pick.branches] == [1, 5, None, 3]
    assert all(branch.condition is not None for branch in pick.branches)
    assert {s.thread for s in compiled.steps} == {0}


def test_next_of_a_choose_is_where_its_branches_lead() -> None:
    compiled = workflow("""
      - id: pick
        next: c
        choose:
          - {when: {path: x, op: exists}, steps: [{id: in, action: log}]}
          - {when: {path: y, op: exists}, next: a}
      - {id: a, action: log, if: {path: x, op: exists}, next: c}
      - {id: b, action: log}
      - {id: c, action: log}
    """)
    assert ways(compiled)["in"] == ("c", "c")
    assert ways(compiled)["pick"] == ("a", "c")


def test_parallel() -> None:
    compiled = workflow("""
      - id: both
        parallel:
          join: any
          branches:
            mail: [{id: m1, action: log, on_error: m2}, {id: m2, action: log}]
            sms: [{id: s1, action: log}]
      - {id: after, action: log}
    """)
    assert ways(compiled) == {
        "both": ("after", "after"),
        "m1": ("m2", "m2"),
        "m2": (None, None),
        "s1": (None, None),
        "after": (None, None),
    }
    assert compiled.threads == (Thread(0, "", 0), Thread(1, "mail", 1, 0), Thread(2, "sms", 3, 0))
    both = step(compiled, "both")
    assert (both.threads, both.join) == ((1, 2), 1)
    assert [s.thread for s in compiled.steps] == [0, 1, 1, 2, 0]


@pytest.mark.parametrize(("join", "need"), [("all", 2), ("any", 1), ("1", 1), ("2", 2)])
def test_joins(join: str, need: int) -> None:
    text = (
        f"- {{id: p, parallel: {{join: {join}, branches: {{x: [{{id: a, action: l}}], y: [{{id: b, action: l}}]}}}}}}"
    )
    assert step(workflow(text), "p").join == need


def test_for_each() -> None:
    compiled = workflow("""
      - id: each
        for_each:
          items: "{{ event.data.lines }}"
          as: line
          concurrency: 10
          steps:
            - {id: one, action: log, with: {message: "{{ line.sku }} {{ index }}"}}
            - id: inner
              for_each: {items: "{{ line.parts }}", steps: [{id: two, transform: "{{ line }} {{ item }}"}]}
    """)
    each = step(compiled, "each")
    assert each.items is not None
    assert each.items.render({"event": {"data": {"lines": [1]}}}) == [1]
    assert (each.concurrency, each.item_name, each.threads) == (10, "line", (1,))
    assert (step(compiled, "inner").concurrency, step(compiled, "inner").item_name) == (1, "item")
    assert compiled.threads == (Thread(0, "", 0), Thread(1, "", 1, 0), Thread(2, "", 3, 2))


def test_wait() -> None:
    compiled = workflow("""
      - id: paid
        wait:
          event: [order.paid, "order.*", order.paid]
          match: [{path: event.data.id, value: "{{ event.data.id }}"}, {path: subject, value: x}]
          when: {path: data.total, op: ">", value: 0}
        deadline: {after: "{{ event.data.days }}d", next: late}
      - {id: other, wait: {event: x, match: {path: data.a, value: 1}}, forever: true, next: end}
      - {id: late, action: log}
    """)
    paid = step(compiled, "paid")
    assert paid.wait is not None
    assert paid.wait.events == ("order.paid", "order.*")
    assert [path for path, _ in paid.wait.match] == ["data.id", "subject"]
    assert paid.wait.match[0][1].render({"event": {"data": {"id": 7}}}) == 7
    assert paid.wait.condition is not None
    assert paid.deadline is not None
    assert paid.deadline.target == compiled.by_id["late"]
    assert paid.deadline.due.render({"event": {"data": {"days": 3}}}) == {"for": "3d"}
    other = step(compiled, "other")
    assert (other.deadline, [path for path, _ in other.wait.match] if other.wait else None) == (None, ["data.a"])


def test_a_deadline_may_end_its_thread() -> None:
    compiled = workflow("""
      - {id: w, wait: {event: x}, deadline: {until: "2030-01-01T00:00:00Z", next: end}}
      - {id: b, action: log}
    """)
    late = step(compiled, "w.late")
    waiting = step(compiled, "w")
    assert waiting.deadline is not None
    assert waiting.deadline.target == late.index == 2
    assert (late.kind, late.follow, late.thread, late.owner) == ("transform", None, 0, 0)


def test_human_task() -> None:
    compiled = workflow("""
      - id: ask
        human_task:
          title: "Answer {{ event.data.name }}"
          group: office
          form: {type: object, required: [ok]}
          notify: {action: mail, with: {body: "{{ task.link }} {{ secrets.x }}"}, timeout: 5s, retry: {max_attempts: 2}}
          reminders: [1d, 36h]
      - {id: quick, human_task: {title: Go on}}
    """)
    ask, quick, notify = compiled.steps
    assert ask.task is not None
    assert ask.task.about.render({"event": {"data": {"name": "Ann"}}}) == {
        "title": "Answer Ann", "description": None, "assignee": None, "group": "office",
    }  # fmt: skip
    assert ask.task.form == {"type": "object", "required": ["ok"]}
    assert (ask.task.notify, ask.task.reminders) == (2, (86400.0, 129600.0))
    assert (notify.id, notify.kind, notify.action, notify.timeout_s) == ("ask.notify", "action", "mail", 5.0)
    assert notify.retry.max_attempts == 2
    assert (notify.owner, notify.follow, compiled.threads[notify.thread].parent) == (0, None, None)
    assert compiled.threads[notify.thread].first == notify.index
    assert quick.task is not None
    assert (quick.task.form, quick.task.notify, quick.deadline) == ({"type": "object"}, None, None)


def test_workflow_transform_and_end() -> None:
    compiled = workflow("""
      - {id: call, workflow: {name: other, input: {a: "{{ input.b }}"}}, deadline: {after: 1d}}
      - {id: plain, workflow: other}
      - {id: data, transform: {logic: 1, more: 2}}
      - {id: logic, transform: {logic: {map: [{var: event.data.lines}, {var: sku}]}}}
      - {id: stop, end: {outcome: done, output: "{{ steps.logic.output }}", status: failed}, if: {path: x, op: exists}}
      - {id: word, end: fine, if: {path: x, op: exists}}
      - {id: bare, end: null}
    """)
    call, plain, data, logic, stop, word, bare = compiled.steps
    assert call.params is not None
    assert (call.flow, call.params.render({"input": {"b": 1}})) == ("other", {"a": 1})
    assert call.deadline is not None
    assert call.deadline.target is None
    assert plain.params is not None
    assert (plain.flow, plain.params.render({})) == ("other", {})
    assert data.params is not None
    assert (data.params.render({}), data.logic) == ({"logic": 1, "more": 2}, None)
    assert logic.logic.evaluate({"event": {"data": {"lines": [{"sku": "x"}]}}, "steps": {}}) == ["x"]
    assert (stop.outcome, stop.fails, stop.params is not None) == ("done", True, True)
    assert (word.outcome, word.fails, word.params) == ("fine", False, None)
    assert (bare.kind, bare.outcome, bare.params) == ("end", None, None)


def test_an_action_with_all_keys() -> None:
    compiled = workflow("""
      - id: charge
        description: Take the money.
        action: pay
        effects: at_most_once
        compensate: {action: refund, with: {id: "{{ steps.charge.output.id }}"}, timeout: 9s}
      - id: tell
        action: log
        retry: {max_attempts: 4, initial: 2s, by_error: {timeout: {max_attempts: 2}, ConnectError: {initial: 9s}}}
    """)
    charge, tell, undo = compiled.steps
    assert (charge.at_most_once, charge.compensate) == (True, 2)
    assert (undo.id, undo.action, undo.timeout_s, undo.owner) == ("charge.compensate", "refund", 9.0, 0)
    assert undo.params is not None
    assert undo.params.names == {"charge"}
    assert compiled.compensates
    assert tell.retry.by_error == {"timeout": RetryPolicy(2, 2.0), "ConnectError": RetryPolicy(4, 9.0)}


def test_business_hours() -> None:
    [nap] = workflow("""
      - {id: nap, delay: {for: 2h, business_hours: {from: "09:00", to: "17:00", holidays: [2030-01-07]}}}
    """).steps
    assert nap.delay is not None
    friday = datetime(2030, 1, 4, 16, tzinfo=UTC)
    assert due_at(nap.delay.render({}), friday, nap.hours) == datetime(2030, 1, 8, 10, tzinfo=UTC)


def test_the_workflow_itself() -> None:
    compiled = workflow(
        "- {id: a, action: log}",
        order=3,
        inputs={"type": "object"},
        output={"a": "{{ steps.a.output }}"},
        on_error=[{"id": "alarm", "action": "log", "with": {"m": "{{ error.message }} {{ steps.a.error }}"}}],
        trigger=[{"event": "x"}, {"schedule": "0 9 * * 1", "timezone": "Europe/Berlin", "misfire": "all"}],
    )
    assert (compiled.order, compiled.inputs) == (3, {"type": "object"})
    assert compiled.output is not None
    assert compiled.output.render({"steps": {"a": {"output": 1}}}) == {"a": 1}
    assert compiled.on_error == 1
    assert compiled.threads == (Thread(0, "", 0), Thread(1, "on_error", 1))
    assert [trigger.event for trigger in compiled.triggers] == ["x"]
    [schedule] = compiled.schedules
    assert (schedule.expression, schedule.timezone, schedule.misfire, schedule.limit) == (
        "0 9 * * 1", "Europe/Berlin", "all", 10,
    )  # fmt: skip


def test_a_workflow_may_be_for_people_and_calls_only() -> None:
    ways_in: list[dict[str, Any]] = [{"trigger": "manual"}, {"trigger": None, "inputs": {}}]
    for more in ways_in:
        compiled = workflow("- {id: a, action: log}", **more)
        assert (compiled.triggers, compiled.schedules) == ((), ())
