"""What people may do to runs, events and dead letters from the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from appliance.cli.client import Answer
from appliance.cli.exits import Exit
from tests.unit.cli.double import Invoke, Server

RUN = "/api/v1/runs/r1"


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (("runs", "pause", "r1"), f"{RUN}/pause", None),
        (("runs", "resume", "r1"), f"{RUN}/resume", None),
        (("runs", "cancel", "r1"), f"{RUN}/cancel", None),
        (("runs", "cancel", "r1", "--force"), f"{RUN}/cancel", {"force": True}),
        (("runs", "settle", "r1", "a[0]#2", "--as", "retry"), f"{RUN}/steps/a%5B0%5D%232/settle", {"as": "retry"}),
        (("runs", "settle", "r1", "a", "--as", "succeeded", "--output", "null"), f"{RUN}/steps/a/settle",
         {"as": "succeeded", "output": None}),
        (("runs", "settle", "r1", "a", "--as", "failed", "--error", "no"), f"{RUN}/steps/a/settle",
         {"as": "failed", "error": "no"}),
    ],
)  # fmt: skip
def test_a_run_is_stopped_and_moved_on(
    server: Server, invoke: Invoke, arguments: tuple[str, ...], path: str, body: Any
) -> None:
    server.answers = [Answer(202, {"id": "r1", "status": "paused"})]
    assert invoke(*arguments) == (0, "id      r1\nstatus  paused\n", "")
    assert server.asked == [("POST", path, body)]


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ((), {"revision": "same"}),
        (("--from", "send", "--current"), {"revision": "current", "from": "send"}),
    ],
)
def test_a_rerun_tells_the_new_runs_id(
    server: Server, invoke: Invoke, options: tuple[str, ...], body: dict[str, str]
) -> None:
    server.answers = [Answer(202, {"id": "r1", "run": "r2", "revision": 3})]
    assert invoke("runs", "rerun", "r1", *options) == (0, "id        r2\nrevision  3\n", "")
    assert server.asked == [("POST", f"{RUN}/rerun", body)]


def test_an_event_is_sent_to_a_run(server: Server, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('{"n": 1}')
    server.answers = [Answer(202, {"id": "7", "uid": "u", "status": "accepted"})]
    code, out, _ = invoke("events", "send", "r1", "paid", "m=2", "--data", f"@{tmp_path}/d.json", "--id", "7")
    assert (code, out) == (0, "id      7\nstatus  accepted\n")
    assert server.asked == [("POST", f"{RUN}/events", {"type": "paid", "data": {"n": 1, "m": "2"}, "id": "7"})]


def replayed(*uids: str) -> Answer:
    return Answer(202, {"items": [{"event": uid, "runs": [{"id": f"r-{uid}", "workflow": "w"}]} for uid in uids]})


def test_named_events_are_replayed_once_each(server: Server, invoke: Invoke) -> None:
    server.answers = [Answer(200, {"uid": "u"}), Answer(200, {"uid": "v"}), Answer(200, {"uid": "u"})]
    server.answers.append(replayed("u", "v"))
    code, out, _ = invoke("events", "replay", "order/1", "v", "u", "--workflow", "w", "--priority", "low")
    assert (code, out) == (0, "2 of 2 events  2 runs\n")
    assert server.asked[0][1] == "/api/v1/events/order%2F1"
    assert server.asked[-1] == (
        "POST",
        "/api/v1/events/replay",
        {"uids": ["u", "v"], "workflow": "w", "priority": "low"},
    )


def page(names: range, cursor: str | None = None) -> Answer:
    return Answer(200, {"items": [{"uid": f"u{n}"} for n in names], "next_cursor": cursor})


def test_all_events_of_a_time_are_replayed_in_batches_oldest_first(server: Server, invoke: Invoke) -> None:
    server.answers = [page(range(149, 49, -1), "c"), page(range(49, -1, -1))]
    server.answers += [replayed(*(f"u{n}" for n in part)) for part in (range(100), range(100, 150))]
    code, out, _ = invoke("events", "replay", "--since", "1h30m", "--type", "paid", "--outcome", "unmatched")
    assert (code, out.splitlines()) == (0, ["100 of 150 events  100 runs", "150 of 150 events  150 runs"])
    asked = parse_qs(urlsplit(server.asked[0][1]).query)
    assert (asked["type"], asked["outcome"]) == (["paid"], ["unmatched"])
    ago = datetime.now(UTC) - datetime.fromisoformat(asked["since"][0])
    assert timedelta(minutes=90) <= ago < timedelta(minutes=91)
    assert [body["uids"][0] for _, _, body in server.asked[2:]] == ["u0", "u100"]


def test_too_many_events_are_not_replayed_at_all(server: Server, invoke: Invoke) -> None:
    server.answers = [page(range(100), "c")]
    code, _, err = invoke("events", "replay", "--since", "2026-01-31T12:00:00Z", "--limit", "50")
    assert code == Exit.FAILED
    assert "more than 50 such events" in err
    assert [method for method, _, _ in server.asked] == ["GET"]


def test_a_dry_run_replays_nothing(server: Server, invoke: Invoke) -> None:
    server.answers = [page(range(3))] * 2
    assert invoke("events", "replay", "--since", "1h", "--dry-run")[1] == "3 events\n"
    assert json.loads(invoke("events", "replay", "--since", "1h", "--dry-run", "--json")[1]) == {"events": 3}
    assert {method for method, _, _ in server.asked} == {"GET"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("events", "replay"),
        ("events", "replay", "e", "--since", "1h"),
        ("events", "replay", "e", "--type", "t"),
        ("events", "replay", "--since", "yesterday"),
        ("events", "replay", "--since", "2026-01-31T12:00:00"),
        ("events", "replay", "--since", "2026-01-32"),
        ("runs", "settle", "r1", "a"),
        ("runs", "settle", "r1", "a", "--as", "succeeded", "--output", "{"),
        ("dlq", "redrive"),
        ("dlq", "redrive", "d", "--all"),
        ("dlq", "redrive", "d", "--workflow", "w"),
    ],
)
def test_a_wrong_command_line_asks_nothing(server: Server, invoke: Invoke, arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments)[0] == Exit.USAGE
    assert server.asked == []


LETTERS = [
    {"id": "d3", "workflow": "b", "created_at": "2026-01-03T00:00:00.000Z", "error": "Connection refused"},
    {"id": "d2", "workflow": "a", "created_at": "2026-01-02T00:00:00.000Z", "error": "connection REFUSED by peer"},
    {"id": "d1", "workflow": None, "created_at": "2026-01-01T00:00:00.000Z", "error": "not JSON"},
]


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ((), ["d1", "d2", "d3"]),
        (("--workflow", "a"), ["d2"]),
        (("--error", "connection refused"), ["d2", "d3"]),
        (("--since", "2026-01-02T01:00:00+01:00"), ["d2", "d3"]),
        (("--since", "2026-01-02T00:00:01Z", "--error", "refused", "--workflow", "b"), ["d3"]),
        (("--workflow", "c"), []),
    ],
)
def test_the_dead_letters_that_fit_are_redriven(
    server: Server, invoke: Invoke, options: tuple[str, ...], ids: list[str]
) -> None:
    server.answers = [Answer(200, {"items": LETTERS, "next_cursor": None})] + [Answer(202, {})] * len(ids)
    code, out, _ = invoke("dlq", "redrive", "--all", *options)
    assert (code, out.splitlines()) == (0, [f"{id}  redriven" for id in ids])
    assert [path for _, path, _ in server.asked[1:]] == [f"/api/v1/dead-letters/{id}/redrive" for id in ids]


def test_a_letter_that_can_not_be_redriven_does_not_keep_the_others_from_it(server: Server, invoke: Invoke) -> None:
    refused = Answer(409, {"detail": "closed by somebody else"})
    server.answers = [Answer(202, {}), refused, Answer(202, {})]
    code, out, err = invoke("dlq", "redrive", "a", "b", "c")
    assert (code, err) == (Exit.NOT_FOUND, "error: 1 of 3 were not redriven\n")
    assert out.splitlines() == ["a  redriven", "b  closed by somebody else", "c  redriven"]
    server.answers = [refused]
    assert invoke("dlq", "redrive", "b") == (Exit.NOT_FOUND, "", "error: closed by somebody else\n")
    server.answers = [Answer(202, {}), Answer(503, {"detail": "away"})]
    assert invoke("dlq", "redrive", "a", "b", "c")[0] == Exit.UNAVAILABLE
