-- Renew the leases of the entries that this consumer still owns. XCLAIM alone would steal back what others reclaimed.
-- KEYS: stream, ledger, settled. ARGV: group, consumer, the idle time to set (ms; 0 renews, a huge one releases), ids.
-- What is released in good order counts as not delivered yet: the deliveries are to tell who kills the process.
-- What nobody has pending although nobody settled it (or was given the right to, see fence.lua) was taken from its holder's
-- name, not by anybody else: who is sure by his own clock that he had it until now may go on, and settle it.
-- Answers {ids that are somebody else's, or over; ids that are nobody's}.
local lost, nobodys, mine = {}, {}, {}
local function position(id)
  local ms, seq = string.match(id, '^(%d+)-?(%d*)')
  return tonumber(ms), tonumber(seq) or 0
end
local first, second = position(redis.call('HGET', KEYS[2], 'first') or '0-0')
local function nobody_has(id)
  local ms, seq = position(id)
  return (ms > first or (ms == first and seq >= second)) and redis.call('SISMEMBER', KEYS[3], id) == 0
    and #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1) == 0
end
for i = 4, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 1 then
    mine[#mine + 1] = ARGV[i]
  elseif nobody_has(ARGV[i]) then
    nobodys[#nobodys + 1] = ARGV[i]
  else
    lost[#lost + 1] = ARGV[i]
  end
end
if #mine > 0 then
  local command = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}
  for i = 1, #mine do
    command[#command + 1] = mine[i]
  end
  command[#command + 1] = 'IDLE'
  command[#command + 1] = ARGV[3]
  if ARGV[3] ~= '0' then
    command[#command + 1] = 'RETRYCOUNT'
    command[#command + 1] = 0
  end
  command[#command + 1] = 'JUSTID'
  redis.call(unpack(command))
end
return {lost, nobodys}
