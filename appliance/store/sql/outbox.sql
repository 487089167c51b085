-- Events on their way into a stream.

-- name: accept
-- Durable rows of the events whose key is new, or that have none. Of two that share a key the first one is stored, also
-- when both are in one statement; who is not answered is a duplicate.
WITH given AS (
    SELECT uid::uuid, priority, entry::json, key::uuid
    FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[]) AS u (uid, priority, entry, key)
), claimed AS (
    INSERT INTO event_keys (key, uid) SELECT key, uid FROM given WHERE key IS NOT NULL ORDER BY key
    ON CONFLICT (key) DO NOTHING
    RETURNING uid
)
INSERT INTO outbox (uid, priority, entry, durable)
SELECT uid, priority, entry, true FROM given WHERE key IS NULL OR uid IN (SELECT uid FROM claimed)
RETURNING uid::text

-- name: first
-- The events that some keys stand for: uid, and the sender's id.
SELECT k.key::text, k.uid::text, coalesce((o.entry ->> 'event')::json ->> 'id', e.id, k.uid::text)
FROM event_keys k LEFT JOIN outbox o ON o.uid = k.uid LEFT JOIN events e ON e.uid = k.uid
WHERE k.key = ANY(%b::text[]::uuid[])

-- name: take
-- A young durable row is still in the hands of the process that stored it.
SELECT uid::text, priority, entry::text, durable FROM outbox
WHERE sent_at IS NULL AND (NOT durable OR created_at < now() - make_interval(secs => %s))
ORDER BY uid LIMIT %s FOR UPDATE SKIP LOCKED

-- name: drop
DELETE FROM outbox WHERE uid = ANY(%s::text[]::uuid[])

-- name: sent
UPDATE outbox SET sent_at = now(), entry_id = u.entry_id
FROM unnest(%s::text[], %s::text[]) AS u (uid, entry_id) WHERE outbox.uid = u.uid::uuid

-- name: settle
-- What this process put in a moment ago: most of it is handled by now.
WITH given AS (
    SELECT uid::uuid, entry_id FROM unnest(%s::text[], %s::text[]) AS u (uid, entry_id)
), gone AS (
    DELETE FROM outbox USING given
    WHERE outbox.uid = given.uid
      AND (EXISTS (SELECT FROM events WHERE events.uid = given.uid AND events.outcome IS NOT NULL)
           OR EXISTS (SELECT FROM duplicates WHERE duplicates.uid = given.uid))
    RETURNING outbox.uid
)
UPDATE outbox SET sent_at = now(), entry_id = given.entry_id
FROM given WHERE outbox.uid = given.uid AND outbox.uid NOT IN (SELECT uid FROM gone)

-- name: purge
-- A page of rows in the order in which they were sent, without those whose events are settled: how many there were, how
-- many went, and where the next page begins.
WITH page AS MATERIALIZED (
    SELECT uid, sent_at, priority, entry_id FROM outbox
    WHERE sent_at IS NOT NULL AND (sent_at, uid) > (%s::timestamptz, %s::uuid)
    ORDER BY sent_at, uid LIMIT %s FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM outbox USING page
    WHERE outbox.uid = page.uid
      AND (EXISTS (SELECT FROM events WHERE events.uid = page.uid AND events.outcome IS NOT NULL)
           OR EXISTS (SELECT FROM duplicates WHERE duplicates.uid = page.uid)
           -- An entry that could not be handled at all: its letter's id has the entry's milliseconds in front.
           OR EXISTS (SELECT FROM dead_letters d
                      WHERE d.stream = page.priority AND d.entry_id = page.entry_id AND d.kind = 'entry'
                        AND d.id >= appliance_uuid_of_ms(split_part(page.entry_id, '-', 1)::bigint)
                        AND d.id < appliance_uuid_of_ms(split_part(page.entry_id, '-', 1)::bigint + 1)))
    RETURNING outbox.uid
), last AS (
    SELECT sent_at, uid FROM page ORDER BY sent_at DESC, uid DESC LIMIT 1
)
SELECT (SELECT count(*) FROM page), (SELECT count(*) FROM gone), (SELECT sent_at FROM last), (SELECT uid FROM last)::text

-- name: unsent
-- How many rows wait to be put in, up to a limit.
SELECT count(*) FROM (SELECT FROM outbox WHERE sent_at IS NULL LIMIT %s) AS waiting
