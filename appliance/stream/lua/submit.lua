-- Add an entry unless its sender's key was seen before; atomic, so of two concurrent duplicates exactly one is added.
-- KEYS: stream, dedupe key. ARGV: what to remember ("uid id"), how long (ms), then the entry's fields and values.
-- Answers {1, entry id}, {0, what was remembered first}, or nil where there is no stream: found.lua makes it.
local seen = redis.call('GET', KEYS[2])
if seen then
  return {0, seen}
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {1, id}
