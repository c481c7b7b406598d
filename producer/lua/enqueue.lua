-- Accept jobs, all or none of one call; each is recognised when the call is sent again.
--
-- ARGV  1 now | 2 nonce of the call | 3 jobs a lane may hold
--       then per job: id, lane, band, tenant, digest, delay ms, deadline ('' | '+ms from now' | 'ms'), ttl ms or '', metadata or '', group or '', payload
-- reply {'full', lane, jobs in it}   nothing was written
--       {'ok', disposition, state, lane, ...}   disposition: created | duplicate | conflict; lane: where it stands

local WIDTH = 11
local now, nonce, most = clock(ARGV[1]), ARGV[2], tonumber(ARGV[3])

local function known(id)
  return redis.call('EXISTS', K.ledger .. id, K.payload .. id, K.result .. id) > 0
end

local fresh, counted = {}, {}
for i = 4, #ARGV, WIDTH do
  local id, lane = ARGV[i], ARGV[i + 1]
  if not counted[id] and not known(id) then
    counted[id] = true
    fresh[lane] = (fresh[lane] or 0) + 1
  end
end
for lane, count in pairs(fresh) do
  local queued = redis.call('ZCARD', K.lane .. lane)
  if queued + count > most then return { 'full', lane, queued } end
end

local function create(at, mark)
  local id, lane, band, tenant = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
  local wait, deadline, ttl, metadata = tonumber(ARGV[at + 5]), deadline_of(now, ARGV[at + 6]), ARGV[at + 7], ARGV[at + 8]
  local group = ARGV[at + 9]
  -- The first write is one that a full Redis refuses, so that a refused call leaves nothing behind.
  redis.call('SET', K.payload .. id, ARGV[at + 10])
  redis.call('HSET', K.ledger .. id, 'epoch', 1, 'digest', ARGV[at + 4], 'nonce', mark, 'lane', lane, 'model', lane,
    'band', band, 'tenant', tenant, 'enqueued', exact(now))
  if ttl ~= '' then redis.call('HSET', K.ledger .. id, 'ttl', ttl) end
  if metadata ~= '' then redis.call('HSET', K.ledger .. id, 'metadata', metadata) end
  if deadline then
    redis.call('HSET', K.ledger .. id, 'deadline', exact(deadline))
    redis.call('ZADD', K.deadlines, exact(deadline), id)
  end
  local ledger = { lane = lane, band = band, tenant = tenant }
  if group ~= '' then
    ledger.group = group
    redis.call('HSET', K.ledger .. id, 'group', group)
    join_group(id, ledger)
  end
  if wait > 0 then delay(id, ledger, now + wait) else queue(id, ledger) end
  return ledger
end

local reply, lanes = { 'ok' }, {}
for i = 4, #ARGV, WIDTH do
  local id, mark = ARGV[i], nonce .. ':' .. i
  local disposition, readable, ledger = 'created', pcall(read, id)
  if not readable then
    disposition, ledger = 'conflict', { state = 'queued', lane = ARGV[i + 1] } -- the claim that meets it in its lane ends it
  elseif ledger then
    if ledger.nonce == mark then
      redis.call('HSET', K.ledger .. id, 'nonce', mark) -- a write: WAIT counts only what its own connection wrote
    else
      disposition = ledger.digest == ARGV[i + 4] and 'duplicate' or 'conflict'
    end
  elseif known(id) then
    disposition, ledger = 'conflict', { state = 'queued', lane = K.intake } -- plain arq's, and not adopted yet
  else
    ledger = create(i, mark)
    lanes[ledger.lane] = true
  end
  reply[#reply + 1] = disposition
  reply[#reply + 1] = ledger.state
  reply[#reply + 1] = ledger.lane
end
for lane in pairs(lanes) do enter_lane(lane) end
return reply
