-- Add entries of internal work and count them, so that the ledger can tell them from accepted events.
-- KEYS: stream, ledger. ARGV: how many of them put a dead event back to work (redrive), then the payloads.
-- Those come first. Answers the number of entries added.
local reopened = tonumber(ARGV[1])
for i = 2, #ARGV do
  local id = redis.call('XADD', KEYS[1], '*', 'work', ARGV[i])
  if i - 1 <= reopened then
    -- settle.lua will count an event at this minute that was counted already at the minute of its own entry.
    redis.call('HINCRBY', KEYS[2], string.format('at:%d', math.floor(tonumber(string.match(id, '^%d+')) / 60000)), -1)
  end
end
redis.call('HINCRBY', KEYS[2], 'work', #ARGV - 1)
if reopened > 0 then
  redis.call('HINCRBY', KEYS[2], 'reopened', reopened)
  redis.call('HINCRBY', KEYS[2], 'dead', -reopened)
end
return #ARGV - 1
