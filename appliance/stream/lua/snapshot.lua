-- One moment of all streams: what was added, what waits, what the ledger counted.
-- KEYS: stream, ledger, stream, ledger … ARGV: group.
-- Forgets the minutes in which everything is settled (see settle.lua): those before the oldest entry's.
-- Internal work that is neither settled nor there was deleted by somebody: recovery makes it anew, so it counts as done.
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
local answer = {}
for i = 1, #KEYS, 2 do
  local length, added, groups, pending, lag, oldest, last, kept = 0, 0, 0, 0, -1, '', '', 0
  local info = redis.pcall('XINFO', 'STREAM', KEYS[i])
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
    if groups > 0 and redis.call('EXISTS', KEYS[i + 1]) == 1
        and added > tonumber(redis.call('HGET', KEYS[i + 1], 'added') or '0') then
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
  local ledger, over = redis.call('HGETALL', KEYS[i + 1]), {}
  for j = 1, #ledger, 2 do
    local at = string.match(ledger[j], '^at:(%d+)$')
    if at and tonumber(at) < kept then
      over[#over + 1] = ledger[j]
    end
  end
  if #over > 0 then
    redis.call('HDEL', KEYS[i + 1], unpack(over))
  end
  answer[#answer + 1] = {length, added, groups, pending, lag, ledger, oldest, last, kept}
end
return answer
