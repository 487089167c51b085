-- What timers and people change.

-- name: take_due_timers
-- SKIP LOCKED: replicas share the work without a leader. Deleted in the transaction that puts them into a stream.
WITH due AS (
    SELECT id FROM timers WHERE due_at <= to_timestamp(%s) ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED
)
DELETE FROM timers USING due WHERE timers.id = due.id
RETURNING timers.priority, extract(epoch FROM timers.due_at)::float8, timers.run_id::text, timers.key,
          timers.letter::text, timers.reopens

-- name: next_timer
SELECT extract(epoch FROM min(due_at))::float8 FROM timers

-- name: set_run
UPDATE runs SET status = %s::run_status, version = version + 1, finished_at = to_timestamp(%s), updated_at = now(),
                state = %s::json, error = %s
WHERE id = %s::uuid AND version = %s

-- name: set_step
UPDATE steps SET status = %s::step_status, attempt = %s, started_at = to_timestamp(%s), finished_at = NULL,
                 due_at = to_timestamp(%s), error = NULL
WHERE run_id = %s::uuid AND key = %s

-- name: cancel_steps
UPDATE steps SET status = 'cancelled', finished_at = now(), due_at = NULL
WHERE run_id = %s::uuid AND status IN ('running', 'retrying', 'waiting')

-- name: delete_timers
-- Not one that took its event out of the ledger's 'dead': its entry finds the run cancelled, and closes the event.
DELETE FROM timers WHERE run_id = %s::uuid AND NOT reopens

-- name: lock_event
SELECT FROM events WHERE uid = %s::uuid FOR UPDATE

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
ON CONFLICT (run_id, key) DO UPDATE SET due_at = now(), reopens = EXCLUDED.reopens
