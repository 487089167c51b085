"""Every example of docs/workflows.md is checked, and every key of the language is in it.

The shipped samples compile.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from appliance_send_email.templates import Templates
from jsonschema import Draft202012Validator

from appliance.registry import Registry
from appliance.rules.conditions import compile_condition
from appliance.rules.criteria import OPERATORS
from appliance.sandbox import sandbox
from appliance.templating import NAMES, compile_template
from appliance.workflows.compile import compile_workflow
from appliance.workflows.dialects import to_native
from appliance.workflows.loader import definition_files, parse_document, read_document
from appliance.workflows.models import Model
from appliance.workflows.schema import json_schema

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "workflows.md").read_text()
ACTIONS = Registry.load({}).actions
BLOCKS = re.findall(r"^```(\w+ ?\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
WORKFLOWS = [text for kind, text in BLOCKS if kind == "yaml"]
[EVENT] = [json.loads(text) for kind, text in BLOCKS if kind == "json event"]
DEFINITIONS = {d["name"]: d for d in (parse_document(text.encode()).data for text in WORKFLOWS)}
SCHEMA = Draft202012Validator(json_schema(ACTIONS))
CRITERIA = re.findall(r"`(\{(?:path|some): [^`]*\})`", PAGE)
# | `template` | `value` |, where the template holds braces; a table's cell writes | as \|.
ROWS = re.findall(r"^\| `(.*\{[{%].*)` \| `(.*)` \|$", PAGE, re.MULTILINE)
TEMPLATES = [(source.replace("\\|", "|"), json.loads(value)) for source, value in ROWS]


@pytest.mark.parametrize("text", WORKFLOWS, ids=lambda text: text.splitlines()[0])
def test_workflows_compile(text: str) -> None:
    definition = parse_document(text.encode()).data
    assert compile_workflow(definition, actions=ACTIONS).steps
    assert not [error.message for error in SCHEMA.iter_errors(definition)]


@pytest.mark.parametrize("text", CRITERIA)
def test_criteria_hold(text: str) -> None:
    assert compile_condition(parse_document(text.encode()).data).holds(EVENT)


@pytest.mark.parametrize(("source", "expected"), TEMPLATES)
def test_templates_render(source: str, expected: Any) -> None:
    assert compile_template(source, key="with").render({"event": EVENT}) == expected


def test_nothing_was_overlooked() -> None:
    assert len(WORKFLOWS) == PAGE.count("```yaml") >= 5
    assert len(CRITERIA) >= len(OPERATORS) - 3  # the four orders share a row
    assert len(TEMPLATES) == PAGE.partition("| template | value |")[2].partition("\n\n")[0].count("\n") - 1
    assert all(action in ACTIONS for action in ("send_email", "webhook", "log", "publish"))


def models(model: type[Model]) -> list[type[Model]]:
    return [each for inner in model.__subclasses__() for each in (inner, *models(inner))]


def test_every_key_is_documented() -> None:
    rows = {name for row in re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    for model in models(Model):
        for name, field in model.model_fields.items():
            assert (field.alias or name) in rows | {"do"}, f"{model.__name__}.{name}"
    for operator in OPERATORS:
        assert re.search(rf"^\|.*`{re.escape(operator)}`.*\| ", PAGE, re.MULTILINE)
    for name in NAMES:
        assert f"| `{name}` |" in PAGE


def test_every_filter_is_documented() -> None:
    listed = {*re.split(r"Filters:\s`", PAGE)[1].partition("`")[0].split()}
    assert listed == {name for name in sandbox.filters if name[0] != "_"} - {"d"}


def test_defaults_of_retry_are_documented() -> None:
    policy = compile_workflow(parse_document(WORKFLOWS[1].encode()).data, actions=ACTIONS).steps[0].retry
    assert (policy.max_attempts, policy.initial_s, policy.factor, policy.max_s) == (5, 1, 2, 600)
    for row in ("`max_attempts` | 5", "`initial` | 1s", "`factor` | 2", "`max` | 10m", "`jitter` | true"):
        assert f"| {row} |" in PAGE


@pytest.mark.parametrize("path", [*definition_files(ROOT / "config" / "workflows")], ids=lambda path: path.name)
def test_samples_compile(path: Path) -> None:
    document = read_document(path)
    assert compile_workflow(to_native(document.data), actions=ACTIONS, file=str(path), lines=document.lines).steps
    assert not [error.message for error in SCHEMA.iter_errors(document.data)]


def test_the_sample_thanks_whoever_sends_the_sample_form() -> None:
    document = read_document(ROOT / "config" / "workflows" / "contact.yaml")
    workflow = compile_workflow(document.data, actions=ACTIONS)
    event = {"type": "form_submitted", "id": "e1", "template_id": "contact", "data": {"email": "a@example.org"}}
    assert workflow.triggers[0].condition is not None
    assert workflow.triggers[0].condition.holds(event)
    thank, note = workflow.steps
    assert thank.params is not None
    assert note.params is not None
    assert thank.params.render({"event": event}) == {"to": "a@example.org", "template": "thank-you"}
    assert note.params.render({"event": event}) == {"message": "contact form e1 from somebody"}
    templates = Templates(ROOT / "config" / "templates")
    bare = templates.render("thank-you", {"event": event})
    assert bare.subject == "Thank you for your message"
    assert "Hello there," in str(bare.body)
    assert "You wrote" not in str(bare.body) + str(bare.html)
    event["data"] = {"email": "a@example.org", "name": "<Ann>", "message": "Hi\nthere"}
    full = templates.render("thank-you", {"event": event})
    assert "Hello <Ann>," in str(full.body)
    assert "You wrote:\n\nHi\nthere\n" in str(full.body)
    assert "Hello &lt;Ann&gt;," in str(full.html)
