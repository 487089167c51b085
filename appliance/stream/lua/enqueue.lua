-- Add entries of internal work and count them, so that the ledger can tell them from accepted events.
-- KEYS: stream, ledger. ARGV: how many of them put a dead event back to work (redrive), then the payloads.
-- Answers the number of entries added.
for i = 2, #ARGV do
  redis.call('XADD', KEYS[1], '*', 'work', ARGV[i])
end
redis.call('HINCRBY', KEYS[2], 'work', #ARGV - 1)
local reopened = tonumber(ARGV[1])
if reopened > 0 then
  redis.call('HINCRBY', KEYS[2], 'reopened', reopened)
  redis.call('HINCRBY', KEYS[2], 'dead', -reopened)
end
return #ARGV - 1
