"""Templates: what renders to what, what is refused, and that no template takes more than its bounds."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DefinitionError
from appliance.templating import TemplateError, compile_template

CONTEXT = {
    "event": {
        "type": "order.paid",
        "data": {
            "email": "a@example.org",
            "items": [{"sku": "x", "price": 2}, {"sku": "y", "price": 3}],
            "amount": 3,
            "note": None,
            "paid": True,
            "values": {"keys": "k"},
            "text": "x" * 100_000,
            "list": list(range(5_000)),
        },
    },
    "steps": {"fetch": {"output": {"rows": [1, 2]}, "status": "succeeded", "error": None}},
    "run": {"id": "r1"},
    "secrets": {"token": "s3cret"},
}


def render(value: Any) -> Any:
    return compile_template(value, key="with").render(CONTEXT)


literals = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)).filter(
        lambda value: not isinstance(value, str) or not any(brace in value for brace in ("{{", "{%", "{#"))
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@given(literals)
def test_what_has_no_expression_is_itself(value: Any) -> None:
    template = compile_template(value, key="with")
    assert template.is_literal
    assert template.render({}) is value
    assert template.names == frozenset()


@given(literals, literals)
def test_an_expression_among_literals_changes_nothing_else(before: Any, seen: Any) -> None:
    value = {"a": before, "b": [before, "{{ event.x }}"], "c": {"d": "<{{ event.y }}>"}}
    rendered = compile_template(value, key="with").render({"event": {"x": seen, "y": "z"}})
    assert rendered == {"a": before, "b": [before, seen], "c": {"d": "<z>"}}


@given(st.text(max_size=40))
def test_text_from_an_event_is_never_evaluated(text: str) -> None:
    context = {"event": {"x": text + "{{ 1 + 1 }}"}}
    assert compile_template("a{{ event.x }}", key="k").render(context) == f"a{text}{{{{ 1 + 1 }}}}"


@given(st.text("{}%# abe.v1+*'|()-", max_size=30))
def test_any_source_renders_or_is_refused(source: str) -> None:
    complaint = "k: "
    try:
        compile_template(source, key="k").render({"event": {"a": 1, "b": "v"}, "steps": {}, "run": {}, "secrets": {}})
    except (DefinitionError, TemplateError) as refused:
        complaint = str(refused)
    assert complaint.startswith("k: ")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ event.data.amount }}", 3),
        ("{{ event.data.amount + 1.5 }}", 4.5),
        ("{{ event.data.items }}", CONTEXT["event"]["data"]["items"]),  # type: ignore[index]
        ("{{ event.data.values.keys }}", "k"),
        ("{{ event.data.note }}", None),
        ("{{ event.data.paid }}", True),
        ("{{ event.data.items|map(attribute='sku')|list }}", ["x", "y"]),
        ("{{ event.data.items|map(attribute='sku') }}", ["x", "y"]),
        ("{{ {'n': event.data.amount, 'l': (1, 2)} }}", {"n": 3, "l": [1, 2]}),
        ("{{ event.data.gone.further|default('none') }}", "none"),
        ("{{ event.data.gone is defined }}", False),
        ("{{ steps.fetch.output.rows[-1] }}", 2),
        ("{{ steps['fetch'].status }}", "succeeded"),
        ("{{ 'big' if event.data.amount > 2 else 'small' }}", "big"),
        ("{{ event.data.email.split('@')[1].upper() }}", "EXAMPLE.ORG"),
        (" {{ event.data.amount }}", " 3"),
        ("n={{ event.data.note }};p={{ event.data.paid }};v={{ event.data.values }}", 'n=;p=true;v={"keys":"k"}'),
        ("{% for i in event.data['items'] %}{{ loop.index }}{{ i.sku }} {% endfor %}", "1x 2y "),
        ("{% if event.data.paid %}yes{% else %}no{% endif %}", "yes"),
        ("{{ event.data.email ~ 1 ~ none ~ true }}", "a@example.org1true"),
        ("{{ event.data.items|sum(attribute='price') }}", 5),
        ("{{ event.data.values|tojson }}", '{"keys":"k"}'),
        ("{{ '<b>'|e }}", "&lt;b&gt;"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("Bearer {{ secrets.token }}", "Bearer s3cret"),
        ("{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 ** 10 }}", "311024"),
    ],
)
def test_values(source: str, expected: Any) -> None:
    result = render(source)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ event.data.gone }}", "no attribute 'gone'"),
        ("x{{ event.data.gone.further }}", "no attribute 'gone'"),
        ("{{ event.data.email.__class__ }}", "unsafe"),
        ("{{ event.data.email.format(1) }}", "unsafe"),
        ("{{ event.data['list'].append(1) }}", "unsafe"),
        ("{{ event.data.update({}) }}", "unsafe"),
        ("{{ event.data.email.upper }}", "not data"),
        ("{{ event.data.email - 1 }}", "wants numbers"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_what_can_not_be_rendered(source: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words) as failed:
        render({"to": [source]})
    assert failed.value.key == "with.to[0]"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ event.data", "unexpected end"),
        ("{{ evnt.data }}", "did you mean event"),
        ("{{ range(9) }}", "unknown name 'range'"),
        ("{{ cycler }}", "unknown name"),
        ("{{ 1|center(9) }}", "No filter named 'center'"),
        ("{{ 1|random }}", "No filter named"),
        ("{% set x = 1 %}", "assign is not available"),
        ("{% macro m() %}{% endmacro %}", "macro is not available"),
        ("{% include 'x' %}", "include is not available"),
        ("{% for x in event recursive %}{{ loop(x) }}{% endfor %}", "recursive"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "too complicated"),
        ("{{ " + "-" * 5000 + "1 }}", "too complicated"),
        ("{{ 1 }}" + "x" * 65_536, "longer than"),
    ],
)
def test_what_is_refused_when_a_workflow_is_loaded(source: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words) as refused:
        render({"a": 1, "b": {"c": source}})
    assert [problem.key for problem in refused.value.problems] == ["with.b.c"]


BOMBS = [
    "{{ 9**(9**9) }}",
    "{{ 9**9**9**9**9**9 }}",
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ event.data.text|replace('x', event.data.text) }}",
    "{{ event.data['list']|join(event.data.text) }}",
    "{{ event.data['list']|map('replace', '1', event.data.text)|list }}",
    "{% for a in event.data['list'] %}{% for b in event.data['list'] %}{{ a }}{% endfor %}{% endfor %}",
    "{% for a in event.data['list'] %}{{ event.data.text }}{% endfor %}",
    "{{ " + " ~ ".join(["event.data.text"] * 2000) + " }}",
    "{{ " + " + ".join(["event.data.text"] * 100) + " }}",
    "{{ event.data.text|urlencode|urlencode|urlencode|e }}" + "{{ event.data.text|e }}" * 2000,
    "{{ " + "*".join(["9" * 500] * 100) + " }}",
]


@pytest.mark.parametrize("source", BOMBS, ids=lambda source: source[:40])
def test_a_bomb_is_refused_in_bounded_time(source: str) -> None:
    started = time.process_time()
    with pytest.raises((TemplateError, DefinitionError)):
        render(source)
    assert time.process_time() - started < 1


def test_names_of_steps() -> None:
    template = compile_template(
        {"a": "{{ steps.one.output }}{{ steps['two'].output }}", "b": ["{{ steps.three }}", "{{ event.steps.four }}"]},
        key="with",
    )
    assert template.names == {"one", "two", "three"}


def test_rendering_is_independent_of_other_renderings() -> None:
    template = compile_template("{{ event.data.text }}{{ event.data.text }}", key="k")
    for _ in range(20):
        assert len(template.render(CONTEXT)) == 200_000
