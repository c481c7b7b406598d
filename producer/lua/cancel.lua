-- Cancel jobs: queued ones end at once, running ones when their worker hears of it.
--
-- ARGV  1 now | 2 TTL ms of the result, then ids
-- reply per id: unknown | over (it had ended) | cancelled | cancelling

local now, ttl = clock(ARGV[1]), ARGV[2]
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command
local reply = {}
for i = 3, #ARGV do reply[#reply + 1] = cancel(now, ARGV[i], ttl) end
tidy()
return reply
