-- Add an entry once: a marker remembers it, so that who does not know whether it was added may ask again.
-- KEYS: stream, ledger, marker. ARGV: how long the marker stays (ms), 1 if the event was counted as accepted before (its
-- outcome is then counted for that time), then the entry's fields and values.
-- Answers the entry's id.
local known = redis.call('GET', KEYS[3])
if known then
  return known
end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('SET', KEYS[3], id, 'PX', ARGV[1])
if ARGV[2] == '1' then
  redis.call('HINCRBY', KEYS[2], 'work', 1)
  redis.call('HINCRBY', KEYS[2], 'reopened', 1)
end
return id
