"""Files to data: positions, and everything that YAML has and JSON hasn't."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DefinitionError
from appliance.workflows.loader import definition_files, parse_document, read_document

TEXT = b"""\
# a comment
name: contact
trigger:
  event: [a, b]
  "when":
  - {path: x, op: "=="}
on: no
date: 2030-01-31
"""


def test_data_and_positions() -> None:
    document = parse_document(TEXT, file="f.yaml")
    assert document.data == {
        "name": "contact",
        "trigger": {"event": ["a", "b"], "when": [{"path": "x", "op": "=="}]},
        "on": "no",
        "date": "2030-01-31",
    }
    assert document.lines["name"] == (2, 1)
    assert document.lines["trigger.event[1]"] == (4, 14)
    assert document.lines["trigger.when"] == (5, 3)
    assert document.lines["trigger.when[0].op"] == (6, 15)


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
data = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, printable, st.sampled_from(["é€", "\n", "on", "<<"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.: ", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(data)
def test_json_is_read_as_json(value: Any) -> None:
    raw = orjson.dumps(value)
    assert parse_document(raw).data == orjson.loads(raw)


def test_merge_keys() -> None:
    text = b"base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\n"
    assert parse_document(text).data["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (b"a: 1\na: 2\n", "f:2:1: a", "appears twice"),
        (b"a: {b: 1, c: 2, b: 3}\n", "f:1:17: a.b", "appears twice"),
        (b"a: 1\n\tb: 2\n", "f:2:1", "not YAML"),
        (b"a: [1, 2\nb: 3\n", "f:2:2", "not YAML"),
        (b"a: 1\n---\nb: 2\n", "f:2:1", "not YAML"),
        (b"a: *nowhere\n", "f:1:4", "not YAML"),
        (b"a: .nan\n", "f:1:4: a", "NaN"),
        (b"a: 99999999999999999999\n", "f:1:4: a", "too large"),
        (b'a: "x\\0y"\n', "f:1:4: a", "NUL"),
        (b"a: !!python/object:os.system x\n", "f:1:4: a", "the tag python/object:os.system"),
        (b"a: !custom x\n", "f:1:4: a", "the tag !custom"),
        (b"a: !!binary aGk=\n", "f:1:4: a", "the tag binary"),
        (b"? [1]\n: 2\n", "f:1:3", "a key must be a text"),
        (b"a: 1\nb: \xff\n", "f:2", "not UTF-8"),
        (b"a: \x07\n", "f", "not YAML"),
        (b"# nothing\n", "f", "empty"),
        (b"a: {<<: 1}\n", "f:1:9: a", "<< wants an object"),
        (b"x" * 1_048_577, "f", "larger than"),
    ],
)
def test_what_is_refused(text: bytes, place: str, words: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_document(text, file="f")
    [problem] = refused.value.problems
    assert str(problem).startswith(place + ": ")
    assert words in str(problem)


def test_aliases_do_not_explode() -> None:
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)]
    started = time.process_time()
    with pytest.raises(DefinitionError, match="aliases are expanded"):
        parse_document(b"\n".join(lines))
    assert time.process_time() - started < 5


@pytest.mark.parametrize("text", [b"[" * 50_000, b"a: &a [*a]\n", b"{a: " * 200 + b"1" + b"}" * 200])
def test_depth_is_bounded(text: bytes) -> None:
    with pytest.raises(DefinitionError):
        parse_document(text)


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json", "d.txt", "_draft.yaml", ".hidden.yaml", "team/e.yaml", ".git/f.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a: 1")
    found = [path.relative_to(tmp_path).as_posix() for path in definition_files(tmp_path)]
    assert found == ["a.yml", "b.yaml", "c.json", "team/e.yaml"]
    assert list(definition_files(tmp_path / "nowhere")) == []
    with pytest.raises(DefinitionError, match="can't be read"):
        read_document(tmp_path / "nowhere.yaml")
