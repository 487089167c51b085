"""React Flow graphs: they become steps that mean the same, come back as they were, and say what is wrong with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ConfigDict

from appliance.errors import DefinitionError, Problem
from appliance.events import dumps, loads
from appliance.plugin import Action, Params
from appliance.story import Story
from appliance.workflows.dialects import compile_document, to_native
from appliance.workflows.drawing import draw
from appliance.workflows.loader import parse_document
from appliance.workflows.writing import to_yaml

Graph = dict[str, Any]


class Anything(Params):
    model_config = ConfigDict(extra="allow")


async def nothing(params: Any, ctx: Any) -> None:
    return None


ACTIONS = {name: Action(params=Anything, run=nothing) for name in ("send_email", "webhook", "log")}


def node(id: str, type: str = "log", /, **data: Any) -> Graph:
    return {"id": id, "type": type, "data": data or ({"message": id} if type == "log" else {})}


def graph(*nodes: Graph | str, edges: str = "", **more: Any) -> Graph:
    """A graph: nodes (or ids of such that log), and edges as ``a>b``, or ``a:true>b`` from a handle."""
    made = []
    for number, text in enumerate(edges.split()):
        source, _, target = text.partition(">")
        source, _, handle = source.partition(":")
        edge = {"id": f"e{number}", "source": source, "target": target}
        made.append(edge | ({"sourceHandle": handle} if handle else {}))
    listed = [node(given) if isinstance(given, str) else given for given in nodes]
    return {"name": "w", "nodes": listed, "edges": made, **more}


def condition(id: str, path: str) -> Graph:
    return node(id, "condition", condition={"path": f"input.{path}", "op": "==", "value": True})


def steps(document: Graph) -> list[Graph]:
    found: list[Graph] = to_native(document)["steps"]
    return found


def walked(document: Graph, given: Any = None) -> list[str]:
    """The ids of the actions that a run goes through."""
    told = Story(document, actions=ACTIONS)
    told.start("w", given)
    told.wait("30d")
    assert told.status == "succeeded", told.run.state.error
    return [did.step for did in told.done]


def problem(document: Graph) -> Problem:
    with pytest.raises(DefinitionError) as refused:
        compile_document(document, actions=ACTIONS)
    (found,) = refused.value.problems
    return found


# --- what a graph means ----------------------------------------------------------------------------------------------


def test_steps_come_in_the_order_of_the_edges() -> None:
    assert walked(graph("c", "a", "b", edges="a>b b>c")) == ["a", "b", "c"]


def test_a_start_says_what_starts_a_run() -> None:
    document = graph(node("go", "start", event="order.paid"), "a", edges="go>a")
    assert to_native(document)["trigger"] == {"event": "order.paid"}
    asked = {"field": "total", "operator": "gt", "value": 5}
    document = graph(node("go", "order-trigger", triggerEvent="order.paid", conditions=[asked]), "a", edges="go>a")
    assert to_native(document)["trigger"] == {
        "event": "order.paid",
        "when": {"path": "data.total", "op": ">", "value": 5},
    }
    document = graph(node("go", "trigger", triggerType="schedule", cron="0 9 * * *"), "a", edges="go>a")
    assert to_native(document)["trigger"] == {"schedule": "0 9 * * *"}
    assert to_native(graph("a"))["trigger"] == "manual"
    assert to_native(graph("a", event="order.paid"))["trigger"] == {"event": "order.paid"}
    assert to_native(graph("a", trigger={"event": "x"}))["trigger"] == {"event": "x"}


def test_a_condition_takes_one_way() -> None:
    document = graph(condition("ask", "big"), "yes", "no", "last", edges="ask:true>yes ask:false>no yes>last no>last")
    assert walked(document, {"big": True}) == ["yes", "last"]
    assert walked(document, {"big": False}) == ["no", "last"]


def test_a_way_that_is_not_drawn_ends_the_run() -> None:
    document = graph(condition("ask", "big"), "yes", "behind", edges="ask>yes yes>behind")
    assert walked(document, {"big": True}) == ["yes", "behind"]
    assert walked(document, {}) == []


def test_a_condition_with_several_branches() -> None:
    branches = [
        {"id": "small", "condition": {"<": [{"var": "n"}, 10]}},
        {"id": "big", "condition": {"field": "n", "operator": "gte", "value": 100}},
    ]
    document = graph(
        node("ask", "switch", branches=branches), "s", "b", "o", edges="ask:small>s ask:big>b ask:default>o"
    )
    assert [walked(document, {"n": n}) for n in (1, 200, 50)] == [["s"], ["b"], ["o"]]


def test_conditions_as_the_source_writes_them() -> None:
    asked = {"conditionType": "product", "operator": "in", "conditionValue": ["united", "podcast"]}
    document = graph(node("ask", "condition-node", **asked), "a", edges="ask:yes>a")
    assert walked(document, {"product": "podcast"}) == ["a"]
    assert walked(document, {"product": "other"}) == []


def test_several_edges_are_ways_side_by_side_up_to_where_they_meet() -> None:
    document = graph("a", "b", "c", "d", "e", edges="a>b a>c b>d c>d d>e")
    first, block, *rest = steps(document)
    assert (first["id"], [step["id"] for step in rest]) == ("a", ["d", "e"])
    assert [[s["id"] for s in way] for way in block["parallel"]["branches"].values()] == [["b"], ["c"]]
    assert walked(document)[0] == "a"
    assert walked(document)[3:] == ["d", "e"]


def test_ways_may_start_at_once_and_never_meet() -> None:
    document = graph(node("go", "start"), "a", "b", "c", edges="go>a go>b b>c")
    (block,) = steps(document)
    assert [[s["id"] for s in way] for way in block["parallel"]["branches"].values()] == [["a"], ["b", "c"]]
    assert sorted(walked(document)) == ["a", "b", "c"]


def test_ways_within_ways_and_conditions_within_them() -> None:
    document = graph(
        "a", "b", condition("ask", "x"), "c", "d", "e", "f", "g", "z",
        edges="a>b a>ask ask:true>c ask:false>f c>d c>e d>f e>f b>g f>g g>z",
    )  # fmt: skip
    assert sorted(walked(document, {"x": True})) == ["a", "b", "c", "d", "e", "f", "g", "z"]
    assert walked(document, {"x": True})[-2:] == ["g", "z"]
    assert sorted(walked(document, {"x": False})) == ["a", "b", "f", "g", "z"]


def test_a_way_straight_to_the_meeting_does_nothing() -> None:
    assert walked(graph("a", "b", "c", edges="a>b a>c b>c")) == ["a", "b", "c"]


def test_an_end_in_one_way_does_not_end_the_others() -> None:
    document = graph("a", "b", "c", "d", node("stop", "end-node"), edges="a>b a>c b>stop c>d")
    assert sorted(walked(document)) == ["a", "b", "c", "d"]
    (last,) = steps(graph(node("stop", "end", outcome="done", status="failed")))
    assert last == {"id": "stop", "end": {"outcome": "done", "status": "failed"}}


def test_a_failure_takes_its_own_edge() -> None:
    document = graph("a", "b", "sorry", edges="a>b a:error>sorry")
    told = Story(document, actions=ACTIONS)
    told.when("a", lambda _: 1 / 0)
    told.start("w")
    told.wait("1d")
    assert (told.status, [did.step for did in told.done][-1]) == ("succeeded", "sorry")


def test_notes_are_for_people() -> None:
    assert walked(graph("a", node("hint", "note", label="mind the gap"))) == ["a"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"type": "2_days"}, "2d"),
        ({"delayType": "1_month"}, "30d"),
        ({"type": "fixed", "hours": 1}, "1h"),
        ({"duration": 90}, 90),
        ({"duration": 2, "unit": "minutes"}, "2m"),
        ({"label": "a while", "config": {"days": 1, "hours": 12}}, "36h"),
        ({"delayMs": 1500}, "1500ms"),
        ({"duration": "{{ input.wait }}"}, "{{ input.wait }}"),
    ],
)
def test_delays(data: Graph, expected: Any) -> None:
    assert steps(graph(node("wait", "delayNode", **data))) == [{"id": "wait", "delay": expected}]


def test_names_that_are_no_ids() -> None:
    document = graph("1", "node one", "node-one", "end", edges="1>node~one".replace("~", " ").replace(" ", "\u00a0"))
    document["edges"] = [
        {"source": source, "target": target}
        for source, target in (("1", "node one"), ("node one", "node-one"), ("node-one", "end"))
    ]
    assert walked(document) == ["step_1", "node_one", "node-one", "end_step"]


def test_the_graph_may_stand_in_a_wrapper() -> None:
    whole = graph("a", "b", edges="a>b")
    inner = {key: whole.pop(key) for key in ("nodes", "edges")}
    native = to_native({**whole, "reactFlowData": inner})
    assert native["editor"] == inner
    assert [step["id"] for step in native["steps"]] == ["a", "b"]


# --- what is wrong with a graph --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "key", "words"),
    [
        (graph("a", "b", "c", edges="a>b b>c c>b"), "nodes[1]", "goes round in a circle: b → c → b"),
        (graph("a", "b", edges="a>b b>a"), "nodes[", "goes round in a circle"),
        (graph("a", "b", "c", edges="a>c b>c"), "nodes[1]", "several starts: 'a', 'b'"),
        (graph(node("s", "start"), node("t", "start"), "c", edges="s>c t>c"), "nodes[1]", "several starts: 's', 't'"),
        (graph(node("go", "start"), "a", "b", edges="go>a"), "nodes[2]", "nothing leads to 'b'"),
        (graph(node("go", "start"), "a", edges="go>a a>go"), "nodes[0]", "circle"),
        (graph(node("go", "start")), "nodes[0]", "nothing happens behind the start"),
        (graph("a", edges="a>z"), "edges[0].target", "there is no node 'z': the edge hangs in the air"),
        (graph("a", edges="z>a"), "edges[0].source", "there is no node 'z': the edge hangs in the air"),
        (graph("a", "a"), "nodes[1].id", "'a' appears twice"),
        (graph({"id": "a", "type": "log", "data": []}), "nodes[0].data", "not an object"),
        (graph({"type": "log"}), "nodes[0]", "a node without an id"),
        (graph(node("a", "hologram")), "nodes[0].type", "nodes of type 'hologram' can't be translated"),
        (graph(node("a", "action")), "nodes[0].data", "which action isn't said"),
        (graph(node("a", "action", actionType="teleport")), "nodes[0].data.actionType", "unknown action 'teleport'"),
        (graph(node("a", "delay", type="random", min=1)), "nodes[0].data.type", "random length"),
        (graph(node("a", "delay")), "nodes[0].data", "the length of the delay isn't clear"),
        (graph(node("a", "shared-flow")), "nodes[0].data", "no workflow is named"),
        (graph(node("go", "paid-trigger"), "a", edges="go>a"), "nodes[0].data", "no type of event"),
        (graph(node("q", "condition", label="?"), "a", edges="q>a"), "nodes[0].data", "what is asked isn't said"),
        (graph(condition("q", "x"), "a", "b", edges="q>a q:false>b"), "edges[0]", "it isn't clear when"),
        (graph(condition("q", "x"), "a", "b", edges="q:true>a q:yes>b"), "edges[1]", "two edges leave 'q' at 'yes'"),
        (graph("a", node("stop", "end"), "b", edges="a>stop stop>b"), "nodes[1]", "nothing comes behind 'stop'"),
        (graph("a", "b", "c", "d", "e", "f", edges="a>b a>c b>d b>e c>e d>f e>f"), "nodes[4]", "cross in 'e'"),
        (
            graph("a", condition("q", "x"), "b", "c", edges="a>q a>b q:true>c b>c"),
            "nodes[3]",
            "ways that are taken side by side cross in 'c'",
        ),
        (graph("a", surprise=1), "surprise", "unknown key 'surprise'"),
    ],
)  # fmt: skip
def test_what_can_not_be_a_workflow(document: Graph, key: str, words: str) -> None:
    found = problem(document)
    assert found.key.startswith(key)
    assert words in found.message
    assert found.expected


def test_ways_within_ways_have_a_bound() -> None:
    edges = " ".join(f"{n}>{n + 1} {n}>{n + 2}" for n in range(0, 60, 2))
    document = graph(*map(str, range(61)), edges=edges)
    with pytest.raises(DefinitionError, match="nested deeper than 10 blocks"):
        to_native(document)
    assert problem(graph(*map(str, range(2001)))).message == "more than 2000 nodes"


def test_a_condition_at_an_edge_is_refused() -> None:
    document = graph("a", "b", edges="a>b")
    document["edges"][0]["data"] = {"condition": {"==": [1, 1]}}
    assert problem(document).key == "edges[0].data.condition"


# --- there and back --------------------------------------------------------------------------------------------------


LETTERS = st.text("abcXYZ019 -_é", min_size=1, max_size=6)
PLACES = st.fixed_dictionaries({"x": st.integers(-500, 500), "y": st.floats(-500, 500)})
LOOKS = st.fixed_dictionaries(
    {},
    optional={
        "position": PLACES,
        "width": st.integers(1, 300),
        "selected": st.booleans(),
        "zIndex": st.integers(-9, 9),
    },
)
KINDS = st.sampled_from(["log", "delay", "condition", "action", "webhook", "shared-flow", "merge", "email"])


@st.composite
def graphs(draw_: st.DrawFn) -> Graph:
    """Graphs with one start, whose edges lead forward, listed in any order."""
    names = draw_(st.lists(LETTERS, min_size=1, max_size=9, unique=True))
    nodes: list[Graph] = []
    edges: list[Graph] = []
    for number, name in enumerate(names):
        kind = draw_(KINDS)
        by_kind: dict[str, Graph] = {
            "log": {"message": name},
            "delay": {"duration": 5},
            "condition": {"condition": {"path": f"input.x{number}", "op": "==", "value": True}},
            "action": {"actionType": "log", "actionData": {"message": name}},
            "webhook": {"url": "https://example.org/x", "payload": {"n": number}},
            "shared-flow": {"flowName": "other"},
            "merge": {},
            "email": {"to": "a@example.org", "subject": name, "body": "b"},
        }
        data = by_kind[kind]
        nodes.append({"id": name, "type": kind, "data": {"label": name, **data}, **draw_(LOOKS)})
        if number == 0:
            continue
        for source in draw_(st.lists(st.integers(0, number - 1), min_size=1, max_size=2, unique=True)):
            edges.append({"id": f"e{len(edges)}", "source": names[source], "target": name, **draw_(LOOKS)})
    by_id = {each["id"]: each for each in nodes}
    taken: dict[tuple[str, str], str] = {}
    for edge in edges:
        if by_id[edge["source"]]["type"] == "condition":
            edge["sourceHandle"] = draw_(st.sampled_from(["true", "false"]))
            assume(taken.setdefault((edge["source"], edge["sourceHandle"]), edge["target"]) == edge["target"])
        if draw_(st.booleans()):
            edge["targetHandle"] = draw_(LETTERS)
    whole: Graph = {"name": "w", "nodes": draw_(st.permutations(nodes)), "edges": draw_(st.permutations(edges))}
    if draw_(st.booleans()):
        whole["viewport"] = {"x": 1, "y": 2, "zoom": 0.5}
    return whole


def translated(document: Graph) -> Graph | None:
    """The graph in our own language; None if its ways cross, which not every graph can help."""
    before = copy.deepcopy(document)
    native: Graph | None = None
    problems: tuple[Problem, ...] = ()
    try:
        native = to_native(document)
    except DefinitionError as error:
        problems = error.problems
    assert document == before, "what is translated isn't changed"
    assert [str(found) for found in problems if "cross" not in found.message] == []
    return native


@given(graphs())
def test_a_graph_comes_back_as_it_was(document: Graph) -> None:
    native = translated(document)
    assume(native is not None)
    assert native is not None
    stored = loads(dumps(native))
    assert draw(stored) == document
    assert draw(parse_document(to_yaml(stored).encode()).data) == document
    assert compile_document(stored, actions=ACTIONS)[0].digest == compile_document(document, actions=ACTIONS)[0].digest


@given(graphs(), st.integers(0, 2**9 - 1))
def test_a_run_goes_where_the_edges_lead(document: Graph, answers: int) -> None:
    native = translated(document)
    assume(native is not None)
    given_ = {f"x{number}": bool(answers >> number & 1) for number in range(9)}
    told = Story(document, {"name": "other", "trigger": "manual", "steps": [{"id": "s", "transform": None}]})
    run = told.start("w", given_)
    told.wait("1d")
    assert run.status == "succeeded"
    came = {name for name, status in run.steps().items() if status != "skipped"}
    assert {name for name, step in _step_ids(document).items() if step in came} == set(_followed(document, given_))


def _step_ids(document: Graph) -> dict[str, str]:
    """The step of each node: they are told by the message, body or place that they have."""
    drawn = {}
    for each in document["nodes"]:
        alone = {"name": "w", "nodes": [each], "edges": []}
        drawn[each["id"]] = to_native(alone)["steps"][0]["id"]
    assume(len(set(drawn.values())) == len(drawn))
    return drawn


def _followed(document: Graph, given_: dict[str, bool]) -> Iterator[str]:
    nodes = {each["id"]: each for each in document["nodes"]}
    todo = [name for name in nodes if not any(edge["target"] == name for edge in document["edges"])]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        yield name
        edges = [edge for edge in document["edges"] if edge["source"] == name]
        if nodes[name]["type"] == "condition":
            holds = given_[nodes[name]["data"]["condition"]["path"].removeprefix("input.")]
            edges = [edge for edge in edges if edge["sourceHandle"] == ("true" if holds else "false")]
        todo += [edge["target"] for edge in edges]


@given(graphs())
def test_a_changed_workflow_is_drawn_anew_with_the_places_that_are_known(document: Graph) -> None:
    native = translated(document)
    assume(native is not None)
    assert native is not None
    native["steps"] = [*native["steps"], {"id": "added_by_hand", "transform": None}]
    native["steps"][-2].pop("next", None)
    drawn = draw(native)
    ids = _step_ids(document)
    known = {ids[each["id"]]: each["position"] for each in document["nodes"] if "position" in each}
    found = {each["id"]: each["position"] for each in drawn["nodes"]}
    assert "added_by_hand" in found
    assert all(found[name] == place for name, place in known.items() if name in found)
