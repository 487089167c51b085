-- What the recorder writes. Every statement takes one array per column: binary arrays and unnest are the fastest way
-- in (26-42 k rows/s in batches of 100). Statements of one flush travel in one pipeline and are one transaction.

-- name: events
INSERT INTO events (uid, id, source, type, subject, time, received_at, attributes, data, key, stream, entry_id, outcome)
SELECT uid::uuid, id, source, type, subject, time::timestamptz, to_timestamp(received_at), attributes::json, data::json,
       key::uuid, stream, entry_id, outcome::event_outcome
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::float8[], %b::text[],
            %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
     AS u (uid, id, source, type, subject, time, received_at, attributes, data, key, stream, entry_id, outcome)
ON CONFLICT (uid) DO NOTHING

-- name: runs
-- A conflict is an error on purpose: somebody else has recorded this run.
INSERT INTO runs (id, event_uid, workflow_id, revision_id, status, version, started_at, finished_at, updated_at,
                  priority, state, error, origin, details, result)
SELECT id::uuid, event_uid::uuid, workflow_id, revision_id, status::run_status, version, to_timestamp(started_at),
       to_timestamp(finished_at), to_timestamp(updated_at), priority, state::json, error, origin, details::json,
       result::json
FROM unnest(%b::text[], %b::text[], %b::int4[], %b::int4[], %b::text[], %b::int4[], %b::float8[], %b::float8[],
            %b::float8[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
     AS u (id, event_uid, workflow_id, revision_id, status, version, started_at, finished_at, updated_at, priority,
           state, error, origin, details, result)

-- name: run_updates
-- What was asked for in place of what the run took notice of stays. Where a pause was taken back meanwhile, the run is
-- not paused: who took it back has left a timer that wakes it.
WITH changed AS (
    UPDATE runs SET status = CASE WHEN u.status = 'paused' AND u.noticed = 'pause' AND runs.asked IS NULL
                                  THEN 'waiting' ELSE u.status::run_status END,
                    version = u.version, finished_at = to_timestamp(u.finished_at),
                    updated_at = to_timestamp(u.updated_at), state = u.state::json, error = u.error,
                    result = u.result::json,
                    asked = CASE WHEN u.finished_at IS NULL AND runs.asked IS DISTINCT FROM u.noticed THEN runs.asked END
    FROM unnest(%b::text[], %b::text[], %b::int4[], %b::float8[], %b::float8[], %b::text[], %b::text[], %b::text[],
                %b::text[])
         AS u (id, status, version, finished_at, updated_at, state, error, result, noticed)
    WHERE runs.id = u.id::uuid AND runs.version = u.version - 1
    RETURNING 1
)
SELECT appliance_expect((SELECT count(*) FROM changed), %s)

-- name: steps
INSERT INTO steps (run_id, key, seq, status, attempt, started_at, finished_at, due_at, output, error)
SELECT run_id::uuid, key, seq, status::step_status, attempt, to_timestamp(started_at), to_timestamp(finished_at),
       to_timestamp(due_at), output::json, error
FROM unnest(%b::text[], %b::text[], %b::int4[], %b::text[], %b::int4[], %b::float8[], %b::float8[], %b::float8[],
            %b::text[], %b::text[])
     AS u (run_id, key, seq, status, attempt, started_at, finished_at, due_at, output, error)
ON CONFLICT (run_id, key) DO UPDATE
SET status = EXCLUDED.status, attempt = EXCLUDED.attempt, started_at = EXCLUDED.started_at,
    finished_at = EXCLUDED.finished_at, due_at = EXCLUDED.due_at, output = EXCLUDED.output, error = EXCLUDED.error
WHERE steps.status <> 'succeeded'

-- name: attempts
INSERT INTO attempts (run_id, key, attempt, started_at, finished_at, error)
SELECT run_id::uuid, key, attempt, to_timestamp(started_at), to_timestamp(finished_at), error
FROM unnest(%b::text[], %b::text[], %b::int4[], %b::float8[], %b::float8[], %b::text[])
     AS u (run_id, key, attempt, started_at, finished_at, error)

-- name: timers
INSERT INTO timers (run_id, key, due_at, priority)
SELECT DISTINCT ON (run_id, key) run_id::uuid, key, to_timestamp(due_at), priority
FROM unnest(%b::text[], %b::text[], %b::float8[], %b::text[]) AS u (run_id, key, due_at, priority)
ORDER BY run_id, key, due_at
ON CONFLICT (run_id, key) DO UPDATE SET due_at = EXCLUDED.due_at

-- name: deliveries
INSERT INTO deliveries (run_id, key, channel, recipient, status, attempts, message_id, error, updated_at)
SELECT run_id::uuid, key, channel, recipient, status, attempts, message_id, error, to_timestamp(updated_at)
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::int4[], %b::text[], %b::text[],
            %b::float8[])
     AS u (run_id, key, channel, recipient, status, attempts, message_id, error, updated_at)
ON CONFLICT (run_id, key, channel, recipient) DO UPDATE
SET status = EXCLUDED.status, attempts = deliveries.attempts + EXCLUDED.attempts, message_id = EXCLUDED.message_id,
    error = EXCLUDED.error, updated_at = EXCLUDED.updated_at

-- name: letters
INSERT INTO dead_letters (id, kind, event_uid, run_id, step, stream, entry_id, fields, error, attempts, created_at)
SELECT id::uuid, kind::letter_kind, event_uid::uuid, run_id::uuid, step, stream, entry_id, fields::json, error,
       attempts, to_timestamp(created_at)
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
            %b::text[], %b::int4[], %b::float8[])
     AS u (id, kind, event_uid, run_id, step, stream, entry_id, fields, error, attempts, created_at)
ON CONFLICT (id) DO UPDATE
SET status = 'open', closed_at = NULL, moved = false, error = EXCLUDED.error, attempts = dead_letters.attempts + EXCLUDED.attempts
WHERE dead_letters.status = 'redriven'

-- name: duplicates
INSERT INTO duplicates (uid, first_uid, stream, entry_id)
SELECT uid::uuid, first_uid::uuid, stream, entry_id
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[]) AS u (uid, first_uid, stream, entry_id)
ON CONFLICT (uid) DO NOTHING

-- name: lock
-- Before outcomes and deaths: of two transactions that decide about an event the second sees the first one's letters.
SELECT uid FROM events WHERE uid = ANY(%b::text[]::uuid[]) ORDER BY uid FOR UPDATE

-- name: deaths
WITH moved AS (
    UPDATE events SET outcome = 'dead'
    FROM unnest(%b::text[], %b::text[]) AS u (uid, letter)
    WHERE events.uid = u.uid::uuid AND events.outcome = 'handled'
    RETURNING u.letter
)
UPDATE dead_letters SET moved = true FROM moved WHERE dead_letters.id = moved.letter::uuid

-- name: outcomes
-- An event that somebody else has begun a run for meanwhile is not unmatched: who says so is to look again.
WITH decided AS (
    UPDATE events SET outcome = CASE WHEN EXISTS (SELECT FROM dead_letters d WHERE d.event_uid = events.uid
                                                  AND d.status <> 'redriven')
                                     THEN 'dead' ELSE u.outcome::event_outcome END
    FROM unnest(%b::text[], %b::text[]) AS u (uid, outcome)
    WHERE events.uid = u.uid::uuid
    RETURNING CASE WHEN u.outcome = 'unmatched'
                   THEN EXISTS (SELECT FROM runs r WHERE r.id >= (left(u.uid, 13) || '-0000-0000-000000000000')::uuid
                                AND r.id <= (left(u.uid, 13) || '-ffff-ffff-ffffffffffff')::uuid
                                AND r.event_uid = u.uid::uuid
                                AND coalesce(r.origin, '') NOT IN ('replay', 'rerun', 'subflow'))
                   ELSE false END AS begun
)
SELECT appliance_expect((SELECT count(*) FROM decided WHERE begun), 0)

-- name: written
-- Which of these runs stand exactly as we wrote them? Asked when the reply to a commit was lost.
SELECT runs.id::text, runs.version, extract(epoch FROM runs.updated_at)::float8
FROM runs WHERE runs.id = ANY(%b::text[]::uuid[])

-- name: outbox
-- An event that is there already (its uid is derived) is the same one.
INSERT INTO outbox (uid, priority, entry, durable)
SELECT uid::uuid, priority, entry::json, durable
FROM unnest(%b::text[], %b::text[], %b::text[], %b::bool[]) AS u (uid, priority, entry, durable)
ON CONFLICT (uid) DO NOTHING
