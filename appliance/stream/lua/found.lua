-- Make sure that the stream, its group and its ledger exist and belong together.
-- KEYS: stream, ledger. ARGV: group, name of a new epoch.
-- The group starts at 0: what was in the stream before it is delivered (again); PostgreSQL knows what was done.
-- Nobody else of us makes a stream, so a stream that isn't there is a life that is over, and the ids of the next one come
-- behind all of it: an id names one entry of all lives, and tells in which of them it was.
-- Answers {1 if the group was made, 1 if the stream had been lost, the lost ledger's fields and values}.
local made, lost, old = 0, 0, {}
local existed = redis.call('EXISTS', KEYS[1]) == 1
local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if type(created) == 'table' and created.err then
  if string.sub(created.err, 1, 9) ~= 'BUSYGROUP' and string.sub(created.err, 1, 10) ~= '-BUSYGROUP' then
    return redis.error_reply(created.err)
  end
else
  made = 1
end
local now = redis.call('TIME')
local first = string.format('%.0f-0', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) + 1)
if not existed then
  redis.call('XSETID', KEYS[1], first)
end
local added, length, last = 0, 0, nil
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'entries-added' then
    added = info[i + 1]
  elseif info[i] == 'length' then
    length = info[i + 1]
  elseif info[i] == 'last-generated-id' then
    last = info[i + 1]
  elseif info[i] == 'first-entry' and info[i + 1] then
    first = info[i + 1][1]
  end
end
local settled = 0
for _, count in ipairs(redis.call('HMGET', KEYS[2], 'handled', 'unmatched', 'duplicate', 'dead', 'internal')) do
  settled = settled + tonumber(count or 0)
end
local known = math.max(settled, tonumber(redis.call('HGET', KEYS[2], 'added') or '0'))
local begun = redis.call('HEXISTS', KEYS[2], 'epoch') == 1
if added < known or (begun and not existed) then
  lost = 1
  old = redis.call('HGETALL', KEYS[2])
  redis.call('DEL', KEYS[2])
elseif begun and made == 1 then
  -- Up to this time entries are delivered anew, whoever works on them.
  redis.call('HSET', KEYS[2], 'again', (string.match(last, '^%d+')))
end
if redis.call('HSETNX', KEYS[2], 'epoch', ARGV[2]) == 1 then
  -- What was added and deleted before we came never was ours to account for.
  redis.call('HSET', KEYS[2], 'added', added, 'base', added - length, 'first', first)
else
  redis.call('HSETNX', KEYS[2], 'first', '0-0')  -- a release that did not write it began this life
end
return {made, lost, old}
