-- Polling sources: who reads which, and how far it has come.

-- name: keep
INSERT INTO sources (name) SELECT unnest(%b::text[]) ON CONFLICT (name) DO NOTHING

-- name: claim
-- Due sources that nobody holds. The claim's number is the fence: a page is committed only under the latest.
UPDATE sources s
SET turn = s.turn + 1, held_by = %b, held_until = now() + make_interval(secs => %b)
FROM (
    SELECT name FROM sources
    WHERE name = ANY(%b::text[]) AND due_at <= now() AND (held_until IS NULL OR held_until < now())
    ORDER BY due_at LIMIT %b FOR UPDATE SKIP LOCKED
) AS due
WHERE s.name = due.name
RETURNING s.name, s.digest, s.basis, s.turn, s.floor, s.newest, s.bound, s.place, s.place_key, s.scanning,
          s.marks::text, s.audit::text, s.failures, extract(epoch FROM now())::float8

-- name: seen
SELECT key::text FROM source_rows WHERE source = %b AND key = ANY(%b::text[]::uuid[])

-- name: known
SELECT key::text FROM event_keys WHERE key = ANY(%b::text[]::uuid[])

-- name: lock
-- The first statement of a page's transaction, which ends here for whoever lost the claim.
SELECT turn FROM sources WHERE name = %b AND turn = %b FOR UPDATE

-- name: move
UPDATE sources
SET digest = %b, basis = %b, floor = %b, newest = %b, bound = %b, place = %b, place_key = %b, scanning = %b,
    marks = %b::text::json, audit = %b::text::json, polled_at = now(), failures = 0, error = NULL, error_at = NULL,
    held_until = now() + make_interval(secs => %b)
WHERE name = %b AND turn = %b

-- name: count
UPDATE sources
SET events = events + %b, repeats = repeats + %b, refused = refused + %b, late = late + %b, missed = missed + %b
WHERE name = %b

-- name: remember
INSERT INTO source_rows (source, key, cursor)
SELECT %b, u.key::uuid, u.cursor FROM unnest(%b::text[], %b::int8[]) AS u (key, cursor)
ON CONFLICT (source, key) DO NOTHING

-- name: refuse
INSERT INTO source_refusals (source, key, row_key, cursor, error)
SELECT %b, u.key::uuid, u.row_key, u.cursor, u.error
FROM unnest(%b::text[], %b::text[], %b::int8[], %b::text[]) AS u (key, row_key, cursor, error)
ON CONFLICT (source, key) DO UPDATE SET cursor = EXCLUDED.cursor, error = EXCLUDED.error, at = now()

-- name: heal
-- Rows that were refused and have an event now.
DELETE FROM source_refusals WHERE source = %b AND key = ANY(%b::text[]::uuid[])

-- name: forget
-- What is below the floor is never looked at again.
DELETE FROM source_rows WHERE source = %b AND cursor <= %b

-- name: forget_all
DELETE FROM source_rows WHERE source = %b

-- name: forget_refusals
DELETE FROM source_refusals WHERE source = %b AND at < now() - make_interval(secs => %b)

-- name: earliest_refusal
-- Where to begin anew so that refused rows are tried again. Not too far back: the keys of events are forgotten after the
-- retention, and what lies behind would be taken for new.
SELECT min(cursor) FROM source_refusals WHERE source = %b AND at > now() - make_interval(secs => %b)

-- name: release
UPDATE sources SET held_until = NULL, due_at = now() + make_interval(secs => %b) WHERE name = %b AND turn = %b

-- name: fail
UPDATE sources
SET held_until = NULL, due_at = now() + make_interval(secs => %b), failures = failures + 1, error = %b, error_at = now()
WHERE name = %b AND turn = %b

-- name: states
SELECT name, digest, basis, floor, newest, scanning, due_at, polled_at, failures, error, error_at, held_by,
       held_until > now(), events, repeats, refused, late, missed,
       (SELECT count(*) FROM (SELECT FROM source_refusals f WHERE f.source = s.name LIMIT 10000) AS open)
FROM sources s WHERE name = ANY(%b::text[]) ORDER BY name

-- name: due
-- When the next of these is due and free, in seconds from now.
SELECT extract(epoch FROM min(GREATEST(due_at, coalesce(held_until, due_at))) - now())::float8
FROM sources WHERE name = ANY(%b::text[])

-- name: one
SELECT name, digest, basis, turn, floor, newest, bound, place, place_key, scanning, marks::text, audit::text, failures,
       extract(epoch FROM now())::float8
FROM sources WHERE name = %b

-- name: refusals
SELECT row_key, cursor, error, at, key::text FROM source_refusals
WHERE source = %b AND (at, key) < (%b, %b::text::uuid) ORDER BY at DESC, key DESC LIMIT %b
