-- Entries that were delivered and are pending with nobody any more (XGROUP DELCONSUMER drops a consumer's pending
-- entries): they are put back into the pending list, idle for so long that any replica takes them over at once.
-- KEYS: stream. ARGV: group, consumer, where to begin ('-' or an id), how many entries to look at.
-- Where there are other groups nothing is done: what is settled stays in the stream there, and looks the same.
-- Answers {how many there were, where to go on, or '' at the end}.
local function field(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then
      return reply[i + 1]
    end
  end
end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err or #groups ~= 1 or field(groups[1], 'name') ~= ARGV[1] then
  return {0, ''}
end
local group = groups[1]
local lag = field(group, 'lag')
if ARGV[3] == '-' and type(lag) == 'number'
    and redis.call('XLEN', KEYS[1]) - lag - field(group, 'pending') <= 0 then
  return {0, ''}
end
local rows = redis.call('XRANGE', KEYS[1], ARGV[3], field(group, 'last-delivered-id'), 'COUNT', ARGV[4])
local adopted = 0
for _, row in ipairs(rows) do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], row[1], row[1], 1) == 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1], 'IDLE', 1000000000, 'RETRYCOUNT', 1, 'FORCE', 'JUSTID')
    adopted = adopted + 1
  end
end
return {adopted, #rows == tonumber(ARGV[4]) and '(' .. rows[#rows][1] or ''}
