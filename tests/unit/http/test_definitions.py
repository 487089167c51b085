"""Workflows over HTTP: what is told of them, and what a change of one has to say."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from appliance.errors import Conflict, DefinitionError, NotFound, Problem
from appliance.preconditions import NOTHING_SAID, Outdated, OwnedByFile, Precondition, Unseen
from tests.unit.http.fakes import STANDING, Fakes
from tests.unit.http.test_tasks import KEY

W = "/api/v1/workflows/w"
MADE = {"id": 7, "name": "w", "revision": 2, "enabled": True, "change": "change", "etag": "e2"}


@pytest.mark.parametrize("path", ["/workflows", "/api/v1/workflows"])
async def test_a_workflow_is_shown_with_what_a_change_of_it_wants(
    client: httpx.AsyncClient, fakes: Fakes, path: str
) -> None:
    fakes.history.items["a"] = {"name": "w", "etag": "e1", "file": None}
    response = await client.get(f"{path}/a", headers=KEY)
    assert response.json() == {"name": "w", "etag": "e1", "file": None, "warnings": ["w is odd"]}
    assert response.headers["etag"] == '"e1"'
    assert (await client.get(f"{path}/b", headers=KEY)).status_code == 404


@pytest.mark.parametrize("path", ["/workflows", "/api/v1/workflows"])
async def test_a_workflow_is_posted(client: httpx.AsyncClient, fakes: Fakes, path: str) -> None:
    document = {"name": "w", "steps": []}
    response = await client.post(path, json=document, headers=KEY)
    assert (response.status_code, response.json(), response.headers["etag"]) == (201, MADE, '"e2"')
    assert fakes.editor.calls == [("make", ("put", document, None), "api", NOTHING_SAID)]


async def test_put_says_whether_it_is_new(client: httpx.AsyncClient, fakes: Fakes) -> None:
    for kind, status in (("create", 201), ("change", 200), ("none", 200)):
        fakes.editor.kind = kind
        response = await client.put(W, json={"name": "w"}, headers=KEY)
        assert (response.status_code, response.json()["change"]) == (status, kind)
        assert fakes.editor.calls[-1][1] == ("put", {"name": "w"}, "w")


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({}, NOTHING_SAID),
        ({"If-Match": '"e1"'}, Precondition(frozenset({"e1"}))),
        ({"If-Match": '"e1" , "e2"'}, Precondition(frozenset({"e1", "e2"}))),
        ({"If-Match": '"e1", W/"e2"'}, Precondition(frozenset({"e1"}))),
        ({"If-Match": ' W/"e1"'}, Precondition(frozenset())),
        ({"If-Match": '"a,b", ,"c"'}, Precondition(frozenset({"a,b", "c"}))),
        ({"If-Match": "*"}, Precondition(frozenset({"*"}))),
        ({"If-None-Match": "*"}, Precondition(absent=True)),
    ],
)
async def test_what_was_seen_is_handed_on(
    client: httpx.AsyncClient, fakes: Fakes, headers: dict[str, str], condition: Precondition
) -> None:
    for path in ("/enable", "/disable", "/rollback"):
        assert (await client.post(W + path, headers={**KEY, **headers})).status_code == 200
        assert fakes.editor.calls[-1][-1] == condition
    await client.put(f"{W}?dry_run=true", json={"name": "w"}, headers={**KEY, **headers})
    assert fakes.editor.calls[-1] == ("plan", ("put", {"name": "w"}, "w"), condition)


@pytest.mark.parametrize(
    "headers",
    [
        {"If-Match": "e1"},
        {"If-Match": ""},
        {"If-Match": '"e1'},
        {"If-Match": '"*", *'},
        {"If-Match": '"e1" "e2"'},
        {"If-Match": '"e1""e2"'},
        {"If-Match": 'w/"e1"'},
        {"If-None-Match": '"e1"'},
    ],
)
async def test_what_is_no_etag(client: httpx.AsyncClient, fakes: Fakes, headers: dict[str, str]) -> None:
    response = await client.post(f"{W}/disable", headers={**KEY, **headers})
    assert (response.status_code, response.json()["type"]) == (400, "urn:appliance:problem:bad-request")
    assert fakes.editor.calls == []


async def test_lines_of_a_header_are_one_list(client: httpx.AsyncClient, fakes: Fakes) -> None:
    lines = [*KEY.items(), ("If-Match", '"e1"'), ("If-Match", '"e2"')]
    assert (await client.post(f"{W}/disable", headers=lines)).status_code == 200
    assert fakes.editor.calls[-1][-1] == Precondition(frozenset({"e1", "e2"}))


@pytest.mark.parametrize(
    ("seen", "status"), [('"e1"', 304), ('W/"e1"', 304), ('"e0", "e1"', 304), ("*", 304), ('"e2"', 200), ("e1", 400)]
)
async def test_who_has_it_already_is_told_so(client: httpx.AsyncClient, fakes: Fakes, seen: str, status: int) -> None:
    fakes.history.items["w"] = {"name": "w", "etag": "e1", "file": None}
    response = await client.get(W, headers={**KEY, "If-None-Match": seen})
    assert response.status_code == status
    if status == 304:
        assert (response.content, response.headers["etag"]) == (b"", '"e1"')
        assert "content-length" not in response.headers


async def test_what_is_created_says_where_it_is(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.editor.kind = "create"
    response = await client.post("/workflows", json={"name": "w"}, headers=KEY)
    assert (response.status_code, response.headers["location"]) == (201, W)


def test_weak_etags_are_no_sign_of_another_change() -> None:
    with pytest.raises(Outdated, match="a weak ETag"):
        Precondition(frozenset()).check(STANDING, changes=True, required=True)
    with pytest.raises(Outdated, match="somebody changed it since"):
        Precondition(frozenset({"e1"})).check(STANDING, changes=True, required=True)


async def test_a_dry_run_tells_what_would_happen(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.post("/api/v1/workflows?dry_run=true", json={"name": "w"}, headers=KEY)
    touched = {"revision": 1, "status": "waiting", "at": ["ask"], "runs": 3, "example": "r"}
    assert (response.status_code, response.json()) == (
        200,
        {
            "name": "w",
            "change": "change",
            "revision": 2,
            "becomes": None,
            "enabled": True,
            "etag": "e2",
            "diff": "-a\n+b\n",
            "warnings": ["odd"],
            "missing": ["gone"],
            "follows": True,
            "touches": [{**touched, "gaps": ["there is no step ask"]}],
            "more": False,
        },
    )
    assert [call[0] for call in fakes.editor.calls] == ["plan"]
    assert fakes.impact.asked == [("w", "the new one")]
    assert (await client.post(f"{W}/enable?dry_run=yes", headers=KEY)).status_code == 422


async def test_whom_disabling_touches(client: httpx.AsyncClient, fakes: Fakes) -> None:
    fakes.editor.kind = "disable"
    response = await client.post(f"{W}/disable?dry_run=true", headers=KEY)
    assert ([each["runs"] for each in response.json()["touches"]], fakes.impact.asked) == ([3], [("w", None)])


@pytest.mark.parametrize("kind", ["create", "none", "enable"])
async def test_what_changes_no_definition_touches_no_run(client: httpx.AsyncClient, fakes: Fakes, kind: str) -> None:
    fakes.editor.kind = kind
    response = await client.put(f"{W}?dry_run=true", json={"name": "w"}, headers=KEY)
    assert (response.json()["change"], response.json()["touches"], fakes.impact.asked) == (kind, [], [])


@pytest.mark.parametrize(
    ("path", "body", "change"),
    [
        ("/enable", None, ("switch", "w", True)),
        ("/disable", None, ("switch", "w", False)),
        ("/rollback", None, ("rollback", "w", None)),
        ("/rollback", {}, ("rollback", "w", None)),
        ("/rollback", {"revision": 3}, ("rollback", "w", 3)),
    ],
)
async def test_other_changes(
    client: httpx.AsyncClient, fakes: Fakes, path: str, body: Any, change: tuple[Any, ...]
) -> None:
    response = (
        await client.post(W + path, json=body, headers=KEY)
        if body is not None
        else await client.post(W + path, headers=KEY)
    )
    assert (response.status_code, response.json()) == (200, MADE)
    assert fakes.editor.calls == [("make", change, "api", NOTHING_SAID)]
    assert (await client.get(W + path, headers=KEY)).status_code in (404, 405)


@pytest.mark.parametrize(
    "body", [{"revision": "3"}, {"revision": True}, {"revision": 0}, {"revision": 2**31}, {"to": 3}]
)
async def test_what_is_no_revision(client: httpx.AsyncClient, fakes: Fakes, body: Any) -> None:
    assert (await client.post(f"{W}/rollback", json=body, headers=KEY)).status_code == 422
    assert fakes.editor.calls == []


@pytest.mark.parametrize(
    ("refusal", "status", "code", "members"),
    [
        (OwnedByFile("w", "sub/w.yaml"), 409, "conflict", {"file": "workflows/sub/w.yaml"}),
        (Conflict("no"), 409, "conflict", {}),
        (Unseen("say what", STANDING), 428, "precondition-required", {"etag": "e2", "revision": 2}),
        (Outdated("late", STANDING), 412, "precondition-failed", {"etag": "e2", "revision": 2}),
        (Outdated("gone", None), 412, "precondition-failed", {"etag": None, "revision": None}),
        (NotFound("no w"), 404, "not-found", {}),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient, fakes: Fakes, refusal: Exception, status: int, code: str, members: dict[str, Any]
) -> None:
    fakes.editor.refusal = refusal
    for query in ("", "?dry_run=true"):
        response = await client.put(W + query, json={"name": "w"}, headers=KEY)
        assert (response.status_code, response.json()["type"]) == (status, f"urn:appliance:problem:{code}")
        assert {name: response.json().get(name) for name in members} == members
        assert response.headers.get("etag") == ('"e2"' if members.get("etag") else None)


async def test_a_wrong_definition_is_answered_with_every_problem(client: httpx.AsyncClient, fakes: Fakes) -> None:
    problems = [Problem("unknown key", key="steps[0].wiht", expected="with"), Problem("no trigger", line=3)]
    fakes.editor.refusal = DefinitionError(*problems)
    response = await client.post("/workflows", json={"name": "w"}, headers=KEY)
    assert (response.status_code, response.json()["type"]) == (422, "urn:appliance:problem:definition")
    assert response.json()["problems"] == [
        {"message": "unknown key", "key": "steps[0].wiht", "expected": "with"},
        {"message": "no trigger", "line": 3},
    ]
    assert (await client.put(W, json=[], headers=KEY)).status_code == 422
    assert (await client.put(W, content="name: w", headers={**KEY, "Content-Type": "text/yaml"})).status_code == 415


async def test_a_revision_is_shown(client: httpx.AsyncClient, fakes: Fakes) -> None:
    shown = {"name": "w", "revision": 2, "digest": "d", "created_at": "2030-01-31T00:00:00.000Z", "in_force": True}
    response = await client.get(f"{W}/revisions/2", headers=KEY)
    assert (response.status_code, response.json()) == (200, {**shown, "definition": {"name": "w"}})
    assert fakes.editor.calls == [("revision", "w", 2)]
    for number in ("x", "0", "-1", "%C2%B2", str(2**31)):
        assert (await client.get(f"{W}/revisions/{number}", headers=KEY)).status_code == 422, number


async def test_two_revisions_are_compared(client: httpx.AsyncClient, fakes: Fakes) -> None:
    response = await client.get(f"{W}/diff?from=1&to=2", headers=KEY)
    assert (response.status_code, response.text) == (200, "-a\n+b\n")
    assert response.headers["content-type"] == "text/x-diff; charset=utf-8"
    await client.get(f"{W}/diff?from=1", headers=KEY)
    assert fakes.editor.calls == [("difference", "w", 1, 2), ("difference", "w", 1, None)]
    for query in ("", "?to=1", "?from=x", "?from=1&to=0"):
        assert (await client.get(f"{W}/diff{query}", headers=KEY)).status_code == 422, query
