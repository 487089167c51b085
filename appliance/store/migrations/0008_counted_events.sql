-- Events whose outcome is counted with another entry than the one they came with. Only additions.

ALTER TABLE events ADD COLUMN counted boolean;  -- null: they came with entry_id; else whether the ledger counts them as
                                                -- accepted by an earlier entry
CREATE INDEX events_counted ON events ((split_part(entry_id, '-', 1)::numeric)) WHERE counted IS NOT NULL;
