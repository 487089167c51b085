"""The shapes of bodies and answers, by the names under which operations and the OpenAPI document know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.events import PRIORITIES
from appliance.http.problems import KINDS, TYPE_PREFIX


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list_of(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


TEXT: Mapping[str, Any] = {"type": "string"}
_MAYBE: Mapping[str, Any] = {"type": ["string", "null"]}
_NUMBER: Mapping[str, Any] = {"type": "integer"}
_FLAG: Mapping[str, Any] = {"type": "boolean"}
_ANY: Mapping[str, Any] = {}
_HELD = {
    **_object(
        **{"for": _one_of("debounce", "batch", "throttle", "ordering", "concurrency", "singleton")},
        key=TEXT,
        until=_MAYBE,
        position={"type": ["integer", "null"]},
    ),
    "type": ["object", "null"],
}
_RUN = _object(
    id=TEXT,
    workflow=TEXT,
    revision=_NUMBER,
    event_id=_MAYBE,
    event_uid=_MAYBE,
    status=_one_of("running", "waiting", "retrying", "paused", "succeeded", "failed", "cancelled"),
    priority=TEXT,
    origin=_MAYBE,
    asked=_MAYBE,
    outcome=_MAYBE,
    started_at=TEXT,
    finished_at=_MAYBE,
    updated_at=TEXT,
    error=_MAYBE,
    held=_HELD,
)
_STEP = _object(
    id=TEXT,
    status=_one_of("running", "retrying", "waiting", "unknown", "succeeded", "failed", "skipped", "cancelled"),
    attempt=_NUMBER,
    started_at=_MAYBE,
    finished_at=_MAYBE,
    due_at=_MAYBE,
    output=_ANY,
    error=_MAYBE,
    attempts=_list_of(_object(attempt=_NUMBER, started_at=TEXT, finished_at=TEXT, error=TEXT)),
)
_DELIVERY = _object(
    step=TEXT,
    channel=TEXT,
    recipient=TEXT,
    status=TEXT,
    attempts=_NUMBER,
    message_id=_MAYBE,
    error=_MAYBE,
    updated_at=TEXT,
)
_MACHINE: Mapping[str, Any] = {"key": _MAYBE, "state": _MAYBE, "since": _MAYBE, "deadline": _MAYBE}
_RUN_IN_FULL: Mapping[str, Any] = {
    "input": _ANY,
    "output": _ANY,
    "parent": {**_object(run_id=TEXT, step=TEXT), "type": ["object", "null"]},
    "rerun_of": {**_object(run_id=TEXT, **{"from": _MAYBE}), "type": ["object", "null"]},
    "machine": {**_object(**_MACHINE), "type": ["object", "null"]},
    "events": _list_of(TEXT),
    "steps": _list_of(_STEP),
    "deliveries": _list_of(_DELIVERY),
    "children": _list_of(_object(step=TEXT, run_id=TEXT, workflow=_MAYBE, status=_MAYBE, outcome=_MAYBE)),
    "tasks": _list_of(_object(id=TEXT, step=TEXT, status=TEXT, title=TEXT)),
    "waits": _list_of(_object(step=TEXT, since=TEXT, event=_ANY, match=_ANY, when=_ANY)),
    "signals": _list_of(
        _object(
            id=TEXT,
            step=TEXT,
            kind=_one_of("event", "answer", "child", "settle"),
            event_uid=_MAYBE,
            event_id=_MAYBE,
            type=_MAYBE,
            by=_MAYBE,
            at=TEXT,
            taken={"enum": ["taken", "ignored", None]},
            taken_by=_MAYBE,
            taken_at=_MAYBE,
        )
    ),
}
_EVENT = _object(
    uid=TEXT,
    id=TEXT,
    source=TEXT,
    type=TEXT,
    subject=_MAYBE,
    time=TEXT,
    received_at=TEXT,
    attributes={"type": "object"},
    data=_ANY,
    stream=_MAYBE,
    entry_id=_MAYBE,
    outcome={"enum": ["handled", "unmatched", "dead", None]},
    batches=_list_of(_object(run_id=TEXT, workflow=TEXT, status=TEXT)),
)
_CLOUD_EVENT = {
    **_object(specversion=TEXT, id=TEXT, source=TEXT, type=TEXT, subject=TEXT, time=TEXT, data=_ANY),
    "required": ["type"],
}
_WORKFLOW = _object(
    id=_NUMBER,
    name=TEXT,
    revision=_NUMBER,
    enabled=_FLAG,
    origin=_one_of("file", "api"),
    file=_MAYBE,
    description=_MAYBE,
    updated_at=TEXT,
    definition={"type": "object"},
    revisions=_list_of(_object(revision=_NUMBER, digest=TEXT, created_at=TEXT)),
    warnings=_list_of(TEXT),
    etag=TEXT,
)
_CHANGE = _one_of("create", "change", "enable", "disable", "rollback", "none")
_TOUCHED = _object(revision=_NUMBER, status=TEXT, at=_list_of(TEXT), runs=_NUMBER, example=TEXT, gaps=_list_of(TEXT))

SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "Object": {"type": "object"},
    "Text": TEXT,
    "Problem": {
        **_object(
            type=_one_of(*(TYPE_PREFIX + code for code in KINDS)),
            title=TEXT,
            status=_NUMBER,
            detail=TEXT,
            attribute=TEXT,
            parameter=TEXT,
            errors=_list_of({"type": "object"}),
            problems=_list_of({"type": "object"}),
            items=_list_of({"type": "object"}),
            etag=_MAYBE,
            revision={"type": ["integer", "null"]},
            file=TEXT,
        ),
        "required": ["type", "title", "status", "detail"],
    },
    "Submission": {
        **_object(template_id=TEXT, data={"type": "object"}, org_id=_MAYBE),
        "required": ["template_id"],
    },
    "SubmissionAnswer": _object(id=TEXT, submission_id=TEXT, status=_one_of("accepted", "duplicate")),
    "CloudEvent": _CLOUD_EVENT,
    "CloudEvents": {"oneOf": [_CLOUD_EVENT, _list_of(_CLOUD_EVENT)]},
    "EventAnswer": _object(id=TEXT, uid=TEXT, status=_one_of("accepted", "duplicate")),
    "Cancellation": _object(force=_FLAG),
    "Rerun": _object(**{"from": TEXT, "revision": _one_of("same", "current")}),
    "Migration": _object(
        **{
            "to": _NUMBER,
            "from": _NUMBER,
            "runs": {**_list_of(TEXT), "maxItems": 200},
            "cursor": TEXT,
            "dry_run": _FLAG,
        }
    ),
    "MigrationAnswer": _object(
        to=_NUMBER,
        moved=_list_of(TEXT),
        stayed=_list_of(_object(id=TEXT, revision={"type": ["integer", "null"]}, reasons=_list_of(TEXT))),
        busy=_list_of(TEXT),
        next_cursor=_MAYBE,
    ),
    "Settlement": {
        **_object(**{"as": _one_of("succeeded", "failed", "retry"), "output": _ANY, "error": TEXT}),
        "required": ["as"],
    },
    "Replay": _object(workflow=TEXT, priority=_one_of(*PRIORITIES)),
    "Replays": {
        **_object(uids={**_list_of(TEXT), "maxItems": 200}, workflow=TEXT, priority=_one_of(*PRIORITIES)),
        "required": ["uids"],
    },
    "Page": {
        **_object(items=_list_of({"type": "object"}), next_cursor=_MAYBE),
        "required": ["items", "next_cursor"],
    },
    "Event": _EVENT,
    "Run": {**_RUN, "properties": {**_RUN["properties"], **_RUN_IN_FULL}},
    "Machine": _object(
        workflow=TEXT,
        revision=_NUMBER,
        run_id=TEXT,
        status=TEXT,
        started_at=TEXT,
        **_MACHINE,
        events=_list_of(_object(event=TEXT, when=_ANY, next=TEXT)),
        history=_list_of(_object(kind=_one_of("state", "event"), at=_MAYBE, state=_MAYBE)),
    ),
    "Queue": _object(
        workflow=TEXT,
        items=_list_of(
            _object(
                waiting=_NUMBER,
                next=_list_of(TEXT),
                since=TEXT,
                needs=_list_of(
                    _object(part=TEXT, key=TEXT, limit=_NUMBER, at_work=_NUMBER, runs=_list_of(TEXT)),
                ),
            )
        ),
        meters=_list_of(
            _object(
                part=TEXT,
                key=TEXT,
                count={"type": ["integer", "null"]},
                since=_MAYBE,
                until=TEXT,
                run_id=_MAYBE,
                waiting={"type": ["integer", "null"]},
            )
        ),
        next_cursor=_MAYBE,
    ),
    "DeadLetter": _object(
        id=TEXT,
        kind=_one_of("entry", "step"),
        status=_one_of("open", "redriven", "discarded"),
        event_id=_MAYBE,
        event_uid=_MAYBE,
        run_id=_MAYBE,
        workflow=_MAYBE,
        step=_MAYBE,
        stream=_MAYBE,
        entry_id=_MAYBE,
        error=TEXT,
        attempts=_NUMBER,
        created_at=TEXT,
        closed_at=_MAYBE,
        fields={"type": ["array", "null"]},
        event={"type": ["object", "null"]},
    ),
    "Task": _object(
        id=TEXT,
        run_id=TEXT,
        step=TEXT,
        workflow=_MAYBE,
        status=_one_of("open", "answered", "expired", "cancelled"),
        title=TEXT,
        description=_MAYBE,
        assignee=_MAYBE,
        group=_MAYBE,
        form={"type": "object"},
        link=_MAYBE,
        created_at=TEXT,
        due_at=_MAYBE,
        answer=_ANY,
        answered_by=_MAYBE,
        closed_at=_MAYBE,
    ),
    "TaskAnswer": {**_object(answer=_ANY, by=TEXT), "required": ["answer"]},
    "Assignment": _object(assignee=_MAYBE, group=_MAYBE),
    "Start": _object(input=_ANY, idempotency_key=TEXT),
    "TriggerRequest": {
        **_object(workflow_id={"type": ["string", "integer"]}, payload=_ANY, idempotency_key=TEXT),
        "required": ["workflow_id"],
    },
    "StartAnswer": _object(run_id=TEXT, event_id=TEXT, workflow=TEXT, status=_one_of("accepted", "duplicate")),
    "Workflow": _WORKFLOW,
    "WorkflowAnswer": _object(
        id=_NUMBER,
        name=TEXT,
        revision={"type": ["integer", "null"]},
        enabled=_FLAG,
        change=_CHANGE,
        etag=_MAYBE,
        becomes={"type": ["integer", "null"]},
        diff=TEXT,
        warnings=_list_of(TEXT),
        missing=_list_of(TEXT),
        follows=_FLAG,
        touches=_list_of(_TOUCHED),
        more=_FLAG,
    ),
    "Rollback": _object(revision=_NUMBER),
    "Revision": _object(
        name=TEXT, revision=_NUMBER, digest=TEXT, created_at=TEXT, in_force=_FLAG, definition={"type": "object"}
    ),
    "Explanation": _object(
        event={"type": "object"},
        verdicts=_list_of(
            _object(
                workflow=TEXT,
                matched=_FLAG,
                reason=TEXT,
                failure={"type": ["object", "null"]},
                changes=_list_of({"type": "object"}),
                checked=_FLAG,
                note={"type": ["string", "null"]},
            )
        ),
    ),
    "Recovery": _object(
        recovered=_NUMBER, held=_NUMBER, parked=_NUMBER, events=_NUMBER, resent=_NUMBER, adopted=_NUMBER, busy=_FLAG
    ),
    "Trace": _object(event=TEXT, correlation_id=TEXT, events=_list_of({"type": "object"}), nodes=_NUMBER, cut=_FLAG),
    "Ledger": _object(
        accepted=_NUMBER,
        handled=_NUMBER,
        unmatched=_NUMBER,
        duplicate=_NUMBER,
        dead=_NUMBER,
        in_flight=_NUMBER,
        difference=_NUMBER,
        skipped=_list_of(_object(workflow=TEXT, reason=TEXT, count=_NUMBER)),
    ),
    "Health": _object(status=_one_of("ok", "unavailable"), reasons=_list_of(TEXT), details={"type": "object"}),
}
"""Members may be added in later versions; none is taken away."""
