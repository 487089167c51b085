-- What timers and people change.

-- name: take_due_timers
-- SKIP LOCKED: replicas share the work without a leader. Deleted in the transaction that puts them into a stream.
-- Times are the process's, but signals are due at once, by the clock of the database that wrote them.
WITH given AS MATERIALIZED (SELECT to_timestamp(%s) AS now), due AS (
    SELECT id FROM timers
    WHERE due_at <= greatest((SELECT now FROM given), now())
      AND (due_at <= (SELECT now FROM given) OR key = '+signal')
    ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED
)
DELETE FROM timers WHERE timers.id = ANY(ARRAY(SELECT id FROM due))
RETURNING timers.priority, extract(epoch FROM timers.due_at)::float8, timers.run_id::text, timers.key,
          timers.letter::text, timers.reopens

-- name: places
-- Where the events of runs and dead letters stood, in a stream.
SELECT e.stream, e.entry_id
FROM unnest(%b::text[]) AS u (id)
LEFT JOIN runs r ON r.id = u.id::uuid LEFT JOIN dead_letters d ON d.id = u.id::uuid
JOIN events e ON e.uid = coalesce(r.event_uid, d.event_uid)
WHERE e.stream IS NOT NULL AND e.entry_id IS NOT NULL

-- name: next_timer
SELECT extract(epoch FROM min(due_at))::float8 FROM timers

-- name: look_at_run
SELECT r.id::text, w.name, r.event_uid::text, r.workflow_id, r.revision_id, r.status::text, r.version, r.priority,
       r.asked, coalesce(v.number, 0), r.state::text, r.details::text
FROM runs r JOIN workflows w ON w.id = r.workflow_id LEFT JOIN revisions v ON v.id = r.revision_id
WHERE r.id = %s::uuid

-- name: lock_runs
SELECT r.id::text, w.name, r.event_uid::text, r.workflow_id, r.revision_id, r.status::text, r.version, r.priority,
       r.asked, coalesce(v.number, 0), r.state::text, r.details::text
FROM runs r JOIN workflows w ON w.id = r.workflow_id LEFT JOIN revisions v ON v.id = r.revision_id
WHERE r.id = ANY(%s::uuid[]) ORDER BY r.id FOR UPDATE OF r

-- name: lock_called
-- The runs that some runs called and that are not over.
SELECT r.id::text, w.name, r.event_uid::text, r.workflow_id, r.revision_id, r.status::text, r.version, r.priority,
       r.asked, coalesce(v.number, 0), r.state::text, r.details::text
FROM runs r JOIN workflows w ON w.id = r.workflow_id LEFT JOIN revisions v ON v.id = r.revision_id
WHERE r.id IN (SELECT run_id FROM children WHERE parent_id = ANY(%s::uuid[]))
  AND r.status IN ('running', 'waiting', 'retrying', 'paused')
ORDER BY r.id FOR UPDATE OF r

-- name: set_run
UPDATE runs SET status = %s::run_status, version = version + 1, finished_at = NULL, updated_at = now(),
                state = %s::json, asked = %s, error = NULL
WHERE id = %s::uuid AND version = %s AND status NOT IN ('succeeded', 'cancelled')

-- name: ask_runs
-- Without another version: whoever holds a run goes on, and takes notice with its next look.
UPDATE runs SET asked = %s, updated_at = now()
WHERE id = ANY(%s::uuid[]) AND status IN ('running', 'waiting', 'retrying', 'paused')

-- name: end_runs
UPDATE runs SET status = 'cancelled', version = version + 1, finished_at = now(), updated_at = now(), error = %s,
                asked = NULL
WHERE id = ANY(%s::uuid[]) AND status IN ('running', 'waiting', 'retrying', 'paused')

-- name: announce
-- An event about the end of a run, for the outbox.
INSERT INTO outbox (uid, priority, entry, durable) VALUES (%s::uuid, %s, %s::json, %s) ON CONFLICT (uid) DO NOTHING

-- name: cancel_steps
-- Not unknown ones: whether they had their effect is still not known.
UPDATE steps SET status = 'cancelled', finished_at = now(), due_at = NULL
WHERE run_id = ANY(%s::uuid[]) AND status IN ('running', 'retrying', 'waiting')

-- name: delete_timers
-- Not one that took its event out of the ledger's 'dead': its entry finds the run cancelled, and closes the event.
DELETE FROM timers WHERE run_id = ANY(%s::uuid[]) AND NOT reopens

-- name: leave_queue
-- Flow control: before their places are looked at, so that who lets a run in at this moment has committed.
DELETE FROM queue WHERE run_id = ANY(%s::uuid[])

-- name: delete_places
DELETE FROM places WHERE run_id = ANY(%s::uuid[]) RETURNING run_id::text

-- name: park_places
-- Of runs that are not at work for a while.
DELETE FROM places WHERE run_id = ANY(%s::uuid[]) AND NOT keeps RETURNING run_id::text

-- name: delete_waits
DELETE FROM waits WHERE run_id = ANY(%s::uuid[])

-- name: delete_machines
DELETE FROM machines WHERE run_id = ANY(%s::uuid[])

-- name: cancel_tasks
UPDATE tasks SET status = 'cancelled', closed_at = now() WHERE run_id = ANY(%s::uuid[]) AND status = 'open'

-- name: ignore_signals
UPDATE signals SET taken = 'ignored', taken_at = now() WHERE run_id = ANY(%s::uuid[]) AND taken IS NULL

-- name: definitions
SELECT id, definition FROM revisions WHERE id = ANY(%s::int[])

-- name: begun_steps
-- What some runs may have to undo.
SELECT run_id::text, key FROM steps
WHERE run_id = ANY(%s::uuid[]) AND status IN ('succeeded', 'running', 'unknown')

-- name: active_steps
SELECT key, status::text FROM steps
WHERE run_id = %s::uuid AND status IN ('running', 'retrying', 'waiting', 'unknown')

-- name: any_step
SELECT 1 FROM steps WHERE run_id = %s::uuid LIMIT 1

-- name: step
SELECT status::text, attempt, extract(epoch FROM started_at)::float8 FROM steps WHERE run_id = %s::uuid AND key = %s

-- name: ended_steps
SELECT key, status::text FROM steps WHERE run_id = %s::uuid AND status IN ('succeeded', 'failed', 'skipped')

-- name: undone_steps
SELECT 1 FROM steps WHERE run_id = %s::uuid AND key ~ '^[^[#]*[.]compensate($|[[#])' LIMIT 1

-- name: copy_steps
INSERT INTO steps (run_id, key, seq, status, attempt, started_at, finished_at, due_at, output, error)
SELECT %s::uuid, key, seq, status, attempt, started_at, finished_at, due_at, output, error
FROM steps WHERE run_id = %s::uuid AND key = ANY(%s::text[])

-- name: copy_batch
-- The events that a batch has: who runs it again sees them all.
INSERT INTO batched (run_id, event_uid, position)
SELECT %s::uuid, event_uid, position FROM batched WHERE run_id = %s::uuid

-- name: add_runs
-- Parked, without any step: the timers that are stored with them start them.
INSERT INTO runs (id, event_uid, workflow_id, revision_id, status, version, started_at, updated_at, priority, state,
                  origin, details)
SELECT id::uuid, event_uid::uuid, workflow_id, revision_id, 'running', 1, now(), now(), priority, '{"by": "timer"}',
       %s, details::json
FROM unnest(%s::text[], %s::text[], %s::int[], %s::int[], %s::text[], %s::text[])
     AS u (id, event_uid, workflow_id, revision_id, priority, details)

-- name: wake_runs
INSERT INTO timers (run_id, key, due_at, priority)
SELECT id::uuid, '', now(), priority FROM unnest(%s::text[], %s::text[]) AS u (id, priority)

-- name: put_signal
INSERT INTO signals (id, key, kind, event_uid, payload, run_id)
SELECT %s::uuid, %s, %s, %s::uuid, %s::json, r.id FROM runs r
WHERE r.id = %s::uuid AND r.status IN ('running', 'waiting', 'retrying', 'paused')
ON CONFLICT DO NOTHING

-- name: nudge_runs
INSERT INTO timers (run_id, key, due_at, priority)
SELECT id, '+signal', now(), priority FROM runs
WHERE id = ANY(%s::uuid[]) AND status IN ('running', 'waiting', 'retrying', 'paused')
ON CONFLICT (run_id, key) DO UPDATE SET due_at = LEAST(timers.due_at, EXCLUDED.due_at)

-- name: claim_machine
-- Waits for whoever claims the same key at this moment.
INSERT INTO machines (workflow_id, business_key, run_id) VALUES (%s, %s, %s::uuid)
ON CONFLICT (workflow_id, business_key) DO NOTHING

-- name: live_machine
SELECT run_id::text FROM machines WHERE workflow_id = %s AND business_key = %s

-- name: listen
INSERT INTO waits (run_id, key, digest, since) VALUES (%s::uuid, '', %s::uuid, %s::uuid) ON CONFLICT DO NOTHING

-- name: has_event
SELECT 1 FROM events WHERE uid = %s::uuid

-- name: claim_key
INSERT INTO event_keys (key, uid) VALUES (%s::uuid, %s::uuid) ON CONFLICT (key) DO NOTHING

-- name: claimed_key
-- A statement of its own, so that it sees what somebody else claimed while the one before waited for them.
SELECT uid::text FROM event_keys WHERE key = %s::uuid

-- name: add_event
-- An event that was sent to a run: it went through no stream, so it is in no stream's ledger.
INSERT INTO events (uid, id, source, type, subject, time, received_at, attributes, data, key, outcome)
VALUES (%s::uuid, %s, %s, %s, %s, %s::timestamptz, now(), %s::json, %s::json, %s::uuid, 'handled')

-- name: lock_event
SELECT FROM events WHERE uid = %s::uuid FOR UPDATE

-- name: lock_letter
-- Against the recorder, which may be opening it again.
SELECT FROM dead_letters WHERE id = %s::uuid FOR UPDATE

-- name: close_letter
UPDATE dead_letters SET status = %s::letter_status, closed_at = now() WHERE id = %s::uuid AND status = 'open'

-- name: close_letters_of_run
UPDATE dead_letters SET status = 'redriven', closed_at = now() WHERE run_id = %s::uuid AND status = 'open'

-- name: reopen_event
-- Whether this takes the event out of 'dead': only when no other dead letter of it is open.
UPDATE events SET outcome = NULL
WHERE uid = %s::uuid AND outcome = 'dead'
  AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE event_uid = events.uid AND status = 'open')

-- name: audit
INSERT INTO audit_log (actor, action, subject, detail) VALUES (%s, %s, %s, %s::json)

-- name: wake_now
INSERT INTO timers (run_id, key, letter, reopens, due_at, priority) VALUES (%s::uuid, %s, %s::uuid, %s, now(), %s)
ON CONFLICT (run_id, key) DO UPDATE SET due_at = now(), reopens = timers.reopens OR EXCLUDED.reopens
