-- Give a ledger to a job that a plain arq client enqueued, or refuse it. A job that has one is left alone.
--
-- ARGV  1 now | 2 id | 3 lane it stands in | 4 model | 5 band | 6 tenant | 7 digest | 8 delay ms | 9 deadline as in enqueue | 10 ttl ms or ''
--       11 metadata or '' | 12 enqueued ms | 13 result of a refusal, or '' | 14 failure TTL ms | 15 group or '' | 16 estimate of its tokens
--       17 conversation or ''
-- reply 'adopted' | 'refused' | 'known'

local now, id, lane, model, band = clock(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local wait, deadline = tonumber(ARGV[8]), deadline_of(now, ARGV[9])
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command
if redis.call('EXISTS', K.ledger .. id) == 1 then return 'known' end

local ledger = { lane = lane, model = model, band = band, tenant = ARGV[6], enqueued = tonumber(ARGV[12]), ttl = tonumber(ARGV[10]) }
redis.call('HSET', K.ledger .. id, 'epoch', 1, 'digest', ARGV[7], 'nonce', '', 'lane', lane, 'model', model, 'band', band, 'tenant', ARGV[6],
  'enqueued', ARGV[12], 'estimate', ARGV[16])
if ARGV[10] ~= '' then redis.call('HSET', K.ledger .. id, 'ttl', ARGV[10]) end
if ARGV[11] ~= '' then redis.call('HSET', K.ledger .. id, 'metadata', ARGV[11]) end
if ARGV[15] ~= '' then
  ledger.group = ARGV[15]
  redis.call('HSET', K.ledger .. id, 'group', ledger.group)
  join_group(id, ledger)
end
if ARGV[13] ~= '' then
  finish(now, id, ledger, 'failed', ARGV[13], ARGV[14])
  tidy()
  return 'refused'
end
if deadline then
  redis.call('HSET', K.ledger .. id, 'deadline', exact(deadline))
  redis.call('ZADD', K.deadlines, exact(deadline), id)
end
if ARGV[17] ~= '' then
  ledger.conversation = ARGV[17]
  redis.call('HSET', K.ledger .. id, 'conversation', ledger.conversation)
  join_conversation(id, ledger)
end
admit(now, id, ledger, wait)
redis.call('ZADD', K.lanes, 'NX', 0, model) -- its leases are looked for under its model
tidy()
enter_lane(lane)
return 'adopted'
