-- Notes that views are to be refreshed: one mark per view, however often it is asked for.
--
-- ARGV: one JSON object for every database,
--   {"database": "shop", "requests": [{"view": "public.mv", "keys": null, "parameters": ["{\"id\":42}"]}]}
-- with members of sets that are encoded already, null for "all". Returns the number of marks.
--
-- No KEYS: the broker is no cluster, and the number of keys depends on the request. All times are this server's.
local LARGEST_SET = 10000  -- more members than this say no more than "all", and cost more to read
local CHUNK = 1000         -- well under what Lua's unpack() can put on its stack

local bodies = {}
for at = 1, #ARGV do
    bodies[at] = cjson.decode(ARGV[at])  -- fails before anything is written
end

local time = redis.call('TIME')
local now_ms = time[1] .. string.format('%03d', math.floor(tonumber(time[2]) / 1000))

-- One number a request, shared by its marks. A counter that is new, or came back after FLUSHALL, begins at the
-- time in microseconds: no number comes twice. (Lua would print a number of this size as 1.79e+15.)
local sequence = redis.call('INCR', 'upkeep:mark-seq')
if sequence == 1 then
    local now_us = time[1] .. string.format('%06d', tonumber(time[2]))
    redis.call('SET', 'upkeep:mark-seq', now_us)
    sequence = now_us
else
    sequence = string.format('%.0f', sequence)
end

local function everything(key)
    if redis.call('SADD', key, '*') == 1 and redis.call('SCARD', key) > 1 then
        redis.call('UNLINK', key)
        redis.call('SADD', key, '*')
    end
end

local function add(key, members)
    if type(members) ~= 'table' or #members > LARGEST_SET then  -- JSON's null is no table
        return everything(key)
    end
    if redis.call('SISMEMBER', key, '*') == 1 then
        return
    end
    for from = 1, #members, CHUNK do
        redis.call('SADD', key, unpack(members, from, math.min(from + CHUNK - 1, #members)))
    end
    if redis.call('SCARD', key) > LARGEST_SET then
        everything(key)
    end
end

local marks = 0
for _, body in ipairs(bodies) do
    local marked = 'upkeep:marks:' .. body.database
    for _, request in ipairs(body.requests) do
        local mark = redis.call('HGET', marked, request.view)
        local first = mark and string.match(mark, '^%d+ (%d+) %d+$') or now_ms
        redis.call('HSET', marked, request.view, sequence .. ' ' .. first .. ' ' .. now_ms)
        add(marked .. ':keys:' .. request.view, request.keys)
        add(marked .. ':parameters:' .. request.view, request.parameters)
        marks = marks + 1
    end
    redis.call('SADD', 'upkeep:marked', body.database)
end
return marks
