"""The form system's dialect: accepted as it stands, and meaning what it meant there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict

from appliance.errors import DefinitionError
from appliance.plugin import Action, Params
from appliance.templating import compile_template
from appliance.workflows.compile import compile_workflow
from appliance.workflows.dialects import to_native
from appliance.workflows.dialects.texts import braces
from appliance.workflows.revision import Workflow


class Anything(Params):
    model_config = ConfigDict(extra="allow")


async def nothing(params: Any, ctx: Any) -> None:
    return None


ACTIONS = {name: Action(params=Anything, run=nothing) for name in ("send_email", "webhook")}

CONFIRMATION = {
    "name": "Send Email on Form Submission",
    "definition": {
        "trigger": {
            "type": "form_submitted",
            "conditions": {"path": "template_id", "op": "==", "value": "form_submitted"},
        },
        "initial_step_id": "step1",
        "steps": [
            {
                "id": "step1",
                "name": "Send Email Notification",
                "type": "auto_action",
                "actions": [
                    {
                        "type": "send_email",
                        "config": {
                            "to_path": "data.email",
                            "subject": "Form Submission Confirmation - {template_id}",
                            "body": "Hello,\n\nSubmission ID: {submission_id}\nTemplate: {template_id}\n\nThank you!",
                        },
                    }
                ],
                "transitions": [],
            }
        ],
    },
}
EVENT = {
    "type": "form_submitted",
    "template_id": "form_submitted",
    "submission_id": "s1",
    "data": {"email": "user@example.com", "name": "John", "n": 3, "items": "i"},
}


def compiled(document: Any) -> Workflow:
    return compile_workflow(to_native(document), actions=ACTIONS)


def definition(*steps: dict[str, Any], initial: str = "a", **more: Any) -> dict[str, Any]:
    inner = {"trigger": {"type": "t"}, "initial_step_id": initial, "steps": list(steps), **more}
    return {"name": "w", "definition": inner}


def step(id: str, *actions: str, to: Any = (), **more: Any) -> dict[str, Any]:
    listed = [{"type": action, "config": {}} for action in actions]
    return {"id": id, "type": "auto_action", "actions": listed, "transitions": list(to), **more}


def test_a_definition_is_accepted_as_it_stands() -> None:
    workflow = compiled(CONFIRMATION)
    assert workflow.name == "Send Email on Form Submission"
    [trigger] = workflow.triggers
    assert trigger.event == "form_submitted"
    assert trigger.condition is not None
    assert trigger.condition.holds(EVENT)
    assert not trigger.condition.holds({**EVENT, "template_id": "other"})
    [only] = workflow.steps
    assert (only.id, only.action) == ("step1", "send_email")
    assert only.params is not None
    assert only.params.render({"event": EVENT}) == {
        "to": "user@example.com",
        "subject": "Form Submission Confirmation - form_submitted",
        "body": "Hello,\n\nSubmission ID: s1\nTemplate: form_submitted\n\nThank you!",
    }


def test_our_own_language_is_left_alone() -> None:
    native = {"name": "w", "trigger": {"event": "t"}, "steps": []}
    assert to_native(native) is native


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello {name}", "Hello John"),
        ("{name}{n}", "John3"),
        ("{n}", "3"),
        ("{data.email} {data.nobody}", "user@example.com {data.nobody}"),
        ("{nobody}, it's {'quoted'}", "{nobody}, it's {'quoted'}"),
        ("{items} {keys}", "i {keys}"),
        ('{"json": {name}}', '{"json": John}'),
        ("{{ event.type }} {% if %} {# #} {{name}}", "{{ event.type }} {% if %} {# #} {John}"),
    ],
)
def test_placeholders(text: str, expected: str) -> None:
    assert compile_template(braces(text), key="k").render({"event": EVENT}) == expected


@given(st.text("{}%#abc'\\ \n", max_size=20))
def test_text_without_known_placeholders_stays_itself(text: str) -> None:
    rendered = compile_template(braces(text), key="k").render({"event": {"type": "t", "data": {}}})
    assert rendered == text


def test_a_path_comes_before_the_value() -> None:
    document = definition(
        {
            "id": "a",
            "type": "auto_action",
            "actions": [
                {
                    "type": "send_email",
                    "config": {"to": "o'ps@example.com", "to_path": "data.address", "cc": ["{name}"]},
                }
            ],
        }
    )
    [only] = compiled(document).steps
    assert only.params is not None
    assert only.params.render({"event": EVENT}) == {"to": "o'ps@example.com", "cc": ["John"]}
    assert only.params.render({"event": {"data": {"address": "x"}}})["to"] == "x"


def test_several_actions_and_transitions() -> None:
    workflow = compiled(
        definition(
            step("c", "webhook"),
            step("b", "send_email", to=[{"to": "c"}]),
            step("a", "send_email", "webhook", to=["b"]),
            step("unreachable", "webhook"),
        )
    )
    assert [(s.id, s.action, s.next) for s in workflow.steps] == [
        ("a", "send_email", None),
        ("a_2", "webhook", "b"),
        ("b", "send_email", "c"),
        ("c", "webhook", "end"),
    ]


def test_transitions_with_conditions() -> None:
    condition = {"path": "data.n", "op": ">", "value": 2}
    workflow = compiled(
        definition(
            step("a", "webhook", to=[{"to": "big", "condition": condition}, {"next_step_id": "small"}]),
            step("small", "send_email"),
            step("big", "webhook", to=[{"target": "small", "conditions": condition}]),
        )
    )
    assert [(s.id, s.kind, [branch.target for branch in s.branches]) for s in workflow.steps] == [
        ("a", "action", []),
        ("a_2", "choose", [2, 4]),
        ("big", "action", []),
        ("big_2", "choose", [4, None]),
        ("small", "action", []),
    ]


@pytest.mark.parametrize(
    ("document", "key", "words"),
    [
        ("text", "", "not a workflow"),
        (definition(), "definition.steps", "no steps"),
        (definition(step("b", "webhook")), "definition.initial_step_id", "there is no step 'a'"),
        (definition(step("a", "webhook"), step("a")), "definition.steps[1].id", "appears twice"),
        (definition({"id": "a", "type": "loop"}), "definition.steps[0].type", "'loop' aren't available"),
        (definition(step("a", "webhook", to=["a"])), "definition.steps[0].transitions", "loops"),
        (definition(step("a", "webhook", to=["z"])), "definition.steps[0].transitions[0]", "no step 'z'"),
        (definition({"id": "a", "actions": ["webhook"]}), "definition.steps[0].actions[0]", "not an action"),
        ({**definition(step("a", "webhook")), "trigers": 1}, "trigers", "unknown key"),
        (definition(step("a", "webhook"), trigger={}), "definition.trigger", "no trigger"),
    ],
)
def test_what_can_not_be_translated(document: Any, key: str, words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        to_native(document)
    [problem] = refused.value.problems
    assert problem.key == key
    assert words in problem.message


def test_an_action_that_is_not_installed() -> None:
    with pytest.raises(DefinitionError, match="unknown action 'create_ticket'"):
        compiled(definition(step("a", "create_ticket")))
