-- Acknowledge entries that this consumer still owns, and count their outcomes in the same breath.
-- An XACK by somebody who is not the owner would succeed: ownership is checked entry by entry first.
-- Where ours is the only group they are deleted as well; else they are left behind, which the ledger notes, and tidy.lua
-- trims them when no group needs them any more.
-- KEYS: stream, ledger. ARGV: group, consumer, then id, outcome, id, outcome …
-- An outcome is handled, unmatched, duplicate, dead, internal, or 'a>b' (internal work that moved an event from a to b).
-- Beside the sums it counts the events settled by the minute of their entries, 'at:<minutes since 1970>': when the stream
-- is lost, the history tells how many of these minutes were settled after the counters were saved (bookkeeping.py).
-- Answers the ids that are not ours any more; for those nothing was done.
local lost, mine, counts = {}, {}, {}
local function count(name, n)
  counts[name] = (counts[name] or 0) + n
end
for i = 3, #ARGV, 2 do
  local id, outcome = ARGV[i], ARGV[i + 1]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    mine[#mine + 1] = id
    local from, to = string.match(outcome, '^(%a+)>(%a+)$')
    if from then
      count(from, -1)
      count(to, 1)
      count('internal', 1)
    else
      count(outcome, 1)
      if outcome ~= 'internal' then
        count(string.format('at:%d', math.floor(tonumber(string.match(id, '^%d+')) / 60000)), 1)
      end
    end
  else
    lost[#lost + 1] = id
  end
end
if #mine > 0 then
  redis.call('XACK', KEYS[1], ARGV[1], unpack(mine))
  if #redis.call('XINFO', 'GROUPS', KEYS[1]) == 1 then
    redis.call('XDEL', KEYS[1], unpack(mine))
  else
    redis.call('HSET', KEYS[2], 'left', 1)
  end
  for name, n in pairs(counts) do
    redis.call('HINCRBY', KEYS[2], name, n)
  end
end
return lost
