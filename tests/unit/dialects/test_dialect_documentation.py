"""Every example of docs/dialects.md becomes what the page says, and its tables are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.registry import Registry
from appliance.workflows.dialects import DIALECTS, compile_document, react_flow, to_native
from appliance.workflows.dialects.actions import ACTIONS, CHANNELS, PARAMETERS
from appliance.workflows.dialects.conditions import TESTS
from appliance.workflows.dialects.heads import HEAD
from appliance.workflows.dialects.nodes import CONDITIONS, ENDS, MERGES, STARTS
from appliance.workflows.loader import parse_document
from appliance.workflows.writing import to_yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "dialects.md").read_text("utf-8")
DATA = ROOT / "tests" / "data" / "dialects"
INSTALLED = Registry.load({}).actions
BLOCKS = re.findall(r"^```(\w+) (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SOURCES = {name: text for kind, name, text in BLOCKS if kind == "json"}
RESULTS = {name: text for kind, name, text in BLOCKS if kind == "yaml"}


def section(title: str) -> str:
    return PAGE.partition(f"\n### {title}\n")[2].partition("\n#")[0]


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


@pytest.mark.parametrize("name", SOURCES)
def test_an_example_becomes_what_stands_below_it(name: str) -> None:
    document = json.loads(SOURCES[name])
    native = dict(to_native(document))
    if react_flow.recognises(document):
        native.pop("editor")
    assert to_yaml(native) == RESULTS[name]
    workflow, translated = compile_document(document, actions=INSTALLED)
    assert translated
    assert workflow.name == document["name"]


@pytest.mark.parametrize("name", SOURCES)
def test_the_examples_are_those_that_are_run(name: str) -> None:
    assert json.loads(SOURCES[name]) == json.loads((DATA / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", RESULTS)
def test_what_an_example_becomes_is_that_workflow(name: str) -> None:
    ours = compile_document(parse_document(RESULTS[name].encode()).data, actions=INSTALLED)[0]
    theirs = compile_document(json.loads(SOURCES[name]), actions=INSTALLED)[0]
    assert [(s.id, s.kind, s.action) for s in ours.steps] == [(s.id, s.kind, s.action) for s in theirs.steps]
    assert [trigger.event for trigger in ours.triggers] == [trigger.event for trigger in theirs.triggers]


def test_there_is_an_example_of_each_format() -> None:
    shown = {dialect.NAME for text in SOURCES.values() for dialect in DIALECTS if dialect.recognises(json.loads(text))}
    assert shown == {dialect.NAME for dialect in DIALECTS}
    assert SOURCES.keys() == RESULTS.keys()


def test_the_table_of_actions() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| (`[^|]+) \|$", section("What actions are called"), re.MULTILINE)
    listed = {theirs: re.findall(r"`(\w+)`", ours)[0] for names, ours in rows for theirs in names_in(names)}
    assert {name: ours for name, ours in listed.items() if name != "notification"} == {
        name: ours for ours, others in ACTIONS.items() for name in (ours, *others)
    }
    (channels,) = re.findall(r"^\| `notification` \| (.*) \|$", PAGE, re.MULTILINE)
    assert dict(re.findall(r"`(\w+)` is `(\w+)`", channels)) == dict(CHANNELS)


def test_the_table_of_parameters() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (`[^|]+`) \|$", PAGE, re.MULTILINE)
    listed: dict[str, dict[str, Any]] = {}
    for action, own, others in rows:
        listed.setdefault(action, {})[own] = tuple(re.findall(r"`(\w+)`", others))
    assert listed == {action: dict(parameters) for action, parameters in PARAMETERS.items()}


def test_the_table_of_operators() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|$", section("What operators are called"), re.MULTILINE)
    listed = {theirs: meaning for names, meaning in rows for theirs in names_in(names)}
    assert listed.keys() == TESTS.keys()
    for name, test in TESTS.items():
        made = test("data.x", "v")
        assert ("not " in listed[name]) == ("not" in made), name
        assert f"`{made.get('not', made)['op']}`" in listed[name], name


@pytest.mark.parametrize("words", [STARTS, ENDS, MERGES, CONDITIONS, HEAD], ids=lambda words: words[0])
def test_every_type_of_node_and_key_is_named(words: tuple[str, ...]) -> None:
    known = names_in(re.sub(r"^```.*?^```", "", PAGE, flags=re.MULTILINE | re.DOTALL)) | {
        "event",
        "order",
        "createdAt",
        "updatedAt",
        "createdBy",
    }
    assert set(words) <= known
