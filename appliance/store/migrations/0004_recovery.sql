-- What is asked when Redis has lost something. Only additions.

-- Events on which work is under way: each has an entry in its stream, or was lost with it.
CREATE INDEX events_open ON events (uid) WHERE outcome IS NULL;

-- Rows of the outbox in the order in which they were put into a stream.
CREATE INDEX outbox_sent ON outbox (sent_at, uid) WHERE sent_at IS NOT NULL;

-- What the history adds to the last counters of a life of a stream: its entries that were accepted or settled after the
-- counters were saved for the last time.
ALTER TABLE ledger_epochs
    ADD COLUMN stream text,                     -- the priority
    ADD COLUMN first_id text,                   -- this life's first entry, or the time at which it began
    ADD COLUMN last_id text,                    -- the stream's last entry when the counters were read
    ADD COLUMN recent json,                     -- settled events by the minute of their entries: {"28483920": 17}
    ADD COLUMN late_accepted bigint NOT NULL DEFAULT 0,
    ADD COLUMN late_settled bigint NOT NULL DEFAULT 0,
    ADD COLUMN closed_at timestamptz;

-- The smallest UUID of a millisecond: what sorts by id sorts by time (identifiers.py).
CREATE FUNCTION appliance_uuid_of_ms(ms bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(ms), 12, '0') || repeat('0', 20))::uuid
$$;
