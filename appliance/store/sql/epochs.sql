-- The ledger's counters as last seen in Redis, per life of a stream.

-- name: alone
-- Until the end of the transaction nobody else reads the counters in order to save them. Whoever is frozen meanwhile loses
-- the connection, and with it the lock.
SELECT set_config('idle_in_transaction_session_timeout', '10s', true), pg_advisory_xact_lock(7017289205043782010)

-- name: save
INSERT INTO ledger_epochs (epoch, accepted, handled, unmatched, duplicate, dead, in_flight, stream, first_id, last_id,
                           recent, seen_at)
SELECT epoch, accepted, handled, unmatched, duplicate, dead, in_flight, stream, first_id, last_id, recent::json, now()
FROM unnest(%b::text[], %b::int8[], %b::int8[], %b::int8[], %b::int8[], %b::int8[], %b::int8[], %b::text[], %b::text[],
            %b::text[], %b::text[])
     AS u (epoch, accepted, handled, unmatched, duplicate, dead, in_flight, stream, first_id, last_id, recent)
ON CONFLICT (epoch) DO UPDATE
SET accepted = EXCLUDED.accepted, handled = EXCLUDED.handled, unmatched = EXCLUDED.unmatched,
    duplicate = EXCLUDED.duplicate, dead = EXCLUDED.dead, in_flight = EXCLUDED.in_flight, stream = EXCLUDED.stream,
    first_id = EXCLUDED.first_id, last_id = EXCLUDED.last_id, recent = EXCLUDED.recent, closed = false,
    late_accepted = 0, late_settled = 0, seen_at = now()

-- name: close
-- The former lives of these streams. What was in flight when one ended is not accounted for any more.
UPDATE ledger_epochs SET closed = true, in_flight = 0, closed_at = now()
WHERE NOT closed AND epoch <> ALL(%b::text[]) AND (stream IS NULL OR stream = ANY(%b::text[]))

-- name: complete
-- What the history knows of lives that ended within the last hour, and the counters do not: entries that were added after
-- these were read for the last time, and entries that were settled after that, or whose handling went on when the stream
-- was gone. Of the minutes that the counters do not call settled all that stands recorded is counted anew.
WITH lives AS (
    SELECT epoch, stream, string_to_array(first_id, '-')::numeric[] AS first,
           string_to_array(last_id, '-')::numeric[] AS last,
           (SELECT min(key::bigint) FROM json_each_text(recent)) AS kept,
           (SELECT sum(value::bigint) FROM json_each_text(recent)) AS counted,
           (SELECT min(string_to_array(later.first_id, '-')::numeric[]) FROM ledger_epochs later
            WHERE later.stream = ended.stream
              AND string_to_array(later.first_id, '-')::numeric[] > string_to_array(ended.first_id, '-')::numeric[]) AS next
    FROM ledger_epochs ended
    WHERE closed AND closed_at > now() - interval '1 hour' AND last_id IS NOT NULL AND first_id IS NOT NULL
), bounds AS (
    SELECT *, appliance_uuid_of_ms(greatest(0, kept * 60000 - 600000)) AS low,
           appliance_uuid_of_ms(coalesce(next[1]::bigint + 60000, 281474976710655)) AS high
    FROM lives
), recorded AS (
    SELECT b.epoch, count(*) FILTER (WHERE e.at > b.last AND NOT e.counted) AS added, count(*) FILTER (WHERE e.settled) AS settled
    FROM bounds b, LATERAL (
        SELECT string_to_array(entry_id, '-')::numeric[] AS at, outcome IS NOT NULL AS settled, false AS counted
        FROM events
        WHERE uid >= b.low AND uid < b.high AND stream = b.stream AND entry_id IS NOT NULL AND counted IS NULL
        UNION ALL
        SELECT string_to_array(entry_id, '-')::numeric[], outcome IS NOT NULL, counted
        FROM events
        WHERE counted IS NOT NULL AND stream = b.stream AND split_part(entry_id, '-', 1)::numeric >= b.kept * 60000
        UNION ALL
        SELECT string_to_array(entry_id, '-')::numeric[], true, false
        FROM duplicates WHERE uid >= b.low AND uid < b.high AND stream = b.stream
        UNION ALL
        SELECT string_to_array(entry_id, '-')::numeric[], true, false
        FROM dead_letters
        WHERE id >= b.low AND id < b.high AND stream = b.stream AND kind = 'entry' AND event_uid IS NULL
    ) AS e
    WHERE e.at >= ARRAY[b.kept * 60000, 0]::numeric[] AND e.at >= b.first AND (b.next IS NULL OR e.at < b.next)
    GROUP BY b.epoch
)
UPDATE ledger_epochs
SET late_accepted = coalesce(recorded.added, 0),
    late_settled = greatest(0, coalesce(recorded.settled, 0) - bounds.counted)
FROM bounds LEFT JOIN recorded USING (epoch)
WHERE ledger_epochs.epoch = bounds.epoch

-- name: former
-- All lives but some. Of one that ended just now, and was not closed yet, the late ones are missing for a moment.
SELECT coalesce(sum(accepted + late_accepted), 0)::int8, coalesce(sum(handled + late_settled), 0)::int8,
       coalesce(sum(unmatched), 0)::int8, coalesce(sum(duplicate), 0)::int8, coalesce(sum(dead), 0)::int8
FROM ledger_epochs WHERE epoch <> ALL(%b::text[])

-- name: skipped
-- Of events that were handled: how many began no run, by workflow and reason.
SELECT workflows.name, skipped.reason, skipped.count
FROM skipped JOIN workflows ON workflows.id = skipped.workflow_id
ORDER BY workflows.name, skipped.reason

-- name: waiting
SELECT count(*) FROM (SELECT FROM queue LIMIT 10000) AS some_rows
