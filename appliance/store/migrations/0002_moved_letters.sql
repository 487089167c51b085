-- Whether the letter took its event from 'handled' to 'dead': then the entry that wrote it moves the event in the ledger,
-- and the event's own entry, if it is delivered again, still counts it as handled.
ALTER TABLE dead_letters ADD COLUMN moved boolean NOT NULL DEFAULT false;
