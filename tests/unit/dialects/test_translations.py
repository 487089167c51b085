"""What each dialect makes of its keys, and what it says of those that it can't translate."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.errors import DefinitionError
from appliance.registry import Registry
from appliance.story import Story
from appliance.workflows.dialects import compile_document, to_native

ACTIONS = Registry.load({}).actions
LOG = {"type": "log", "config": {"message": "m"}}


def refused(document: Any) -> list[tuple[str, str]]:
    """(key, message) of each problem; every one says what to write instead."""
    with pytest.raises(DefinitionError) as error:
        compile_document(document, actions=ACTIONS)
    return [(problem.key, problem.message) for problem in error.value.problems]


# --- transitions -----------------------------------------------------------------------------------------------------


def machine(*transitions: Any, **more: Any) -> dict[str, Any]:
    return {"name": "m", "initial_state": "a", "transitions": list(transitions), **more}


def way(source: Any = "a", event: Any = "GO", target: Any = "b", **more: Any) -> dict[str, Any]:
    given = {"from_state": source, "event": event, "to_state": target, **more}
    return {key: value for key, value in given.items() if value is not None}


def states(document: Any) -> dict[str, Any]:
    compile_document(document, actions=ACTIONS)
    found: dict[str, Any] = to_native(document)["states"]
    return found


def test_states_are_those_that_transitions_name_and_end_where_nothing_leads_on() -> None:
    assert states(machine(way(), way("b", "BACK", "a"), way("b", "DONE", "c"))) == {
        "a": {"on": {"GO": {"next": "b"}}},
        "b": {"on": {"BACK": {"next": "a"}, "DONE": {"next": "c"}}},
        "c": {"final": True},
    }


def test_of_several_transitions_for_an_event_the_first_that_holds_is_taken() -> None:
    asked = {"field": "n", "operator": "gt", "value": 5}
    found = states(machine(way(condition=asked), way(target="c"), way(target="d", guard={"==": [{"var": "x"}, 1]})))
    assert found["a"]["on"]["GO"] == [
        {"next": "b", "when": {"path": "data.n", "op": ">", "value": 5}},
        {"next": "c"},
        {"next": "d", "when": {"==": [{"var": "data.x"}, 1]}},
    ]


def test_states_with_what_happens_in_them() -> None:
    document = machine(
        way("b", "DONE", "c"),
        states={
            "a": {
                "description": "the first",
                "on_enter": [LOG],
                "timeout": "2d",
                "on_timeout": "c",
                "transitions": [{"event": "GO", "to": "b", "actions": [{"action": "log", "message": "way"}]}],
            },
            "b": {},
            "c": {"final": True},
        },
    )
    found = states(document)
    assert found == {
        "a": {
            "description": "the first",
            "enter": [{"action": "log", "with": {"message": "m"}}],
            "on": {"GO": {"next": "b", "do": [{"action": "log", "with": {"message": "way"}}]}},
            "deadline": {"after": "2d", "next": "c"},
        },
        "b": {"on": {"DONE": {"next": "c"}}},
        "c": {"final": True},
    }


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            machine(way(), way(event=None, target="c", timeout="48h", actions=[LOG])),
            {"after": "48h", "next": "c", "do": [{"action": "log", "with": {"message": "m"}}]},
        ),
        (machine(way(), way(event=None, target="c", after=60)), {"after": 60, "next": "c"}),
        (
            machine(way(), states={"a": {"timeout": {"hours": 2, "to_state": "b"}}, "b": {}}),
            {"after": "2h", "next": "b"},
        ),
        (
            machine(way(actions=[LOG]), states=[{"name": "a", "deadline": {"days": 1, "event": "GO"}}, "b"]),
            {"after": "1d", "next": "b", "do": [{"action": "log", "with": {"message": "m"}}]},
        ),
    ],
)
def test_timeouts(document: Any, expected: Any) -> None:
    assert states(document)["a"]["deadline"] == expected


def test_a_transition_out_of_several_states_or_of_all_that_go_on() -> None:
    found = states(machine(way(["a", "b"], "STOP", "c"), way(target="b"), way("*", "ABORT", "d")))
    assert [*found["a"]["on"]] == ["STOP", "GO", "ABORT"]
    assert [*found["b"]["on"]] == ["STOP", "ABORT"]
    assert found["c"] == found["d"] == {"final": True}
    found = states(machine(way(), way("*", "ABORT", "d"), final_states=["b", "d"]))
    assert found["b"] == {"final": True}


def test_how_a_request_begins_and_is_known_may_be_said() -> None:
    native = to_native(machine(way(), trigger={"event": "ASK"}, correlate="{{ event.data.n }}"))
    assert (native["trigger"], native["correlate"]) == ({"event": "ASK"}, "{{ event.data.n }}")
    told = Story(machine(way(), trigger={"event": "ASK"}, correlate="{{ event.data.n }}"))
    (run,) = told.event("ASK", {"n": 1})
    told.event("GO", {"n": 2})
    assert run.at == ["a"]
    told.event("GO", {"n": 1})
    assert run.outcome == "b"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (machine(), ("initial_state", "there is no state 'a'")),
        ({"name": "m", "transitions": [way()]}, ("initial_state", "no initial state")),
        (machine(way(), classifier={"APPROVED": ["ok"]}), ("classifier", "unknown key 'classifier'")),
        (
            machine(way(condition="is_large(request)")),
            ("transitions[0].condition", "a condition in code can't be translated"),
        ),
        (machine(way(target=None)), ("transitions[0].to_state", "there is no state None")),
        (machine(way(event=None)), ("transitions[0]", "a transition without an event")),
        (machine(way(timeout="1d")), ("transitions[0].timeout", "a timeout beside an event or a condition")),
        (machine(way(event=None, timeout="soon")), ("transitions[0].timeout", "no duration: 'soon'")),
        (machine(way(), way(target="z"), states=["a", "b"]), ("transitions[1].to_state", "there is no state 'z'")),
        (machine(way(), way("z"), states=["a", "b"]), ("transitions[1].from_state", "there is no state 'z'")),
        (machine(way(), final_states=["z"]), ("final_states[0]", "there is no state 'z'")),
        (machine({"event": "GO"}), ("transitions[0]", "not a transition")),
        (machine(way(actions=["teleport"])), ("transitions[0].actions[0]", "unknown action 'teleport'")),
        (machine(way(actions=[{"config": {}}])), ("transitions[0].actions[0]", "an action without a name")),
        (
            machine(way(), states={"a": {"timeout": {"days": 1, "event": "NO"}}, "b": {}}),
            ("states.a.timeout.event", "there is not exactly one transition without a condition for 'NO' in 'a'"),
        ),
        (machine(way(surprise=1)), ("transitions[0].surprise", "unknown key 'surprise'")),
    ],
)
def test_transitions_that_can_not_be_translated(document: Any, expected: tuple[str, str]) -> None:
    assert expected in refused(document)


# --- lists of steps --------------------------------------------------------------------------------------------------


def listed(*steps: Any, **more: Any) -> dict[str, Any]:
    return {"name": "l", "steps": list(steps), **more}


def step(type: str, name: str = "s", /, **config: Any) -> dict[str, Any]:
    return {"name": name, "type": type, "config": config}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            step("http_request", url="https://x.example", method="get"),
            {"action": "webhook", "with": {"url": "https://x.example", "method": "GET"}},
        ),
        (
            step("trigger-webhook", endpoint="https://x.example", payload="n={{payload.n}}"),
            {"action": "webhook", "with": {"url": "https://x.example", "body": "n={{ input.n|default('') }}"}},
        ),
        (
            step("webhook", url="https://x.example", body=[1, {"n": "{{n}}"}]),
            {"action": "webhook", "with": {"url": "https://x.example", "json": [1, {"n": "{{ input.n }}"}]}},
        ),
        (
            step("sendEmail", recipient="a@example.org", title="t", message="b"),
            {"action": "send_email", "with": {"to": "a@example.org", "subject": "t", "body": "b"}},
        ),
        (
            step("email", to="a@example.org", template_id="hello", template_data={"n": "{{user.name|upper}}"}),
            {
                "action": "send_email",
                "with": {"to": "a@example.org", "template": "hello", "data": {"n": "{{ input.user.name|upper }}"}},
            },
        ),
        (
            step("logger", text="{ literal } {{ run.id }} {{items[0].sku}}"),
            {
                "action": "log",
                "with": {"message": "{ literal } {{ run.id|default('') }} {{ input.items[0].sku|default('') }}"},
            },
        ),
        (
            step("emit", event_type="x.y", payload={"a": 1}),
            {"action": "publish", "with": {"type": "x.y", "data": {"a": 1}}},
        ),
        (step("delay", duration="10m"), {"delay": "10m"}),
        (step("wait", minutes=5), {"delay": "5m"}),
        (
            step("execute_workflow", workflow_id="other", input_data={"n": "{{n}}"}),
            {"workflow": {"name": "other", "input": {"n": "{{ input.n }}"}}},
        ),
        (
            step("sub-workflow", name="x") | {"config": {"name": "other"}},
            {"workflow": {"name": "other", "input": "{{ input }}"}},
        ),
        (step("data_transform", mapping={"n": "{{n}}"}), {"transform": {"n": "{{ input.n }}"}}),
        (step("transform", logic={"+": [{"var": "n"}, 1]}), {"transform": {"logic": {"+": [{"var": "input.n"}, 1]}}}),
        (
            step("notification", channel="email", to="a@example.org", body="b"),
            {"action": "send_email", "with": {"to": "a@example.org", "body": "b"}},
        ),
    ],
)
def test_actions_by_the_names_that_they_have_elsewhere(given: Any, expected: Any) -> None:
    document = listed(given)
    (found,) = to_native(document)["steps"]
    assert {key: value for key, value in found.items() if key != "id"} == expected
    compile_document(document, actions=ACTIONS)


def test_steps_of_the_same_name_get_numbers() -> None:
    native = to_native(listed(step("delay", "wait", duration=1), step("delay", "wait", duration=2)))
    assert [found["id"] for found in native["steps"]] == ["wait", "wait_2"]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (listed(step("create_ticket")), ("steps[0].type", "unknown action 'create_ticket'")),
        (listed(step("notification", to="a")), ("steps[0].type", "a notification of no known type")),
        (
            listed(step("notification", notification_type="pigeon")),
            ("steps[0].config.notification_type", "there are no notifications by 'pigeon'"),
        ),
        (
            listed(step("notification", notification_type="sms", to="+1")),
            ("steps[0].config.notification_type", "unknown action 'send_sms'; did you mean send_email?"),
        ),
        (
            listed(step("email", to="a@example.org", body="x", message="y")),
            ("steps[0].config.message", "message is body here, which is given already"),
        ),
        (listed(step("delay", forever=True)), ("steps[0].config.forever", "unknown key 'forever'")),
        (listed(step("delay", duration="soon")), ("steps[0].config.duration", "no duration: 'soon'")),
        (listed(step("delay", duration=1, unit="moons")), ("steps[0].config.duration", "unknown unit 'moons'")),
        (listed(step("delay", hours="many")), ("steps[0].config.hours", "no number: 'many'")),
        (listed(step("transform", a=1, b=2)), ("steps[0].config", "what is to be built isn't said")),
        (listed(step("workflow")), ("steps[0].config", "no workflow is named")),
        (
            listed(step("workflow", name="{{which}}")),
            ("steps[0].config.name", "the called workflow can't be a template"),
        ),
        (
            listed(step("log", message="{{#if x}}y{{/if}}")),
            ("steps[0].config.message", "blocks in texts can't be translated"),
        ),
        (listed(step("log", message="{{ a + b }}")), ("steps[0].config.message", "'a + b' can't be translated")),
        (listed({"type": "log", "config": {}}), ("steps[0]", "a step without a name")),
        (listed(step("log"), 5), ("steps[1]", "not a step")),
        (listed({"name": "a", "type": "log", "config": 5}), ("steps[0].config", "not an object")),
    ],
)
def test_lists_of_steps_that_can_not_be_translated(document: Any, expected: tuple[str, str]) -> None:
    assert expected in refused(document)


# --- automations and rules -------------------------------------------------------------------------------------------


def automation(*steps: Any, **more: Any) -> dict[str, Any]:
    return {"name": "a", "trigger_type": "manual", "steps": list(steps or [{"id": "s", **LOG}]), **more}


def rule(*actions: Any, **more: Any) -> dict[str, Any]:
    given = {"name": "r", "trigger": {"type": "event", "event_type": "x"}, "actions": list(actions), **more}
    return {key: value for key, value in given.items() if value is not None}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"trigger_type": "event", "trigger_config": {"event_type": "x"}}, {"event": "x"}),
        (
            {
                "trigger_type": "event",
                "trigger_config": {"event": "x", "conditions": [{"field": "n", "operator": "exists"}]},
            },
            {"event": "x", "when": {"path": "data.n", "op": "exists", "value": True}},
        ),
        (
            {
                "trigger_type": "event",
                "trigger_config": {"event_type": "x"},
                "conditions": {
                    "or": [{"field": "n", "operator": "eq", "value": 1}, {"field": "n", "operator": "eq", "value": 2}]
                },
            },
            {
                "event": "x",
                "when": {
                    "any": [{"path": "data.n", "op": "==", "value": 1}, {"path": "data.n", "op": "==", "value": 2}]
                },
            },
        ),
        (
            {"trigger_type": "schedule", "trigger_config": {"cron": "0 9 * * 1", "timezone": "Europe/Berlin"}},
            {"schedule": "0 9 * * 1", "timezone": "Europe/Berlin"},
        ),
        ({"trigger_type": "manual"}, "manual"),
    ],
)
def test_triggers(given: Any, expected: Any) -> None:
    document = automation(**given)
    assert to_native(document)["trigger"] == expected
    compile_document(document, actions=ACTIONS)
    config = given.get("trigger_config", {})
    inner = {"type": given["trigger_type"], **config}
    document = automation(trigger=inner, **{k: v for k, v in given.items() if k == "conditions"})
    del document["trigger_type"]
    assert to_native(document)["trigger"] == expected


@pytest.mark.parametrize(
    ("operator", "value", "holds", "fails"),
    [
        ("equals", 5, 5, 6),
        ("not_equals", 5, 6, 5),
        ("greater_than", 5, 6, 5),
        ("less_than", 5, 4, 5),
        ("greater_than_or_equal", 5, 5, 4),
        ("less_than_or_equal", 5, 5, 6),
        ("contains", "b", "abc", "ac"),
        ("not_contains", "b", "ac", "abc"),
        ("in", [1, 2], 2, 3),
        ("not_in", [1, 2], 3, 2),
        ("exists", None, 1, None),
        ("not_exists", None, None, 1),
        ("starts_with", "a.", "a.b", "axb"),
        ("ends_with", ".b", "a.b", "axb"),
        ("matches", "^a+$", "aaa", "ab"),
        ("EQUALS", True, True, False),
        (">=", 5, 5, 4),
    ],
)
def test_operators(operator: str, value: Any, holds: Any, fails: Any) -> None:
    asked = {"type": "field_check", "field": "user.x", "operator": operator}
    asked |= {"value": value} if value is not None else {}
    told = Story(rule(LOG, conditions=[asked]))
    assert [len(told.event("x", {"user": {"x": given}})) for given in (holds, fails)] == [1, 0]
    step_ = {"id": "s", "conditions": [asked], **LOG}
    told = Story(automation(step_))
    runs = [told.start("a", {"user": {"x": given}}) for given in (holds, fails)]
    assert [run.steps()["s"] for run in runs] == ["succeeded", "skipped"]


def test_steps_with_all_that_they_may_have() -> None:
    document = automation(
        {
            "id": "call",
            "name": "Call them",
            "type": "webhook",
            "config": {"url": "https://x.example"},
            "timeout": 30,
            "max_retries": 2,
            "retry_delay": 5,
            "on_error": "continue",
        },
        {"id": "both", "type": "parallel", "branches": {"a": [{"id": "x", **LOG}], "b": [{"id": "y", **LOG}]}},
        {"id": "more", "type": "parallel", "config": {"branches": [[{"id": "z", **LOG}]]}},
    )
    call, both, more = to_native(document)["steps"]
    assert call == {
        "id": "call",
        "description": "Call them",
        "action": "webhook",
        "with": {"url": "https://x.example"},
        "timeout": 30,
        "retry": {"max_attempts": 3, "initial": 5},
        "on_error": "continue",
    }
    assert [*both["parallel"]["branches"]] == ["a", "b"]
    assert [*more["parallel"]["branches"]] == ["branch_1"]
    compile_document(document, actions=ACTIONS)


def test_actions_of_a_rule_are_run_in_order_each_under_its_conditions() -> None:
    asked = {"field": "n", "operator": "gt", "value": 5}
    document = rule(
        {"type": "log", "message": "{{n}}"}, {"name": "large", "conditions": [asked], **LOG}, conditions=None
    )
    told = Story(document, actions=ACTIONS)
    told.event("x", {"n": 3})
    told.event("x", {"n": 9})
    assert [(did.step, did.params["message"]) for did in told.done] == [
        ("action_1", 3),
        ("action_1", 9),
        ("large", "m"),
    ]


def test_a_rule_may_ask_in_json_logic() -> None:
    logic = {"and": [{">": [{"var": "total"}, 100]}, {"some": [{"var": "lines"}, {"==": [{"var": "sku"}, "A"]}]}]}
    told = Story(rule(LOG, conditions=logic))
    assert told.event("x", {"total": 200, "lines": [{"sku": "B"}]}) == []
    assert len(told.event("x", {"total": 200, "lines": [{"sku": "A"}]})) == 1


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (automation(trigger_type="webhook"), ("trigger_type", "unknown type of trigger 'webhook'")),
        (automation(trigger_type="event"), ("trigger_config", "no type of event")),
        (automation(trigger_type="schedule"), ("trigger_config", "no schedule")),
        (automation(trigger_config={"event_type": "x"}), ("trigger_config.event_type", "unknown key 'event_type'")),
        (automation(trigger_type="schedule", trigger_config={"cron": "often"}), ("trigger_config.cron", "")),
        (
            automation({"id": "s", "type": "condition", "config": {}}),
            ("steps[0].type", "a step that only asks can't be translated"),
        ),
        (automation({"id": "s", **LOG}, {"id": "s", **LOG}), ("steps[1].id", "'s' appears twice")),
        (automation({"type": "log", "config": {}}), ("steps[0]", "a step without an id")),
        (automation({"id": "p", "type": "parallel", "config": {}}), ("steps[0].config.branches", "no branches")),
        (automation({"id": "s", "on_error": "panic", **LOG}), ("steps[0].on_error", "unknown wish 'panic'")),
        (automation({"id": "s", "max_retries": "x", **LOG}), ("steps[0].max_retries", "no number: 'x'")),
        (automation({"id": "s", "depends_on": ["x"], **LOG}), ("steps[0].depends_on", "unknown key 'depends_on'")),
        (
            automation({"id": "s", "conditions": [{"field": "x", "operator": "sounds_like", "value": 1}], **LOG}),
            ("steps[0].conditions[0].operator", "unknown operator 'sounds_like'"),
        ),
        (
            rule(LOG, conditions=[{"type": "moon_phase", "field": "x", "operator": "eq", "value": 1}]),
            ("conditions[0].type", "unknown type 'moon_phase'"),
        ),
        (rule(LOG, conditions=[{"operator": "eq", "value": 1}]), ("conditions[0].field", "no field")),
        (rule(LOG, conditions=[{"field": "x", "operator": "eq"}]), ("conditions[0]", "eq wants a value")),
        (rule(LOG, conditions=["x > 5"]), ("conditions[0]", "not a condition: 'x > 5'")),
        (rule(LOG, trigger=None), ("trigger_type", "unknown type of trigger None")),
        (rule(), ("actions", "no actions")),
        (rule({"to": "x"}), ("actions[0]", "not an action")),
    ],
)
def test_automations_and_rules_that_can_not_be_translated(document: Any, expected: tuple[str, str]) -> None:
    assert any(key == expected[0] and message.startswith(expected[1]) for key, message in refused(document))


# --- JSON Logic rules ------------------------------------------------------------------------------------------------


def logic(rule_: Any, **more: Any) -> dict[str, Any]:
    return {"name": "j", "jsonLogic": {"event": "x", "rule": rule_, **more}}


def act(message: str) -> dict[str, Any]:
    return {"action": "log", "actionDetails": {"message": message}}


@pytest.mark.parametrize(
    ("given", "data", "expected"),
    [
        (act("a"), {}, ["a"]),
        ({"action": "log", "message": "beside"}, {}, ["beside"]),
        ({"and": [act("a"), {"delay": {"hours": 1, "type": "fixed"}}, act("b")]}, {}, ["a", "b"]),
        ({"if": [{"n": 1}, act("a"), {"n": 2}, act("b"), act("c")]}, {"n": 2}, ["b"]),
        ({"if": [{"n": 1}, act("a"), {"n": 2}, act("b"), act("c")]}, {"n": 3}, ["c"]),
        ({"if": [{"n": 1}, act("a"), {"always": False}]}, {"n": 3}, []),
        ({"if": [{"n": {"!": {"in": [1, 2]}}}, act("a")]}, {"n": 3}, ["a"]),
        ({"if": [{"n": {">": 2}}, act("a")]}, {"n": 3}, ["a"]),
        ({"if": [{"==": [{"var": "user.n"}, 3]}, act("a")]}, {"user": {"n": 3}}, ["a"]),
        ({"if": [{"always": True}, act("a")]}, {}, ["a"]),
        ({"and": [{"n": 3}, act("a"), act("b")]}, {"n": 3}, ["a", "b"]),
        ({"and": [{"n": 3}, act("a"), act("b")]}, {"n": 4}, []),
        ({"and": [{"trigger": "t", "event": "x", "execute": True}, act("a")]}, {}, ["a"]),
        ({"and": [act("a"), {"end": True}, act("b")]}, {}, ["a"]),
        ({"parallel": {"trigger": act("a"), "branches": [act("b"), act("c")]}}, {}, ["a", "b", "c"]),
    ],
)
def test_what_a_rule_does(given: Any, data: Any, expected: list[str]) -> None:
    if given == {"and": [act("a"), {"end": True}, act("b")]}:
        assert ("jsonLogic.rule.and[2]", "nothing leads to 'log_2'") in refused(logic(given))
        return
    told = Story(logic(given), actions=ACTIONS)
    told.event("x", data)
    told.wait("1d")
    assert told.status == "succeeded"
    assert [did.params["message"] for did in told.done] == expected


def test_a_rule_without_an_event_is_started_by_its_name() -> None:
    native = to_native({"name": "j", "rule": act("a")})
    assert native["trigger"] == "manual"
    assert to_native(logic(act("a"), execute=False))["enabled"] is False


def test_a_shared_flow_is_a_call() -> None:
    (found,) = to_native(logic({"sharedFlow": {"name": "Welcome Flow", "description": "d", "execute": True}}))["steps"]
    assert found == {"id": "Welcome_Flow", "workflow": {"name": "Welcome Flow", "input": "{{ input }}"}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"random_split": {"branches": []}}, ("jsonLogic.rule", "'random_split' does nothing here")),
        ({"delay": {"type": "random", "min_hours": 1}}, ("jsonLogic.rule.delay.type", "a delay of a random length")),
        ({"if": [{"n": 1}]}, ("jsonLogic.rule.if", "not a choice")),
        ({"and": [act("a"), {"n": 3}]}, ("jsonLogic.rule.and[1]", "a condition with nothing behind it")),
        ({"if": [{"==": 1, "!=": 2}, act("a")]}, ("jsonLogic.rule.if[0]", "not a condition")),
        ({"parallel": {"branches": []}}, ("jsonLogic.rule.parallel", "no branches")),
        ({"action": "log", "delay": 5}, ("jsonLogic.rule.delay", "unknown key 'delay'")),
        ({"always": True}, ("jsonLogic.rule", "the rule does nothing")),
        (None, ("jsonLogic.rule", "nothing to do: None")),
    ],
)
def test_rules_that_can_not_be_translated(given: Any, expected: tuple[str, str]) -> None:
    assert any(key == expected[0] and message.startswith(expected[1]) for key, message in refused(logic(given)))


def test_rules_within_rules_have_a_bound() -> None:
    given: Any = act("a")
    for _ in range(400):
        given = {"if": [{"n": 1}, given]}
    ((key, message),) = refused(logic(given))
    assert message == "nested deeper than 32 levels"
    assert key.startswith("jsonLogic.rule.if[1].if[1]")


# --- form workflows --------------------------------------------------------------------------------------------------


def test_a_human_task_comes_behind_its_actions() -> None:
    form = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}}
    ask = {
        "id": "ask",
        "name": "May {name} go?",
        "type": "human_task",
        "description": "Says {data.why}",
        "group": "bosses",
        "form": form,
        "actions": [{"type": "log", "config": {"message": "asked"}}],
        "transitions": [],
    }
    document = {"name": "f", "definition": {"trigger": {"type": "t"}, "initial_step_id": "ask", "steps": [ask]}}
    told = Story(document, actions=ACTIONS)
    told.event("t", {"name": "Ann", "why": "reasons"})
    (task,) = told.tasks
    assert (task.step, task.title, task.group, task.form) == ("ask_2", "May Ann go?", "bosses", form)
    assert [did.params for did in told.done] == [{"message": "asked"}]
    told.answer("ask_2", {"ok": True})
    assert told.status == "succeeded"


def test_a_long_form_workflow() -> None:
    def chain(length: int) -> dict[str, Any]:
        steps = [{"id": f"s{n}", "actions": [LOG], "transitions": [f"s{n + 1}"]} for n in range(length)]
        steps[-1]["transitions"] = []
        return {"name": "f", "definition": {"trigger": {"type": "t"}, "initial_step_id": "s0", "steps": steps}}

    assert len(compile_document(chain(999), actions=ACTIONS)[0].steps) == 999
    assert [key for key, _ in refused(chain(3000))] == ["definition.steps"]


def test_keys_that_a_form_workflow_does_not_have() -> None:
    steps = [{"id": "s", "type": "auto_action", "actions": [], "transitions": [], "retries": 3}]
    document = {
        "name": "f",
        "definition": {"trigger": {"type": "t", "when": 1}, "initial_step_id": "s", "steps": steps},
    }
    assert [key for key, _ in refused(document)] == ["definition.trigger.when", "definition.steps[0].retries"]
