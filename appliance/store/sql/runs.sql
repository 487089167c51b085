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
       r.error, r.origin, r.details::text, r.result::text, r.asked
FROM unnest(%b::text[], %b::text[], %b::text[]) AS u (uid, low, high)
JOIN runs r ON r.id >= u.low::uuid AND r.id < u.high::uuid AND r.event_uid = u.uid::uuid

-- name: steps
SELECT s.run_id::text, s.key, s.seq, s.status::text, s.attempt, extract(epoch FROM s.started_at)::float8,
       extract(epoch FROM s.finished_at)::float8, extract(epoch FROM s.due_at)::float8, s.output::text, s.error
FROM unnest(%b::text[]) AS u (run_id)
CROSS JOIN LATERAL (SELECT * FROM steps WHERE steps.run_id = u.run_id::uuid OFFSET 0) AS s
ORDER BY s.run_id, s.seq

-- name: runs
SELECT r.id::text, r.event_uid::text, r.workflow_id, r.revision_id, r.status::text, r.version,
       extract(epoch FROM r.started_at)::float8, extract(epoch FROM r.finished_at)::float8, r.priority, r.state::text,
       r.error, r.origin, r.details::text, r.result::text, r.asked
FROM runs r WHERE r.id = ANY(%b::text[]::uuid[])

-- name: recorded
SELECT u.id FROM unnest(%b::text[]) AS u (id)
CROSS JOIN LATERAL (SELECT FROM runs WHERE runs.id = u.id::uuid OFFSET 0) AS r

-- name: events
SELECT uid::text, id, source, type, subject, time, attributes::text, data::text, key::text, outcome::text
FROM events WHERE uid = ANY(%b::text[]::uuid[])

-- name: open_signals
-- What came in for runs and nobody looked at yet, in the order in which it came; with its event, if it is one. Of very
-- many first what some step waits for, then what is for whichever takes it and may be kept for long.
SELECT s.run_id::text, s.id::text, s.key, s.kind, s.payload::text, s.event_uid::text,
       e.uid::text, e.id, e.source, e.type, e.subject, e.time, e.attributes::text, e.data::text, e.key::text,
       e.outcome::text
FROM unnest(%b::text[]) AS u (run_id)
CROSS JOIN LATERAL (
    SELECT * FROM signals WHERE signals.run_id = u.run_id::uuid AND taken IS NULL
    ORDER BY CASE WHEN kind IN ('child', 'settle') THEN 0 WHEN key <> '' THEN 1 ELSE 2 END, at, id LIMIT %b
) AS s
LEFT JOIN events e ON e.uid = s.event_uid
ORDER BY s.at, s.id

-- name: places_of
SELECT u.run_id, p.digest::text
FROM unnest(%b::text[]) AS u (run_id)
CROSS JOIN LATERAL (SELECT digest FROM places WHERE places.run_id = u.run_id::uuid OFFSET 0) AS p

-- name: correlate
-- Who listens for an event with one of these digests is told of it: a signal, and a wake. So many at once; answers how
-- many were told. LATERAL with OFFSET 0: see parked.sql.
WITH told AS (
    INSERT INTO signals (run_id, id, key, kind, event_uid)
    SELECT DISTINCT w.run_id, u.uid::uuid, w.key, 'event', u.uid::uuid
    FROM unnest(%b::text[], %b::text[]) AS u (uid, digest)
    CROSS JOIN LATERAL (SELECT run_id, key FROM waits WHERE waits.digest = u.digest::uuid OFFSET 0) AS w
    CROSS JOIN LATERAL (SELECT event_uid FROM runs WHERE runs.id = w.run_id OFFSET 0) AS r
    WHERE r.event_uid IS DISTINCT FROM u.uid::uuid
      AND NOT EXISTS (SELECT FROM signals s WHERE s.run_id = w.run_id AND s.id = u.uid::uuid AND s.key = w.key OFFSET 0)
    ORDER BY 1, 2 LIMIT %b
    ON CONFLICT DO NOTHING
    RETURNING run_id
), woken AS (
    INSERT INTO timers (run_id, key, due_at, priority)
    SELECT DISTINCT told.run_id, '+signal', now(), r.priority
    FROM told CROSS JOIN LATERAL (SELECT priority FROM runs WHERE runs.id = told.run_id OFFSET 0) AS r
    ORDER BY told.run_id
    ON CONFLICT (run_id, key) DO UPDATE SET due_at = LEAST(timers.due_at, EXCLUDED.due_at)
)
SELECT count(*) FROM told

-- name: listening
-- Whether a run that listens for one of these digests was told of the event.
SELECT 1 FROM unnest(%b::text[]) AS d (digest)
CROSS JOIN LATERAL (SELECT run_id FROM waits WHERE waits.digest = d.digest::uuid OFFSET 0) AS w
CROSS JOIN LATERAL (SELECT FROM signals WHERE signals.run_id = w.run_id AND signals.id = %b::text::uuid LIMIT 1) AS s
LIMIT 1

-- name: look_back
-- Events that came before the run began to listen for them, so many at once; answers how many there are. Not those that
-- an earlier visit of the same step has taken.
WITH told AS (
    INSERT INTO signals (run_id, id, key, kind, event_uid)
    SELECT w.run_id, c.event_uid, w.key, 'event', c.event_uid
    FROM waits w
    JOIN runs r ON r.id = w.run_id
    JOIN correlations c ON c.digest = w.digest AND c.event_uid >= w.since
    WHERE w.run_id = %b::text::uuid AND c.event_uid IS DISTINCT FROM r.event_uid
      AND NOT EXISTS (SELECT FROM signals s WHERE s.run_id = w.run_id AND s.id = c.event_uid AND s.taken = 'taken'
                      AND split_part(s.key, '#', 1) = split_part(w.key, '#', 1))
      AND NOT EXISTS (SELECT FROM signals s WHERE s.run_id = w.run_id AND s.id = c.event_uid AND s.key = w.key)
    ORDER BY c.event_uid LIMIT %b
    ON CONFLICT DO NOTHING
    RETURNING run_id
), woken AS (
    INSERT INTO timers (run_id, key, due_at, priority)
    SELECT DISTINCT told.run_id, '+signal', now(), runs.priority FROM told JOIN runs ON runs.id = told.run_id
    ON CONFLICT (run_id, key) DO UPDATE SET due_at = LEAST(timers.due_at, EXCLUDED.due_at)
)
SELECT count(*) FROM told

-- name: machine_of
SELECT run_id::text FROM machines WHERE workflow_id = %b AND business_key = %b

-- name: delivered
SELECT run_id::text, key, channel, recipient, message_id
FROM deliveries WHERE run_id = ANY(%b::text[]::uuid[]) AND status = 'sent'

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
