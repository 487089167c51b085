"""YAML that reads back as what it was made of, whatever that is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.workflows.compile import compile_workflow
from appliance.workflows.loader import definition_files, parse_document, read_document
from appliance.workflows.writing import to_yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "workflows.md").read_text("utf-8")
FILES = [read_document(path).data for path in definition_files(ROOT / "config" / "workflows")]
SHOWN = [
    parse_document(text.encode()).data for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
]
TEXTS = (
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
    | st.text("ab \n:-#{}[],'\"|>&*!%@`~?1.e\t", max_size=30)
    | st.sampled_from(
        ["yes", "on", "1e3", "0x1f", "1_000", "12:30", "2030-01-01", "~", "null", "=", "<<", "10m", ".5", "-", "---"]
    )
)
KEYS = TEXTS | st.text("k", min_size=90, max_size=1100)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


def canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=6))
def test_reading_gives_what_was_written(data: dict[str, Any]) -> None:
    written = to_yaml(data)
    assert canonical(parse_document(written.encode()).data) == canonical(data)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", written), "terminals act on it"


@pytest.mark.parametrize("definition", [*FILES, *SHOWN], ids=lambda definition: definition["name"])
def test_a_definition_stays_the_same_revision(definition: dict[str, Any]) -> None:
    again = parse_document(to_yaml(definition).encode()).data
    assert compile_workflow(again, actions=None).digest == compile_workflow(definition, actions=None).digest


def test_it_looks_as_people_write_it() -> None:
    stored = {
        "steps": [
            {
                "with": {"to": "{{ event.data.email }}", "body": "Hello,\n\nbye\n", "count": 1.5},
                "action": "send_email",
                "id": "a",
                "retry": {"max": "10m"},
            },
            {"choose": [{"next": "end", "when": {"value": "on", "op": "==", "path": "data.x"}}], "id": "b"},
            {"delay": "10m", "id": "c", "description": "a: b"},
        ],
        "states": {"s": {"on": {"GO": {"next": "t"}}}},
        "trigger": {"when": [], "event": "x.y"},
        "name": "w",
    }
    assert to_yaml(stored) == (
        "name: w\n"
        "trigger: {event: x.y, when: []}\n"
        "states:\n"
        "  s:\n"
        "    on:\n"
        "      GO: {next: t}\n"
        "steps:\n"
        "  - id: a\n"
        "    action: send_email\n"
        "    with:\n"
        '      to: "{{ event.data.email }}"\n'
        "      body: |\n"
        "        Hello,\n"
        "\n"
        "        bye\n"
        "      count: 1.5\n"
        "    retry: {max: 10m}\n"
        "  - id: b\n"
        "    choose:\n"
        '      - when: {path: data.x, op: "==", value: "on"}\n'
        "        next: end\n"
        '  - {id: c, description: "a: b", delay: 10m}\n'
    )
