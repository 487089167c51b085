-- What has to be in a stream, or in the table of timers, and what puts it back.

-- name: lock
-- One replica sweeps at a time; the lock goes with the transaction.
SELECT pg_try_advisory_xact_lock(7017289205043782009)

-- name: hold
SELECT set_config('idle_in_transaction_session_timeout', %s, true)

-- name: wait_for_lock
SELECT pg_advisory_xact_lock(7017289205043782009)

-- name: open_events
-- A page of the events on which work is under way.
SELECT uid::text, stream, entry_id FROM events
WHERE outcome IS NULL AND uid > %s::uuid AND received_at < now() - make_interval(secs => %s)
ORDER BY uid LIMIT %s

-- name: lost_events
-- Those whose entries are gone and on which nobody has worked lately, locked; not those that a redrive counts: its timer
-- is there, or its work is in a stream (runs, letters).
SELECT e.uid::text, e.id, e.source, e.type, e.subject, e.time, e.attributes::text, e.data::text, e.key::text, e.stream,
       e.entry_id,
       coalesce(e.counted, false) OR EXISTS (SELECT FROM outbox o WHERE o.uid = e.uid AND o.entry ->> 'counted' IS NOT NULL)
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[]) AS u (uid, entry_id, low, high)
JOIN events e ON e.uid = u.uid::uuid AND e.entry_id = u.entry_id
WHERE e.outcome IS NULL
  AND NOT EXISTS (SELECT FROM runs r WHERE r.id >= u.low::uuid AND r.id < u.high::uuid AND r.event_uid = e.uid
                  AND r.updated_at > now() - make_interval(secs => %b::float8))
  AND NOT EXISTS (SELECT FROM runs r WHERE r.event_uid = e.uid AND r.id >= u.low::uuid AND r.id < u.high::uuid
                  AND (r.id = ANY(%b::text[]::uuid[])
                       OR EXISTS (SELECT FROM timers t WHERE t.run_id = r.id AND t.reopens)))
  AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.event_uid = e.uid
                  AND (d.id = ANY(%b::text[]::uuid[]) OR EXISTS (SELECT FROM timers t WHERE t.letter = d.id AND t.reopens)))
ORDER BY e.uid FOR UPDATE OF e SKIP LOCKED

-- name: move_events
-- The outcomes of these events are counted with these entries; whether they were counted as accepted with another one.
UPDATE events SET stream = u.stream, entry_id = u.entry_id, counted = u.counted
FROM unnest(%b::text[], %b::text[], %b::text[], %b::bool[]) AS u (uid, stream, entry_id, counted)
WHERE events.uid = u.uid::uuid

-- name: move_reopened
-- The same of dead events whose runs or dead letters were put back to work, by the entries that did it.
UPDATE events SET stream = u.stream, entry_id = u.entry_id, counted = true
FROM unnest(%b::text[], %b::text[], %b::text[]) AS u (id, stream, entry_id)
LEFT JOIN runs ON runs.id = u.id::uuid LEFT JOIN dead_letters ON dead_letters.id = u.id::uuid
WHERE events.uid = coalesce(runs.event_uid, dead_letters.event_uid)

-- name: suspects
-- A page of the unfinished runs with one status, in the order in which they were changed: those that an entry holds, and
-- those that are parked, have something to do, and no timer, or only one for later than that; not those that wait for
-- places. What came in for whichever step takes it (key '') may be kept for long, but not by a machine that is in a state. Without a step a run has
-- still to begin: it is woken, and flow control says again what it waits for. A run that only its event's entry moves on
-- ('by' is null) is nobody's if its event is over all the same. The first columns say where the next page begins.
WITH page AS MATERIALIZED (
    SELECT id, version, updated_at, asked, event_uid, state ->> 'by' AS holder, state -> 'place' IS NULL AS unborn,
           state -> 'place' ->> 'state' AS place, to_timestamp((state -> 'place' ->> 'due_at')::float8) AS place_due
    FROM runs
    WHERE status = '{status}' AND (updated_at, id) > (%s::timestamptz, %s::uuid)
      AND updated_at < now() - make_interval(secs => %s)
    ORDER BY updated_at, id LIMIT %s
), bounds AS (
    SELECT count(*) AS number, (array_agg(updated_at ORDER BY updated_at DESC, id DESC))[1] AS updated_at,
           (array_agg(id ORDER BY updated_at DESC, id DESC))[1] AS id
    FROM page
), parked AS (
    SELECT page.id, page.version, page.holder,
           CASE WHEN asked IS NOT NULL OR signalled OR unborn AND stepless THEN now() ELSE LEAST(due_at, place_due) END AS due_at
    FROM page, LATERAL (
        SELECT (SELECT min(due_at) FROM steps s WHERE s.run_id = page.id
                AND s.status IN ('running', 'retrying', 'waiting', 'unknown')) AS due_at,
               EXISTS (SELECT FROM signals WHERE signals.run_id = page.id AND taken IS NULL) AS signalled,
               NOT EXISTS (SELECT FROM steps s WHERE s.run_id = page.id) AS stepless
    ) AS what
    WHERE page.holder = 'timer' AND NOT EXISTS (SELECT FROM timers WHERE timers.run_id = page.id)
      AND (page.asked = 'cancel' OR NOT EXISTS (SELECT FROM queue WHERE queue.run_id = page.id OFFSET 0))
), pressing AS (
    SELECT id, version, holder, now() AS due_at FROM page
    WHERE holder = 'timer' AND EXISTS (SELECT FROM timers WHERE timers.run_id = page.id)
      AND NOT EXISTS (SELECT FROM timers WHERE timers.run_id = page.id AND timers.due_at <= now() OFFSET 0)
      AND (asked IS NOT NULL OR EXISTS (
               SELECT FROM (SELECT key FROM signals WHERE signals.run_id = page.id AND taken IS NULL OFFSET 0) AS g
               WHERE g.key <> '' OR EXISTS (SELECT FROM steps s WHERE s.run_id = page.id AND s.status = 'waiting'
                                            AND split_part(s.key, '#', 1) = page.place OFFSET 0)))
      AND (asked = 'cancel' OR NOT EXISTS (SELECT FROM queue WHERE queue.run_id = page.id OFFSET 0))
), found AS (
    SELECT id, version, holder, due_at FROM parked WHERE due_at IS NOT NULL
    UNION ALL
    SELECT id, version, holder, due_at FROM pressing
    UNION ALL
    SELECT id, version, holder, NULL FROM page WHERE holder <> 'timer'
    UNION ALL
    SELECT id, version, NULL, NULL FROM page
    WHERE holder IS NULL AND EXISTS (SELECT FROM events e WHERE e.uid = page.event_uid
                                     AND e.outcome IN ('handled', 'unmatched') OFFSET 0)
)
SELECT bounds.number, bounds.updated_at, bounds.id::text, found.id::text, found.version, found.holder,
       extract(epoch FROM found.due_at)::float8
FROM bounds LEFT JOIN found ON true

-- name: wake_parked
-- Not one that moved on meanwhile. Who wakes in between finds nothing to do, or is found to have done it.
INSERT INTO timers (run_id, key, due_at, priority)
SELECT r.id, CASE WHEN EXISTS (SELECT FROM timers WHERE timers.run_id = r.id) THEN '+signal' ELSE '' END,
       to_timestamp(u.due_at), r.priority
FROM unnest(%b::text[], %b::int4[], %b::float8[]) AS u (id, version, due_at)
JOIN runs r ON r.id = u.id::uuid AND r.version = u.version
WHERE r.status IN ('running', 'waiting', 'retrying')
  AND NOT EXISTS (SELECT FROM timers WHERE timers.run_id = r.id AND timers.due_at <= GREATEST(to_timestamp(u.due_at), now()))
  AND (r.asked = 'cancel' OR NOT EXISTS (SELECT FROM queue WHERE queue.run_id = r.id OFFSET 0))
ON CONFLICT (run_id, key) DO NOTHING

-- name: free_held
-- Runs whose entries are gone are parked, and woken at once; for that moment they keep their places. Not those whose
-- entry was set aside, or is to be handled again because a person said so.
WITH freed AS (
    UPDATE runs SET state = jsonb_set(state::jsonb, '{by}', '"timer"')::json, version = runs.version + 1,
                    updated_at = now()
    FROM unnest(%b::text[], %b::int4[], %b::text[]) AS u (id, version, holder)
    WHERE runs.id = u.id::uuid AND runs.version = u.version AND runs.state ->> 'by' IS NOT DISTINCT FROM u.holder
      AND runs.status IN ('running', 'waiting', 'retrying')
      AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.run_id = runs.id AND d.kind = 'entry'
                      AND (d.status <> 'redriven' OR d.id = ANY(%b::text[]::uuid[])
                           OR EXISTS (SELECT FROM timers t WHERE t.letter = d.id)))
    RETURNING runs.id, runs.priority
)
INSERT INTO timers (run_id, key, due_at, priority) SELECT id, '', now(), priority FROM freed
ON CONFLICT (run_id, key) DO UPDATE SET due_at = LEAST(timers.due_at, EXCLUDED.due_at)

-- name: unheard
-- A page of what runs listen for, and the runs among them that nobody told of an event that had come before: who was to
-- look back had his entry taken away behind the commit. The same condition as in look_back (runs.sql).
WITH page AS MATERIALIZED (
    SELECT run_id, key, digest, since FROM waits WHERE (run_id, key, digest) > (%s::uuid, %s, %s::uuid)
    ORDER BY run_id, key, digest LIMIT %s
), bounds AS (
    SELECT count(*) AS number, (array_agg(run_id ORDER BY run_id DESC, key DESC, digest DESC))[1] AS run_id,
           (array_agg(key ORDER BY run_id DESC, key DESC, digest DESC))[1] AS key,
           (array_agg(digest ORDER BY run_id DESC, key DESC, digest DESC))[1] AS digest
    FROM page
), found AS (
    SELECT DISTINCT page.run_id
    FROM page
    CROSS JOIN LATERAL (
        SELECT event_uid FROM runs
        WHERE runs.id = page.run_id AND updated_at < now() - make_interval(secs => %s) OFFSET 0
    ) AS r
    WHERE EXISTS (
        SELECT FROM (
            SELECT event_uid FROM correlations
            WHERE correlations.digest = page.digest AND correlations.event_uid >= page.since OFFSET 0
        ) AS c
        WHERE c.event_uid IS DISTINCT FROM r.event_uid AND NOT EXISTS (
            SELECT FROM signals s
            WHERE s.run_id = page.run_id AND s.id = c.event_uid
              AND (s.key = page.key
                   OR s.taken = 'taken' AND split_part(s.key, '#', 1) = split_part(page.key, '#', 1)) OFFSET 0
        )
    )
)
SELECT bounds.number, bounds.run_id::text, bounds.key, bounds.digest::text, found.run_id::text
FROM bounds LEFT JOIN found ON true

-- name: sent_rows
-- A page of the durable rows that were put into a stream before the sweep began.
SELECT uid::text, priority, entry_id, sent_at FROM outbox
WHERE sent_at < now() - make_interval(secs => %s) AND (sent_at, uid) > (%s::timestamptz, %s::uuid)
ORDER BY sent_at, uid LIMIT %s

-- name: lost_rows
-- Those whose events never got anywhere, locked.
SELECT o.uid::text, o.priority, o.entry_id, o.entry::text
FROM unnest(%b::text[], %b::text[]) AS u (uid, entry_id)
JOIN outbox o ON o.uid = u.uid::uuid AND o.entry_id = u.entry_id
WHERE NOT EXISTS (SELECT FROM events WHERE events.uid = o.uid)
  AND NOT EXISTS (SELECT FROM duplicates WHERE duplicates.uid = o.uid)
  AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.event_uid = o.uid)
  AND NOT EXISTS (SELECT FROM dead_letters d
                  WHERE d.stream = o.priority AND d.entry_id = o.entry_id AND d.kind = 'entry'
                    AND d.id >= appliance_uuid_of_ms(split_part(o.entry_id, '-', 1)::bigint)
                    AND d.id < appliance_uuid_of_ms(split_part(o.entry_id, '-', 1)::bigint + 1))
ORDER BY o.uid FOR UPDATE OF o SKIP LOCKED

-- name: move_rows
UPDATE outbox SET sent_at = now(), entry_id = u.entry_id, entry = u.entry::json
FROM unnest(%b::text[], %b::text[], %b::text[]) AS u (uid, entry_id, entry) WHERE outbox.uid = u.uid::uuid

-- name: lives
-- The lives of the streams: where each begins, and how far its counters go.
SELECT stream, first_id, last_id, closed, epoch FROM ledger_epochs WHERE first_id IS NOT NULL
