-- Renew the leases of the entries that this consumer still owns. XCLAIM alone would steal back what others reclaimed.
-- KEYS: stream. ARGV: group, consumer, the idle time to set (ms; 0 renews, a huge one releases), ids.
-- What is released in good order counts as not delivered yet: the deliveries are to tell who kills the process.
-- Answers the ids that are not ours any more.
local lost, mine = {}, {}
for i = 4, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 1 then
    mine[#mine + 1] = ARGV[i]
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
return lost
