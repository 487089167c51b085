"""Drawings of workflows: every step is in them, nothing lies on anything else, and they can be imported again."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DefinitionError
from appliance.events import dumps, loads
from appliance.workflows.compile import compile_workflow
from appliance.workflows.dialects import compile_document, to_native
from appliance.workflows.drawing import draw
from appliance.workflows.layout import arranged, column
from appliance.workflows.loader import definition_files, parse_document, read_document

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "workflows.md").read_text("utf-8")
FILES = [read_document(path).data for path in definition_files(ROOT / "config" / "workflows")]
SHOWN = [
    parse_document(text.encode()).data for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
]
EVERY = [*FILES, *SHOWN]
STEPS = [definition for definition in EVERY if "steps" in definition]
MACHINES = [definition for definition in EVERY if "states" in definition]


def name_of(definition: dict[str, Any]) -> str:
    return str(definition["name"])


def drawn(definition: dict[str, Any]) -> dict[str, Any]:
    graph: dict[str, Any] = loads(dumps(draw(definition)))
    return graph


def flow(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": "w", "trigger": "manual", "steps": list(steps)}


def noop(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "transform": None, **more}


def ways(graph: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(edge["source"], edge.get("sourceHandle", ""), edge["target"]) for edge in graph["edges"]}


@pytest.mark.parametrize("definition", EVERY, ids=name_of)
def test_every_step_and_state_is_drawn_in_a_place_of_its_own(definition: dict[str, Any]) -> None:
    graph = drawn(definition)
    ids = [node["id"] for node in graph["nodes"]]
    assert len(ids) == len(set(ids))
    workflow = compile_workflow(definition, actions=None)
    written = {step.id for step in workflow.steps if step.owner is None and "." not in step.id}
    failing = {step["id"] for step in definition.get("on_error", ())}
    assert (set(definition["states"]) if "states" in definition else written - failing) <= set(ids)
    edges = [edge["id"] for edge in graph["edges"]]
    assert len(edges) == len(set(edges))
    assert {end for edge in graph["edges"] for end in (edge["source"], edge["target"])} <= set(ids)
    places = [(node.get("parentId"), node["position"]["x"], node["position"]["y"]) for node in graph["nodes"]]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("definition", STEPS, ids=name_of)
def test_a_drawing_is_the_workflow(definition: dict[str, Any]) -> None:
    graph = drawn(definition)
    native = to_native(copy.deepcopy(graph))
    assert native.pop("editor") == {key: graph[key] for key in ("nodes", "edges")}
    assert native == {key: value for key, value in definition.items() if key != "editor"}
    native["editor"] = {key: graph[key] for key in ("nodes", "edges")}
    assert drawn(native) == graph, "what was imported comes back as it was"
    assert compile_document(native, actions=None)[0].steps


@pytest.mark.parametrize("definition", MACHINES, ids=name_of)
def test_a_machine_is_drawn_but_not_imported(definition: dict[str, Any]) -> None:
    graph = drawn(definition)
    with pytest.raises(DefinitionError, match="the drawing of a state machine can't be imported"):
        to_native(graph)
    assert ("start", "", definition["initial"]) in ways(graph)


def test_the_ways_of_a_machine() -> None:
    (refund,) = [machine for machine in SHOWN if machine["name"] == "refund"]
    assert {
        ("pending", "APPROVED-0", "paid"),
        ("pending", "APPROVED-1", "review"),
        ("pending", "REJECTED", "closed"),
        ("pending", "NOTE", "pending"),
        ("pending", "deadline", "expired"),
    } <= ways(drawn(refund))


def test_the_ways_of_a_workflow() -> None:
    graph = drawn(
        flow(
            noop("a", **{"if": {"path": "data.x", "op": "exists"}}, next="c"),
            noop("b", on_error="d"),
            {"id": "c", "choose": [{"when": {"path": "data.x", "op": "exists"}, "next": "e"}, {"next": "end"}]},
            noop("d", next="end"),
            {"id": "e", "wait": {"event": "x"}, "deadline": {"after": "1d", "next": "f"}, "on_error": "continue"},
            noop("f"),
        )
    )
    assert ways(graph) == {
        ("start", "", "a"),
        ("a", "", "c"),
        ("a", "skipped", "b"),
        ("b", "", "c"),
        ("b", "error", "d"),
        ("c", "when-0", "e"),
        ("e", "", "f"),
        ("e", "deadline", "f"),
    }


def test_what_is_in_a_block_is_drawn_in_it() -> None:
    block = {"id": "both", "parallel": {"branches": {"x": [noop("a"), noop("b")], "y": [noop("c")]}}}
    graph = drawn(flow(block, noop("d")))
    inner = {node["id"]: node for node in graph["nodes"] if "parentId" in node}
    assert {node["parentId"] for node in inner.values()} == {"both"}
    assert ("a", "", "b") in ways(graph)
    (outer,) = [node for node in graph["nodes"] if node["id"] == "both"]
    assert outer["type"] == "parallel"
    for node in inner.values():
        assert 0 < node["position"]["y"] < outer["style"]["height"]
    inner["a"]["data"]["step"]["transform"] = "changed"
    with pytest.raises(DefinitionError, match="'a' is drawn from 'both', which says something else"):
        to_native(graph)


def test_changes_in_a_drawing_change_the_workflow() -> None:
    graph = drawn(flow(noop("a"), noop("b"), noop("c")))
    by_id = {node["id"]: node for node in graph["nodes"]}
    by_id["b"]["data"]["step"]["transform"] = {"x": 1}
    graph["edges"] = [edge for edge in graph["edges"] if edge["source"] not in ("a", "b")]
    graph["edges"] += [{"source": "a", "target": "c"}, {"source": "a", "sourceHandle": "error", "target": "b"}]
    assert to_native(graph)["steps"] == [
        {"id": "a", "transform": None, "next": "c", "on_error": "b"},
        {"id": "b", "transform": {"x": 1}, "next": "end"},
        {"id": "c", "transform": None},
    ]


@pytest.mark.parametrize(
    ("edge", "words"),
    [
        ({"source": "a", "sourceHandle": "when-0", "target": "c"}, "no edge can leave 'a' at 'when-0'"),
        ({"source": "a", "sourceHandle": "skipped", "target": "c"}, "a skipped step goes on with the following one"),
        ({"source": "c", "target": "a"}, "the graph goes round in a circle: a → b → c → a"),
    ],
)
def test_edges_that_a_drawing_can_not_have(edge: dict[str, str], words: str) -> None:
    graph = drawn(flow(noop("a"), noop("b"), noop("c")))
    graph["edges"].append(edge)
    with pytest.raises(DefinitionError, match=re.escape(words)):
        to_native(graph)


def test_a_step_may_be_called_start() -> None:
    graph = drawn(flow(noop("start")))
    assert [node["id"] for node in graph["nodes"]] == ["start_", "start"]
    assert to_native(graph)["steps"] == [noop("start")]


def test_places_that_are_known_are_kept_when_steps_change() -> None:
    definition = to_native(drawn(flow(noop("a"), noop("b"))))
    definition["editor"]["nodes"][1]["position"] = {"x": 7, "y": 8}
    assert {n["id"]: n["position"] for n in drawn(definition)["nodes"]}["a"] == {"x": 7, "y": 8}
    definition["steps"].append(noop("c"))
    graph = drawn(definition)
    assert {n["id"]: n["position"] for n in graph["nodes"]}["a"] == {"x": 7, "y": 8}
    assert [node["id"] for node in graph["nodes"]] == ["start", "a", "b", "c"]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20), st.lists(st.integers(0, 4), min_size=9))
def test_nothing_lies_on_anything_else(edges: list[tuple[int, int]], inner: list[int]) -> None:
    boxes = {str(number): column(count) for number, count in enumerate(inner[:9])}
    places = arranged(boxes, [(str(source), str(target)) for source, target in edges])
    assert places.keys() == boxes.keys()
    for one, (x, y) in places.items():
        for other, (u, v) in places.items():
            beside = x + boxes[one].width <= u or u + boxes[other].width <= x
            assert one == other or beside or y + boxes[one].height <= v or v + boxes[other].height <= y
    forward = [(source, target) for source, target in edges if source < target]
    places = arranged(boxes, [(str(source), str(target)) for source, target in forward])
    assert all(places[str(source)][1] < places[str(target)][1] for source, target in forward)
