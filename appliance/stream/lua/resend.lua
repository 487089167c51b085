-- Add an entry once: a marker remembers it, so that who does not know whether it was added may ask again.
-- KEYS: stream, ledger, marker. ARGV: how long the marker stays (ms), whether the event was counted as accepted before
-- (its outcome is then counted for that time): 0, 1, or the name of the life of the stream that counted it, if it still
-- goes on; then the entry's fields and values.
-- Answers the entry's id, '' if that life is over, or nil where there is no stream: found.lua makes it.
local known = redis.call('GET', KEYS[3])
if known then
  return known
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end
if ARGV[2] ~= '0' and ARGV[2] ~= '1' and redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[2] then
  return ''
end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('SET', KEYS[3], id, 'PX', ARGV[1])
if ARGV[2] ~= '0' then
  redis.call('HINCRBY', KEYS[2], 'work', 1)
  redis.call('HINCRBY', KEYS[2], 'reopened', 1)
end
return id
