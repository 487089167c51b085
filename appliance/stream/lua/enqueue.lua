-- Add entries of internal work and count them, so that the ledger can tell them from accepted events.
-- KEYS: stream, ledger, ledgers in which reopened events may have been counted. ARGV: how many of the entries put a dead
-- event back to work (redrive), how many places follow, the places (which of those ledgers, the entry with whose id the
-- event was counted as settled), then the payloads.
-- Answers the number of entries added, or nil where there is no stream: found.lua makes it, and nobody else.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end
local reopened, places = tonumber(ARGV[1]), tonumber(ARGV[2])
local function position(id)
  local ms, seq = string.match(id, '^(%d+)-?(%d*)')
  return tonumber(ms), tonumber(seq) or 0
end
for i = 3, 2 + 2 * places, 2 do
  local ledger, id = KEYS[2 + tonumber(ARGV[i])], ARGV[i + 1]
  local ms, seq = position(id)
  local first, second = position(redis.call('HGET', ledger, 'first') or '0-0')
  local name = string.format('at:%d', math.floor(ms / 60000))
  -- Of a former life, or of a minute that is forgotten: then nobody counts it any more.
  if (ms > first or (ms == first and seq >= second)) and redis.call('HEXISTS', ledger, name) == 1 then
    redis.call('HINCRBY', ledger, name, -1)
  end
end
local added = 0
for i = 3 + 2 * places, #ARGV do
  redis.call('XADD', KEYS[1], '*', 'work', ARGV[i])
  added = added + 1
end
redis.call('HINCRBY', KEYS[2], 'work', added)
if reopened > 0 then
  redis.call('HINCRBY', KEYS[2], 'reopened', reopened)
  redis.call('HINCRBY', KEYS[2], 'dead', -reopened)
end
return added
