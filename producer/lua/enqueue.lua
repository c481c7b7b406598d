-- Accept jobs, all or none of one call; each is recognised when the call is sent again.
--
-- ARGV  1 now | 2 nonce of the call | 3 jobs a lane may hold
--       then per job: id, lane, band, tenant, digest, delay ms, deadline ('' | '+ms from now' | 'ms'), ttl ms or '', metadata or '', group or '',
--       conversation or '', estimate of its tokens, payload
-- reply {'full', lane, jobs in it, jobs it may hold}   nothing was written
--       {'capped', tenant, jobs of it that wait, jobs that may}   nothing was written
--       {'ok', disposition, state, lane, ...}   disposition: created | duplicate | conflict; lane: where it stands

local WIDTH = 13
local now, nonce, most = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])

local function known(id)
  return redis.call('EXISTS', K.ledger .. id, K.payload .. id, K.result .. id) > 0
end

local is_new, of_lanes, of_tenants = {}, {}, {} -- by id; new jobs by lane and by tenant
for i = 4, #ARGV, WIDTH do
  local id, lane, tenant = ARGV[i], ARGV[i + 1], ARGV[i + 3]
  if is_new[id] == nil then
    is_new[id] = not known(id)
    if is_new[id] then
      of_lanes[lane] = (of_lanes[lane] or 0) + 1
      of_tenants[tenant] = (of_tenants[tenant] or 0) + 1
    end
  end
end
for lane, more in pairs(of_lanes) do
  local queued = redis.call('ZCARD', K.lane .. lane)
  if queued + more > most then return { 'full', lane, queued, most } end
end

local function waiting_of(tenant)
  local waiting = 0
  for _, lane in ipairs(redis.call('ZRANGE', K.lanes, 0, -1)) do
    for _, jobs in ipairs(redis.call('HMGET', K.waiting .. lane, '0:' .. tenant, '1:' .. tenant, '2:' .. tenant)) do
      waiting = waiting + (tonumber(jobs or nil) or 0)
    end
  end
  return waiting
end

for tenant, more in pairs(of_tenants) do
  local cap = tonumber(redis.call('HGET', K.tenants, tenant .. ':max_queued') or nil)
  local waiting = cap and waiting_of(tenant)
  if cap and waiting + more > cap then return { 'capped', tenant, waiting, cap } end
end

local function create(at, mark)
  local id, lane, band, tenant, group = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 9]
  local wait, deadline, ttl, metadata = tonumber(ARGV[at + 5]), deadline_of(now, ARGV[at + 6]), ARGV[at + 7], ARGV[at + 8]
  local ledger = { lane = lane, band = band, tenant = tenant, group = group ~= '' and group or nil }
  local fields = { 'epoch', 1, 'digest', ARGV[at + 4], 'nonce', mark, 'lane', lane, 'model', lane, 'band', band, 'tenant', tenant,
    'enqueued', exact(now), 'estimate', ARGV[at + 11] }
  local function also(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if ttl ~= '' then also('ttl', ttl) end
  if metadata ~= '' then also('metadata', metadata) end
  -- The first write is one that a full Redis refuses, so that a refused call leaves nothing behind.
  redis.call('SET', K.payload .. id, ARGV[at + 12])
  if deadline then
    also('deadline', exact(deadline))
    redis.call('ZADD', K.deadlines, exact(deadline), id)
  end
  if ledger.group then
    also('group', group)
    join_group(id, ledger)
  end
  if ARGV[at + 10] ~= '' then
    ledger.conversation = ARGV[at + 10]
    also('conversation', ledger.conversation)
    join_conversation(id, ledger)
  end
  admit(now, id, ledger, wait, fields)
  return 'created', ledger.state, lane
end

-- What to say of an id that is known. A bad record counts as queued: the claim that meets it in its lane ends it.
local function recognise(at, mark)
  local id = ARGV[at]
  local is_readable, ledger = pcall(read, id)
  if not is_readable then return 'conflict', 'queued', ARGV[at + 1] end
  if not ledger then return 'conflict', 'queued', K.intake end -- plain arq's, and not adopted yet
  local call = redis.call('HMGET', K.ledger .. id, 'nonce', 'digest')
  if call[1] == mark then
    redis.call('HSET', K.ledger .. id, 'nonce', mark) -- a write: WAIT counts only what its own connection wrote
    return 'created', ledger.state, ledger.lane
  end
  return call[2] == ARGV[at + 4] and 'duplicate' or 'conflict', ledger.state, ledger.lane
end

local reply, lanes = { 'ok' }, {}
for i = 4, #ARGV, WIDTH do
  local id, act = ARGV[i], recognise
  if is_new[id] then
    is_new[id], lanes[ARGV[i + 1]], act = false, true, create
  end
  local at = #reply
  reply[at + 1], reply[at + 2], reply[at + 3] = act(i, nonce .. ':' .. i)
end
tidy()
for lane in pairs(lanes) do enter_lane(lane) end
return reply
