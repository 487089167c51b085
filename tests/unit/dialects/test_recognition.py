"""Which format a document is in, what is said of one that is in none, and where in it something is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DefinitionError, Problem
from appliance.registry import Registry
from appliance.workflows.dialects import DIALECTS, compile_document, parts_of, to_native, translate
from appliance.workflows.dialects.draft import around, keys_of
from appliance.workflows.drawing import draw
from appliance.workflows.loader import definition_files, parse_document, read_document

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data" / "dialects"
ACTIONS = Registry.load({}).actions
NAMES = sorted(path.stem for path in DATA.glob("*.json"))


def definition(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text("utf-8"))
    return read


def problems_of(document: Any, **more: Any) -> tuple[Problem, ...]:
    with pytest.raises(DefinitionError) as refused:
        compile_document(document, actions=ACTIONS, **more)
    return refused.value.problems


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_is_in_one_format(name: str) -> None:
    assert len([dialect for dialect in DIALECTS if dialect.recognises(definition(name))]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_may_stand_below_definition(name: str) -> None:
    document = definition(name)
    if "definition" in document:
        return
    wrapped = {"name": document.pop("name"), "definition": document}
    assert to_native(wrapped) == to_native(definition(name))


@pytest.mark.parametrize("path", [*definition_files(ROOT / "config" / "workflows")], ids=lambda path: path.name)
def test_our_own_language_is_no_dialect(path: Path) -> None:
    document = read_document(path).data
    assert to_native(document) is document


@pytest.mark.parametrize("document", [{}, {"name": "x"}, {"name": "x", "steps": []}, {"trigger": 1}, {"states": {}}])
def test_what_could_be_ours_is_checked_as_ours(document: Any) -> None:
    assert translate(document).dialect is None


def test_an_unknown_format_is_told_what_was_looked_for() -> None:
    (problem,) = problems_of({"name": "x", "tasks": [{"uses": "mail"}]})
    assert problem.message == "no known format of a workflow"
    assert problem.expected is not None
    for words in (
        "our own language",
        "initial_state",
        "initial_step_id",
        "trigger_type",
        "jsonLogic",
        "nodes and edges",
    ):
        assert words in problem.expected


def test_two_formats_at_once_are_refused() -> None:
    (problem,) = problems_of({**definition("000-request"), **definition("004-flow")})
    assert "a React Flow graph (nodes and edges)" in problem.message
    assert "an email engine's state machine" in problem.message


@pytest.mark.parametrize("document", [[], [{"name": "x"}], {"workflows": []}, {"rules": [1], "workflows": []}])
def test_several_definitions_are_for_the_import(document: Any) -> None:
    (problem,) = problems_of(document)
    assert "appliance import" in str(problem)


def test_the_parts_of_a_document() -> None:
    assert parts_of([1, 2]) == [("[0]", 1), ("[1]", 2)]
    assert parts_of({"rules": [1], "workflows": [2]}) == [("rules[0]", 1), ("workflows[0]", 2)]
    assert parts_of({"name": "x", "rules": []}) == [("", {"name": "x", "rules": []})]


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=5) | st.integers(), st.lists, max_leaves=4))
def test_no_document_is_too_strange(inner: Any) -> None:
    for keys in (("steps",), ("transitions",), ("trigger", "steps"), ("actions",), ("nodes", "edges"), ("jsonLogic",)):
        with pytest.raises(DefinitionError):
            compile_document(dict.fromkeys(keys, inner), actions=ACTIONS)


def strange() -> st.SearchStrategy[Any]:
    """A definition in which one value is something else."""
    values: st.SearchStrategy[Any] = st.sampled_from(
        [None, True, 5, -1, "", "x", "{{", [], [[]], {}, {"": 1}, {"path": 1}, [None], {"id": []}]
    )

    def spoilt(document: Any, value: Any, picks: list[int]) -> Any:
        document = copy.deepcopy(document)
        place, last = document, None
        for pick in picks:
            keys = (
                list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
            )
            if not keys:
                break
            last, key = place, keys[pick % len(keys)]
            place = place[key]
        if last is not None:
            last[key] = value
        return document

    picks = st.lists(st.integers(0, 50), min_size=1, max_size=8)
    drawn = [draw(read_document(path).data) for path in definition_files(ROOT / "config" / "workflows")]
    return st.builds(spoilt, st.sampled_from([*map(definition, NAMES), *drawn]), values, picks)


@given(strange())
def test_a_spoilt_definition_is_refused_with_keys_that_are_there(document: Any) -> None:
    found: tuple[Problem, ...] = ()
    try:
        compile_document(document, actions=ACTIONS)
    except DefinitionError as error:
        found = error.problems
    keys = {"", *keys_of(document)}
    # What should be there and isn't has a key as well, in something that is there.
    assert [str(problem) for problem in found if not {problem.key, around(problem.key)} & keys] == []


# --- where ----------------------------------------------------------------------------------------------------------


TEXT = """
name: notify
steps:
  - {name: first, type: delay, config: {duration: 2}}
  - name: second
    type: email
    config:
      to_email: nobody
      subject: x
      body: "{% if x %}"
  - {name: third, type: create_ticket, config: {}}
"""


def test_problems_have_the_place_in_the_source() -> None:
    document = parse_document(TEXT.encode())
    (problem,) = problems_of(document.data, file="a.yaml", lines=document.lines)
    assert str(problem).startswith("a.yaml:10:7: steps[1].config.body: blocks in texts can't be translated")
    document = parse_document(TEXT.replace("{% if x %}", "y").encode())
    first, second = problems_of(document.data, file="a.yaml", lines=document.lines)
    assert (first.key, first.line, first.column) == ("steps[1].config.to_email", 8, 7)
    assert (second.key, second.line, second.column) == ("steps[2].type", 11, 19)
    assert "unknown action 'create_ticket'" in second.message
    assert second.expected is not None
    assert "send_email" in second.expected


def test_a_part_of_a_file_has_its_key() -> None:
    text = "workflows:\n- name: w\n  steps: [{name: a, type: nothing, config: {}}]\n"
    document = parse_document(text.encode())
    ((key, part),) = parts_of(document.data)
    (problem,) = problems_of(part, file="a.yaml", lines=document.lines, key=key)
    assert (problem.key, problem.line) == ("workflows[0].steps[0].type", 3)


@pytest.mark.parametrize(
    ("name", "change", "key"),
    [
        ("000-request", ("transitions", 1, "actions", 0, "config", "wrong"), "transitions[1].actions[0].config.wrong"),
        (
            "001-form",
            ("definition", "steps", 0, "actions", 0, "config", "wrong"),
            "definition.steps[0].actions[0].config.wrong",
        ),
        ("002-demo", ("steps", 1, "config", "wrong"), "steps[1].config.wrong"),
        ("003-workflow", ("steps", 1, "config", "wrong"), "steps[1].config.wrong"),
        ("003-rule", ("actions", 0, "wrong"), "actions[0].wrong"),
        (
            "004-rule",
            ("jsonLogic", "rule", "if", 3, "actionDetails", "wrong"),
            "jsonLogic.rule.if[3].actionDetails.wrong",
        ),
        ("004-flow", ("nodes", 2, "data", "actionData", "wrong"), "nodes[2].data.actionData.wrong"),
    ],
)
def test_a_parameter_that_an_action_does_not_have_is_named_where_it_stands(
    name: str, change: tuple[Any, ...], key: str
) -> None:
    document = definition(name)
    place: Any = document
    for part in change[:-1]:
        place = place[part]
    place[change[-1]] = 1
    (problem,) = problems_of(document)
    assert (problem.key, problem.message) == (key, "unknown key 'wrong'")


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_key_of_the_definition_is_refused(name: str) -> None:
    (problem,) = problems_of({**definition(name), "surprise": 1})
    assert (problem.key, problem.message) == ("surprise", "unknown key 'surprise'")


def test_what_a_database_added_is_dropped_and_switches_are_kept() -> None:
    extra = {"org_id": 1, "version": 3, "created_at": "2030", "is_active": False, "priority": 7}
    native = to_native({**definition("003-rule"), **extra})
    assert (native["enabled"], native["order"]) == (False, 7)
    assert native.keys() == {"name", "enabled", "order", "trigger", "steps"}
    assert to_native({**definition("003-rule"), "status": "draft", "priority": "high"})["enabled"] is False
    keys = [p.key for p in problems_of({**definition("003-rule"), "status": "odd", "priority": "urgent"})]
    assert keys == ["priority", "status"]
