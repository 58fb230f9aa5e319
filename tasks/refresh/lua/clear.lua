-- Clears the marks that have not moved since they were read: what was asked for in between stays, with its keys and parameters.
-- ARGV: the database, then view and value of every mark. Returns how many were cleared.
local marks = 'upkeep:marks:' .. ARGV[1]
local cleared = 0
for i = 2, #ARGV, 2 do
  if redis.call('HGET', marks, ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', marks, ARGV[i])
    redis.call('UNLINK', marks .. ':keys:' .. ARGV[i], marks .. ':parameters:' .. ARGV[i])
    cleared = cleared + 1
  end
end
return cleared
