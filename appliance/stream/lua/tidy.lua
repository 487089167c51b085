-- Trim what no group needs any more, and remove consumers that are gone.
-- KEYS: stream, ledger. ARGV: own group, idle time (ms) after which a consumer without pending entries is removed.
-- XGROUP DELCONSUMER drops a consumer's pending entries, so it is done here, where 'pending = 0' can't change meanwhile.
-- Answers {entries trimmed, consumers removed}.
local function field(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then
      return reply[i + 1]
    end
  end
end
local function before(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if #a1 ~= #b1 then return #a1 < #b1 end
  if a1 ~= b1 then return a1 < b1 end
  if #a2 ~= #b2 then return #a2 < #b2 end
  return a2 < b2
end
local function after(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  return #seq > 15 and id or string.format('%s-%.0f', ms, tonumber(seq) + 1)  -- a double counts to 2^53
end
local trimmed, removed, oldest = 0, 0, nil
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then
  return {0, 0}
end
for _, group in ipairs(groups) do
  local name = field(group, 'name')
  local needed = after(field(group, 'last-delivered-id'))
  if field(group, 'pending') > 0 then
    local first = redis.call('XPENDING', KEYS[1], name, '-', '+', 1)[1]
    if first and before(first[1], needed) then
      needed = first[1]
    end
  end
  if oldest == nil or before(needed, oldest) then
    oldest = needed
  end
end
-- With one group there is something to trim as well: what was settled while there were two (settle.lua notes it). But only
-- then: what else is pending with nobody lost its consumer, was not settled, and waits for recovery.
if oldest and (#groups > 1 or redis.call('HEXISTS', KEYS[2], 'left') == 1) then
  trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '=', oldest)
  local lag = field(groups[1], 'lag')
  if #groups == 1 and type(lag) == 'number' and redis.call('XLEN', KEYS[1]) - lag - field(groups[1], 'pending') <= 0 then
    redis.call('HDEL', KEYS[2], 'left')
  end
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  if field(consumer, 'pending') == 0 and field(consumer, 'idle') > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], field(consumer, 'name'))
    removed = removed + 1
  end
end
return {trimmed, removed}
