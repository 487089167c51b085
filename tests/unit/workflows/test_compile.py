"""Compiling a workflow: what comes out, and every static check."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from appliance.errors import DefinitionError
from appliance.plugin import Action, Params
from appliance.templating import TemplateError
from appliance.workflows.compile import compile_workflow
from appliance.workflows.loader import parse_document
from appliance.workflows.revision import RetryPolicy, Workflow, due_at


class Mail(Params):
    to: str | tuple[str, ...]
    from_: str | None = Field(None, alias="from")
    body: str | None = None
    template: str | None = None
    level: Literal["low", "high"] = "low"
    count: int = Field(1, ge=1)
    data: dict[str, int] = Field({})

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.body is None) == (self.template is None):
            raise ValueError("give either body or template")
        if self.body is not None and len(self.body) > 5 and self.level == "high":
            raise ValueError("too long for high")
        return self


async def nothing(params: Any, ctx: Any) -> None:
    return None


ACTIONS = {"send_mail": Action(params=Mail, run=nothing), "log": Action(params=Params, run=nothing)}


def workflow(*steps: dict[str, Any], **more: Any) -> Workflow:
    definition = {"name": "w", "trigger": {"event": "t"}, "steps": list(steps), **more}
    return compile_workflow(definition, actions=ACTIONS)


def log(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "action": "log", **more}


def mail(**parameters: Any) -> dict[str, Any]:
    return {"id": "m", "action": "send_mail", "with": {"to": "a", "body": "b", **parameters}}


def problems(*steps: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    with pytest.raises(DefinitionError) as refused:
        workflow(*steps, **more)
    return [(problem.key, problem.message) for problem in refused.value.problems]


def test_all_keys() -> None:
    compiled = compile_workflow(
        {
            "name": "w",
            "description": "d",
            "priority": "high",
            "enabled": False,
            "trigger": [
                {"event": ["a", "b.*"], "when": {"path": "x", "op": "==", "value": "y"}},
                {"event": "c"},
            ],
            "steps": [
                {
                    "id": "one",
                    "action": "log",
                    "if": {"path": "data.x", "op": "exists"},
                    "retry": {
                        "max_attempts": 3, "initial": "500ms", "factor": 3, "max": "1m", "jitter": False,
                        "max_elapsed": "1h",
                    },
                    "timeout": "2s",
                    "next": "three",
                    "on_error": "continue",
                },
                {"id": "two", "delay": {"until": "2030-01-01T00:00:00Z"}},
                {"id": "three", "delay": "10m", "next": "end"},
            ],
        },
        actions=ACTIONS,
    )  # fmt: skip
    assert [trigger.event for trigger in compiled.triggers] == ["a", "b.*", "c"]
    assert compiled.triggers[0].condition is compiled.triggers[1].condition
    assert compiled.triggers[2].condition is None
    assert (compiled.priority, compiled.enabled, compiled.description) == ("high", False, "d")
    one, two, three = compiled.steps
    assert (one.kind, one.action, one.timeout_s, one.next, one.on_error) == ("action", "log", 2.0, "three", "continue")
    assert one.retry == RetryPolicy(3, 0.5, 3.0, 60.0, False, 3600.0)
    assert one.condition is not None
    assert two.kind == three.kind == "delay"
    assert two.delay is not None
    assert two.delay.render({}) == {"until": "2030-01-01T00:00:00Z"}
    assert three.delay is not None
    assert three.delay.render({}) == {"for": "10m"}
    assert compiled.by_id == {"one": 0, "two": 1, "three": 2}


def test_defaults() -> None:
    [step] = workflow(log("a")).steps
    assert (step.retry, step.timeout_s, step.next, step.on_error) == (RetryPolicy(), None, None, None)
    assert (step.after, step.follow, step.thread, step.at_most_once) == (None, None, 0, False)


def test_the_digest_is_of_the_content() -> None:
    assert workflow(log("a")).digest == workflow({"action": "log", "id": "a"}).digest
    assert workflow(log("a")).digest != workflow(log("b")).digest


@pytest.mark.parametrize(
    ("steps", "key", "words"),
    [
        ([], "steps", "at least 1"),
        ([log("a"), log("a")], "steps[1].id", "already the id of steps[0]"),
        ([log("end")], "steps[0].id", "a meaning of its own"),
        ([log("a b")], "steps[0].id", "expected a letter"),
        ([{"id": "a"}], "steps[0]", "exactly one of action, delay"),
        ([log("a", delay="1s")], "steps[0]", "this has action and delay"),
        ([{"id": "a", "delay": "1s", "retry": {}}], "steps[0].retry", "a delay takes no retry"),
        ([{"action": "log"}], "steps[0].id", "id is missing"),
        ([log("a", tiemout="1s")], "steps[0].tiemout", "did you mean timeout?"),
        ([log("a", timeout="soon")], "steps[0].timeout", "expected a duration"),
        ([log("a", timeout=0)], "steps[0].timeout", "not a positive duration"),
        ([{"id": "a", "delay": True}], "steps[0].delay", "expected a duration"),
        ([log("a", timeout=-1)], "steps[0].timeout", "not a positive duration"),
        ([log("a", retry={"initial": "0s"})], "steps[0].retry.initial", "not a positive duration"),
        ([log("a", retry={"max_attempts": 0})], "steps[0].retry.max_attempts", "expected at least 1"),
        ([log("a", next="c"), log("b")], "steps[0].next", "there is no step 'c'"),
        ([log("first"), log("b", next="first")], "steps[1].next", "loops aren't supported"),
        ([log("a", next="a")], "steps[0].next", "loops aren't supported"),
        ([log("a", on_error="frist"), log("first")], "steps[0].on_error", "did you mean 'first'?"),
        ([log("a", next="end"), log("b")], "steps[1]", "nothing leads to 'b'"),
        ([log("a", next="c"), log("b"), log("c")], "steps[1]", "nothing leads to 'b'"),
        ([log("a", **{"if": {"path": "x", "op": "~"}})], "steps[0].if.op", "unknown operator"),
        ([{"id": "a", "delay": "soon"}], "steps[0].delay", "expected a duration"),
        ([{"id": "a", "delay": {"until": "2030-01-01"}}], "steps[0].delay", "a time with an offset"),
        ([{"id": "a", "delay": {}}], "steps[0].delay", "either for or until"),
        ([{"id": "a", "delay": "{{ evnt.x }}"}], "steps[0].delay.for", "did you mean event?"),
        ([{"id": "a", "delay": "{{ secrets.x }}"}], "steps[0].delay.for", "unknown name 'secrets'"),
        ([{"id": "a", "action": "send_mial"}], "steps[0].action", "did you mean send_mail?"),
        ([mail(subjet="x")], "steps[0].with.subjet", "unknown key 'subjet'"),
        ([mail(bodi="{{ event.x }}")], "steps[0].with.bodi", "did you mean body?"),
        ([{"id": "m", "action": "send_mail", "with": {"body": "b"}}], "steps[0].with.to", "to is missing"),
        ([{"id": "m", "action": "send_mail", "with": {"body": "{{ 1 }}"}}], "steps[0].with.to", "to is missing"),
        ([mail(count="many")], "steps[0].with.count", "expected a whole number"),
        ([mail(count=0, data="{{ event.x }}")], "steps[0].with.count", "expected at least 1"),
        ([mail(data={"a": "{{ event.n }}", "b": "x"})], "steps[0].with.data.b", "expected a whole number"),
        ([mail(to={"a": 1})], "steps[0].with.to", "expected a text"),
        ([mail(template="t")], "steps[0].with", "either body or template"),
        ([mail(to=["a", "{{ event.x"])], "steps[0].with.to[1]", "not a template"),
        ([log("a"), mail(body="{{ steps.b.output }}")], "steps[1].with", "there is no step 'b'"),
        ([mail(body="{{ steps.a.output }}"), log("a")], "steps[0].with", "which is a later step"),
        ([mail(body="{{ steps['m'].output }}")], "steps[0].with", "which is this very step"),
        (
            [log("a", **{"if": {"path": "steps.b.output", "op": "exists"}}), log("b")],
            "steps[0].if",
            "which is a later step",
        ),
    ],
)
def test_a_wrong_step(steps: list[dict[str, Any]], key: str, words: str) -> None:
    found = problems(*steps)
    assert [k for k, _ in found] == [key]
    assert words in found[0][1]


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        ({"name": ""}, "name", "expected 1 to 200 characters"),
        ({"name": "a/b"}, "name", "no /"),
        ({"name": "a\n"}, "name", "no line break"),
        ({"initial": "pending"}, "initial", "belongs to a state machine"),
        ({"state": {}}, "state", "did you mean states?"),
        ({"trigger": None}, "trigger", "trigger is missing"),
        ({"trigger": "by hand"}, "trigger", "expected 'manual'"),
        ({"trigger": {"schedule": "0 9 * *"}}, "trigger.schedule", "expected five fields"),
        ({"trigger": [{"schedule": "0 9 * * *", "timezone": "X"}]}, "trigger[0].timezone", "Europe/Berlin"),
        ({"trigger": {"schedule": "0 9 * * *", "misfir": "all"}}, "trigger.misfir", "did you mean misfire?"),
        ({"inputs": {"type": "strin"}}, "inputs.type", "expected string"),
        ({"output": "{{ steps.b.output }}"}, "output", "there is no step 'b'"),
        ({"output": "{{ secrets.b }}"}, "output", "unknown name 'secrets'"),
        ({"on_error": [log("a")]}, "on_error[0].id", "already the id of steps[0]"),
        ({"order": "first"}, "order", "expected a whole number"),
        ({"trigger": {}}, "trigger.event", "event is missing"),
        ({"trigger": {"event": []}}, "trigger.event", "at least 1"),
        ({"trigger": {"event": "a", "wen": []}}, "trigger.wen", "did you mean when?"),
        ({"trigger": {"event": "a", "when": 5}}, "trigger.when", "not a condition"),
        ({"trigger": [{"event": "a"}, {"event": "b", "when": [5]}]}, "trigger[1].when[0]", "not a condition"),
        ({"trigger": {"event": "a", "when": {"!": [{"var": "event.data.x"}]}}}, "trigger.when", "event.data.x is not"),
        (
            {"trigger": {"event": "a", "when": {"path": "steps.a.output", "op": "exists"}}},
            "trigger.when",
            "not there yet",
        ),
        ({"priority": "urgent"}, "priority", "'high', 'normal' or 'low'"),
        ({"stesp": []}, "stesp", "did you mean steps?"),
    ],
)
def test_a_wrong_workflow(more: dict[str, Any], key: str, words: str) -> None:
    found = problems(log("a"), **more)
    assert found[0][0] == key
    assert words in found[0][1]


@pytest.mark.parametrize(
    "parameters",
    [
        {"count": "{{ event.n }}"},
        {"level": "{{ event.level }}"},
        {"data": "{{ event.data }}"},
        {"data": {"a": "{{ event.n }}"}},
        {"to": ["a", "{{ event.x }}"]},
        {"from": "x"},
        {"body": "{{ event.x }}", "level": "high"},
    ],
)
def test_a_template_may_stand_for_any_value(parameters: dict[str, Any]) -> None:
    [step] = workflow(mail(**parameters)).steps
    assert step.params is not None
    assert step.params.is_literal is (parameters == {"from": "x"})


def test_forks_and_earlier_outputs() -> None:
    compiled = workflow(
        log("big", next="end", **{"if": {"path": "data.n", "op": ">", "value": 1}}),
        log("small", on_error="rescue", next="end"),
        mail(body="{{ steps.small.error }}") | {"id": "rescue", "if": {"path": "steps.small.output.x", "op": "exists"}},
    )
    assert [step.id for step in compiled.steps] == ["big", "small", "rescue"]


def test_problems_are_placed_in_the_file() -> None:
    lines = [
        "name: w",
        "trigger: {event: t}",
        "steps:",
        "  - id: a",
        "    action: send_mail",
        "    with:",
        "      too: x",
    ]
    document = parse_document("\n".join([*lines, "      body: b"]).encode())
    with pytest.raises(DefinitionError) as refused:
        compile_workflow(document.data, actions=ACTIONS, file="w.yaml", lines=document.lines)
    assert sorted(str(problem) for problem in refused.value.problems) == [
        "w.yaml:6:5: steps[0].with.to: to is missing",
        "w.yaml:7:7: steps[0].with.too: unknown key 'too'; did you mean to? "
        "(expected one of to, from, body, template, level, count, data)",
    ]


def test_a_stored_revision_compiles_without_its_actions() -> None:
    definition = {"name": "w", "trigger": {"event": "t"}, "steps": [{"id": "a", "action": "gone", "with": {"x": 1}}]}
    assert compile_workflow(definition, actions=None).steps[0].action == "gone"


keys = st.sampled_from(
    [
        *["name", "trigger", "event", "steps", "id", "action", "with", "delay", "if", "when", "next", "states", "on"],
        *["choose", "parallel", "branches", "for_each", "items", "wait", "match", "human_task", "form", "workflow"],
        *["transform", "end", "deadline", "after", "retry", "by_error", "compensate", "initial", "correlate", "enter"],
    ]
)
anything = st.recursive(
    st.none() | st.booleans() | st.text(max_size=3) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
)


@given(anything)
def test_any_data_compiles_or_is_refused_with_problems(definition: Any) -> None:
    refused: tuple[Any, ...] = ()
    try:
        compiled = compile_workflow(definition, actions=ACTIONS)
    except DefinitionError as error:
        refused = error.problems
    assert refused or compiled.steps


NOW = datetime(2030, 1, 1, tzinfo=UTC)


def test_due_at() -> None:
    assert due_at({"for": "1h30m"}, NOW) == NOW + timedelta(minutes=90)
    assert due_at({"for": 90}, NOW) == NOW + timedelta(seconds=90)
    assert due_at({"until": "2030-01-02T00:00:00+01:00"}, NOW) == NOW + timedelta(hours=23)
    for wrong in (
        {"for": "soon"},
        {"for": None},
        {"until": "tomorrow"},
        {"until": "2030-01-02"},
        {"for": "9999999d"},
        {},
    ):
        with pytest.raises(TemplateError):
            due_at(wrong, NOW)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_backoff_grows_within_its_bounds(attempt: int, chance: float) -> None:
    policy = RetryPolicy(initial_s=2, factor=3, max_s=100)
    full = RetryPolicy(initial_s=2, factor=3, max_s=100, jitter=False).backoff_s(attempt, lambda: chance)
    assert full == (2 * 3 ** (attempt - 1) if attempt < 5 else 100)
    assert full / 2 <= policy.backoff_s(attempt, lambda: chance) <= full
