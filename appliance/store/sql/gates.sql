-- Flow control. The gatekeeper's statements take one array per column and travel in pipelines within one transaction,
-- which begins with the lock. LATERAL with OFFSET 0 has each row looked up by its index: see parked.sql.
-- A place counts, and a run waits, only as long as the run is there and not over. One that waits and is paused is in
-- nobody's way, unless runs keep their order; one that is let in while somebody pauses it has only what runs keep.

-- name: lock
-- Given in ascending order. 1718382455: "flow".
SELECT pg_advisory_xact_lock(1718382455, id) FROM unnest(%b::int4[]) AS u (id)

-- name: limit
-- For the session, or for the transaction, from now on.
SELECT set_config(%s::text, %s::text, %s::bool)

-- name: lanes
-- The lanes in which somebody waits, each with the first who does: so many lanes of some workflows, going round from
-- behind the given one (if none is, from behind the one whose turn was last), and those that are named besides.
WITH looked AS (
    SELECT u.workflow_id, t.start, l.lane, l.number
    FROM unnest(%b::int4[], %b::text[], %b::int4[]) AS u (workflow_id, after, wanted)
    CROSS JOIN LATERAL (
        SELECT coalesce(u.after::uuid, (SELECT turns.lane FROM turns WHERE turns.workflow_id = u.workflow_id),
                        '00000000-0000-0000-0000-000000000000') AS start
    ) AS t
    CROSS JOIN LATERAL (
        WITH RECURSIVE round (lane, wrapped, number) AS (
            SELECT t.start, false, 0
            UNION ALL
            SELECT next.lane, next.wrapped, round.number + 1
            FROM round
            CROSS JOIN LATERAL (
                (SELECT q.lane, round.wrapped FROM queue q
                 WHERE q.workflow_id = u.workflow_id AND q.lane > round.lane ORDER BY q.lane LIMIT 1)
                UNION ALL
                (SELECT q.lane, true FROM queue q
                 WHERE q.workflow_id = u.workflow_id AND NOT round.wrapped ORDER BY q.lane LIMIT 1)
                ORDER BY wrapped LIMIT 1
            ) AS next (lane, wrapped)
            WHERE round.number < u.wanted AND NOT (next.wrapped AND next.lane > t.start)
        )
        SELECT round.lane, round.number FROM round WHERE round.number > 0
    ) AS l
), named AS (
    SELECT n.workflow_id, coalesce(turns.lane, '00000000-0000-0000-0000-000000000000') AS start, n.lane::uuid AS lane
    FROM unnest(%b::int4[], %b::text[]) AS n (workflow_id, lane) LEFT JOIN turns ON turns.workflow_id = n.workflow_id
), asked AS (
    SELECT workflow_id, start, lane, number FROM looked
    UNION ALL
    SELECT workflow_id, start, lane, 0 FROM named
    WHERE NOT EXISTS (SELECT FROM looked WHERE looked.workflow_id = named.workflow_id AND looked.lane = named.lane)
)
SELECT w.name, asked.start::text, asked.number, h.*
FROM asked
JOIN workflows w ON w.id = asked.workflow_id
CROSS JOIN LATERAL (
    SELECT r.status = 'paused', q.run_id::text, q.workflow_id, q.lane::text, q.position, q.priority, q.parts,
           q.digests::text[], q.keys, q.limits
    FROM queue q
    CROSS JOIN LATERAL (SELECT status FROM runs WHERE runs.id = q.run_id
                        AND status IN ('running', 'waiting', 'retrying', 'paused') OFFSET 0) AS r
    WHERE q.workflow_id = asked.workflow_id AND q.lane = asked.lane
      AND (r.status <> 'paused' OR 'ordering' = ANY(q.parts))
    ORDER BY q.position, q.run_id LIMIT 1
) AS h

-- name: heads
-- The first so many who wait in some lanes.
SELECT w.name, '', 0, h.*
FROM unnest(%b::int4[], %b::text[], %b::int4[]) AS u (workflow_id, lane, wanted)
JOIN workflows w ON w.id = u.workflow_id
CROSS JOIN LATERAL (
    SELECT r.status = 'paused', q.run_id::text, q.workflow_id, q.lane::text, q.position, q.priority, q.parts,
           q.digests::text[], q.keys, q.limits
    FROM queue q
    CROSS JOIN LATERAL (SELECT status FROM runs WHERE runs.id = q.run_id
                        AND status IN ('running', 'waiting', 'retrying', 'paused') OFFSET 0) AS r
    WHERE q.workflow_id = u.workflow_id AND q.lane = u.lane::uuid
      AND (r.status <> 'paused' OR 'ordering' = ANY(q.parts))
    ORDER BY q.position, q.run_id LIMIT u.wanted
) AS h

-- name: counts
-- How many places are taken, up to so many.
SELECT u.digest, (
    SELECT count(*) FROM (
        SELECT FROM places p
        CROSS JOIN LATERAL (SELECT FROM runs WHERE runs.id = p.run_id
                            AND (status IN ('running', 'waiting', 'retrying') OR status = 'paused' AND p.keeps)
                            OFFSET 0) AS r
        WHERE p.digest = u.digest::uuid LIMIT u.most
    ) AS taken
)
FROM unnest(%b::text[], %b::int4[]) AS u (digest, most)

-- name: standings
SELECT u.id, r.status, r.holder, r.flow
FROM unnest(%b::text[]) AS u (id)
CROSS JOIN LATERAL (
    SELECT status::text, state ->> 'by' AS holder, (details -> 'flow')::text AS flow FROM runs
    WHERE runs.id = u.id::uuid OFFSET 0
) AS r

-- name: meters
-- With the runs that wait by them.
SELECT m.digest::text, m.workflow_id, m.part, m.key, extract(epoch FROM m.at)::float8, m.count, m.run_id::text,
       m.position, extract(epoch FROM m.expires_at)::float8, r.status, r.holder, r.flow
FROM unnest(%b::text[]) AS u (digest)
CROSS JOIN LATERAL (SELECT * FROM meters WHERE meters.digest = u.digest::uuid OFFSET 0) AS m
LEFT JOIN LATERAL (
    SELECT status::text, state ->> 'by' AS holder, (details -> 'flow')::text AS flow FROM runs
    WHERE runs.id = m.run_id OFFSET 0
) AS r ON true

-- name: places
SELECT u.digest, taken.run_id::text
FROM unnest(%b::text[], %b::int4[]) AS u (digest, most)
CROSS JOIN LATERAL (
    SELECT p.run_id FROM places p
    CROSS JOIN LATERAL (SELECT FROM runs WHERE runs.id = p.run_id
                        AND (status IN ('running', 'waiting', 'retrying') OR status = 'paused' AND p.keeps)
                        OFFSET 0) AS r
    WHERE p.digest = u.digest::uuid LIMIT u.most
) AS taken

-- name: own_places
SELECT p.digest::text, u.run_id
FROM unnest(%b::text[]) AS u (run_id)
CROSS JOIN LATERAL (SELECT digest FROM places WHERE places.run_id = u.run_id::uuid OFFSET 0) AS p

-- name: waiting
-- The first who wait in some lanes.
SELECT u.lane, h.position, h.run_id::text
FROM unnest(%b::int4[], %b::text[], %b::int4[]) AS u (workflow_id, lane, most)
CROSS JOIN LATERAL (
    SELECT q.position, q.run_id FROM queue q
    CROSS JOIN LATERAL (SELECT status FROM runs WHERE runs.id = q.run_id
                        AND status IN ('running', 'waiting', 'retrying', 'paused') OFFSET 0) AS r
    WHERE q.workflow_id = u.workflow_id AND q.lane = u.lane::uuid
      AND (r.status <> 'paused' OR 'ordering' = ANY(q.parts))
    ORDER BY q.position, q.run_id LIMIT u.most
) AS h

-- name: own_waiting
SELECT q.lane::text, q.position, u.run_id
FROM unnest(%b::text[]) AS u (run_id)
CROSS JOIN LATERAL (SELECT lane, position FROM queue WHERE queue.run_id = u.run_id::uuid OFFSET 0) AS q

-- name: joined
SELECT u.event, u.workflow_id, j.run_id::text
FROM unnest(%b::text[], %b::int4[]) AS u (event, workflow_id)
CROSS JOIN LATERAL (
    SELECT b.run_id FROM batched b
    CROSS JOIN LATERAL (SELECT workflow_id FROM runs WHERE runs.id = b.run_id OFFSET 0) AS r
    WHERE b.event_uid = u.event::uuid AND r.workflow_id = u.workflow_id LIMIT 1
) AS j

-- name: note_flow
-- What runs that are there wait for, or that they go on. Not a new version: whoever holds such a run goes on with it.
UPDATE runs SET details = (coalesce(details::jsonb, '{}') || jsonb_build_object('flow', u.flow::jsonb))::json,
                status = CASE WHEN u.waits AND runs.status = 'running' THEN 'waiting' ELSE runs.status END
FROM unnest(%b::text[], %b::text[], %b::bool[]) AS u (id, flow, waits)
WHERE runs.id = u.id::uuid AND runs.status IN ('running', 'waiting', 'retrying', 'paused')

-- name: park
-- Runs that entries held: from now on timers wake them.
UPDATE runs SET state = jsonb_set(coalesce(state::jsonb, '{}'), '{by}', '"timer"')::json, version = version + 1,
                updated_at = now()
WHERE id = ANY(%b::text[]::uuid[]) AND state ->> 'by' IS DISTINCT FROM 'timer'
  AND status IN ('running', 'waiting', 'retrying')

-- name: leave
-- Runs that are held end, and are counted. Not one that a step called: whoever waits for it is to hear of it (cancel).
WITH gone AS (
    UPDATE runs SET status = 'cancelled', version = runs.version + 1, finished_at = to_timestamp(u.at),
                    updated_at = to_timestamp(u.at), error = u.error, asked = NULL,
                    result = json_build_object('outcome', u.outcome, 'output', NULL)
    FROM unnest(%b::text[], %b::text[], %b::text[], %b::float8[]) AS u (id, outcome, error, at)
    WHERE runs.id = u.id::uuid AND runs.status IN ('running', 'waiting', 'retrying', 'paused')
      AND runs.origin IS DISTINCT FROM 'subflow'
    RETURNING runs.id, runs.workflow_id, u.outcome
), no_timers AS (
    DELETE FROM timers WHERE NOT reopens AND id = ANY(ARRAY(
        SELECT t.id FROM gone CROSS JOIN LATERAL (SELECT id FROM timers WHERE timers.run_id = gone.id OFFSET 0) AS t
    ))
), no_queue AS (
    DELETE FROM queue WHERE run_id = ANY(ARRAY(SELECT id FROM gone))
), no_places AS (
    DELETE FROM places WHERE run_id = ANY(ARRAY(SELECT id FROM gone))
), counted AS (
    INSERT INTO skipped (workflow_id, reason, count)
    SELECT workflow_id, outcome, count(*) FROM gone GROUP BY workflow_id, outcome
    ON CONFLICT (workflow_id, reason) DO UPDATE SET count = skipped.count + EXCLUDED.count
)
SELECT outcome, count(*) FROM gone GROUP BY outcome

-- name: cancel
-- Runs that are asked to end; of some only those that a step called.
WITH asked AS (
    UPDATE runs SET asked = 'cancel'
    FROM unnest(%b::text[], %b::bool[]) AS u (id, called)
    WHERE runs.id = u.id::uuid AND runs.status IN ('running', 'waiting', 'retrying', 'paused')
      AND (NOT u.called OR runs.origin = 'subflow')
    RETURNING runs.id, runs.priority
)
INSERT INTO timers (run_id, key, due_at, priority) SELECT id, '+signal', now(), priority FROM asked ORDER BY id
ON CONFLICT (run_id, key) DO UPDATE SET due_at = LEAST(timers.due_at, EXCLUDED.due_at)

-- name: put_places
INSERT INTO places (digest, run_id, keeps)
SELECT digest::uuid, run_id::uuid, keeps FROM unnest(%b::text[], %b::text[], %b::bool[]) AS u (digest, run_id, keeps)
ON CONFLICT (digest, run_id) DO NOTHING

-- name: no_queue
DELETE FROM queue WHERE run_id = ANY(%b::text[]::uuid[])

-- name: put_queue
-- Lists are JSON: arrays of arrays must be of one length.
INSERT INTO queue (run_id, workflow_id, lane, position, priority, parts, digests, keys, limits)
SELECT run_id::uuid, workflow_id, lane::uuid, position, priority,
       ARRAY(SELECT json_array_elements_text(parts::json)),
       ARRAY(SELECT json_array_elements_text(digests::json)::uuid),
       ARRAY(SELECT json_array_elements_text(keys::json)),
       ARRAY(SELECT json_array_elements_text(limits::json)::int4)
FROM unnest(%b::text[], %b::int4[], %b::text[], %b::int8[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[])
     AS u (run_id, workflow_id, lane, position, priority, parts, digests, keys, limits)
ON CONFLICT (run_id) DO UPDATE
SET lane = EXCLUDED.lane, position = EXCLUDED.position, parts = EXCLUDED.parts, digests = EXCLUDED.digests,
    keys = EXCLUDED.keys, limits = EXCLUDED.limits

-- name: wake
-- Timers of runs that are there.
INSERT INTO timers (run_id, key, due_at, priority)
SELECT r.id, '', to_timestamp(u.due_at), r.priority
FROM unnest(%b::text[], %b::float8[]) AS u (id, due_at)
CROSS JOIN LATERAL (SELECT id, priority FROM runs WHERE runs.id = u.id::uuid
                    AND status IN ('running', 'waiting', 'retrying', 'paused') OFFSET 0) AS r
ORDER BY r.id
ON CONFLICT (run_id, key) DO UPDATE SET due_at = EXCLUDED.due_at

-- name: put_turns
INSERT INTO turns (workflow_id, lane) SELECT id, lane::uuid FROM unnest(%b::int4[], %b::text[]) AS u (id, lane)
ON CONFLICT (workflow_id) DO UPDATE SET lane = EXCLUDED.lane

-- name: put_meters
INSERT INTO meters (digest, workflow_id, part, key, at, count, run_id, position, expires_at)
SELECT digest::uuid, workflow_id, part, key, to_timestamp(at), count, run_id::uuid, position, to_timestamp(expires_at)
FROM unnest(%b::text[], %b::int4[], %b::text[], %b::text[], %b::float8[], %b::int4[], %b::text[], %b::int8[],
            %b::float8[])
     AS u (digest, workflow_id, part, key, at, count, run_id, position, expires_at)
ON CONFLICT (digest) DO UPDATE
SET key = EXCLUDED.key, at = EXCLUDED.at, count = EXCLUDED.count, run_id = EXCLUDED.run_id,
    position = EXCLUDED.position, expires_at = EXCLUDED.expires_at

-- name: no_meters
DELETE FROM meters WHERE digest = ANY(%b::text[]::uuid[])

-- name: put_batched
INSERT INTO batched (run_id, event_uid, position)
SELECT run_id::uuid, event_uid::uuid, position
FROM unnest(%b::text[], %b::text[], %b::int8[]) AS u (run_id, event_uid, position)
ON CONFLICT DO NOTHING

-- name: put_skipped
INSERT INTO skipped (workflow_id, reason, count)
SELECT workflow_id, reason, count FROM unnest(%b::int4[], %b::text[], %b::int8[]) AS u (workflow_id, reason, count)
ON CONFLICT (workflow_id, reason) DO UPDATE SET count = skipped.count + EXCLUDED.count

-- name: batched
SELECT event_uid::text FROM batched WHERE run_id = %b::text::uuid ORDER BY position, event_uid

-- name: sweep_lock
-- One replica sweeps at a time; the lock goes with the transaction, which one that freezes doesn't keep open.
SELECT pg_try_advisory_xact_lock(7017289205043782011), set_config('idle_in_transaction_session_timeout', '10s', true)

-- name: sweep_places
-- A page of places: those of runs that are over, or gone, go. Answers where the next page begins.
WITH page AS MATERIALIZED (
    SELECT digest, run_id FROM places WHERE (digest, run_id) > (%b::text::uuid, %b::text::uuid)
    ORDER BY digest, run_id LIMIT %b
), dead AS MATERIALIZED (
    SELECT digest, run_id FROM page
    WHERE NOT EXISTS (SELECT FROM runs WHERE runs.id = page.run_id
                      AND status IN ('running', 'waiting', 'retrying', 'paused') OFFSET 0)
), gone AS (
    DELETE FROM places USING dead WHERE places.digest = dead.digest AND places.run_id = dead.run_id
)
SELECT digest::text, run_id::text FROM page ORDER BY digest DESC, run_id DESC LIMIT 1

-- name: sweep_queue
WITH page AS MATERIALIZED (
    SELECT run_id FROM queue WHERE run_id > %b::text::uuid ORDER BY run_id LIMIT %b
), dead AS MATERIALIZED (
    SELECT run_id FROM page
    WHERE NOT EXISTS (SELECT FROM runs WHERE runs.id = page.run_id
                      AND status IN ('running', 'waiting', 'retrying', 'paused') OFFSET 0)
), gone AS (
    DELETE FROM queue USING dead WHERE queue.run_id = dead.run_id
)
SELECT run_id::text FROM page ORDER BY run_id DESC LIMIT 1

-- name: sweep_meters
DELETE FROM meters
WHERE digest = ANY(ARRAY(SELECT digest FROM meters WHERE expires_at < now() - interval '1 minute' LIMIT %b))
  AND expires_at < now() - interval '1 minute'

-- name: waited_for
-- The workflows of which somebody waits, found by going from one to the next.
WITH RECURSIVE found (id) AS (
    SELECT min(workflow_id) FROM queue
    UNION ALL
    SELECT (SELECT min(workflow_id) FROM queue WHERE workflow_id > found.id) FROM found WHERE found.id IS NOT NULL
)
SELECT id FROM found WHERE id IS NOT NULL
