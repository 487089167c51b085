-- Take the right to settle an entry away from whoever has it in hand although it was deleted: it is to be added again,
-- and the new one will be counted.
-- KEYS: stream, ledger, settled. ARGV: group, id.
-- Answers 1 if it was not settled yet, 0 if it was, or if its life of the stream is over (then nobody can settle it).
local function position(id)
  local ms, seq = string.match(id, '^(%d+)-?(%d*)')
  return tonumber(ms), tonumber(seq) or 0
end
local ms, seq = position(ARGV[2])
local first, second = position(redis.call('HGET', KEYS[2], 'first') or '0-0')
if ms < first or (ms == first and seq < second) or redis.call('SADD', KEYS[3], ARGV[2]) == 0 then
  return 0
end
redis.call('EXPIRE', KEYS[3], 3600)
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return 1
