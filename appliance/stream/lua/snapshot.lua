-- One moment of all streams: what was added, what waits, what the ledger counted.
-- KEYS: stream, ledger, stream, ledger … ARGV: group.
-- Forgets the minutes in which everything is settled (see settle.lua): those before the oldest entry's.
-- Internal work that is neither settled nor there was deleted by somebody: recovery makes it anew, so it counts as done.
-- Of a stream that was lost, and that found.lua hasn't made again yet, the counters belong to a life that is over: there
-- are none then.
-- Answers for each stream {length, added, groups, pending, lag or -1, {ledger fields and values}, oldest entry's id, last
-- id, oldest minute that is kept}.
local function field(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then
      return reply[i + 1]
    end
  end
end
local function minute(id)
  return math.floor(tonumber(string.match(id, '^%d+')) / 60000)
end
-- Whether the counters belong to another life of the stream than its entries.
local function lost(ledger, added)
  local known = 0
  for _, count in ipairs(redis.call('HMGET', ledger, 'handled', 'unmatched', 'duplicate', 'dead', 'internal')) do
    known = known + tonumber(count or 0)
  end
  return added < math.max(known, tonumber(redis.call('HGET', ledger, 'added') or '0'))
end
local answer = {}
for i = 1, #KEYS, 2 do
  local length, added, groups, pending, lag, oldest, last, kept = 0, 0, 0, 0, -1, '', '', 0
  local info, over = redis.pcall('XINFO', 'STREAM', KEYS[i]), true
  if not info.err then
    length, added = field(info, 'length'), field(info, 'entries-added')
    last = field(info, 'last-generated-id')
    kept = minute(last)
    local first = field(info, 'first-entry')
    if first then
      oldest = first[1]
      kept = math.min(kept, minute(oldest))
    end
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i])) do
      groups = groups + 1
      if field(group, 'name') == ARGV[1] then
        pending = field(group, 'pending')
        local behind = field(group, 'lag')
        if type(behind) == 'number' then
          lag = behind
        end
      end
    end
    over = lost(KEYS[i + 1], added)
    if not over and groups > 0 and redis.call('EXISTS', KEYS[i + 1]) == 1 then
      redis.call('HSET', KEYS[i + 1], 'added', added)
    end
  end
  if groups == 1 and length == 0 and pending == 0 then
    local n = redis.call('HMGET', KEYS[i + 1], 'work', 'reopened', 'internal')
    local gone = tonumber(n[1] or 0) - tonumber(n[2] or 0) - tonumber(n[3] or 0)
    if gone > 0 then
      redis.call('HINCRBY', KEYS[i + 1], 'internal', gone)
    end
  end
  local ledger, past = over and {} or redis.call('HGETALL', KEYS[i + 1]), {}
  for j = 1, #ledger, 2 do
    local at = string.match(ledger[j], '^at:(%d+)$')
    if at and tonumber(at) < kept or ledger[j] == 'again' and minute(ledger[j + 1]) < kept then
      past[#past + 1] = ledger[j]
    end
  end
  if #past > 0 then
    redis.call('HDEL', KEYS[i + 1], unpack(past))
  end
  answer[#answer + 1] = {length, over and length or added, groups, pending, lag, ledger, oldest, last, kept}
end
return answer
