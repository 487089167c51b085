"""Files of polling sources: what is refused, with its place, and what can be said of a query without its database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.errors import DefinitionError
from appliance.sources.definition import SourceError, compile_source, read_source
from appliance.sources.folder import SourceFolder, check_files
from appliance.sources.query import wrong_with

GOOD = """\
name: shop
postgresql: "{{ secrets.shop }}"
query: SELECT id, at FROM orders
cursor: at
key: id
event:
  type: order.placed
"""


def problems(text: str, folder: Path) -> list[str]:
    path = folder / "shop.yaml"
    path.write_text(text)
    with pytest.raises(DefinitionError) as refused:
        read_source(path)
    return [str(problem).removeprefix(f"{path}:") for problem in refused.value.problems]


def test_a_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    source = read_source(tmp_path / "a.yaml")
    assert (source.name, source.key, source.every_s, source.lag_s, source.batch) == ("shop", ("id",), 30, 60, 500)
    assert source.url({"shop": "postgresql://u:p@h/d"}) == "postgresql://u:p@h/d"
    with pytest.raises(SourceError, match="no such secret"):
        source.url({})
    with pytest.raises(SourceError, match="expected a URL") as refused:
        source.url({"shop": "host=h password=hunter2"})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("key: id", "kee: id", ["5:1: kee: unknown key 'kee'; did you mean key?", "1:1: key: key is missing"]),
        ("  type:", "  typ: x\n  type:", ["7:3: event.typ: unknown key 'typ'; did you mean type?"]),
        ("key: id", "key: [id, id]", ["5:1: key: a column appears twice"]),
        ("key: id", "key: id\nevery: 10ms", ["6:1: every: expected at least"]),
        ("key: id", "key: id\nevery: soon", ["6:1: every: expected a duration"]),
        ("key: id", "key: id\nbatch: 0", ["6:1: batch: expected at least 1"]),
        ("key: id", "key: id\nstart: then", ["6:1: start: expected 'now' or 'beginning'"]),
        ("key: id", "key: id\ntimezone: Mars", ["6:1: timezone: expected a name such as Europe/Berlin"]),
        ("order.placed", '"{{ event.type }}"', ["7:3: event.type: unknown name 'event'"]),
        ("order.placed", '"{{ row. }}"', ["7:3: event.type: not a template"]),
        ("secrets.shop", "env.SHOP", ["2:1: postgresql: unknown name 'env'"]),
        ('"{{ secrets.shop }}"', "mysql://h/d", ["2:1: postgresql: not a URL of PostgreSQL"]),
        ('"{{ secrets.shop }}"', "postgresql://u:hunter2@h/d", ["2:1: postgresql: a password doesn't belong"]),
        ('"{{ secrets.shop }}"', "postgresql://h/d?password=hunter2", ["2:1: postgresql: a password doesn't belong"]),
        ("FROM orders", "FROM orders LIMIT 5", ["3:1: query: LIMIT doesn't belong here: batch says"]),
        ("FROM orders", "FROM orders WHERE at > %(after)s", ["3:1: query: %(after)s has no place here"]),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, before: str, after: str, told: list[str]) -> None:
    assert before in GOOD
    found = problems(GOOD.replace(before, after), tmp_path)
    assert len(found) == len(told), found
    for text in told:
        assert any(problem.startswith(text) for problem in found), found
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize("document", [[], "text", None, {"event": 1}, {}])
def test_what_is_no_file_of_a_source(document: Any) -> None:
    with pytest.raises(DefinitionError):
        compile_source(document)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1",
        "select * from t -- limit; 5",
        "WITH x AS (SELECT * FROM t ORDER BY a LIMIT 5) SELECT * FROM x",
        "SELECT 'a;b' AS \"limit;\", E'it\\'s; (', $tag$ ; ) $tag$ FROM t /* ; ( */ WHERE a LIKE '50%(x'",
        "SELECT substring(a FROM 1 FOR 2), a$1 FROM t",
    ],
)
def test_queries_that_will_do(query: str) -> None:
    assert wrong_with(query) is None


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("DELETE FROM t", "must begin with SELECT"),
        ("", "must begin with SELECT"),
        ("SELECT 1; DROP TABLE t", "semicolon"),
        ("SELECT 1;", "semicolon"),
        ("SELECT 1) AS x, (SELECT 2", "not opened"),
        ("SELECT (1", "not closed"),
        ("SELECT a FROM t OFFSET 3", "OFFSET"),
        ("SELECT a FROM t FETCH FIRST 3 ROWS ONLY", "FETCH"),
        ("SELECT a FROM t FOR UPDATE", "FOR"),
        ("SELECT a INTO b FROM t", "INTO"),
        ("SELECT a FROM t WHERE b > $1", "$1 has no place"),
    ],
)
def test_queries_that_wont(query: str, why: str) -> None:
    assert why in (wrong_with(query) or "")


def test_a_name_belongs_to_one_file(tmp_path: Path) -> None:
    for name in ("a", "b", "_c"):
        (tmp_path / f"{name}.yaml").write_text(GOOD)
    folder = SourceFolder(tmp_path)
    assert folder.scan()
    assert not folder.scan()
    assert set(folder.sources) == {"shop"}
    assert "already the name of a.yaml" in str(folder.broken["b.yaml"])
    names, found = check_files([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert names == ["shop"]
    assert "already defined in" in str(found[0])
    (tmp_path / "a.yaml").unlink()
    assert folder.scan()
    assert (set(folder.sources), folder.broken) == ({"shop"}, {})
    (tmp_path / "b.yaml").write_text(GOOD + "x: 1\n")
    assert folder.scan()
    assert set(folder.sources) == {"shop"}, "what it held before stays in force"
    assert "unknown key 'x'" in str(folder.broken["b.yaml"])
