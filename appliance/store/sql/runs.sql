-- What the executor reads: rare in the good case (entries that were delivered before, timers, redrives).

-- name: prior_events
-- As what events are counted by their own entries: one that died later was moved from 'handled' by another entry.
SELECT uid::text, CASE WHEN outcome = 'dead' AND EXISTS (SELECT FROM dead_letters d WHERE d.event_uid = events.uid
                                                         AND d.moved AND d.status <> 'redriven')
                       THEN 'handled' ELSE outcome::text END
FROM events WHERE uid = ANY(%b::text[]::uuid[])

-- name: prior_runs
-- The runs of some events: an id shares its first 48 bits with its event's uid, so ranges of ids find them.
SELECT r.id::text, r.event_uid::text, r.workflow_id, r.revision_id, r.status::text, r.version,
       extract(epoch FROM r.started_at)::float8, extract(epoch FROM r.finished_at)::float8, r.priority, r.state::text,
       r.error
FROM unnest(%b::text[], %b::text[], %b::text[]) AS u (uid, low, high)
JOIN runs r ON r.id >= u.low::uuid AND r.id < u.high::uuid AND r.event_uid = u.uid::uuid

-- name: run
SELECT r.id::text, r.event_uid::text, r.workflow_id, r.revision_id, r.status::text, r.version,
       extract(epoch FROM r.started_at)::float8, extract(epoch FROM r.finished_at)::float8, r.priority, r.state::text,
       r.error
FROM runs r WHERE r.id = %b::text::uuid

-- name: steps
SELECT run_id::text, key, seq, status::text, attempt, extract(epoch FROM started_at)::float8,
       extract(epoch FROM finished_at)::float8, extract(epoch FROM due_at)::float8, output::text, error
FROM steps WHERE run_id = ANY(%b::text[]::uuid[]) ORDER BY run_id, seq

-- name: delivered
SELECT run_id::text, key, channel, recipient, message_id
FROM deliveries WHERE run_id = ANY(%b::text[]::uuid[]) AND status = 'sent'

-- name: event
SELECT uid::text, id, source, type, subject, time, attributes::text, data::text, key::text, outcome::text
FROM events WHERE uid = %b::text::uuid

-- name: moved
-- Whether a dead letter that this entry wrote took the event from 'handled' to 'dead'.
SELECT count(*) FROM dead_letters WHERE run_id = %b::text::uuid AND stream = %b AND entry_id = %b AND moved

-- name: letter_moved
SELECT moved FROM dead_letters WHERE id = %b::text::uuid

-- name: letter
SELECT id::text, kind::text, status::text, event_uid::text, run_id::text, step, stream, entry_id, fields::text
FROM dead_letters WHERE id = %b::text::uuid

-- name: lock_letter
SELECT id::text, kind::text, status::text, event_uid::text, run_id::text, step, stream, entry_id, fields::text
FROM dead_letters WHERE id = %b::text::uuid FOR UPDATE

-- name: claim_keys
INSERT INTO event_keys (key, uid)
SELECT key::uuid, uid::uuid FROM unnest(%b::text[], %b::text[]) AS u (key, uid) ORDER BY key
ON CONFLICT (key) DO NOTHING
RETURNING key::text

-- name: keys
SELECT key::text, uid::text FROM event_keys WHERE key = ANY(%b::text[]::uuid[])
