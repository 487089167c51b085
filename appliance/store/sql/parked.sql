-- What the recorder writes for runs that wait for something, call each other or end after having done so: see
-- record.sql for the form. Each statement is only sent when a change of the batch has rows for it.
-- LATERAL with OFFSET 0 has each row looked up by its index. Joined freely, a million parked runs were read from end to
-- end for a few of them, until the tables had been analyzed. Rows of waits and machines are never updated: a ctid holds.

-- name: revisions
-- Runs that go on in another revision. run_updates, which comes before it, sees to it that the run had not moved on.
UPDATE runs SET revision_id = u.revision_id
FROM unnest(%b::text[], %b::int4[], %b::int4[]) AS u (id, revision_id, version)
WHERE runs.id = u.id::uuid AND runs.version = u.version

-- name: correlations
INSERT INTO correlations (digest, event_uid)
SELECT digest::uuid, event_uid::uuid FROM unnest(%b::text[], %b::text[]) AS u (digest, event_uid)
ON CONFLICT DO NOTHING

-- name: machines
-- A conflict is an error on purpose: another event has started the machine of this key.
INSERT INTO machines (workflow_id, business_key, run_id)
SELECT workflow_id, business_key, run_id::uuid
FROM unnest(%b::int4[], %b::text[], %b::text[]) AS u (workflow_id, business_key, run_id)
ORDER BY workflow_id, business_key

-- name: waits
INSERT INTO waits (run_id, key, digest, since)
SELECT run_id::uuid, key, digest::uuid, since::uuid
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[]) AS u (run_id, key, digest, since)
ON CONFLICT DO NOTHING

-- name: tasks
INSERT INTO tasks (id, run_id, key, workflow_id, title, description, assignee, people, form, created_at, due_at)
SELECT id::uuid, run_id::uuid, key, workflow_id, title, description, assignee, people, form::json,
       to_timestamp(created_at), to_timestamp(due_at)
FROM unnest(%b::text[], %b::text[], %b::text[], %b::int4[], %b::text[], %b::text[], %b::text[], %b::text[],
            %b::text[], %b::float8[], %b::float8[])
     AS u (id, run_id, key, workflow_id, title, description, assignee, people, form, created_at, due_at)

-- name: children
INSERT INTO children (parent_id, key, run_id)
SELECT parent_id::uuid, key, run_id::uuid FROM unnest(%b::text[], %b::text[], %b::text[]) AS u (parent_id, key, run_id)

-- name: signals
INSERT INTO signals (run_id, id, key, kind, event_uid, payload)
SELECT run_id::uuid, id::uuid, key, kind, event_uid::uuid, payload::json
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
     AS u (run_id, id, key, kind, event_uid, payload)
ON CONFLICT DO NOTHING

-- name: taken
UPDATE signals SET taken = u.taken, taken_by = u.by, taken_at = now()
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[]) AS u (run_id, id, key, taken, by)
WHERE signals.run_id = u.run_id::uuid AND signals.id = u.id::uuid AND signals.key = u.key AND signals.taken IS NULL

-- name: closed_tasks
-- Of an answer and a deadline one wins: a task that was answered meanwhile ends the transaction. Not where the run ends
-- ('dropped'): whoever takes it up again would do the same.
WITH given AS MATERIALIZED (
    SELECT t.id, t.status, CASE u.status WHEN 'dropped' THEN 'cancelled' ELSE u.status END::task_status AS becomes,
           u.status <> 'dropped' AS fenced
    FROM unnest(%b::text[], %b::text[], %b::text[]) AS u (run_id, key, status)
    CROSS JOIN LATERAL (
        SELECT id, status FROM tasks WHERE tasks.run_id = u.run_id::uuid AND tasks.key = u.key OFFSET 0
    ) AS t
), closed AS (
    UPDATE tasks SET status = given.becomes, closed_at = now()
    FROM given
    WHERE tasks.id = given.id AND tasks.status = 'open'
    RETURNING given.fenced
)
SELECT appliance_expect((SELECT count(*) FROM closed WHERE fenced),
                        (SELECT count(*) FROM given WHERE fenced AND status IN ('open', 'answered')))

-- name: closed_waits
DELETE FROM waits USING unnest(%b::text[], %b::text[]) AS u (run_id, key)
WHERE waits.run_id = u.run_id::uuid AND waits.key = u.key

-- name: cancelled_children
-- A run that a step called and that nobody waits for any more: it is asked to end.
WITH asked AS (
    UPDATE runs SET asked = 'cancel'
    FROM unnest(%b::text[], %b::text[]) AS u (run_id, key)
    JOIN children ON children.parent_id = u.run_id::uuid AND children.key = u.key
    WHERE runs.id = children.run_id AND runs.status IN ('running', 'waiting', 'retrying', 'paused')
    RETURNING runs.id, runs.priority
)
INSERT INTO timers (run_id, key, due_at, priority) SELECT id, '+signal', now(), priority FROM asked
ON CONFLICT (run_id, key) DO UPDATE SET due_at = LEAST(timers.due_at, EXCLUDED.due_at)

-- name: no_timers
-- A parked run without a time of its own.
DELETE FROM timers USING unnest(%b::text[], %b::text[]) AS u (run_id, key)
WHERE timers.run_id = u.run_id::uuid AND timers.key = u.key AND NOT timers.reopens

-- name: ended_timers
-- Runs that are over. Not a timer that took its event out of the ledger's 'dead': its entry closes the event.
DELETE FROM timers WHERE NOT reopens AND id = ANY(ARRAY(
    SELECT t.id FROM unnest(%b::text[], %b::text[]) AS u (run_id, key)
    CROSS JOIN LATERAL (SELECT id FROM timers WHERE timers.run_id = u.run_id::uuid OFFSET 0) AS t
))

-- name: ended_waits
DELETE FROM waits WHERE ctid = ANY(ARRAY(
    SELECT w.ctid FROM unnest(%b::text[], %b::text[]) AS u (run_id, key)
    CROSS JOIN LATERAL (SELECT ctid FROM waits WHERE waits.run_id = u.run_id::uuid OFFSET 0) AS w
))

-- name: ended_machines
DELETE FROM machines WHERE ctid = ANY(ARRAY(
    SELECT m.ctid FROM unnest(%b::text[], %b::text[]) AS u (run_id, key)
    CROSS JOIN LATERAL (SELECT ctid FROM machines WHERE machines.run_id = u.run_id::uuid OFFSET 0) AS m
))

-- name: ended_signals
UPDATE signals SET taken = 'ignored', taken_at = now()
FROM unnest(%b::text[], %b::text[]) AS u (run_id, key)
WHERE signals.run_id = u.run_id::uuid AND signals.taken IS NULL

-- name: parked_places
-- Flow control: places of runs that are not at work for a while.
DELETE FROM places USING unnest(%b::text[], %b::text[]) AS u (run_id, key)
WHERE places.run_id = u.run_id::uuid AND NOT places.keeps

-- name: aside_places
-- Of the runs of events whose entries are set aside, found by their ids (see prior_runs): of those that the entry had in
-- hand. One that is parked goes on without that entry.
DELETE FROM places WHERE run_id = ANY(ARRAY(
    SELECT r.id FROM unnest(%b::text[], %b::text[], %b::text[]) AS u (uid, low, high)
    CROSS JOIN LATERAL (
        SELECT id FROM runs
        WHERE runs.id >= u.low::uuid AND runs.id < u.high::uuid AND event_uid = u.uid::uuid AND state ->> 'by' IS NULL
        OFFSET 0
    ) AS r
))

-- name: ended_places
WITH ended AS MATERIALIZED (
    SELECT run_id::uuid FROM unnest(%b::text[], %b::text[]) AS u (run_id, key)
), left_queue AS (
    DELETE FROM queue USING ended WHERE queue.run_id = ended.run_id
)
DELETE FROM places USING ended WHERE places.run_id = ended.run_id

-- name: asked
-- What people ask of runs that go on.
SELECT id::text, asked FROM runs WHERE id = ANY(%b::text[]::uuid[]) AND asked IS NOT NULL

-- name: catalog_version
-- Read with every flush: whoever handled an event by older rules than these looks again who listens for it.
SELECT version FROM catalog_version
