"""The OpenAPI 3.1 document, made from the operations and the schemas here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from appliance.events import PRIORITIES
from appliance.http.operations import Operation, Parameter
from appliance.http.problems import KINDS, MEDIA_TYPE, TYPE_PREFIX

_PATH_PARAMETER = re.compile(r"{(\w+)}")


def document_of(operations: Iterable[Operation]) -> dict[str, Any]:
    """The document, JSON data."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Appliance", "version": _version(), "description": "Event-driven workflows."},
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "security": [] if operation.open else [{"bearer": []}, {"key": []}],
        "parameters": [
            *(_path_parameter(name) for name in _PATH_PARAMETER.findall(operation.path)),
            *(_parameter(parameter, "query") for parameter in operation.parameters),
            *(_parameter(header, "header") for header in operation.headers),
        ],
        "responses": {
            **{str(status): _answer(operation) for status in operation.statuses},
            "default": {
                "description": "A problem (RFC 9457)",
                "content": {MEDIA_TYPE: {"schema": _reference("Problem")}},
            },
        },
    }
    if operation.body is not None:
        content = {media_type: {"schema": _reference(operation.body)} for media_type in operation.media_types}
        described["requestBody"] = {"required": not operation.body_optional, "content": content}
    return described


def _operation_id(operation: Operation) -> str:
    words = re.sub(r"\W+", "_", operation.path).strip("_")
    return f"{operation.method.lower()}_{words or 'index'}"


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _TEXT}


def _parameter(parameter: Parameter, place: str) -> dict[str, Any]:
    schema = {**_TEXT, **({"enum": list(parameter.choices)} if parameter.choices else {})}
    return {"name": parameter.name, "in": place, "description": parameter.description, "schema": schema}


def _answer(operation: Operation) -> dict[str, Any]:
    content = {operation.answer_type: {"schema": _reference(operation.answer)}}
    return {"description": operation.summary, "content": content}


def _reference(name: str) -> dict[str, str]:
    if name not in SCHEMAS:
        raise KeyError(name)
    return {"$ref": f"#/components/schemas/{name}"}


def _version() -> str:
    try:
        return version("appliance")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list_of(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


_TEXT: Mapping[str, Any] = {"type": "string"}
_MAYBE: Mapping[str, Any] = {"type": ["string", "null"]}
_NUMBER: Mapping[str, Any] = {"type": "integer"}
_FLAG: Mapping[str, Any] = {"type": "boolean"}
_ANY: Mapping[str, Any] = {}
_HELD = {
    **_object(
        **{"for": _one_of("debounce", "batch", "throttle", "ordering", "concurrency", "singleton")},
        key=_TEXT,
        until=_MAYBE,
        position={"type": ["integer", "null"]},
    ),
    "type": ["object", "null"],
}
_RUN = _object(
    id=_TEXT,
    workflow=_TEXT,
    revision=_NUMBER,
    event_id=_MAYBE,
    event_uid=_MAYBE,
    status=_one_of("running", "waiting", "retrying", "paused", "succeeded", "failed", "cancelled"),
    priority=_TEXT,
    origin=_MAYBE,
    asked=_MAYBE,
    outcome=_MAYBE,
    started_at=_TEXT,
    finished_at=_MAYBE,
    updated_at=_TEXT,
    error=_MAYBE,
    held=_HELD,
)
_STEP = _object(
    id=_TEXT,
    status=_one_of("running", "retrying", "waiting", "unknown", "succeeded", "failed", "skipped", "cancelled"),
    attempt=_NUMBER,
    started_at=_MAYBE,
    finished_at=_MAYBE,
    due_at=_MAYBE,
    output=_ANY,
    error=_MAYBE,
    attempts=_list_of(_object(attempt=_NUMBER, started_at=_TEXT, finished_at=_TEXT, error=_TEXT)),
)
_DELIVERY = _object(
    step=_TEXT,
    channel=_TEXT,
    recipient=_TEXT,
    status=_TEXT,
    attempts=_NUMBER,
    message_id=_MAYBE,
    error=_MAYBE,
    updated_at=_TEXT,
)
_MACHINE: Mapping[str, Any] = {"key": _MAYBE, "state": _MAYBE, "since": _MAYBE, "deadline": _MAYBE}
_RUN_IN_FULL: Mapping[str, Any] = {
    "input": _ANY,
    "output": _ANY,
    "parent": {**_object(run_id=_TEXT, step=_TEXT), "type": ["object", "null"]},
    "rerun_of": {**_object(run_id=_TEXT, **{"from": _MAYBE}), "type": ["object", "null"]},
    "machine": {**_object(**_MACHINE), "type": ["object", "null"]},
    "events": _list_of(_TEXT),
    "steps": _list_of(_STEP),
    "deliveries": _list_of(_DELIVERY),
    "children": _list_of(_object(step=_TEXT, run_id=_TEXT, workflow=_MAYBE, status=_MAYBE, outcome=_MAYBE)),
    "tasks": _list_of(_object(id=_TEXT, step=_TEXT, status=_TEXT, title=_TEXT)),
    "waits": _list_of(_object(step=_TEXT, since=_TEXT, event=_ANY, match=_ANY, when=_ANY)),
    "signals": _list_of(
        _object(
            id=_TEXT,
            step=_TEXT,
            kind=_one_of("event", "answer", "child", "settle"),
            event_uid=_MAYBE,
            event_id=_MAYBE,
            type=_MAYBE,
            by=_MAYBE,
            at=_TEXT,
            taken={"enum": ["taken", "ignored", None]},
            taken_by=_MAYBE,
            taken_at=_MAYBE,
        )
    ),
}
_EVENT = _object(
    uid=_TEXT,
    id=_TEXT,
    source=_TEXT,
    type=_TEXT,
    subject=_MAYBE,
    time=_TEXT,
    received_at=_TEXT,
    attributes={"type": "object"},
    data=_ANY,
    stream=_MAYBE,
    entry_id=_MAYBE,
    outcome={"enum": ["handled", "unmatched", "dead", None]},
    batches=_list_of(_object(run_id=_TEXT, workflow=_TEXT, status=_TEXT)),
)
_CLOUD_EVENT = {
    **_object(specversion=_TEXT, id=_TEXT, source=_TEXT, type=_TEXT, subject=_TEXT, time=_TEXT, data=_ANY),
    "required": ["type"],
}
_WORKFLOW = _object(
    id=_NUMBER,
    name=_TEXT,
    revision=_NUMBER,
    enabled=_FLAG,
    origin=_one_of("file", "api"),
    file=_MAYBE,
    description=_MAYBE,
    updated_at=_TEXT,
    definition={"type": "object"},
    revisions=_list_of(_object(revision=_NUMBER, digest=_TEXT, created_at=_TEXT)),
    warnings=_list_of(_TEXT),
    etag=_TEXT,
)
_CHANGE = _one_of("create", "change", "enable", "disable", "rollback", "none")
_TOUCHED = _object(
    revision=_NUMBER, status=_TEXT, at=_list_of(_TEXT), runs=_NUMBER, example=_TEXT, gaps=_list_of(_TEXT)
)

SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "Object": {"type": "object"},
    "Text": _TEXT,
    "Problem": {
        **_object(
            type=_one_of(*(TYPE_PREFIX + code for code in KINDS)),
            title=_TEXT,
            status=_NUMBER,
            detail=_TEXT,
            attribute=_TEXT,
            parameter=_TEXT,
            errors=_list_of({"type": "object"}),
            problems=_list_of({"type": "object"}),
            items=_list_of({"type": "object"}),
            etag=_MAYBE,
            revision={"type": ["integer", "null"]},
            file=_TEXT,
        ),
        "required": ["type", "title", "status", "detail"],
    },
    "Submission": {
        **_object(template_id=_TEXT, data={"type": "object"}, org_id=_MAYBE),
        "required": ["template_id"],
    },
    "SubmissionAnswer": _object(id=_TEXT, submission_id=_TEXT, status=_one_of("accepted", "duplicate")),
    "CloudEvent": _CLOUD_EVENT,
    "CloudEvents": {"oneOf": [_CLOUD_EVENT, _list_of(_CLOUD_EVENT)]},
    "EventAnswer": _object(id=_TEXT, uid=_TEXT, status=_one_of("accepted", "duplicate")),
    "Cancellation": _object(force=_FLAG),
    "Rerun": _object(**{"from": _TEXT, "revision": _one_of("same", "current")}),
    "Migration": _object(
        **{
            "to": _NUMBER,
            "from": _NUMBER,
            "runs": {**_list_of(_TEXT), "maxItems": 200},
            "cursor": _TEXT,
            "dry_run": _FLAG,
        }
    ),
    "MigrationAnswer": _object(
        to=_NUMBER,
        moved=_list_of(_TEXT),
        stayed=_list_of(_object(id=_TEXT, revision={"type": ["integer", "null"]}, reasons=_list_of(_TEXT))),
        busy=_list_of(_TEXT),
        next_cursor=_MAYBE,
    ),
    "Settlement": {
        **_object(**{"as": _one_of("succeeded", "failed", "retry"), "output": _ANY, "error": _TEXT}),
        "required": ["as"],
    },
    "Replay": _object(workflow=_TEXT, priority=_one_of(*PRIORITIES)),
    "Replays": {
        **_object(uids={**_list_of(_TEXT), "maxItems": 200}, workflow=_TEXT, priority=_one_of(*PRIORITIES)),
        "required": ["uids"],
    },
    "Page": {
        **_object(items=_list_of({"type": "object"}), next_cursor=_MAYBE),
        "required": ["items", "next_cursor"],
    },
    "Event": _EVENT,
    "Run": {**_RUN, "properties": {**_RUN["properties"], **_RUN_IN_FULL}},
    "Machine": _object(
        workflow=_TEXT,
        revision=_NUMBER,
        run_id=_TEXT,
        status=_TEXT,
        started_at=_TEXT,
        **_MACHINE,
        events=_list_of(_object(event=_TEXT, when=_ANY, next=_TEXT)),
        history=_list_of(_object(kind=_one_of("state", "event"), at=_MAYBE, state=_MAYBE)),
    ),
    "Queue": _object(
        workflow=_TEXT,
        items=_list_of(
            _object(
                waiting=_NUMBER,
                next=_list_of(_TEXT),
                since=_TEXT,
                needs=_list_of(
                    _object(part=_TEXT, key=_TEXT, limit=_NUMBER, at_work=_NUMBER, runs=_list_of(_TEXT)),
                ),
            )
        ),
        meters=_list_of(
            _object(
                part=_TEXT,
                key=_TEXT,
                count={"type": ["integer", "null"]},
                since=_MAYBE,
                until=_TEXT,
                run_id=_MAYBE,
                waiting={"type": ["integer", "null"]},
            )
        ),
        next_cursor=_MAYBE,
    ),
    "DeadLetter": _object(
        id=_TEXT,
        kind=_one_of("entry", "step"),
        status=_one_of("open", "redriven", "discarded"),
        event_id=_MAYBE,
        event_uid=_MAYBE,
        run_id=_MAYBE,
        workflow=_MAYBE,
        step=_MAYBE,
        stream=_MAYBE,
        entry_id=_MAYBE,
        error=_TEXT,
        attempts=_NUMBER,
        created_at=_TEXT,
        closed_at=_MAYBE,
        fields={"type": ["array", "null"]},
        event={"type": ["object", "null"]},
    ),
    "Task": _object(
        id=_TEXT,
        run_id=_TEXT,
        step=_TEXT,
        workflow=_MAYBE,
        status=_one_of("open", "answered", "expired", "cancelled"),
        title=_TEXT,
        description=_MAYBE,
        assignee=_MAYBE,
        group=_MAYBE,
        form={"type": "object"},
        link=_MAYBE,
        created_at=_TEXT,
        due_at=_MAYBE,
        answer=_ANY,
        answered_by=_MAYBE,
        closed_at=_MAYBE,
    ),
    "TaskAnswer": {**_object(answer=_ANY, by=_TEXT), "required": ["answer"]},
    "Assignment": _object(assignee=_MAYBE, group=_MAYBE),
    "Start": _object(input=_ANY, idempotency_key=_TEXT),
    "TriggerRequest": {
        **_object(workflow_id={"type": ["string", "integer"]}, payload=_ANY, idempotency_key=_TEXT),
        "required": ["workflow_id"],
    },
    "StartAnswer": _object(run_id=_TEXT, event_id=_TEXT, workflow=_TEXT, status=_one_of("accepted", "duplicate")),
    "Workflow": _WORKFLOW,
    "WorkflowAnswer": _object(
        id=_NUMBER,
        name=_TEXT,
        revision={"type": ["integer", "null"]},
        enabled=_FLAG,
        change=_CHANGE,
        etag=_MAYBE,
        becomes={"type": ["integer", "null"]},
        diff=_TEXT,
        warnings=_list_of(_TEXT),
        missing=_list_of(_TEXT),
        touches=_list_of(_TOUCHED),
        more=_FLAG,
    ),
    "Rollback": _object(revision=_NUMBER),
    "Revision": _object(
        name=_TEXT, revision=_NUMBER, digest=_TEXT, created_at=_TEXT, in_force=_FLAG, definition={"type": "object"}
    ),
    "Explanation": _object(
        event={"type": "object"},
        verdicts=_list_of(
            _object(
                workflow=_TEXT,
                matched=_FLAG,
                reason=_TEXT,
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
    "Trace": _object(event=_TEXT, correlation_id=_TEXT, events=_list_of({"type": "object"}), nodes=_NUMBER, cut=_FLAG),
    "Ledger": _object(
        accepted=_NUMBER,
        handled=_NUMBER,
        unmatched=_NUMBER,
        duplicate=_NUMBER,
        dead=_NUMBER,
        in_flight=_NUMBER,
        difference=_NUMBER,
        skipped=_list_of(_object(workflow=_TEXT, reason=_TEXT, count=_NUMBER)),
    ),
    "Health": _object(status=_one_of("ok", "unavailable"), reasons=_list_of(_TEXT), details={"type": "object"}),
}
"""The shapes of bodies and answers. Members may be added in later versions; none is taken away."""
