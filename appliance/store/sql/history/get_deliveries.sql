-- The messages that a run sent, or tried to.
SELECT key AS step, channel, recipient, status, attempts, message_id, error, updated_at
FROM deliveries
WHERE run_id = %(run_id)s
ORDER BY updated_at, key, channel, recipient;
