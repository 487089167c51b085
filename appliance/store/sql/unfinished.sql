-- Runs that are not over, of one workflow, by the index runs_open: where they stand, and moving them to other revisions.

-- name: page
SELECT r.id::text, r.workflow_id, r.revision_id, r.status::text, r.version, r.priority, r.state::text, r.asked,
       r.details -> 'rerun' IS NOT NULL
FROM runs r
WHERE r.workflow_id = %s AND r.status IN ('running', 'waiting', 'retrying', 'paused') AND r.id > %s::uuid
  AND (%s::int IS NULL OR r.revision_id = %s) AND (%s::int IS NULL OR r.revision_id <> %s)
ORDER BY r.id LIMIT %s

-- name: named
SELECT r.id::text, r.workflow_id, r.revision_id, r.status::text, r.version, r.priority, r.state::text, r.asked,
       r.details -> 'rerun' IS NOT NULL
FROM runs r
WHERE r.workflow_id = %s AND r.id = ANY(%s::uuid[]) AND r.status IN ('running', 'waiting', 'retrying', 'paused')
ORDER BY r.id

-- name: standing
-- Where runs stand, without outputs: their active steps, and of the others which there are, one visit of each status.
SELECT u.run_id, s.key, s.seq, s.status::text, extract(epoch FROM s.due_at)::float8, s.error
FROM unnest(%s::text[]) AS u (run_id)
CROSS JOIN LATERAL (
    SELECT key, seq, status, due_at, error FROM steps
    WHERE steps.run_id = u.run_id::uuid AND status IN ('running', 'retrying', 'waiting', 'unknown')
    UNION ALL
    SELECT min(key), min(seq), status, NULL, NULL FROM steps
    WHERE steps.run_id = u.run_id::uuid AND status NOT IN ('running', 'retrying', 'waiting', 'unknown')
    GROUP BY regexp_replace(key, '[[#].*$', ''), status
) AS s
ORDER BY u.run_id, s.seq

-- name: in_force
-- Asked here and not of the catalog, which may be a second older than what somebody has put just now.
SELECT id, current_revision FROM workflows WHERE name = %s AND current_revision IS NOT NULL

-- name: numbered
SELECT id FROM revisions WHERE workflow_id = %s AND number = %s

-- name: move
-- SKIP LOCKED: whoever holds a lock on a run is at work on it. The version fences who has read the run before.
WITH mine AS (
    SELECT r.id, r.revision_id
    FROM unnest(%s::text[], %s::int[]) AS u (id, version)
    JOIN runs r ON r.id = u.id::uuid AND r.version = u.version
    WHERE r.status IN ('running', 'waiting', 'retrying', 'paused')
    ORDER BY r.id FOR UPDATE OF r SKIP LOCKED
), moved AS (
    UPDATE runs SET revision_id = %s, version = runs.version + 1, updated_at = now()
    FROM mine WHERE runs.id = mine.id
    RETURNING runs.id, mine.revision_id AS old, runs.revision_id AS new
), noted AS (
    INSERT INTO audit_log (actor, action, subject, detail)
    SELECT %s, 'run.migrate', moved.id::text, json_build_object('from', old.number, 'to', new.number)
    FROM moved JOIN revisions old ON old.id = moved.old JOIN revisions new ON new.id = moved.new
)
SELECT id::text FROM moved

-- name: leave_flow_control
-- Runs that were moved to where there is none: their places are free, and those that waited for some go on.
WITH left_places AS (
    DELETE FROM places WHERE run_id = ANY(%s::uuid[])
), left_queue AS (
    DELETE FROM queue WHERE run_id = ANY(%s::uuid[]) RETURNING run_id, priority
)
INSERT INTO timers (run_id, key, due_at, priority) SELECT run_id, '+signal', now(), priority FROM left_queue
ON CONFLICT (run_id, key) DO UPDATE SET due_at = LEAST(timers.due_at, EXCLUDED.due_at)
