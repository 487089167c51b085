-- Acknowledge entries that this consumer still owns, and count their outcomes in the same breath.
-- An XACK by somebody who is not the owner would succeed: ownership is checked entry by entry first.
-- Where ours is the only group they are deleted as well; else they are left behind, which the ledger notes, and tidy.lua
-- trims them when no group needs them any more.
-- An entry that nobody has pending lost its group's or consumer's memory of it, or was deleted, while we had it in hand;
-- or somebody else has settled it. Whoever may have taken an entry over leaves its id in the set of what was settled; so
-- what is not in there is ours, if the caller's own clock says that it holds the lease, and the server is still the one
-- that gave it.
-- KEYS: stream, ledger, settled. ARGV: group, consumer, from which time on that is so (ms; of an entry's id), or '' for
-- never, then id, outcome, id, outcome …
-- An outcome is handled, unmatched, duplicate, dead, internal, or 'a>b' (internal work that moved an event from a to b).
-- Beside the sums it counts the events settled by the minute of their entries, 'at:<minutes since 1970>': when the stream
-- is lost, the history tells how many of these minutes were settled after the counters were saved (bookkeeping.py).
-- Answers the ids that are not ours any more; for those nothing was done.
local REMEMBERED_S = 3600
local lost, mine, shared, counts = {}, {}, {}, {}
local function position(id)
  local ms, seq = string.match(id, '^(%d+)-?(%d*)')
  return tonumber(ms), tonumber(seq) or 0
end
local function before(a, b)
  local a1, a2 = position(a)
  local b1, b2 = position(b)
  return a1 < b1 or (a1 == b1 and a2 < b2)
end
local function add(name, n)
  counts[name] = (counts[name] or 0) + n
end
local function count(ms, outcome, deleted)
  local from, to = string.match(outcome, '^(%a+)>(%a+)$')
  if from then
    add(from, -1)
    add(to, 1)
    outcome = 'internal'
  end
  if outcome ~= 'internal' then
    add(outcome, 1)
    add(string.format('at:%d', math.floor(ms / 60000)), 1)
  elseif not deleted then
    add('internal', 1)  -- of deleted ones snapshot.lua makes up for
  end
end
-- Whether an entry that isn't pending under our name is ours all the same; and whether somebody has deleted it.
local function held(id)
  if ARGV[3] == '' or position(id) <= tonumber(ARGV[3]) or before(id, redis.call('HGET', KEYS[2], 'first') or '0-0')
      or #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1) > 0 then
    return false, false
  end
  local deleted = #redis.call('XRANGE', KEYS[1], id, id) == 0
  if not deleted and #redis.call('XINFO', 'GROUPS', KEYS[1]) > 1 then
    return false, false  -- it stays in the stream, and is delivered again
  end
  if redis.call('SADD', KEYS[3], id) == 0 then
    return false, deleted
  end
  redis.call('EXPIRE', KEYS[3], REMEMBERED_S)
  redis.call('XDEL', KEYS[1], id)
  return true, deleted
end
local again = tonumber(redis.call('HGET', KEYS[2], 'again') or '-1')
for i = 4, #ARGV, 2 do
  local id, outcome = ARGV[i], ARGV[i + 1]
  local ms = tonumber(string.match(id, '^%d+'))
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1]
  if pending then
    mine[#mine + 1] = id
    count(ms, outcome, false)
    if pending[4] > 1 or ms <= again then
      shared[#shared + 1] = id
    end
  else
    local ours, deleted = held(id)
    if ours then
      count(ms, outcome, deleted)
    else
      lost[#lost + 1] = id
    end
  end
end
if #mine > 0 then
  redis.call('XACK', KEYS[1], ARGV[1], unpack(mine))
  if #redis.call('XINFO', 'GROUPS', KEYS[1]) == 1 then
    if redis.call('XDEL', KEYS[1], unpack(mine)) < #mine then
      redis.call('SADD', KEYS[3], unpack(mine))  -- somebody had deleted one: fence.lua asks whether it was settled
      redis.call('EXPIRE', KEYS[3], REMEMBERED_S)
    end
  else
    redis.call('HSET', KEYS[2], 'left', 1)
  end
end
if #shared > 0 then
  redis.call('SADD', KEYS[3], unpack(shared))
  redis.call('EXPIRE', KEYS[3], REMEMBERED_S)
end
for name, n in pairs(counts) do
  redis.call('HINCRBY', KEYS[2], name, n)
end
return lost
