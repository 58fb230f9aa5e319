-- Clears the marks that have not moved since they were read: what was asked for in between stays, with its keys and parameters.
-- It waits for max_wait anew, from the last request that was read: where writes never stop, its old first request would make it due
-- again at once, and its refreshes follow one another without a pause.
-- ARGV: the database, then view and value of every mark. Returns how many were cleared.
local marks = 'upkeep:marks:' .. ARGV[1]
local cleared = 0
for i = 2, #ARGV, 2 do
  local mark = redis.call('HGET', marks, ARGV[i])
  if mark == ARGV[i + 1] then
    redis.call('HDEL', marks, ARGV[i])
    redis.call('UNLINK', marks .. ':keys:' .. ARGV[i], marks .. ':parameters:' .. ARGV[i])
    cleared = cleared + 1
  elseif mark then
    local first, last = string.match(ARGV[i + 1], '^%S+ (%S+) (%S+)$')
    local sequence, same, latest = string.match(mark, '^(%S+) (%S+) (%S+)$')
    if first and first == same then
      redis.call('HSET', marks, ARGV[i], sequence .. ' ' .. last .. ' ' .. latest)
    end
  end
end
return cleared
