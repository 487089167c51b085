-- What an event led to (store/trace.py).

-- name: correlated
-- The events of one correlation, oldest first.
SELECT uid, id, source, type, subject, time, received_at, attributes, outcome
FROM events WHERE attributes ->> 'correlationid' = %(correlation)s
ORDER BY uid LIMIT %(limit)s

-- name: root
-- The event that the correlation is named after: of several with that id the newest that is not younger than another.
SELECT uid, id, source, type, subject, time, received_at, attributes, outcome
FROM events WHERE (uid = %(uid)s OR id = %(id)s) AND uid <= %(before)s
ORDER BY uid DESC LIMIT 1

-- name: runs
-- The runs of some events (see history.sql), with the run and the step that called each, oldest first. A batch is there
-- for each of its events.
SELECT runs.id, runs.event_uid, workflows.name AS workflow, revisions.number AS revision, runs.status, runs.origin,
       runs.started_at, runs.finished_at, extract(epoch FROM runs.finished_at - runs.started_at)::float8 AS duration_s,
       runs.error, runs.details -> 'parent' ->> 'run' AS parent, runs.details -> 'parent' ->> 'key' AS step,
       runs.details ->> 'rerun_of' AS rerun_of, wanted.uid AS of_event
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
ORDER BY runs.started_at, runs.id LIMIT %(limit)s
