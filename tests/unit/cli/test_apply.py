"""Definitions in files against what is in force: apply, diff, and the commands about workflows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.client import Answer
from appliance.cli.exits import Exit
from tests.unit.cli.double import Invoke, Server

TRY = ("POST", "/api/v1/workflows?dry_run=true")
PUT = ("POST", "/api/v1/workflows")
GROUP = {"revision": 3, "status": "waiting", "at": ["ask"], "runs": 12, "example": "r-1", "gaps": []}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPLIANCE_URL", "http://localhost:1")


def plan(name: str, change: str = "change", **more: Any) -> Answer:
    told = {"name": name, "change": change, "revision": 4, "becomes": None, "enabled": True, "etag": f"e-{name}"}
    if change == "create":
        told |= {"revision": None, "etag": None}
    told |= {"diff": "", "warnings": [], "missing": [], "touches": [], "more": False}
    return Answer(200, {**told, **more})


def made(revision: int = 5) -> Answer:
    return Answer(201, {"revision": revision})


def refusal(status: int, detail: str, **more: Any) -> Answer:
    return Answer(status, {"title": "No", "detail": detail, **more})


def files(**texts: str) -> None:
    Path("flows").mkdir(exist_ok=True)
    for name, text in texts.items():
        Path(f"flows/{name}.yaml").write_text(text)


def test_what_differs_is_sent_with_the_etag_it_was_compared_with(server: Server, invoke: Invoke) -> None:
    files(a="name: a", b="name: b\n", c="{name: c}", sub="rules: [{name: d}, {name: e}]")
    touches = [GROUP, {**GROUP, "runs": 1, "at": [], "gaps": ["step 'ask' is gone", "no"]}]
    server.answers = [
        plan("a", "create", warnings=["triggers itself: a"], missing=["b", "gone"]),
        plan("b", touches=touches),
        plan("c", "none", becomes=4),
        plan("d", "enable", becomes=4),
        plan("e", "disable", becomes=4),
        *(made() for _ in range(4)),
    ]
    code, out, err = invoke("apply", "flows")
    assert (code, err) == (Exit.OK, "")
    assert [asked for asked in server.asked if asked[:2] == TRY] == [(*TRY, {"name": name}) for name in "abcde"]
    # a calls b, which isn't there yet
    assert server.asked[5:] == [(*PUT, {"name": name}) for name in "bade"]
    assert [dict(headers) for headers in server.headers[5:]] == [
        {"If-Match": '"e-b"'},
        {"If-None-Match": "*"},
        {"If-Match": '"e-d"'},
        {"If-Match": '"e-e"'},
    ]
    assert out.splitlines() == [
        "WORKFLOW  RESULT     REVISION  RUNS  FILE",
        "a         created           5        flows/a.yaml",
        "b         changed           5    13  flows/b.yaml",
        "c         unchanged         4        flows/c.yaml",
        "d         enabled           5        flows/sub.yaml",
        "e         disabled          5        flows/sub.yaml",
        "a: warning: triggers itself: a",
        "a: warning: it calls 'gone', which is not there",
        "b: parked runs stay on their revisions; `appliance runs migrate` moves them",
        "b: 12 runs of revision 3, waiting at ask, as r-1",
        "b: 1 run of revision 3, waiting, as r-1; can't go on in the new definition: step 'ask' is gone; no",
    ]


def test_a_dry_run_sends_nothing(server: Server, invoke: Invoke) -> None:
    files(a="name: a", b="name: b")
    server.answers = [plan("a", "create"), plan("b", touches=[GROUP], more=True, follows=True)]
    code, out, _ = invoke("apply", "--dry-run", "flows/a.yaml", "flows")
    assert code == Exit.OK
    assert [asked[:2] for asked in server.asked] == [TRY, TRY]
    assert out.splitlines()[1:] == [
        "a         to create  new             flows/a.yaml",
        "b         to change  new       12+   flows/b.yaml",
        "b: parked runs go on in the new definition once they are woken, where they can (revisions: follow)",
        "b: 12 runs of revision 3, waiting at ask, as r-1",
        "b: and further runs",
    ]


def test_one_that_is_refused_keeps_all_from_being_changed(server: Server, invoke: Invoke) -> None:
    files(a="name: a", b="rules:\n  - name: b\n    stps: []\n", c="name: c", d="name: a")
    problems = [{"message": "unknown key 'stps'", "key": "stps", "expected": "steps"}, {"message": "no trigger"}]
    server.answers = [
        plan("a"),
        refusal(422, "x", problems=problems),
        refusal(
            409, "the workflow 'c' is defined by the file workflows/c.yaml: change it there", file="workflows/c.yaml"
        ),
        plan("a"),
    ]
    code, out, err = invoke("apply", "flows", "--prune")
    assert code == Exit.CONFIGURATION
    assert [asked[:2] for asked in server.asked] == [TRY] * 4
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["a", "to"],
        ["b", "refused"],
        ["c", "refused"],
        ["a", "refused"],
    ]
    assert err.splitlines() == [
        "error: flows/b.yaml:3:5: rules[0].stps: unknown key 'stps' (expected steps)",
        "error: flows/b.yaml:2:5: rules[0]: no trigger",
        "error: flows/c.yaml: the workflow 'c' is defined by the file workflows/c.yaml: change it there",
        "error: flows/d.yaml:1:1: name: 'a' is already defined in flows/a.yaml (expected a name of its own)",
        "error: nothing was changed",
    ]


def test_a_file_that_is_none_is_named_before_anything_is_asked(server: Server, invoke: Invoke) -> None:
    files(a="name: a", b="{")
    code, out, err = invoke("apply", "flows", "nowhere.yaml")
    assert (code, out, server.asked) == (Exit.CONFIGURATION, "", [])
    assert "flows/b.yaml:1:2: not YAML" in err
    assert "nowhere.yaml: can't be read: No such file or directory" in err


def test_it_ends_where_somebody_else_was_faster(server: Server, invoke: Invoke) -> None:
    files(a="name: a", b="name: b", c="name: c")
    late = refusal(412, "somebody changed it since: revision 6 is in force", etag="x", revision=6)
    server.answers = [*map(plan, "abc"), made(), late]
    code, out, err = invoke("apply", "flows", "--json")
    assert code == Exit.NOT_FOUND
    assert [(item["name"], item["change"], item["done"]) for item in json.loads(out)["items"]] == [
        ("a", "change", True),
        ("b", "refused", False),
        ("c", "change", False),
    ]
    assert err == "error: flows/b.yaml: somebody changed it since: revision 6 is in force\n"


def test_force_changes_whatever_is_there(server: Server, invoke: Invoke) -> None:
    files(a="name: a", b="name: b")
    server.answers = [plan("a", "create"), plan("b"), made(), made()]
    assert invoke("apply", "flows", "--force")[0] == Exit.OK
    assert [dict(headers) for headers in server.headers[2:]] == [{"If-None-Match": "*"}, {"If-Match": "*"}]


def test_prune_disables_what_no_file_defines(server: Server, invoke: Invoke) -> None:
    files(a="name: a")
    items = [{"name": "a", "file": None}, {"name": "b/c", "file": None}, {"name": "own", "file": "own.yaml"}]
    more = [{"name": "z", "file": None}]
    pages = [Answer(200, {"items": items, "next_cursor": "own"}), Answer(200, {"items": more, "next_cursor": None})]
    disabling = [plan("b/c", "disable", touches=[GROUP]), plan("z", "disable")]
    server.answers = [plan("a", "none", becomes=4), *pages, *disabling, made(), refusal(412, "too late")]
    code, out, err = invoke("apply", "flows", "--prune")
    assert (code, err) == (Exit.NOT_FOUND, "error: too late\n")
    assert server.asked[3:] == [
        ("POST", "/api/v1/workflows/b%2Fc/disable?dry_run=true", None),
        ("POST", "/api/v1/workflows/z/disable?dry_run=true", None),
        ("POST", "/api/v1/workflows/b%2Fc/disable", None),
        ("POST", "/api/v1/workflows/z/disable", None),
    ]
    assert server.headers[5] == {"If-Match": '"e-b/c"'}
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["a", "unchanged", "4"],
        ["b/c", "disabled", "12"],
        ["z", "to", "disable"],
        ["b/c:", "12", "runs"],
    ]


def test_nothing_to_apply_prunes_nothing(server: Server, invoke: Invoke) -> None:
    Path("flows").mkdir()
    for command in (("apply", "--prune"), ("diff",)):
        code, out, err = invoke(*command, "flows")
        assert (code, out, err) == (Exit.CONFIGURATION, "", "error: there is no definition in flows\n")
    Path("more").mkdir()
    Path("more/a.yaml").write_text("name: a")
    assert invoke("apply", "--prune", "more", "flows")[::2] == (5, "error: there is no definition in flows\n")
    assert server.asked == []


def test_any_other_failure_is_its_own(server: Server, invoke: Invoke) -> None:
    files(a="name: a")
    for status, code in ((401, Exit.DENIED), (503, Exit.UNAVAILABLE)):
        server.answers = [refusal(status, "no")]
        assert invoke("apply", "flows") == (code, "", "error: no\n")


def test_a_failure_on_the_way_does_not_hide_what_was_done(server: Server, invoke: Invoke) -> None:
    files(a="name: a", b="name: b")
    server.answers = [plan("a"), plan("b"), made(), refusal(503, "no")]
    code, out, err = invoke("apply", "flows")
    assert (code, err) == (Exit.UNAVAILABLE, "error: no\n")
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [["a", "changed", "5"], ["b", "to", "change"]]


# --- diff ------------------------------------------------------------------------------------------------------------


def test_diff_exits_like_diff(server: Server, invoke: Invoke) -> None:
    files(a="name: a", b="name: b")
    server.answers = [plan("a", "none"), plan("b", "none")]
    assert invoke("diff", "flows") == (Exit.OK, "", "")
    server.answers = [plan("a", diff="--- a\n+++ a\n@@ -1 +1 @@\n-x\n+\x1b\n"), plan("b", "enable")]
    code, out, err = invoke("diff", "flows")
    assert (code, err) == (1, "")
    assert out.splitlines() == ["--- a", "+++ a", "@@ -1 +1 @@", "-x", "+\\x1b", "b is disabled now"]
    server.answers = [plan("a"), refusal(409, "not yours")]
    code, _, err = invoke("diff", "flows", "--json")
    assert (code, err) == (Exit.NOT_FOUND, "error: flows/b.yaml: not yours\n")
    assert [asked[:2] for asked in server.asked] == [TRY] * 6


# --- workflows -------------------------------------------------------------------------------------------------------


def test_workflows_are_listed_and_shown(server: Server, invoke: Invoke) -> None:
    item = {"name": "a", "revision": 4, "enabled": True, "file": "a.yaml", "updated_at": "2030"}
    whole = {**item, "etag": "e", "definition": {"name": "a"}, "warnings": ["odd"]}
    whole["revisions"] = [{"revision": 5, "created_at": "2031"}, {"revision": 4, "created_at": "2030"}]
    old = {"name": "a", "revision": 2, "in_force": False, "created_at": "2029", "definition": {"name": "a"}}
    server.answers = [
        Answer(200, {"items": [item], "next_cursor": None}),
        *[Answer(200, x) for x in (whole, whole, old)],
    ]
    assert "a.yaml" in invoke("workflows", "list", "--all")[1]
    assert invoke("workflows", "show", "a")[1].splitlines()[-3:] == ["warning: odd", "", "name: a"]
    listed = invoke("workflows", "revisions", "a")[1].splitlines()
    assert [line.split() for line in listed[1:]] == [["5", "no", "2031"], ["4", "yes", "2030"]]
    assert "in_force" in invoke("workflows", "show", "a", "--revision", "2")[1]
    assert [path for _, path, _ in server.asked] == [
        "/api/v1/workflows?limit=100&all=true",
        "/api/v1/workflows/a",
        "/api/v1/workflows/a",
        "/api/v1/workflows/a/revisions/2",
    ]


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (("enable",), "enable", None),
        (("disable",), "disable", None),
        (("rollback",), "rollback", None),
        (("rollback", "--to", "3"), "rollback", {"revision": 3}),
    ],
)
def test_workflows_are_switched(
    server: Server, invoke: Invoke, arguments: tuple[str, ...], path: str, body: Any
) -> None:
    answer = {"name": "a b", "revision": 3, "enabled": False, "change": "rollback", "etag": "e"}
    server.answers = [Answer(200, answer), Answer(200, {**answer, "change": "none"}), refusal(409, "a file's")]
    command = ("workflows", *arguments, "a b")
    assert invoke(*command) == (Exit.OK, "a b: revision 3 is in force, not enabled\n", "")
    assert invoke(*command)[1] == "a b: revision 3 is in force already, not enabled\n"
    assert invoke(*command) == (Exit.NOT_FOUND, "", "error: a file's\n")
    assert server.asked == [("POST", f"/api/v1/workflows/a%20b/{path}", body)] * 3


def test_a_switch_can_be_tried(server: Server, invoke: Invoke) -> None:
    answer = plan("a", "rollback", becomes=3, diff="-x\n+y\n", warnings=["odd"], missing=["b"], touches=[GROUP])
    server.answers = [answer, plan("a", "disable", becomes=4, enabled=False)]
    assert invoke("workflows", "rollback", "a", "--dry-run")[1].splitlines() == [
        "a: revision 3 would be in force instead of 4, enabled",
        "a: warning: odd",
        "a: warning: it calls 'b', which is not there",
        "a: parked runs stay on their revisions; `appliance runs migrate` moves them",
        "a: 12 runs of revision 3, waiting at ask, as r-1",
        "-x",
        "+y",
    ]
    assert invoke("workflows", "disable", "a", "--dry-run")[1] == "a: revision 4 would stay in force, not enabled\n"
    assert [path for _, path, _ in server.asked] == [
        "/api/v1/workflows/a/rollback?dry_run=true",
        "/api/v1/workflows/a/disable?dry_run=true",
    ]
