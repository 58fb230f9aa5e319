-- Files a member under one sorted set: KEYS[1] the set; ARGV[1] the member, ARGV[2] its life in ms. Returns when it ends.
-- The score is later than that, so that a member is still filed when its key is gone, whichever node's clock counts.
local SLACK_MS = 60000
local TRIMMED = 100  -- one filing adds one, so this many keep up with whatever expired

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local expires = now + tonumber(ARGV[2])

local gone = redis.call(
    'ZRANGE', KEYS[1], '-inf', string.format('%.0f', now), 'BYSCORE', 'LIMIT', 0, TRIMMED)
if #gone > 0 then
    redis.call('ZREM', KEYS[1], unpack(gone))
end
redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', expires + SLACK_MS), ARGV[1])
local newest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', tonumber(newest)))
return expires
