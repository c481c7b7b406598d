-- Run failed jobs again: at the end of their tenants' turns, with all attempts anew; those that were made stay recorded.
--
-- ARGV  1 now | 2 nonce of the call, then ids
-- reply per id: requeued | open (it has not ended) | over (it ended otherwise) | unknown | gone (its payload is)

local now, nonce = clock(ARGV[1]), ARGV[2]
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command

local FORGOTTEN = { 'turn', 'due', 'token', 'spent', 'stalls', 'cancel', 'claimed', 'given_back', 'timeouts', 'charged',
  'throttles', 'throttled', 'finished', 'not_before' }
local lanes = {}

local function back_to_group(id, ledger)
  local group, members = K.group .. ledger.group, K.members .. ledger.group
  redis.call('PERSIST', group)
  redis.call('PERSIST', members)
  redis.call('HINCRBY', group, 'requeued', 1)
  redis.call('ZADD', members, 0, id)
end

local function requeue(id)
  local ledger = read(id)
  if not ledger then return 'unknown' end
  if redis.call('HGET', K.ledger .. id, 'requeued') == nonce then return 'requeued' end
  if OPEN[ledger.state] then return 'open' end
  if ledger.state ~= 'failed' then return 'over' end
  if redis.call('PERSIST', K.payload .. id) == 0 and redis.call('EXISTS', K.payload .. id) == 0 then return 'gone' end
  redis.call('PERSIST', K.ledger .. id)
  redis.call('DEL', K.result .. id)
  redis.call('ZREM', K.failed, id)
  redis.call('HDEL', K.ledger .. id, unpack(FORGOTTEN))
  ledger.band, ledger.tenant, ledger.turn = ledger.band or 1, ledger.tenant or 'default', nil
  if ledger.deadline and ledger.deadline > now then redis.call('ZADD', K.deadlines, exact(ledger.deadline), id)
  else redis.call('HDEL', K.ledger .. id, 'deadline') end
  if ledger.group then back_to_group(id, ledger) end
  if ledger.conversation then join_conversation(id, ledger) end
  admit(now, id, ledger, 0, { 'epoch', (tonumber(ledger.epoch) or 0) + 1, 'requeued', nonce, 'band', ledger.band, 'tenant', ledger.tenant })
  lanes[ledger.lane], lanes[ledger.model] = true, true
  return 'requeued'
end

local reply = {}
for i = 3, #ARGV do
  local ok, said = pcall(requeue, ARGV[i])
  reply[#reply + 1] = ok and said or 'unknown'
end
tidy()
for lane in pairs(lanes) do enter_lane(lane) end
return reply
