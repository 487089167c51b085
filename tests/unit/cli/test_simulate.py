"""``appliance simulate``: drafts over given and stored events, the diff against what did, and no connection at all."""

from __future__ import annotations

import json
import re
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.client import Answer
from appliance.cli.exits import Exit
from tests.unit.cli.double import Invoke, Server

UIDS = [f"019a0000-0000-7000-8000-00000000000{n}" for n in range(6)]
DRAFT = """
name: order
trigger: {event: order.paid, when: {path: data.total, op: ">=", value: 100}}
steps:
  - {id: charge, action: webhook, with: {url: "https://pay.example.com/", json: {key: "{{ secrets.pay_key }}"}}}
  - {id: cool, delay: 2d}
  - {id: thank, action: log, with: {message: "charge {{ steps.charge.output.id }}"}}
"""


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a simulation connects: {arguments}")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def draft(tmp_path: Path) -> str:
    path = tmp_path / "order.yaml"
    path.write_text(DRAFT)
    return str(path)


def event_file(folder: Path, *events: dict[str, Any]) -> str:
    path = folder / "event.json"
    path.write_text(json.dumps(list(events) if len(events) > 1 else events[0]))
    return str(path)


def test_a_given_event_is_played_to_its_end(tmp_path: Path, draft: str, server: Server, invoke: Invoke) -> None:
    event = {"type": "order.paid", "time": "2030-01-01T10:00:00Z", "data": {"total": 100}}
    file = event_file(tmp_path, event)
    code, out, err = invoke("simulate", draft, "--event", file, "--output", 'charge={"id": 7}', "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["events"][0]["matched"], answer["events"][0]["changes"]) == (True, [])
    (run,) = answer["runs"]
    assert (run["status"], run["started_at"], run["finished_at"]) == (
        "succeeded",
        "2030-01-01T10:00:00.000Z",
        "2030-01-03T10:00:00.000Z",
    )
    charge, cool, thank = run["steps"]
    assert charge["params"] == {"url": "https://pay.example.com/", "json": {"key": "[secret]"}}
    assert (charge["output"], cool["kind"], cool["params"]) == ({"id": 7}, "delay", None)
    assert (thank["params"], thank["started_at"]) == ({"message": "charge 7"}, "2030-01-03T10:00:00.000Z")
    assert server.asked == []


def test_without_an_output_steps_give_null_and_the_text_says_what_fails(
    tmp_path: Path, draft: str, invoke: Invoke
) -> None:
    file = event_file(tmp_path, {"type": "order.paid", "data": {"total": 100}})
    code, out, _ = invoke("simulate", draft, "--event", file)
    assert code == 0
    assert out.splitlines()[0] == "order.paid  matched"
    assert "order  failed: steps[2].with.message: 'None' has no attribute 'id'" in out
    assert "2d 0:00:00  thank   log" in out


def test_time_ends_where_it_is_told(tmp_path: Path, draft: str, invoke: Invoke) -> None:
    file = event_file(tmp_path, {"type": "order.paid", "data": {"total": 100}})
    (run,) = json.loads(invoke("simulate", draft, "--event", file, "--for", "1d", "--json")[1])["runs"]
    assert (run["status"], [step["status"] for step in run["steps"]]) == ("waiting", ["succeeded", "waiting"])


def test_an_event_that_does_not_match_says_what_would(tmp_path: Path, draft: str, invoke: Invoke) -> None:
    file = event_file(tmp_path, {"type": "order.paid", "data": {"total": 80}})
    assert invoke("simulate", draft, "--event", file)[1].splitlines() == [
        "order.paid  not matched: data.total >= 100: it is 80",
        "  it would be with: data.total ≥ 100; was 80",
    ]


def test_several_events_reach_those_who_wait(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "w.yaml").write_text(
        "name: w\ntrigger: {event: a}\nsteps:\n"
        '  - {id: go, wait: {event: b, match: {path: data.n, value: "{{ event.data.n }}"}}, deadline: {after: 1d}}\n'
        '  - {id: note, action: log, with: {message: "{{ steps.go.output.data.by }}"}}\n'
    )
    at = ["2030-01-01T10:00:00Z", "2030-01-01T10:00:01Z", "2030-01-01T11:00:00Z"]
    events = [
        {"type": "a", "time": at[0], "data": {"n": 1}},
        {"type": "a", "time": at[1], "data": {"n": 2}},
        {"type": "b", "time": at[2], "data": {"n": 2, "by": "ann"}},
    ]
    file = event_file(tmp_path, *events)
    late, told = json.loads(invoke("simulate", str(tmp_path / "w.yaml"), "--event", file, "--json")[1])["runs"]
    assert (late["status"], late["finished_at"]) == ("failed", "2030-01-02T10:00:00.000Z")
    assert told["steps"][1]["params"] == {"message": "ann"}


def test_the_example_of_the_documents_prints_what_they_say(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    section = page[page.index("### `appliance simulate") : page.index("### `appliance trace")]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (_, draft), (_, event), (_, command), (_, printed) = blocks[:4]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "draft.yaml").write_text(draft)
    (tmp_path / "event.json").write_text(event)
    code, out, _ = invoke(*shlex.split(command)[1:])
    assert (code, out) == (0, printed)
    (_, draft), (_, event), (_, command), (_, printed) = blocks[6:10]
    (tmp_path / "search.yaml").write_text(draft)
    (tmp_path / "changes.json").write_text(event)
    code, out, _ = invoke(*shlex.split(command)[1:])
    assert (code, out) == (0, printed)


# --- stored events ---------------------------------------------------------------------------------------------------


def stored(n: int, total: int, **more: Any) -> dict[str, Any]:
    at = f"2026-01-0{n + 1}T10:00:00.000Z"
    event = {"uid": UIDS[n], "id": f"e{n}", "source": "/s", "type": "order.paid", "subject": None, "time": at}
    return {**event, "received_at": at, "data": {"total": total}, "attributes": {}, **more}


def step(id: str, status: str, n: int, output: Any = None, error: str | None = None) -> dict[str, Any]:
    at = f"2026-01-0{n + 1}T10:00:00.000Z"
    return {"id": id, "status": status, "output": output, "error": error, "finished_at": at}


def run(n: int, status: str, *steps: dict[str, Any]) -> dict[str, Any]:
    base = {"id": f"r{n}", "event_uid": UIDS[n], "origin": None, "revision": 1, "outcome": None}
    return {**base, "status": status, "steps": list(steps)}


def page(*items: Any, cursor: str | None = None) -> Answer:
    return Answer(200, {"items": list(items), "next_cursor": cursor})


GOOD = [("charge", "succeeded", {"id": 7}), ("cool", "succeeded", None), ("thank", "succeeded", None)]


def recorded() -> list[dict[str, Any]]:
    """0 went well, 1 failed, 2 had no run, 3 had one that the draft would not begin, 4 isn't over."""
    return [
        run(0, "succeeded", *(step(id, status, 0, output) for id, status, output in GOOD)),
        run(1, "failed", step("charge", "failed", 1, error="the gateway refused")),
        run(3, "succeeded", *(step(id, status, 3, output) for id, status, output in GOOD)),
        run(4, "retrying", step("charge", "retrying", 4)),
    ]


def told(server: Server) -> None:
    events = [stored(0, 100), stored(1, 200), stored(2, 300), stored(3, 50), stored(4, 500), stored(5, 10)]
    runs = recorded()
    server.answers = [page(*reversed(events)), page(*runs), *(Answer(200, run) for run in runs)]


def test_stored_events_are_compared_with_what_did_happen(draft: str, server: Server, invoke: Invoke) -> None:
    told(server)
    code, out, err = invoke(
        "simulate", draft, "--since", "2026-01-01T00:00:00Z", "--output", 'charge={"id": 1}', "--json"
    )
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["summary"] == {"same": 1, "different": 1, "new": 1, "gone": 1, "open": 1, "unmatched": 1}
    assert {item["event"]["id"]: item["verdict"] for item in answer["items"]} == {
        "e0": "same",
        "e1": "different",
        "e2": "new",
        "e3": "gone",
        "e4": "open",
    }
    # What a step is told to give counts for more than a recorded failure.
    assert answer["items"][1]["differences"] == [
        "status: was failed, would be succeeded",
        "step charge: was failed, would be succeeded",
        "step cool: was not reached, would be succeeded",
        "step thank: was not reached, would be succeeded",
    ]
    assert [path.partition("?")[0] for _, path, _ in server.asked] == [
        "/api/v1/events",
        "/api/v1/runs",
        *(f"/api/v1/runs/r{n}" for n in (0, 1, 3, 4)),
    ]
    assert {method for method, _, _ in server.asked} == {"GET"}


def test_recorded_outputs_and_failures_are_played_again(draft: str, server: Server, invoke: Invoke) -> None:
    told(server)
    answer = json.loads(invoke("simulate", draft, "--since", "2026-01-01T00:00:00Z", "--json")[1])
    by_id = {item["event"]["id"]: item for item in answer["items"]}
    assert (by_id["e0"]["verdict"], by_id["e1"]["verdict"]) == ("same", "same")
    assert by_id["e0"]["run"]["steps"][2]["params"] == {"message": "charge 7"}
    assert by_id["e1"]["run"]["error"] == "the gateway refused"


def test_the_text_shows_differences_only(draft: str, server: Server, invoke: Invoke) -> None:
    told(server)
    lines = invoke("simulate", draft, "--since", "2026-01-01T00:00:00Z")[1].splitlines()
    assert f"{UIDS[3]}  order.paid  gone: it would not run" in lines
    assert f"{UIDS[2]}  order.paid  new: it would run" in lines
    assert not any(UIDS[0] in line for line in lines)
    assert lines[-1] == "6 events: 2 same  0 different  1 new  1 gone  1 open  1 unmatched"


def test_what_people_answered_is_answered_again(tmp_path: Path, server: Server, invoke: Invoke) -> None:
    (tmp_path / "order.yaml").write_text(
        "name: order\ntrigger: {event: order.paid}\nsteps:\n"
        "  - id: ask\n    human_task: {title: Well?, form: {type: object}}\n    deadline: {after: 3d}\n"
        "  - {id: call, workflow: other}\n"
        '  - {id: note, action: log, with: {message: "{{ steps.ask.output.ok }} {{ steps.call.output }}"}}\n'
    )
    steps = [step("ask", "succeeded", 1, {"ok": True}), step("call", "succeeded", 1, 9), step("note", "succeeded", 1)]
    known = run(0, "succeeded", *steps)
    server.answers = [Answer(404, {"title": "none"}), page(stored(0, 1)), page(known), Answer(200, known)]
    answer = json.loads(
        invoke("simulate", str(tmp_path / "order.yaml"), "--since", "2026-01-01T00:00:00Z", "--json")[1]
    )
    (item,) = answer["items"]
    assert (item["verdict"], item["differences"]) == ("same", [])
    ask, call, note = item["run"]["steps"]
    assert (ask["finished_at"], call["status"], note["params"]) == (
        "2026-01-02T10:00:00.000Z",
        "succeeded",
        {"message": "true 9"},
    )


def test_a_workflow_in_force_is_asked_for_with_those_that_it_calls(
    tmp_path: Path, server: Server, invoke: Invoke
) -> None:
    steps = [{"id": "pack", "workflow": {"name": "pack", "input": {"n": 1}}}]
    outer = {"name": "outer", "trigger": {"event": "a"}, "steps": steps}
    inner = {
        "name": "pack",
        "trigger": "manual",
        "steps": [{"id": "box", "action": "x", "with": {"n": "{{ input.n }}"}}],
    }
    server.answers = [Answer(200, {"definition": outer}), Answer(200, {"definition": inner})]
    code, out, _ = invoke("simulate", "outer", "--event", event_file(tmp_path, {"type": "a"}), "--json")
    assert code == 0
    (run,) = json.loads(out)["runs"]
    assert (run["status"], run["called"][0]["steps"][0]["params"]) == ("succeeded", {"n": 1})
    assert [path for _, path, _ in server.asked] == ["/api/v1/workflows/outer", "/api/v1/workflows/pack"]


def test_that_there_were_more_events_is_said(draft: str, server: Server, invoke: Invoke) -> None:
    old = {**run(0, "succeeded"), "event_uid": UIDS[0]}
    server.answers = [page(stored(2, 1), cursor=UIDS[2]), page(old)]
    out = invoke("simulate", draft, "--since", "2026-01-01T00:00:00Z", "--limit", "1")[1]
    assert out == "1 events (the newest; more with --limit): 0 same  0 different  0 new  0 gone  0 open  1 unmatched\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("order.yaml",), Exit.USAGE),
        (("order.yaml", "--event", "e.json", "--since", "1d"), Exit.USAGE),
        (("order.yaml", "--event", "missing.json"), Exit.USAGE),
        (("order.yaml", "--event", "event.json", "--output", "charge"), Exit.USAGE),
        (("order.yaml", "--event", "event.json", "--output", "charge={"), Exit.USAGE),
        (("order.yaml", "--event", "event.json", "--for", "soon"), Exit.USAGE),
        (("missing.yaml", "--event", "event.json"), Exit.CONFIGURATION),
    ],
)
def test_a_wrong_command_line_says_so(
    tmp_path: Path, draft: str, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    event_file(tmp_path, {"type": "order.paid", "data": {}})
    ended, out, err = invoke("simulate", *arguments)
    assert (ended, out) == (code, "")
    assert "rror: " in err


# --- flow control ----------------------------------------------------------------------------------------------------


def shaped(folder: Path, said: str) -> str:
    path = folder / "shaped.yaml"
    path.write_text(
        f"name: order\ntrigger: {{event: order.paid}}\n{said}\n"
        'steps: [{id: note, action: log, with: {message: "{{ event.data.total }}"}}]\n'
    )
    return str(path)


def paid(*seconds: int) -> list[dict[str, Any]]:
    return [
        {"id": f"e{n}", "type": "order.paid", "time": f"2030-01-01T10:00:{at:02}Z", "data": {"total": n}}
        for n, at in enumerate(seconds)
    ]


def fates(folder: Path, invoke: Invoke, said: str, *seconds: int) -> tuple[list[str], dict[str, Any]]:
    """Of given events: what flow control did with each, when, and in all."""
    code, out, err = invoke("simulate", shaped(folder, said), "--event", event_file(folder, *paid(*seconds)), "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    told = [(event["flow"]["did"], event["flow"]["at"][17:19]) for event in answer["events"]]
    begun = [run["steps"][0]["started_at"][17:19] for run in answer["runs"]]
    assert begun == [at for did, at in told if did == "began"], "what is said to begin does"
    return [" ".join(each) for each in told], answer["flow"]


@pytest.mark.parametrize(
    ("said", "did", "summary"),
    [
        (
            "rate_limit: {limit: 2, period: 10s}",
            ["began 00", "began 01", "left out 02", "left out 03", "began 20"],
            {"began": 3, "left_out": {"rate_limited": 2}},
        ),
        (
            "throttle: {limit: 1, period: 5s, burst: 1}",
            ["began 00", "began 01", "began 05", "began 10", "began 20"],
            {"began": 3, "waited": 2, "longest_s": 7.0},
        ),
        (
            "debounce: {period: 4s}",
            ["left out 01", "left out 02", "left out 03", "began 07", "began 24"],
            {"waited": 2, "longest_s": 4.0, "left_out": {"debounced": 3}},
        ),
        (
            "batch: {size: 3, timeout: 5s}",
            ["began 02", "joined 02", "joined 02", "began 08", "began 25"],
            {"waited": 3, "longest_s": 5.0, "joined": 2},
        ),
        (
            "concurrency: 1\nordering_key: all",
            ["began 00", "began 01", "began 02", "began 03", "began 20"],
            {"began": 5, "ignored": ["concurrency", "ordering_key"]},
        ),
        (
            "debounce: {period: 4s}\nsingleton: skip",
            ["left out 01", "left out 02", "left out 03", "began 07", "began 24"],
            {"waited": 2, "longest_s": 4.0, "left_out": {"debounced": 3}, "ignored": ["singleton"]},
        ),
    ],
)
def test_flow_control_goes_by_the_times_of_the_events(
    tmp_path: Path, invoke: Invoke, said: str, did: list[str], summary: dict[str, Any]
) -> None:
    nothing = {"began": 0, "waited": 0, "longest_s": 0.0, "held": 0, "joined": 0, "left_out": {}, "ignored": []}
    assert fates(tmp_path, invoke, said, 0, 1, 2, 3, 20) == (did, nothing | summary)


def test_without_flow_control_nothing_is_said_of_it(tmp_path: Path, invoke: Invoke) -> None:
    command = ("simulate", shaped(tmp_path, ""), "--event", event_file(tmp_path, *paid(0, 1)))
    answer = json.loads(invoke(*command, "--json")[1])
    assert (answer["flow"], [event["flow"] for event in answer["events"]]) == (None, [None, None])
    assert "flow control" not in invoke(*command)[1]


def test_what_time_ends_before_is_still_held(tmp_path: Path, invoke: Invoke) -> None:
    file = event_file(tmp_path, *paid(0, 1))
    out = invoke("simulate", shaped(tmp_path, "batch: {size: 9, timeout: 1h}"), "--event", file, "--for", "1m")[1]
    assert out.splitlines() == [
        "order.paid  e0  matched, still held (batch)",
        "order.paid  e1  matched, joined the batch of e0, which is still held",
        "",
        "flow control: 0 began at once; 0 later; 1 joined a batch; 0 left out; 1 still held",
    ]


def minutes(*at: int) -> list[dict[str, Any]]:
    """Stored events of these minutes."""
    times = [f"2026-01-01T10:{minute:02}:00.000Z" for minute in at]
    return [stored(n, n, time=time, received_at=time) for n, time in enumerate(times)]


def noted(n: int, minute: int) -> dict[str, Any]:
    at = f"2026-01-01T10:{minute:02}:00.000Z"
    return run(n, "succeeded", {**step("note", "succeeded", n), "finished_at": at})


def simulated(folder: Path, server: Server, invoke: Invoke, said: str, *runs: dict[str, Any]) -> dict[str, Any]:
    """Events of the minutes 0, 1, 2 and 30, which had these runs, with this flow control."""
    events = minutes(0, 1, 2, 30)
    server.answers = [page(*reversed(events)), page(*runs), *(Answer(200, each) for each in runs)]
    answer: dict[str, Any] = json.loads(
        invoke("simulate", shaped(folder, said), "--since", "2026-01-01T00:00:00Z", "--json")[1]
    )
    return answer


def verdicts(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(item["verdict"], item["flow"]["did"]) for item in answer["items"]]


def test_a_limit_that_was_not_there_shows_in_the_diff(tmp_path: Path, server: Server, invoke: Invoke) -> None:
    had = [noted(n, minute) for n, minute in enumerate((0, 1, 2, 30))]
    answer = simulated(tmp_path, server, invoke, "rate_limit: {limit: 1, period: 5m}", *had)
    assert verdicts(answer) == [("same", "began"), *[("different", "left out")] * 2, ("same", "began")]
    assert answer["items"][1]["differences"] == [
        "status: was succeeded, would be cancelled",
        "outcome: was None, would be rate_limited",
        "step note: was succeeded, would not be reached",
    ]
    assert answer["flow"]["left_out"] == {"rate_limited": 2}
    answer = simulated(tmp_path, server, invoke, "batch: {size: 3, timeout: 1h}", *had)
    assert verdicts(answer) == [("same", "began"), *[("gone", "joined")] * 2, ("same", "began")]


def test_what_flow_control_did_it_would_do_again(tmp_path: Path, server: Server, invoke: Invoke) -> None:
    left = {**run(1, "cancelled"), "outcome": "rate_limited"}
    answer = simulated(
        tmp_path,
        server,
        invoke,
        "rate_limit: {limit: 2, period: 5m}",
        noted(0, 0),
        noted(1, 1),
        {**left, "event_uid": UIDS[2]},
        noted(3, 30),
    )
    assert answer["summary"] == {"same": 4, "different": 0, "new": 0, "gone": 0, "open": 0, "unmatched": 0}
    answer = simulated(tmp_path, server, invoke, "batch: {size: 3, timeout: 1h}", noted(0, 2), noted(3, 90 - 31))
    assert answer["summary"] == {"same": 4, "different": 0, "new": 0, "gone": 0, "open": 0, "unmatched": 0}


def test_a_batch_of_events_that_had_no_run_is_new(tmp_path: Path, server: Server, invoke: Invoke) -> None:
    answer = simulated(tmp_path, server, invoke, "batch: {size: 3, timeout: 90s}")
    assert verdicts(answer) == [("new", "began"), ("new", "joined"), ("new", "began"), ("new", "began")]


def test_the_diff_says_what_flow_control_would_have_done(tmp_path: Path, server: Server, invoke: Invoke) -> None:
    had = [noted(n, minute) for n, minute in enumerate((0, 1, 2, 30))]
    events = minutes(0, 1, 2, 30)
    server.answers = [page(*reversed(events)), page(*had), *(Answer(200, each) for each in had)]
    said = "debounce: {period: 90s}\nconcurrency: 3"
    lines = invoke("simulate", shaped(tmp_path, said), "--since", "2026-01-01T00:00:00Z")[1].splitlines()
    assert lines[:2] == [
        f"{UIDS[0]}  order.paid  different",
        "  status: was succeeded, would be cancelled",
    ]
    assert "  flow control: left out: debounce: a later event came, for which the run of event e1 begins" in lines
    assert lines[-3:] == [
        "flow control: 0 began at once; 2 later (at most 1m30s); 0 joined a batch; left out: 2 debounced",
        "not looked at, since it depends on how long runs are at work: concurrency",
        "4 events: 2 same  2 different  0 new  0 gone  0 open  0 unmatched",
    ]
