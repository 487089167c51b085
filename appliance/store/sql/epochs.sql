-- The ledger's counters as last seen in Redis, per life of a stream.

-- name: save
-- A replica that was slow may have closed the present epoch, or opens a former one: who saves next puts it right.
INSERT INTO ledger_epochs (epoch, accepted, handled, unmatched, duplicate, dead, in_flight, seen_at)
SELECT epoch, accepted, handled, unmatched, duplicate, dead, in_flight, now()
FROM unnest(%b::text[], %b::int8[], %b::int8[], %b::int8[], %b::int8[], %b::int8[], %b::int8[])
     AS u (epoch, accepted, handled, unmatched, duplicate, dead, in_flight)
ON CONFLICT (epoch) DO UPDATE
SET accepted = greatest(ledger_epochs.accepted, EXCLUDED.accepted), handled = EXCLUDED.handled,
    unmatched = EXCLUDED.unmatched, duplicate = EXCLUDED.duplicate, dead = EXCLUDED.dead,
    in_flight = EXCLUDED.in_flight, closed = false, seen_at = now()

-- name: close
-- What was in flight when an epoch ended is not accounted for any more.
UPDATE ledger_epochs SET closed = true, in_flight = 0 WHERE NOT closed AND epoch <> ALL(%b::text[])

-- name: closed
SELECT coalesce(sum(accepted), 0)::int8, coalesce(sum(handled), 0)::int8, coalesce(sum(unmatched), 0)::int8,
       coalesce(sum(duplicate), 0)::int8, coalesce(sum(dead), 0)::int8
FROM ledger_epochs WHERE closed
