-- The schedules of the workflows in force, and what the ticker changes.

-- name: drop_schedules
-- Those of workflows that are gone or disabled, and of triggers that a revision doesn't have any more. Only a replica
-- that knows the revision in force judges its triggers: one that lags behind must not undo what another one did.
DELETE FROM schedules s
WHERE NOT EXISTS (SELECT FROM workflows w WHERE w.id = s.workflow_id AND w.enabled)
   OR EXISTS (
       SELECT FROM unnest(%b::int4[], %b::int4[], %b::int4[]) AS u (workflow_id, revision_id, schedules)
       JOIN workflows w ON w.id = u.workflow_id AND w.current_revision = u.revision_id
       WHERE u.workflow_id = s.workflow_id AND s.position >= u.schedules
   )

-- name: kept_schedules
-- Those that stand, and needn't be kept again.
SELECT workflow_id, position, digest FROM schedules
WHERE last_slot IS NULL OR last_slot <= to_timestamp(%s) + interval '1 day'

-- name: keep_schedules
-- New ones and changed ones begin with their next slot; one that only moved among its workflow's triggers goes on. A
-- last slot far in the future is the trace of a clock that was wrong: that schedule begins anew as well.
INSERT INTO schedules (workflow_id, position, digest, next_at, last_slot)
SELECT u.workflow_id, u.position, u.digest, coalesce(s.next_at, to_timestamp(u.next_at)), s.last_slot
FROM unnest(%b::int4[], %b::int4[], %b::int4[], %b::text[], %b::float8[])
         AS u (workflow_id, revision_id, position, digest, next_at)
JOIN workflows w ON w.id = u.workflow_id AND w.current_revision = u.revision_id AND w.enabled
LEFT JOIN LATERAL (
    SELECT o.next_at, o.last_slot FROM schedules o
    WHERE o.workflow_id = u.workflow_id AND o.digest = u.digest
      AND (o.last_slot IS NULL OR o.last_slot <= to_timestamp(%s) + interval '1 day')
    LIMIT 1
) s ON true
ORDER BY u.workflow_id, u.position
ON CONFLICT (workflow_id, position) DO UPDATE
SET digest = EXCLUDED.digest, next_at = EXCLUDED.next_at, last_slot = EXCLUDED.last_slot
WHERE schedules.digest <> EXCLUDED.digest OR schedules.last_slot > to_timestamp(%s) + interval '1 day'

-- name: take_due_schedules
-- SKIP LOCKED: replicas share the work without a leader. Moved on in the transaction that puts the events into a stream.
SELECT workflow_id, position, digest, next_at, last_slot
FROM schedules WHERE next_at <= to_timestamp(%s) ORDER BY next_at LIMIT %s FOR UPDATE SKIP LOCKED

-- name: move_schedules
-- Forward only.
UPDATE schedules s SET next_at = to_timestamp(u.next_at), last_slot = to_timestamp(u.last_slot)
FROM unnest(%b::int4[], %b::int4[], %b::float8[], %b::float8[]) AS u (workflow_id, position, next_at, last_slot)
WHERE s.workflow_id = u.workflow_id AND s.position = u.position AND s.next_at < to_timestamp(u.next_at)

-- name: next_schedule
SELECT extract(epoch FROM min(next_at))::float8 FROM schedules

-- name: list_schedules
SELECT workflow_id, position, digest, next_at, last_slot FROM schedules WHERE workflow_id = ANY(%b::int4[])
