-- Remove this consumer from the group if it has nothing pending: XGROUP DELCONSUMER drops a consumer's pending entries,
-- so the question and the removal are one.
-- KEYS: stream. ARGV: group, consumer. Answers 1 if it was removed.
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if pending.err or #pending > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
