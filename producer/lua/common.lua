-- Shared by every script: scripts.py puts the table K of key prefixes (keys.py) and this file in front of each.
-- No script declares KEYS: ids and lanes are data, so a single primary is needed, not Redis Cluster.
-- ARGV[1] is always the time in ms, or '' for the server's own clock; only tests send a time.

local BAND = 2 ^ 38     -- a runnable score is band * BAND + turn
local HORIZON = 2 ^ 40  -- from here on a score is a time in ms: not before
local MARKER_TTL = 60000
local POISON_STALLS = 3 -- a job whose lease ran out this often fails

local function clock(injected)
  if injected ~= '' then return tonumber(injected) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Numbers are stored with all their digits: tostring() keeps 14.
local function exact(number) return string.format('%.17g', number) end

-- A deadline as producers write it: '' | '+ms from now' | 'ms'.
local function deadline_of(now, text)
  if text == '' then return nil end
  if string.sub(text, 1, 1) == '+' then return now + tonumber(string.sub(text, 2)) end
  return tonumber(text)
end

local FIELDS = {
  'state', 'epoch', 'lane', 'model', 'band', 'tenant', 'turn', 'due', 'deadline', 'token',
  'spent', 'stalls', 'cancel', 'enqueued', 'claimed', 'ttl', 'digest', 'nonce', 'given_back', 'timeouts',
}
local NUMBERS = { band = true, turn = true, due = true, deadline = true, spent = true, stalls = true, enqueued = true, claimed = true, ttl = true, timeouts = true }
local FINAL = { succeeded = true, failed = true, cancelled = true, expired = true }

-- The ledger of one job as a table, or nil if there is none.
local function read(id)
  local values = redis.call('HMGET', K.ledger .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local ledger = {}
  for i, name in ipairs(FIELDS) do
    local value = values[i]
    if value then ledger[name] = NUMBERS[name] and tonumber(value) or value end
  end
  return ledger
end

-- The score that the ledger says: it is the truth, the score only an index.
local function score_of(ledger)
  if ledger.state == 'queued' then return exact(ledger.band * BAND + ledger.turn) end
  return exact(ledger.due)
end

local function wake(name)
  redis.call('ZADD', K.wake .. name, 0, '1')
  redis.call('PEXPIRE', K.wake .. name, MARKER_TTL)
end

local function wake_new()
  redis.call('ZADD', K.wake_new, 0, '1')
  redis.call('PEXPIRE', K.wake_new, MARKER_TTL)
end

-- Wake the process that holds a token, so that it renews at once and sees a cancel.
local function wake_holder(token)
  local worker = string.match(token or '', '^(.*):%d+$')
  if worker then wake(worker) end
end

local function enter_lane(lane)
  if redis.call('ZADD', K.lanes, 'NX', 0, lane) == 1 then wake_new() end
  wake(lane)
end

-- A lane without jobs is forgotten, with its bands' clocks.
local function leave_lane(lane)
  if redis.call('EXISTS', K.lane .. lane, K.running .. lane) == 0 then
    redis.call('ZREM', K.lanes, lane)
    for band = 0, 2 do redis.call('DEL', K.fair .. lane .. ':' .. band) end
  end
end

-- A job's place in its band, given once: the tenant's next finish, but never before the band's clock.
local function take_turn(lane, band, tenant)
  local fair = K.fair .. lane .. ':' .. band
  local turn = math.max(tonumber(redis.call('ZSCORE', fair, '') or 1), tonumber(redis.call('ZSCORE', fair, tenant) or 0))
  redis.call('ZADD', fair, exact(turn + 1), tenant)
  return turn
end

-- Make a job runnable, at the turn it has or at its first one.
local function queue(id, ledger)
  ledger.turn = ledger.turn or take_turn(ledger.lane, ledger.band, ledger.tenant)
  ledger.state = 'queued'
  redis.call('HSET', K.ledger .. id, 'state', 'queued', 'turn', exact(ledger.turn), 'token', '')
  redis.call('ZADD', K.lane .. ledger.lane, score_of(ledger), id)
end

-- Hold a job back until `due`; it keeps its turn.
local function delay(id, ledger, due)
  ledger.state, ledger.due = 'delayed', due
  redis.call('HSET', K.ledger .. id, 'state', 'delayed', 'due', exact(due), 'token', '')
  redis.call('ZADD', K.lane .. ledger.lane, score_of(ledger), id)
end

-- Give `token` the right to run a job until `due`.
local function lease(id, ledger, token, due, length)
  redis.call('HSET', K.ledger .. id, 'state', 'running', 'token', token, 'due', exact(due))
  redis.call('SET', K.in_progress .. id, token, 'PX', length)
  redis.call('ZADD', K.lane .. ledger.lane, exact(due), id)
  redis.call('ZADD', K.running .. ledger.model, exact(due), id)
end

-- Take the lease off a job, whoever holds it.
local function unlease(id, ledger)
  redis.call('DEL', K.in_progress .. id)
  redis.call('ZREM', K.running .. ledger.model, id)
end

-- End a job: the only place that writes a result. `ttl` in ms is the caller's; the job's own goes before it.
local function finish(now, id, ledger, state, result, ttl)
  ttl = exact(ledger.ttl or tonumber(ttl))
  redis.call('SET', K.result .. id, result, 'PX', ttl)
  if state == 'failed' then
    redis.call('PEXPIRE', K.payload .. id, ttl)
    redis.call('ZADD', K.failed, exact(now), id)
    redis.call('ZREMRANGEBYSCORE', K.failed, '-inf', exact(now - ttl))
    if redis.call('PTTL', K.failed) < tonumber(ttl) then redis.call('PEXPIRE', K.failed, ttl) end
  else
    redis.call('DEL', K.payload .. id)
  end
  unlease(id, ledger)
  redis.call('ZREM', K.lane .. ledger.lane, id)
  redis.call('ZREM', K.deadlines, id)
  redis.call('HSET', K.ledger .. id, 'state', state, 'finished', exact(now))
  redis.call('PEXPIRE', K.ledger .. id, ttl)
  leave_lane(ledger.lane)
  if ledger.model ~= ledger.lane then leave_lane(ledger.model) end
  redis.call('PUBLISH', K.done .. id, state)
end

-- A result in arq's wire shape for a job that ends without a run; the payload is not decoded.
local function verdict(now, id, ledger, state, code, message)
  local r = cjson.encode({ status = state, model = ledger.model, error = { code = code, message = message } })
  return '{"t":' .. exact(ledger.spent or 0) .. ',"f":"sample_prompt","a":[],"k":{},"et":' .. exact(ledger.enqueued or now)
    .. ',"s":false,"r":' .. r .. ',"st":' .. exact(ledger.claimed or now) .. ',"ft":' .. exact(now)
    .. ',"q":' .. cjson.encode(K.lane .. ledger.lane) .. ',"id":' .. cjson.encode(id) .. '}'
end

local function cancelled(now, id, ledger, ttl)
  finish(now, id, ledger, 'cancelled', verdict(now, id, ledger, 'cancelled', 'cancelled', 'cancelled on request'), ttl)
end

local function expired(now, id, ledger, ttl)
  finish(now, id, ledger, 'expired', verdict(now, id, ledger, 'expired', 'expired', 'the deadline passed before there was an answer'), ttl)
end

-- Cancel one job: at once if nobody runs it, else by telling its holder.
-- Returns unknown | over | cancelled | cancelling.
local function cancel(now, id, ttl)
  local ledger = read(id)
  if not ledger then
    if redis.call('EXISTS', K.payload .. id) == 0 then return 'unknown' end
    -- Plain arq's, and not adopted yet.
    ledger = { state = 'queued', lane = K.intake, model = K.intake }
    redis.call('HSET', K.ledger .. id, 'state', 'queued', 'epoch', 1, 'lane', K.intake, 'model', K.intake, 'enqueued', exact(now))
  end
  if FINAL[ledger.state] then return 'over' end
  if ledger.state == 'running' and ledger.due > now then
    redis.call('HSET', K.ledger .. id, 'cancel', '1')
    wake_holder(ledger.token)
    return 'cancelling'
  end
  cancelled(now, id, ledger, ttl)
  return 'cancelled'
end

-- What comes due without anybody claiming it: passed deadlines, and the aborts of plain arq clients.
local function sweep(now, ttl)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.deadlines, '-inf', exact(now), 'LIMIT', 0, 100)) do
    local ledger = read(id)
    if not ledger or FINAL[ledger.state] then
      redis.call('ZREM', K.deadlines, id)
    elseif ledger.state == 'running' and ledger.due > now then
      redis.call('ZADD', K.deadlines, exact(now + 1000), id) -- its worker ends it; look again in case it does not
    else
      expired(now, id, ledger, ttl)
    end
  end
  local aborts = redis.call('ZRANGE', K.abort, 0, 99, 'WITHSCORES')
  for i = 1, #aborts, 2 do
    if cancel(now, aborts[i], ttl) ~= 'unknown' or tonumber(aborts[i + 1]) < now - 60000 then
      redis.call('ZREM', K.abort, aborts[i])
    end
  end
end

-- Whether a model may be claimed: how many (math.huge, 1 as a probe, or 0) and, if 0, the ms after which to look again.
local function admits(now, model)
  local meter = redis.call('HMGET', K.meter .. model, 'strikes', 'until', 'probe')
  if not meter[1] then return math.huge end
  local wait = math.max(tonumber(meter[2]), tonumber(meter[3] or 0)) - now
  if wait > 0 then return 0, wait end
  return 1
end
