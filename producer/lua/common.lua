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

-- Numbers are stored with all their digits: tostring() keeps 14. The same few come again for every job of a call.
local texts = {}
local function exact(number)
  local text = texts[number]
  if not text then
    text = string.format('%.17g', number)
    texts[number] = text
  end
  return text
end

-- A deadline as producers write it: '' | '+ms from now' | 'ms'.
local function deadline_of(now, text)
  if text == '' then return nil end
  if string.sub(text, 1, 1) == '+' then return now + tonumber(string.sub(text, 2)) end
  return tonumber(text)
end

local FIELDS = {
  'state', 'epoch', 'lane', 'model', 'band', 'tenant', 'turn', 'due', 'deadline', 'token',
  'spent', 'stalls', 'cancel', 'enqueued', 'claimed', 'ttl', 'given_back', 'timeouts', 'group',
  'conversation',
}
local OPEN = { queued = true, delayed = true, running = true }
local FINAL = { succeeded = true, failed = true, cancelled = true, expired = true }

local function number_of(text)
  if not text then return nil end
  local number = tonumber(text)
  if not number or number ~= number or number > 2 ^ 53 or number < -2 ^ 53 then error(text .. ' is none of our numbers') end
  return number
end

local function integer_of(text)
  local number = number_of(text)
  if number and number % 1 ~= 0 then error(text .. ' is none of our numbers') end
  return number
end

-- The ledger of one job as a table, or nil if there is none. Raises an error for one that no script has left so.
-- Written out: this runs for every job of every call.
local function read(id)
  local v = redis.call('HMGET', K.ledger .. id, unpack(FIELDS))
  local ledger = {
    state = v[1] or nil, epoch = v[2] or nil, lane = v[3] or nil, model = v[4] or nil, band = integer_of(v[5]),
    tenant = v[6] or nil, turn = number_of(v[7]), due = integer_of(v[8]), deadline = integer_of(v[9]), token = v[10] or nil,
    spent = integer_of(v[11]), stalls = integer_of(v[12]), cancel = v[13] or nil, enqueued = integer_of(v[14]),
    claimed = integer_of(v[15]), ttl = integer_of(v[16]), given_back = v[17] or nil, timeouts = integer_of(v[18]), group = v[19] or nil,
    conversation = v[20] or nil,
  }
  local is_known = OPEN[ledger.state] or FINAL[ledger.state]
  if is_known and ledger.epoch and ledger.lane and ledger.model and ledger.enqueued then return ledger end
  if not next(ledger) then return nil end
  error('a field is missing, or says nothing that we say')
end

local function estimate_in(id) return redis.call('HGET', K.ledger .. id, 'estimate') or nil end

-- The score that the ledger says: it is the truth, the score only an index.
local function score_of(ledger)
  if ledger.state == 'queued' then return exact(ledger.band * BAND + ledger.turn) end
  return exact(math.max(ledger.due, HORIZON)) -- never a turn, whatever stands there: a claim would meet it for ever
end

local function wake(name)
  redis.call('ZADD', K.wake .. name, 0, '1')
  redis.call('PEXPIRE', K.wake .. name, MARKER_TTL)
end

local function wake_new()
  redis.call('ZADD', K.wake_new, 0, '1')
  redis.call('PEXPIRE', K.wake_new, MARKER_TTL)
end

local function holder_of(token) return string.match(token or '', '^(.*):%d+$') end

-- Wake the process that holds a token, so that it renews at once and sees a cancel.
local function wake_holder(token)
  local worker = holder_of(token)
  if worker then wake(worker) end
end

-- A worker shows that it lives.
local function seen(now, worker)
  redis.call('ZADD', K.workers, exact(now), worker)
  redis.call('ZREMRANGEBYSCORE', K.workers, '-inf', exact(now - 600000))
  redis.call('PEXPIRE', K.workers, 600000)
end

local function enter_lane(lane)
  if redis.call('ZADD', K.lanes, 'NX', 0, lane) == 1 then wake_new() end
  wake(lane)
end

local left, finishes = {}, {} -- by this call: lane -> true if a job went out of it; fair key -> tenant -> finish
local counts, forfeits = {}, {} -- by this call: lane -> 'band:tenant' -> jobs more that wait; and -> true if one went unserved

-- A tenant none of whose jobs waits any more, and whose last one went unserved, gives its turns back.
local function count_waiting(lane, of_tenants)
  for place, more in pairs(of_tenants) do
    if more ~= 0 and redis.call('HINCRBY', K.waiting .. lane, place, more) <= 0 then
      redis.call('HDEL', K.waiting .. lane, place)
    end
  end
  for place in pairs(forfeits[lane] or {}) do
    if redis.call('HEXISTS', K.waiting .. lane, place) == 0 then
      local band, tenant = string.match(place, '^(%d):(.*)$')
      redis.call('ZREM', K.fair .. lane .. ':' .. band, tenant)
    end
  end
end

-- What is done once a call, not once a job; every script ends with it. Finishes and counts are written, and a lane
-- without jobs is forgotten, with its bands' clocks.
local function tidy()
  for fair, of_tenants in pairs(finishes) do
    local scores = {}
    for tenant, finish in pairs(of_tenants) do
      scores[#scores + 1] = exact(finish)
      scores[#scores + 1] = tenant
    end
    redis.call('ZADD', fair, unpack(scores))
  end
  for lane, of_tenants in pairs(counts) do count_waiting(lane, of_tenants) end
  for lane in pairs(left) do
    if redis.call('EXISTS', K.lane .. lane, K.running .. lane) == 0 then
      redis.call('ZREM', K.lanes, lane)
      redis.call('DEL', K.fair .. lane .. ':0', K.fair .. lane .. ':1', K.fair .. lane .. ':2', K.waiting .. lane)
    end
  end
end

local shares = {} -- tenant -> the part of a turn after which its next job has one

local function share_of(tenant)
  local share = shares[tenant]
  if not share then
    share = 1 / math.max(1, math.min(100, tonumber(redis.call('HGET', K.tenants, tenant .. ':weight') or nil) or 1))
    shares[tenant] = share
  end
  return share
end

local STEP = 2 ^ -12 -- between the turns of tenants that come one after the other; a score has room for 2^-13

-- A job's place in its band, given once: the tenant's next finish; or, if that is past, the band's clock, behind those
-- who came there before it. (Equal turns would go by the id: newcomers without end would overtake an old job for ever.)
local function take_turn(lane, band, tenant)
  local fair = K.fair .. lane .. ':' .. band
  local known = finishes[fair] or {}
  if known[tenant] then
    local turn = known[tenant]
    known[tenant] = turn + share_of(tenant)
    return turn
  end
  local at = redis.call('ZMSCORE', fair, '', ' ', tenant) -- the clock, the last newcomer's turn, the tenant's finish
  local reached, turn = tonumber(at[1] or 1 - STEP), tonumber(at[3] or 0)
  if turn <= reached then
    turn = math.max(reached, tonumber(at[2] or 0)) + STEP
    redis.call('ZADD', fair, exact(turn), ' ')
  end
  known[tenant] = turn + share_of(tenant)
  finishes[fair] = known
  return turn
end

-- Count a new job in its group.
local function join_group(id, ledger)
  redis.call('HINCRBY', K.group .. ledger.group, 'jobs', 1)
  redis.call('ZADD', K.members .. ledger.group, 0, id)
  redis.call('PERSIST', K.group .. ledger.group)
  redis.call('PERSIST', K.members .. ledger.group)
end

local WAITS = { queued = true, delayed = true }

local PLACES = { [0] = '0:', '1:', '2:' }

local function count(ledger, more)
  if not ledger.band or not ledger.tenant then return end -- a ledger that makes no sense
  local of_tenants, place = counts[ledger.lane] or {}, PLACES[ledger.band] .. ledger.tenant
  of_tenants[place] = (of_tenants[place] or 0) + more
  counts[ledger.lane] = of_tenants
end

-- A job is about to end without having been served.
local function forfeit(ledger)
  if not WAITS[ledger.state] or not ledger.band then return end
  local places = forfeits[ledger.lane] or {}
  places[ledger.band .. ':' .. ledger.tenant] = true
  forfeits[ledger.lane] = places
end

-- Whoever writes a state says so here first: the counters of tenants and groups follow.
local function enter_state(ledger, state)
  if WAITS[state] ~= WAITS[ledger.state] then count(ledger, WAITS[state] and 1 or -1) end
  if ledger.group and ledger.state ~= state then
    if ledger.state then redis.call('HINCRBY', K.group .. ledger.group, ledger.state, -1) end
    redis.call('HINCRBY', K.group .. ledger.group, state, 1)
  end
  ledger.state = state
end

-- A job of a group has ended, with a result kept for `ttl` ms: a group is kept as long as any of its results.
local function end_in_group(id, ledger, ttl)
  local group, members = K.group .. ledger.group, K.members .. ledger.group
  local ended = redis.call('HINCRBY', group, 'ended', 1)
  redis.call('ZADD', members, ended, id)
  local kept = redis.call('HMGET', group, 'jobs', 'ttl', 'requeued')
  local longest = math.max(tonumber(ttl), tonumber(kept[2] or 0))
  redis.call('HSET', group, 'ttl', exact(longest))
  if ended >= tonumber(kept[1] or 0) + tonumber(kept[3] or 0) then
    redis.call('PEXPIRE', group, exact(longest))
    redis.call('PEXPIRE', members, exact(longest))
  end
  redis.pcall('PUBLISH', K.group_done .. ledger.group, id)
end

local NONE = {}

-- Make a job runnable, at the turn it has or at its first one. `fields`: what else to write into its ledger.
local function queue(id, ledger, fields)
  ledger.turn = ledger.turn or take_turn(ledger.lane, ledger.band, ledger.tenant)
  enter_state(ledger, 'queued')
  redis.call('HSET', K.ledger .. id, 'state', 'queued', 'turn', exact(ledger.turn), 'token', '', unpack(fields or NONE))
  redis.call('ZADD', K.lane .. ledger.lane, score_of(ledger), id)
end

-- Hold a job back until `due`; it keeps its turn. `fields` as for `queue`.
local function delay(id, ledger, due, fields)
  enter_state(ledger, 'delayed')
  ledger.due = due
  redis.call('HSET', K.ledger .. id, 'state', 'delayed', 'due', exact(due), 'token', '', unpack(fields or NONE))
  redis.call('ZADD', K.lane .. ledger.lane, score_of(ledger), id)
end

local HELD = 60000 -- ms after which a job that waits for an earlier one of its conversation is looked at, should that have vanished

local function join_conversation(id, ledger)
  local key = K.conversation .. ledger.conversation
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  redis.call('ZADD', key, (last[2] or 0) + 1, id)
end

local function is_open(id)
  local ok, state = pcall(redis.call, 'HGET', K.ledger .. id, 'state')
  return ok and OPEN[state]
end

-- The first job of a conversation that has not ended: the one that may run. `id` has a ledger, or is about to have one.
local function head_of(conversation, id)
  while true do
    local head = redis.call('ZRANGE', K.conversation .. conversation, 0, 0)[1]
    if not head or head == id or is_open(head) then return head end
    redis.call('ZREM', K.conversation .. conversation, head)
  end
end

-- Let a job run after `wait` ms; one that is not the first of its conversation, when those before it have ended, too.
local function admit(now, id, ledger, wait, fields)
  if ledger.conversation and head_of(ledger.conversation, id) ~= id then
    delay(id, ledger, now + HELD, fields)
    redis.call('HSET', K.ledger .. id, 'not_before', exact(now + wait))
  elseif wait > 0 then delay(id, ledger, now + wait, fields)
  else queue(id, ledger, fields) end
end

-- What is left of the time that a job of a conversation was to wait for, of its own.
local function wait_of(now, id)
  return math.max(0, (tonumber(redis.call('HGET', K.ledger .. id, 'not_before') or nil) or 0) - now)
end

-- A job has ended: the next of its conversation may run.
local function leave_conversation(now, id, ledger)
  local key = K.conversation .. ledger.conversation
  local was_head = redis.call('ZRANGE', key, 0, 0)[1] == id
  redis.call('ZREM', key, id)
  local head = was_head and head_of(ledger.conversation)
  if not head then return end
  local ok, following = pcall(read, head)
  if not ok or following.state ~= 'delayed' then return end -- a bad record is ended by the claim that meets it
  admit(now, head, following, wait_of(now, head))
  wake(following.lane)
end

-- Give `token` the right to run a job until `due`; `claimed` since when.
local function lease(id, ledger, token, claimed, due, length)
  enter_state(ledger, 'running')
  redis.call('HSET', K.ledger .. id, 'state', 'running', 'token', token, 'claimed', exact(claimed), 'due', exact(due))
  redis.call('SET', K.in_progress .. id, token, 'PX', length)
  redis.call('ZADD', K.lane .. ledger.lane, exact(due), id)
  redis.call('ZADD', K.running .. ledger.model, exact(due), id)
  if ledger.model ~= ledger.lane then redis.call('ZADD', K.lanes, 'NX', 0, ledger.model) end -- where its leases are looked for
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
  redis.call('ZREM', K.lane .. ledger.lane, id)
  if ledger.deadline then redis.call('ZREM', K.deadlines, id) end
  if state == 'failed' then
    redis.call('PEXPIRE', K.payload .. id, ttl)
    redis.call('ZADD', K.failed, exact(now + ttl), id)
    redis.call('ZREMRANGEBYSCORE', K.failed, '-inf', exact(now))
    if redis.call('PTTL', K.failed) < tonumber(ttl) then redis.call('PEXPIRE', K.failed, ttl) end
    unlease(id, ledger)
  else
    redis.call('DEL', K.payload .. id, K.in_progress .. id)
    redis.call('ZREM', K.running .. ledger.model, id)
  end
  enter_state(ledger, state)
  redis.call('HSET', K.ledger .. id, 'state', state, 'finished', exact(now))
  redis.call('PEXPIRE', K.ledger .. id, ttl)
  left[ledger.lane], left[ledger.model] = true, true
  if ledger.group then end_in_group(id, ledger, ttl) end
  if ledger.conversation then leave_conversation(now, id, ledger) end
  redis.pcall('PUBLISH', K.done .. id, state) -- refused to an ACL user without channels; its readers look every ten seconds
end

-- A result in arq's wire shape for a job that ends without a run; the payload is not decoded.
local function verdict(now, id, ledger, state, code, message)
  local r = cjson.encode({ status = state, model = ledger.model, error = { code = code, message = message } })
  return '{"t":' .. exact(ledger.spent or 0) .. ',"f":"sample_prompt","a":[],"k":{},"et":' .. exact(ledger.enqueued or now)
    .. ',"s":false,"r":' .. r .. ',"st":' .. exact(ledger.claimed or now) .. ',"ft":' .. exact(now)
    .. ',"q":' .. cjson.encode(K.lane .. ledger.lane) .. ',"id":' .. cjson.encode(id) .. '}'
end

-- As what a job of a group is counted whose own word for it is lost: as none twice, so that the group can end.
local function counted_as(group, token)
  if token and token ~= '' then return 'running' end
  if tonumber(redis.call('HGET', K.group .. group, 'queued') or 0) > 0 then return 'queued' end
  return 'delayed'
end

-- End a job whose ledger makes no sense: whoever waits for it gets a result, and nothing of it stays for ever.
local function write_off(now, id, lane, ttl)
  local rest = { lane = lane, model = lane }
  redis.call('ZREM', K.deadlines, id)
  if redis.call('TYPE', K.ledger .. id).ok == 'hash' then
    local said = redis.call('HMGET', K.ledger .. id, 'state', 'model', 'group', 'token', 'band', 'tenant', 'conversation')
    if FINAL[said[1]] then return end
    rest = { lane = lane, state = OPEN[said[1]] and said[1], model = said[2] or lane, group = said[3] or nil,
      conversation = said[7] or nil }
    if string.match(said[5] or '', '^[012]$') then rest.band, rest.tenant = tonumber(said[5]), said[6] or nil end
    if rest.group and not rest.state then rest.state = counted_as(rest.group, said[4]) end
    redis.call('HDEL', K.ledger .. id, 'digest', 'nonce', unpack(FIELDS))
  else
    redis.call('DEL', K.ledger .. id)
  end
  redis.call('HSET', K.ledger .. id, 'epoch', 1, 'lane', lane, 'model', rest.model, 'enqueued', exact(now))
  finish(now, id, rest, 'failed', verdict(now, id, rest, 'failed', 'invalid_request', 'its ledger makes no sense'), ttl)
end

local function cancelled(now, id, ledger, ttl)
  forfeit(ledger)
  finish(now, id, ledger, 'cancelled', verdict(now, id, ledger, 'cancelled', 'cancelled', 'cancelled on request'), ttl)
end

local function expired(now, id, ledger, ttl)
  forfeit(ledger)
  finish(now, id, ledger, 'expired', verdict(now, id, ledger, 'expired', 'expired', 'the deadline passed before there was an answer'), ttl)
end

-- Cancel one job: at once if nobody runs it, else by telling its holder.
-- Returns unknown | over | cancelled | cancelling.
local function cancel(now, id, ttl)
  local ledger = read(id)
  if not ledger then
    if not redis.call('ZSCORE', K.lane .. K.intake, id) then return 'unknown' end -- nobody's, or another application's
    -- Plain arq's, and not adopted yet.
    ledger = { state = 'queued', lane = K.intake, model = K.intake }
    redis.call('HSET', K.ledger .. id, 'state', 'queued', 'epoch', 1, 'lane', K.intake, 'model', K.intake, 'enqueued', exact(now))
  end
  if FINAL[ledger.state] then
    redis.call('ZREM', K.lane .. ledger.lane, id) -- where plain arq's abort may have put it back
    return 'over'
  end
  if ledger.state == 'running' and ledger.due > now then
    redis.call('HSET', K.ledger .. id, 'cancel', '1')
    wake_holder(ledger.token)
    return 'cancelling'
  end
  cancelled(now, id, ledger, ttl)
  return 'cancelled'
end

local function pass_deadline(now, id, ttl)
  local ledger = read(id)
  if not ledger or FINAL[ledger.state] then
    redis.call('ZREM', K.deadlines, id)
  elseif ledger.state == 'running' and ledger.due > now then
    redis.call('ZADD', K.deadlines, exact(now + 1000), id) -- its worker ends it; look again in case it does not
  else
    expired(now, id, ledger, ttl)
  end
end

-- What comes due without anybody claiming it: passed deadlines, and the aborts of plain arq clients.
-- A bad record leaves these lists, so that it stops nobody; the claim that meets it in its lane ends it.
local function sweep(now, ttl)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.deadlines, '-inf', exact(now), 'LIMIT', 0, 100)) do
    if not pcall(pass_deadline, now, id, ttl) then redis.call('ZREM', K.deadlines, id) end
  end
  local aborts = redis.call('ZRANGE', K.abort, 0, 99, 'WITHSCORES')
  for i = 1, #aborts, 2 do
    local ok, said = pcall(cancel, now, aborts[i], ttl)
    if not ok or said ~= 'unknown' or tonumber(aborts[i + 1]) < now - 60000 then
      redis.call('ZREM', K.abort, aborts[i])
    end
  end
end
