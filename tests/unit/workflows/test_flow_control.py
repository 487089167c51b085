"""Flow control in the language: every key, its short forms and bounds, what is refused, and what a key is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from appliance.errors import DefinitionError
from appliance.plugin import Action, Params
from appliance.story import Story
from appliance.templating import compile_template
from appliance.workflows.compile import compile_workflow
from appliance.workflows.dialects import compile_document, to_native
from appliance.workflows.drawing import draw
from appliance.workflows.flow_control import (
    LANE,
    PARTS,
    Batch,
    Debounce,
    FlowControl,
    Key,
    RateLimit,
    Singleton,
    Slots,
    Throttle,
    key_of,
)
from appliance.workflows.loader import parse_document
from appliance.workflows.schema import json_schema
from appliance.workflows.writing import to_yaml


async def nothing(params: Any, ctx: Any) -> None:
    return None


class Anything(Params):
    message: Any = None


ACTIONS = {"log": Action(params=Anything, run=nothing)}
SCHEMA = Draft202012Validator(json_schema(ACTIONS))
NOTE = {"id": "note", "action": "log", "with": {"message": "{{ event.id }}"}}
TENANT = "{{ event.data.tenant }}"


def definition(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "w", "trigger": {"event": "t"}, "steps": list(steps or (NOTE,)), **more}


def control(**more: Any) -> FlowControl:
    compiled = compile_workflow(definition(**more), actions=ACTIONS).control
    assert isinstance(compiled, FlowControl)
    return compiled


def refused(*steps: dict[str, Any], **more: Any) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        compile_workflow(definition(*steps, **more), actions=ACTIONS)
    return [str(problem) for problem in caught.value.problems]


GOOD: list[dict[str, Any]] = [
    {"concurrency": 5},
    {"concurrency": {"limit": 5}},
    {"concurrency": {"limit": 5, "key": TENANT}},
    {"concurrency": [50, {"limit": 5, "key": TENANT}]},
    {"concurrency": [{"limit": 100_000, "key": "{{ input.a }}"}, {"limit": 1}]},
    {"concurrency": None},
    {"ordering_key": TENANT},
    {"ordering_key": "all"},
    {"rate_limit": {"limit": 1, "period": "100ms"}},
    {"rate_limit": {"limit": 100_000, "period": "31d", "key": TENANT}},
    {"throttle": {"limit": 1, "period": 60}},
    {"throttle": {"limit": 10, "period": "1m", "burst": 0, "key": TENANT}},
    {"debounce": {"period": "10s"}},
    {"debounce": {"period": "10s", "timeout": "10s", "key": TENANT}},
    {"batch": {"size": 1, "timeout": "100ms"}},
    {"batch": {"size": 1000, "timeout": "31d", "key": TENANT}},
    {"singleton": "skip"},
    {"singleton": "replace"},
    {"singleton": {"mode": "skip", "key": TENANT}},
    {"revisions": "pin"},
    {"revisions": "follow"},
    {"concurrency": 1, "ordering_key": TENANT, "throttle": {"limit": 1, "period": "1s"}},
    {"concurrency": 1, "rate_limit": {"limit": 1, "period": "1s"}, "ordering_key": TENANT},
    {"debounce": {"period": "1s"}, "singleton": "skip", "rate_limit": {"limit": 1, "period": "1s"}, "concurrency": 2},
    {"batch": {"size": 9, "timeout": "1s"}, "throttle": {"limit": 1, "period": "1s"}, "concurrency": 2},
]


@pytest.mark.parametrize("more", GOOD, ids=str)
def test_what_is_right_compiles_and_editors_take_it(more: dict[str, Any]) -> None:
    whole = definition(**more)
    compile_workflow(whole, actions=ACTIONS)
    assert [error.message for error in SCHEMA.iter_errors(whole)] == []


def test_without_a_word_of_it_there_is_none() -> None:
    workflow = compile_workflow(definition(), actions=ACTIONS)
    assert (workflow.control, workflow.follows) == (None, False)
    assert compile_workflow(definition(concurrency=None), actions=ACTIONS).control is None
    assert compile_workflow(definition(revisions="follow"), actions=ACTIONS).follows


def test_every_part_becomes_what_it_says() -> None:
    whole = control(
        concurrency=[50, {"limit": 5, "key": TENANT}],
        rate_limit={"limit": 3, "period": "1h"},
        throttle={"limit": 10, "period": "1m", "burst": 2},
        debounce={"period": "10s", "timeout": "2m"},
        singleton="replace",
    )
    assert whole.rate_limit == RateLimit(3, 3600)
    assert whole.throttle == Throttle(10, 60, 2)
    assert whole.debounce == Debounce(10, 120)
    assert whole.singleton == Singleton("replace")
    assert [(slots.part, slots.limit, slots.keeps) for slots in whole.slots] == [
        ("concurrency.0", 50, False),
        ("concurrency.1", 5, False),
        ("singleton", 1, True),
    ]
    assert control(batch={"size": 10, "timeout": "30s"}).batch == Batch(10, 30)
    assert control(concurrency=7).slots == (Slots("concurrency.0", 7),)
    assert control(debounce={"period": "1s"}).debounce == Debounce(1)
    assert not whole.ordered
    assert control(ordering_key=TENANT).ordered


def test_places_are_shared_between_the_values_of_the_kept_part_or_of_the_last_key() -> None:
    def lane(**more: Any) -> str | None:
        found = control(**more).lane
        return found.part if found is not None else None

    keyed = {"limit": 5, "key": TENANT}
    assert lane(concurrency=[50, keyed]) == lane(concurrency=[keyed, keyed]) == "concurrency.1"
    assert lane(concurrency=[keyed, 50]) == "concurrency.0"
    assert lane(concurrency=[keyed, 50], ordering_key="{{ event.id }}") == "ordering"
    assert lane(concurrency=[keyed, 50], singleton="skip") == "singleton"
    assert lane(concurrency=50) is None
    assert lane(throttle={"limit": 1, "period": "1s", "key": TENANT}) is None


# --- what is refused -------------------------------------------------------------------------------------------------

LIMITED = {"limit": 1, "period": "1m"}
DURATION = "expected a duration such as"

BAD: list[tuple[dict[str, Any], str]] = [
    ({"concurrency": 0}, "concurrency: expected at least 1"),
    ({"concurrency": 100_001}, "concurrency: expected at most 100000"),
    ({"concurrency": "5"}, "concurrency: expected a whole number, {key, limit}, or a list of two of these"),
    ({"concurrency": True}, "concurrency: expected a whole number, {key, limit}, or a list of two of these"),
    ({"concurrency": 1.5}, "concurrency: expected a whole number, {key, limit}, or a list of two of these"),
    ({"concurrency": []}, "concurrency: expected at least 1, got 0"),
    ({"concurrency": [1, 2, 3]}, "concurrency: expected at most 2, got 3"),
    ({"concurrency": [1, True]}, "concurrency[1]: expected a whole number, or {key, limit}"),
    ({"concurrency": [1, [2]]}, "concurrency[1]: expected a whole number, or {key, limit}"),
    ({"concurrency": {"key": TENANT}}, "concurrency.limit: limit is missing"),
    ({"concurrency": [1, {"limit": "many"}]}, "concurrency[1].limit: expected a whole number"),
    ({"concurrency": {"limit": 0}}, "concurrency.limit: expected at least 1"),
    ({"rate_limit": 5}, "rate_limit: expected a mapping"),
    ({"rate_limit": {"limit": 1}}, "rate_limit.period: period is missing"),
    ({"rate_limit": {"period": "1m"}}, "rate_limit.limit: limit is missing"),
    ({"rate_limit": {"limit": 0, "period": "1m"}}, "rate_limit.limit: expected at least 1"),
    ({"rate_limit": {"limit": 1, "period": "99ms"}}, "rate_limit.period: expected at least 100ms"),
    ({"rate_limit": {"limit": 1, "period": "32d"}}, "rate_limit.period: expected at most 31d"),
    ({"rate_limit": {"limit": 1, "period": "often"}}, f"rate_limit.period: {DURATION}"),
    ({"rate_limit": {"limit": 1, "period": True}}, f"rate_limit.period: {DURATION}"),
    ({"rate_limit": {**LIMITED, "burst": 1}}, "rate_limit.burst: burst doesn't belong here"),
    ({"throttle": {**LIMITED, "burst": -1}}, "throttle.burst: expected at least 0"),
    ({"throttle": {"limit": 100_001, "period": "1m"}}, "throttle.limit: expected at most 100000"),
    ({"throttle": {"limit": 1, "period": "0s"}}, "throttle.period: expected at least 100ms"),
    ({"debounce": "10s"}, "debounce: expected a mapping"),
    ({"debounce": {}}, "debounce.period: period is missing"),
    (
        {"debounce": {"period": "90s", "timeout": "30s"}},
        "debounce.timeout: timeout is shorter than period (expected at least 90s, the period)",
    ),
    ({"debounce": {"period": "10s", "timeout": "5w"}}, "debounce.timeout: expected at most 31d"),
    ({"batch": 100}, "batch: expected a mapping"),
    ({"batch": {"size": 10}}, "batch.timeout: timeout is missing"),
    ({"batch": {"timeout": "1m"}}, "batch.size: size is missing"),
    ({"batch": {"size": 0, "timeout": "1m"}}, "batch.size: expected at least 1"),
    ({"batch": {"size": 1001, "timeout": "1m"}}, "batch.size: expected at most 1000"),
    ({"batch": {"size": 2, "timeout": "10ms"}}, "batch.timeout: expected at least 100ms"),
    ({"singleton": "drop"}, "singleton: expected 'skip' or 'replace'"),
    ({"singleton": True}, "singleton: expected skip, replace, or {mode, key}"),
    ({"singleton": ["skip"]}, "singleton: expected skip, replace, or {mode, key}"),
    ({"singleton": {"key": TENANT}}, "singleton.mode: mode is missing"),
    ({"singleton": {"mode": "drop"}}, "singleton.mode: expected 'skip' or 'replace'"),
    ({"ordering_key": 5}, "ordering_key: expected a text"),
    ({"ordering_key": ""}, "ordering_key: empty"),
    ({"revisions": "newest"}, "revisions: expected 'pin' or 'follow'"),
    ({"throtle": LIMITED}, "throtle: unknown key 'throtle'; did you mean throttle?"),
    ({"rate_limit": {**LIMITED, "perod": "1m"}}, "rate_limit.perod: unknown key 'perod'; did you mean period?"),
]


@pytest.mark.parametrize(("more", "message"), BAD, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_said_in_the_words_of_the_language(more: dict[str, Any], message: str) -> None:
    (problem,) = refused(**more)
    assert problem.startswith(message)
    assert not any(word in problem for word in ("datetime", "timedelta", "<", "Model"))


# Durations as texts have no bounds in JSON Schema.
SEEN = [more for more, message in BAD if re.search(r"\d(ms|s|d)\b|duration", message) is None]


@pytest.mark.parametrize("more", SEEN, ids=str)
def test_editors_refuse_what_is_not_about_durations(more: dict[str, Any]) -> None:
    assert len(SEEN) > 30
    assert not SCHEMA.is_valid(definition(**more))


def test_the_schema_has_no_words_of_its_own() -> None:
    text = json.dumps(json_schema(ACTIONS))
    assert '"ge"' not in text
    assert '"le"' not in text


SAID: dict[str, Any] = {
    "concurrency": 1,
    "ordering_key": TENANT,
    "rate_limit": LIMITED,
    "throttle": LIMITED,
    "debounce": {"period": "1m"},
    "batch": {"size": 2, "timeout": "1m"},
    "singleton": "skip",
}
APART = {
    frozenset(pair)
    for pair in (
        ("debounce", "batch"),
        ("singleton", "batch"),
        ("rate_limit", "batch"),
        ("singleton", "ordering_key"),
        ("debounce", "ordering_key"),
        ("batch", "ordering_key"),
    )
}


def test_every_part_is_told_here() -> None:
    assert {*SAID} == {*PARTS}


@pytest.mark.parametrize("first", PARTS)
@pytest.mark.parametrize("second", PARTS)
def test_what_can_not_stand_together(first: str, second: str) -> None:
    both = {first: SAID[first], second: SAID[second]}
    if frozenset(both) in APART:
        (problem,) = refused(**both)
        assert "can't be used together: " in problem
        assert first in problem
        assert second in problem
        assert "(expected " in problem
    else:
        compile_workflow(definition(**both), actions=ACTIONS)


@pytest.mark.parametrize("part", PARTS)
def test_a_state_machine_takes_none_of_it(part: str) -> None:
    machine = {
        "name": "m",
        "trigger": {"event": "t"},
        "correlate": "{{ event.subject }}",
        "initial": "a",
        "states": {"a": {"on": {"go": {"next": "b"}}}, "b": {"final": True}},
    }
    compile_workflow(machine | {"revisions": "follow"}, actions=ACTIONS)
    with pytest.raises(DefinitionError) as caught:
        compile_workflow(machine | {part: SAID[part]}, actions=ACTIONS)
    (problem,) = caught.value.problems
    assert (problem.key, problem.expected) == (part, f"{part} in a workflow with steps, which the machine may call")
    assert problem.message == f"{part} can't be used with states: a state machine has one run of each key already"


# --- keys ------------------------------------------------------------------------------------------------------------

KEYED: list[tuple[str, Any]] = [
    ("concurrency.key", lambda key: {"concurrency": {"limit": 1, "key": key}}),
    ("concurrency[1].key", lambda key: {"concurrency": [1, {"limit": 1, "key": key}]}),
    ("ordering_key", lambda key: {"ordering_key": key}),
    ("rate_limit.key", lambda key: {"rate_limit": {**LIMITED, "key": key}}),
    ("throttle.key", lambda key: {"throttle": {**LIMITED, "key": key}}),
    ("debounce.key", lambda key: {"debounce": {"period": "1s", "key": key}}),
    ("batch.key", lambda key: {"batch": {"size": 2, "timeout": "1s", "key": key}}),
    ("singleton.key", lambda key: {"singleton": {"mode": "skip", "key": key}}),
]


@pytest.mark.parametrize(("at", "written"), KEYED, ids=[at for at, _ in KEYED])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("{{ evnt.data.tenant }}", "unknown name 'evnt'; did you mean event? (expected one of event, input)"),
        ("{{ steps.note.output }}", "unknown name 'steps' (expected one of event, input)"),
        ("{{ secrets.salt }}", "unknown name 'secrets' (expected one of event, input)"),
        ("{{ run.id }}", "unknown name 'run' (expected one of event, input)"),
        ("{{ events }}", "unknown name 'events'; did you mean event? (expected one of event, input)"),
        ("{{ event.", "not a template: "),
        ("event.data.tenant", 'no expression: the same for all events (expected an expression: "{{ event.data.'),
    ],
)
def test_a_key_sees_the_event_and_the_input(at: str, written: Any, key: str, message: str) -> None:
    (problem,) = refused(**written(key))
    assert problem.startswith(f"{at}: {message}")


@pytest.mark.parametrize(("at", "written"), KEYED, ids=[at for at, _ in KEYED])
def test_a_key_is_a_text_of_some_length(at: str, written: Any) -> None:
    assert refused(**written("")) == [f"{at}: empty"]
    assert refused(**written(7)) == [f"{at}: expected a text"]
    assert refused(**written("{{ event.id }}" + "x" * 10_000)) == [f"{at}: longer than 10000 characters"]


def test_a_word_may_order_all_events_but_is_no_key_of_anything_else() -> None:
    assert control(ordering_key="all").slots[0].key is not None
    assert "no expression" in refused(throttle={**LIMITED, "key": "all"})[0]


def names(tenant: Any) -> dict[str, Any]:
    return {"event": {"data": {"tenant": tenant}}, "input": {"tenant": tenant}}


def key(tenant: Any, *, workflow_id: int = 1, part: str = "throttle", template: str = TENANT) -> Key:
    return key_of(workflow_id, part, compile_template(template, key="key"), names(tenant))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("acme", "acme"),
        (" a b ", " a b "),
        (7, "7"),
        (0, "0"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        ([1, "a"], '[1,"a"]'),
        ([], "[]"),
        ({"b": 1, "a": [None]}, '{"a":[null],"b":1}'),
        (None, "null"),
        ("", "null"),
        ("null", "null"),
        ("ä\u2028\U0001f600", "ä\u2028\U0001f600"),
        ("x" * 500, "x" * 200),
    ],
)
def test_any_value_is_a_key(value: Any, text: str) -> None:
    assert key(value).text == text


def test_values_that_are_not_there_share_a_key_of_their_own() -> None:
    nobody = key(None)
    assert key("") == nobody
    assert key("x", template="{{ event.data.other }}") == nobody, "it can't be rendered"
    assert key("x", template="{{ event.data.tenant / 0 }}") == nobody
    assert key("x", template="{{ 4611686018427387904 * 4 }}") == nobody, "no JSON"
    assert key("null").digest != nobody.digest, "somebody may be called so"
    assert key_of(1, "throttle", None, names("x")).digest != nobody.digest


def test_numbers_and_texts_that_spell_them_are_one_key() -> None:
    assert key(7) == key("7")
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key([1, 2]) != key([2, 1])


def test_keys_differ_by_workflow_part_and_whole_value() -> None:
    same = key("acme")
    assert same == key("acme")
    assert same.digest not in (key("acme", workflow_id=2).digest, key("acme", part="debounce").digest)
    long, longer = key("x" * 500), key("x" * 501)
    assert (long.text == longer.text, long.digest == longer.digest) == (True, False)


def test_what_is_shown_of_a_key_can_be_stored() -> None:
    assert key("x", template="{{ 'a\\0b' }}").text == "a\ufffdb"
    assert key("x", template="{{ '\\ud800' }}").text == "?"


@given(st.text(max_size=300) | st.integers() | st.floats() | st.lists(st.integers()) | st.none())
def test_no_value_stops_an_event(value: Any) -> None:
    found = key(value)
    assert len(found.digest) == 36
    assert len(found.text) <= 200
    assert "\0" not in found.text
    assert found.text.encode()


def test_a_run_has_the_keys_of_all_parts_and_of_its_lane() -> None:
    whole = control(
        concurrency=[9, {"limit": 1, "key": TENANT}],
        rate_limit={**LIMITED, "key": "{{ input.tenant }}"},
        throttle=LIMITED,
    )
    found = whole.keys(1, names("acme"))
    assert {part: key.text for part, key in found.items()} == {
        "rate_limit": "acme",
        "throttle": "",
        "concurrency.0": "",
        "concurrency.1": "acme",
        LANE: "acme",
    }
    assert found[LANE] == found["concurrency.1"]
    assert control(throttle=LIMITED).keys(1, names("acme"))[LANE].text == ""


# --- events ----------------------------------------------------------------------------------------------------------

MANY = {"size": 3, "timeout": "1m"}


def test_events_are_known_in_a_batch_only() -> None:
    message = {"id": "note", "action": "log", "with": {"message": "{{ events|length }}"}}
    condition = {**NOTE, "if": {"path": "events.0.data.n", "op": ">", "value": 1}}
    logic = {"id": "note", "transform": {"logic": {"map": [{"var": "events.0.data"}, 1]}}}
    unknown = "unknown name 'events'; did you mean event?"
    assert refused(message)[0].startswith(f"steps[0].with.message: {unknown}")
    assert refused(output="{{ events }}")[0].startswith(f"output: {unknown}")
    where = "there is no events here (expected event; events only with batch)"
    assert refused(condition) == [f"steps[0].if: {where}"]
    assert refused(logic) == [f"steps[0].transform.logic: {where}"]
    compile_workflow(
        definition(message, {**condition, "id": "b"}, {**logic, "id": "c"}, output="{{ events }}", batch=MANY),
        actions=ACTIONS,
    )


def test_no_item_is_called_events() -> None:
    loop = {"id": "each", "for_each": {"items": [1], "as": "events", "steps": [NOTE]}}
    told = ["steps[0].for_each.as: 'events' has a meaning of its own (expected another name)"]
    assert refused(loop) == refused(loop, batch=MANY) == told


def test_a_step_or_state_may_be_called_so() -> None:
    assert compile_workflow(definition({**NOTE, "id": "events"}), actions=ACTIONS).by_id == {"events": 0}


def test_all_that_has_expressions_sees_the_events() -> None:
    """One story of every place where ``events`` may stand."""
    story = Story(
        definition(
            {"id": "each", "for_each": {"items": "{{ events }}", "as": "one", "steps": [
                {"id": "tell", "action": "log", "with": {"message": "{{ one.data.n }} of {{ events|length }}"}}]}},
            {"id": "many", "if": {"path": "events.1.data.n", "op": "==", "value": 2}, "transform": "{{ events[1] }}"},
            {"id": "sum", "transform": {"logic": {"reduce": [
                {"var": "events"}, {"+": [{"var": "current.data.n"}, {"var": "accumulator"}]}, 0]}}},
            {"id": "rest", "delay": "{{ events|length }}s"},
            {"id": "undo", "action": "log", "with": {"message": "{{ events[0].data.n }}"}},
            batch=MANY,
            output={"n": "{{ events|map(attribute='data')|map(attribute='n')|list }}"},
        )
    )  # fmt: skip
    for n in (1, 2, 3):
        story.event("t", {"n": n})
    story.wait("3s")
    assert story.run.output == {"n": [1, 2, 3]}
    assert [did.params["message"] for did in story.did("tell")] == ["1 of 3", "2 of 3", "3 of 3"]
    assert story.run.steps()["many"] == "succeeded"
    assert story.run.state.steps["sum"].output == 6


# --- files and other forms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", GOOD, ids=str)
def test_what_is_written_reads_the_same(more: dict[str, Any]) -> None:
    whole = definition(**more)
    assert parse_document(to_yaml(whole).encode()).data == whole


def test_what_is_written_has_its_keys_where_people_put_them() -> None:
    whole = {"steps": [NOTE], "throttle": {"key": TENANT, "period": "1m", "limit": 3}, "concurrency": [5], "name": "w"}
    whole |= {"trigger": {"event": "t"}, "batch": {"timeout": "1m", "size": 3}, "revisions": "follow"}
    lines = to_yaml(whole).splitlines()
    assert lines == [
        "name: w",
        "revisions: follow",
        "trigger: {event: t}",
        'throttle: {key: "{{ event.data.tenant }}", limit: 3, period: 1m}',
        "batch: {size: 3, timeout: 1m}",
        "concurrency: [5]",
        "steps:",
        *lines[7:],
    ]


@pytest.mark.parametrize("more", GOOD, ids=str)
def test_a_graph_keeps_it_there_and_back(more: dict[str, Any]) -> None:
    whole = definition(**more)
    native = to_native(draw(whole))
    native.pop("editor", None)
    assert native == whole
    there, _ = compile_document(draw(whole), actions=ACTIONS)
    assert there.control == compile_workflow(whole, actions=ACTIONS).control or there.control is not None


def test_the_story_of_the_documents_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "workflows.md").read_text("utf-8")
    section = page[page.index("## Trying a workflow") : page.index("## Changing what runs")]
    [(workflow, story)] = re.findall(r"```yaml\n(.*?)```\n\n```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "digest.yaml").write_text(workflow, "utf-8")
    monkeypatch.chdir(tmp_path)
    told: dict[str, Any] = {}
    exec(compile(story, "docs/workflows.md", "exec"), told)  # noqa: S102 - our own page
    told["test_one_mail_for_four_hours_of_comments"]()
