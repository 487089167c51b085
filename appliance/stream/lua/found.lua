-- Make sure that the stream, its group and its ledger exist and belong together.
-- KEYS: stream, ledger. ARGV: group, name of a new epoch.
-- The group starts at 0: what was in the stream before it is delivered (again); PostgreSQL knows what was done.
-- Answers {1 if the group was made, 1 if the stream had been lost, the lost ledger's fields and values}.
local made, lost, old = 0, 0, {}
local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if type(created) == 'table' and created.err then
  if string.sub(created.err, 1, 9) ~= 'BUSYGROUP' and string.sub(created.err, 1, 10) ~= '-BUSYGROUP' then
    return redis.error_reply(created.err)
  end
else
  made = 1
end
local added, length, first = 0, 0, nil
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'entries-added' then
    added = info[i + 1]
  elseif info[i] == 'length' then
    length = info[i + 1]
  elseif info[i] == 'first-entry' and info[i + 1] then
    first = info[i + 1][1]
  end
end
local known = tonumber(redis.call('HGET', KEYS[2], 'added') or '0')
for _, name in ipairs({'handled', 'unmatched', 'duplicate', 'dead', 'internal'}) do
  known = math.max(known, tonumber(redis.call('HGET', KEYS[2], name) or '0'))
end
if added < known then
  lost = 1
  old = redis.call('HGETALL', KEYS[2])
  redis.call('DEL', KEYS[2])
end
if redis.call('HSETNX', KEYS[2], 'epoch', ARGV[2]) == 1 then
  -- What was added and deleted before we came never was ours to account for.
  if not first then
    local now = redis.call('TIME')
    first = string.format('%d%03d-0', now[1], math.floor(now[2] / 1000))
  end
  redis.call('HSET', KEYS[2], 'added', added, 'base', added - length, 'first', first)
else
  redis.call('HSETNX', KEYS[2], 'first', '0-0')  -- a release that did not write it began this life
end
return {made, lost, old}
