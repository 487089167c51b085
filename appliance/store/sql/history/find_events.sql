-- The events that an id means: the one with that uid, or those (of several senders, perhaps) with that sender's id.
-- Newest first.
SELECT uid, id, source, type, subject, time, received_at, attributes, data, stream, entry_id, outcome
FROM events
WHERE {match}
ORDER BY uid DESC
LIMIT %(limit)s;
