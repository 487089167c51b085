-- What the API reads (store/history.py). {places} are filled in with clauses from there, never with input.

-- name: list_events
-- A page of events, newest first. The filters have no indexes of their own, so a page looks at the newest :window
-- events below the cursor only, and may therefore hold fewer events than asked for, or none, before the end is reached:
-- `looked_at` tells how many it looked at and `oldest` where to go on.
WITH looked AS MATERIALIZED (
    SELECT uid, id, source, type, subject, time, received_at, attributes, data, stream, entry_id, outcome
    FROM events
    WHERE {range}
    ORDER BY uid DESC
    LIMIT %(window)s
), bounds AS (
    SELECT count(*) AS looked_at, (array_agg(uid ORDER BY uid))[1] AS oldest FROM looked
)
SELECT bounds.looked_at, bounds.oldest, found.*
FROM bounds LEFT JOIN LATERAL (
    SELECT * FROM looked WHERE {filters} ORDER BY uid DESC LIMIT %(limit)s
) AS found ON true
ORDER BY found.uid DESC;

-- name: find_events
-- The events that an id means: the one with that uid, or those (of several senders, perhaps) with that sender's id.
-- Newest first.
SELECT uid, id, source, type, subject, time, received_at, attributes, data, stream, entry_id, outcome
FROM events
WHERE {match}
ORDER BY uid DESC
LIMIT %(limit)s;

-- name: list_runs
-- A page of runs, newest first. `id` is the time order; every filter has its index (see 0001_first.sql).
SELECT runs.id, workflows.name AS workflow, revisions.number AS revision, runs.event_uid,
       coalesce(events.id, runs.event_uid::text) AS event_id,
       runs.status, runs.priority, runs.origin, runs.asked, runs.started_at, runs.finished_at, runs.updated_at,
       runs.result ->> 'outcome' AS outcome, runs.error, {held}
FROM (
    SELECT * FROM runs WHERE {filters} ORDER BY id DESC LIMIT %(limit)s
) AS runs
JOIN workflows ON workflows.id = runs.workflow_id
JOIN revisions ON revisions.id = runs.revision_id
LEFT JOIN events ON events.uid = runs.event_uid
ORDER BY runs.id DESC;

-- name: list_runs_of_events
-- A page of the runs of some events (parallel arrays: uid, and the range of ids that runs of its millisecond have).
-- A run that its event started has an id in that range; those started otherwise (replays …) are found by runs_origin. The
-- last are batches that began with another event.
SELECT runs.id, workflows.name AS workflow, revisions.number AS revision, runs.event_uid,
       coalesce(events.id, runs.event_uid::text) AS event_id,
       runs.status, runs.priority, runs.origin, runs.asked, runs.started_at, runs.finished_at, runs.updated_at,
       runs.result ->> 'outcome' AS outcome, runs.error, {held}
FROM unnest(%(uids)s::uuid[], %(starts)s::uuid[], %(ends)s::uuid[]) AS wanted (uid, range_start, range_end)
CROSS JOIN LATERAL (
    SELECT * FROM runs
    WHERE runs.id >= wanted.range_start AND runs.id < wanted.range_end
      AND runs.event_uid = wanted.uid AND runs.origin IS NULL
    UNION ALL
    SELECT * FROM runs WHERE runs.event_uid = wanted.uid AND runs.origin IS NOT NULL
    UNION ALL
    SELECT runs.* FROM batched JOIN runs ON runs.id = batched.run_id
    WHERE batched.event_uid = wanted.uid AND runs.event_uid <> wanted.uid
) AS runs
JOIN workflows ON workflows.id = runs.workflow_id
JOIN revisions ON revisions.id = runs.revision_id
LEFT JOIN events ON events.uid = runs.event_uid
WHERE {filters}
ORDER BY runs.id DESC
LIMIT %(limit)s;

-- name: held
-- Columns of an unfinished run: what flow control noted of it, and how many come before it in its queue (-1: too many).
CASE WHEN runs.status IN ('running', 'waiting', 'retrying', 'paused') THEN runs.details -> 'flow' END AS flow,
CASE WHEN runs.status IN ('running', 'waiting', 'retrying', 'paused') THEN runs.state ->> 'by' END AS holder,
(SELECT (SELECT CASE WHEN count(*) < %(ahead)s THEN count(*) ELSE -1 END FROM (
    SELECT FROM queue AS before
    WHERE before.workflow_id = queue.workflow_id AND before.lane = queue.lane
      AND (before.position, before.run_id) < (queue.position, queue.run_id) LIMIT %(ahead)s
 ) AS counted_rows) FROM queue WHERE queue.run_id = runs.id) AS ahead

-- name: get_run
-- One run with what it was started with, how it ended, and its definition.
SELECT runs.id, workflows.name AS workflow, revisions.number AS revision, runs.event_uid,
       coalesce(events.id, runs.event_uid::text) AS event_id,
       runs.status, runs.priority, runs.origin, runs.asked, runs.started_at, runs.finished_at, runs.updated_at,
       runs.result ->> 'outcome' AS outcome, runs.result -> 'output' AS output, runs.error, runs.details, {held},
       runs.state -> 'place' AS place, events.data AS event_data, revisions.definition, machines.business_key
FROM runs
JOIN workflows ON workflows.id = runs.workflow_id
JOIN revisions ON revisions.id = runs.revision_id
LEFT JOIN events ON events.uid = runs.event_uid
LEFT JOIN machines ON machines.run_id = runs.id
WHERE runs.id = %(id)s;

-- name: get_children
-- The runs that a run's steps called.
SELECT children.key AS step, children.run_id, workflows.name AS workflow, runs.status,
       runs.result ->> 'outcome' AS outcome
FROM children
LEFT JOIN runs ON runs.id = children.run_id
LEFT JOIN workflows ON workflows.id = runs.workflow_id
WHERE children.parent_id = %(run_id)s
ORDER BY children.run_id;

-- name: get_tasks
-- The tasks of a run: their ids have its milliseconds, so one partition holds them.
SELECT id, key AS step, status, title, assignee, people AS "group", created_at, due_at, answered_by, closed_at
FROM tasks
WHERE run_id = %(run_id)s AND id >= %(from)s AND id < %(to)s
ORDER BY created_at, id;

-- name: get_waits
-- What a run listens for, by step; from the earliest moment on.
SELECT DISTINCT ON (key) key AS step, since FROM waits WHERE run_id = %(run_id)s ORDER BY key, since;

-- name: get_signals
-- The latest of what came in for a run, in order.
SELECT * FROM (
    SELECT signals.id, signals.key AS step, signals.kind, signals.event_uid,
           coalesce(events.id, signals.event_uid::text) AS event_id, events.type,
           signals.payload ->> 'by' AS by, signals.at, signals.taken, signals.taken_by, signals.taken_at
    FROM signals LEFT JOIN events ON events.uid = signals.event_uid
    WHERE signals.run_id = %(run_id)s
    ORDER BY signals.at DESC, signals.id DESC
    LIMIT %(limit)s
) AS latest
ORDER BY at, id;

-- name: list_machines
-- A page of live state machines, by workflow and business key: the order of their primary key.
SELECT machines.workflow_id, workflows.name AS workflow, machines.business_key AS key, machines.run_id, runs.status,
       runs.state -> 'place' AS place, runs.started_at, runs.updated_at
FROM (
    SELECT * FROM machines WHERE {filters} ORDER BY workflow_id, business_key LIMIT %(limit)s
) AS machines
JOIN workflows ON workflows.id = machines.workflow_id
LEFT JOIN runs ON runs.id = machines.run_id
ORDER BY machines.workflow_id, machines.business_key;

-- name: get_machine
SELECT machines.run_id
FROM machines JOIN workflows ON workflows.id = machines.workflow_id
WHERE workflows.name = %(workflow)s AND machines.business_key = %(key)s;

-- name: get_batch
-- The events of a batch.
SELECT event_uid FROM batched WHERE run_id = %(run_id)s ORDER BY position, event_uid LIMIT %(events)s;

-- name: get_batches
-- The batches that an event belongs to.
SELECT batched.run_id, workflows.name AS workflow, runs.status
FROM batched JOIN runs ON runs.id = batched.run_id JOIN workflows ON workflows.id = runs.workflow_id
WHERE batched.event_uid = %(uid)s
ORDER BY batched.run_id LIMIT %(limit)s;

-- name: get_steps
-- The steps of a run, in the order in which they were entered.
SELECT key AS id, status, attempt, started_at, finished_at, due_at, output, error
FROM steps
WHERE run_id = %(run_id)s
ORDER BY seq, key;

-- name: get_attempts
-- The failed attempts of a run's steps.
SELECT key AS step, attempt, started_at, finished_at, error
FROM attempts
WHERE run_id = %(run_id)s
ORDER BY key, attempt, started_at;

-- name: get_deliveries
-- The messages that a run sent, or tried to.
SELECT key AS step, channel, recipient, status, attempts, message_id, error, updated_at
FROM deliveries
WHERE run_id = %(run_id)s
ORDER BY updated_at, key, channel, recipient;

-- name: list_dead_letters
-- A page of dead letters, newest first.
SELECT letters.id, letters.kind, letters.status, letters.event_uid,
       coalesce(events.id, letters.event_uid::text) AS event_id,
       letters.run_id, workflows.name AS workflow, letters.step, letters.stream, letters.entry_id,
       letters.error, letters.attempts, letters.created_at, letters.closed_at
FROM (
    SELECT * FROM dead_letters WHERE {filters} ORDER BY id DESC LIMIT %(limit)s
) AS letters
LEFT JOIN events ON events.uid = letters.event_uid
LEFT JOIN runs ON runs.id = letters.run_id
LEFT JOIN workflows ON workflows.id = runs.workflow_id
ORDER BY letters.id DESC;

-- name: get_fields
-- The raw fields of the entry that a dead letter was made of.
SELECT fields FROM dead_letters WHERE id = %(id)s;

-- name: list_workflows
-- A page of workflows by name, each with its current revision.
SELECT workflows.id, workflows.name, revisions.number AS revision, workflows.enabled, workflows.origin, workflows.file,
       revisions.definition ->> 'description' AS description, workflows.updated_at
FROM workflows
LEFT JOIN revisions ON revisions.id = workflows.current_revision
WHERE {filters}
ORDER BY workflows.name
LIMIT %(limit)s;

-- name: get_workflow
-- One workflow, by name or number, with the definition of its current revision. The etag: as in definitions.sql.
SELECT workflows.id, workflows.name, revisions.number AS revision, workflows.enabled, workflows.origin, workflows.file,
       revisions.definition ->> 'description' AS description, workflows.updated_at, revisions.definition,
       md5((workflows.current_revision, workflows.enabled, workflows.origin, workflows.file,
            extract(epoch FROM workflows.updated_at))::text) AS etag
FROM workflows
LEFT JOIN revisions ON revisions.id = workflows.current_revision
WHERE {match};

-- name: list_revisions
-- The latest revisions of a workflow, newest first.
SELECT number AS revision, digest, created_at
FROM revisions
WHERE workflow_id = %(id)s
ORDER BY number DESC
LIMIT %(limit)s;
