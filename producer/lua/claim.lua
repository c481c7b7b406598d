-- Take jobs to run: ends what is over, promotes what has come due, leases by band, lane and turn.
-- Sent again with the same sequence number it gives the same answer.
--
-- ARGV  1 now | 2 worker | 3 sequence number | 4 free slots | 5 lease ms | 6 time in ms until which it may take run-out leases (0: not at all)
--       7 '1': may take a job that stalled twice | 8 bytes of payload in one reply | 9 failure TTL ms | 10 result TTL ms
--       11 lanes this worker knows (JSON) | 12 account that pays
--       13 accounts that pay for some models, and how many calls they may start (JSON: {{pattern, account, calls or -1}, ...}, or '')
--       14... lanes it serves (none: all)
-- reply {now, '1' if slots, bytes or its own bound stopped it, ms until something comes due or -1,
--       the account of which this worker is to find out whether it works, or ''}, {lane, ...},
--       {{id, epoch, lane, model, spent, deadline or '', enqueued, stalls, timeouts, payload}, ...},
--       {{id, lane, payload of plain arq or ''}, ...}

local now, worker, seq, slots, length = clock(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local may_take_over, may_take_poison, most_bytes, failure_ttl = now < tonumber(ARGV[6]), ARGV[7] == '1', tonumber(ARGV[8]), ARGV[9]
local result_ttl, FIRST_LANE = ARGV[10], 14
local token, record = worker .. ':' .. seq, K.worker .. worker
route(ARGV[13], ARGV[12])
redis.call('ZREM', K.wake_new, '') -- needs no memory: a full Redis lets a script write on after such a command

local MOST_FOREIGN = 50 -- the worker adopts them one by one
local jobs, foreign, bytes, has_more, due_in = {}, {}, 0, false, nil

local function come_back(wait)
  if not due_in or wait < due_in then due_in = wait end
end

local function hand_over(id, ledger, payload)
  bytes = bytes + #payload
  jobs[#jobs + 1] = { id, ledger.epoch, ledger.lane, ledger.model, exact(ledger.spent or 0),
    ledger.deadline and exact(ledger.deadline) or '', exact(ledger.enqueued), exact(ledger.stalls or 0),
    exact(ledger.timeouts or 0), payload }
end

local function known_lanes()
  local served = {}
  for i = FIRST_LANE, #ARGV do served[ARGV[i]] = true end
  local lanes = {}
  for _, lane in ipairs(redis.call('ZRANGE', K.lanes, 0, -1)) do
    if #ARGV < FIRST_LANE or served[lane] then lanes[#lanes + 1] = lane end
  end
  if #ARGV < FIRST_LANE and redis.call('ZSCORE', K.lanes, K.intake) == false then lanes[#lanes + 1] = K.intake end
  return lanes
end
local lanes = known_lanes()

local last = redis.call('HMGET', record, 'seq', 'ids')
if last[1] == seq then
  for _, id in ipairs(cjson.decode(last[2])) do
    local ok, ledger = pcall(read, id)
    if ok and ledger and ledger.state == 'running' and ledger.token == token then
      lease(id, ledger, token, ledger.claimed or now, now + length, length)
      hand_over(id, ledger, redis.call('GET', K.payload .. id) or '')
    end
  end
  return { { exact(now), '1', -1, '' }, lanes, jobs, foreign }
end

-- A bad record must stop nobody: it leaves its lane for the failed ones.
local function guarded(lane, id, act, ...)
  local ok, said = pcall(act, id, ...)
  if ok then return said end
  redis.call('ZREM', K.lane .. lane, id)
  redis.call('ZREM', K.running .. lane, id)
  left[lane] = true
  pcall(write_off, now, id, lane, failure_ttl)
  return nil
end

-- A member that does not belong here: an abort by a plain arq client may put back what has ended.
local function throw_out(id, lane)
  redis.call('ZREM', K.lane .. lane, id)
  left[lane] = true
end

local function hand_over_foreign(id, lane)
  local size = redis.call('STRLEN', K.payload .. id)
  if #foreign == MOST_FOREIGN or #jobs + #foreign > 0 and bytes + size > most_bytes then
    return redis.call('ZADD', K.lane .. lane, exact(now), id) -- due at once: the next claim takes it
  end
  bytes = bytes + size
  redis.call('PERSIST', K.payload .. id)
  redis.call('ZADD', K.lane .. lane, exact(now + length), id) -- for this worker to adopt; then for the next
  foreign[#foreign + 1] = { id, lane, redis.call('GET', K.payload .. id) or '' }
end

-- A lease that ran out: the third one ends the job, since it may be what kills its workers.
local function stall(id, ledger)
  ledger.stalls = (ledger.stalls or 0) + 1
  redis.call('HSET', K.ledger .. id, 'stalls', exact(ledger.stalls))
  unlease(id, ledger)
  if ledger.cancel then return cancelled(now, id, ledger, result_ttl) end
  if ledger.deadline and ledger.deadline <= now then return expired(now, id, ledger, result_ttl) end
  if ledger.stalls >= POISON_STALLS then
    local why = 'the lease ran out ' .. POISON_STALLS .. ' times: its workers died, or could not reach Redis'
    return finish(now, id, ledger, 'failed', verdict(now, id, ledger, 'failed', 'stalled', why), failure_ttl)
  end
  queue(id, ledger)
end

local function promote(id, lane)
  local ledger = read(id)
  if not ledger then return hand_over_foreign(id, lane) end
  if FINAL[ledger.state] or ledger.lane ~= lane then return throw_out(id, lane) end
  if ledger.state == 'queued' or ledger.due > now then return redis.call('ZADD', K.lane .. lane, score_of(ledger), id) end
  if ledger.state == 'delayed' then return admit(now, id, ledger, ledger.conversation and wait_of(now, id) or 0) end
  if may_take_over then return stall(id, ledger) end
  redis.call('ZADD', K.lane .. lane, exact(now + 1000), id) -- out of the way; the ledger keeps the end of the lease
end

local function stall_if_run_out(id, model)
  local ledger = read(id)
  if not ledger or ledger.state ~= 'running' then return redis.call('ZREM', K.running .. model, id) end
  if ledger.due <= now then stall(id, ledger) else redis.call('ZADD', K.running .. model, exact(ledger.due), id) end
end

local function promote_due()
  local room = 100
  for _, lane in ipairs(lanes) do
    if may_take_over and room > 0 then
      local over = redis.call('ZRANGEBYSCORE', K.running .. lane, '-inf', exact(now), 'LIMIT', 0, room)
      room = room - #over
      for _, id in ipairs(over) do guarded(lane, id, stall_if_run_out, lane) end
    end
  end
  for _, lane in ipairs(lanes) do
    if room > 0 then
      local due = redis.call('ZRANGEBYSCORE', K.lane .. lane, exact(HORIZON), exact(now), 'LIMIT', 0, room)
      room = room - #due
      for _, id in ipairs(due) do guarded(lane, id, promote, lane) end
    end
  end
end

local to_ask = '' -- the account about which this worker is to ask the provider

-- How many jobs an account lets start: all, one, or none.
local function account_room(account)
  local pause = account_pause(account)
  if not pause then return math.huge end
  keep_account(now, account, math.max(pause['until'], now))
  if pause.state == 'open' then
    if not pause.probe then return 1 end
    local wait = until_then(now, pause.probe, PROVEN)
    if wait > 0 then come_back(wait) return 0 end
    end_account_pause(account)
    return math.huge
  end
  local wait = until_then(now, pause['until'], LONGEST_PAUSE)
  if wait > 0 or to_ask ~= '' then come_back(math.max(wait, GATHER)) return 0 end
  to_ask = account
  redis.call('HSET', K.account .. account, 'until', exact(now + LOOKED_AT))
  come_back(LOOKED_AT)
  return 0
end

local rooms = {} -- account -> jobs that may start
local trying = {} -- accounts of which one job finds out whether they work

-- What the account of a model lets start, and this worker's own bound for it.
local function room_of_payer(model)
  local account, most = account_of(model)
  if not rooms[account] then
    rooms[account] = account_room(account)
    if rooms[account] == 1 then trying[account] = true end
    if most >= 0 then rooms[account] = math.min(rooms[account], most) end
  end
  return rooms[account]
end

local function account_room_of(lane)
  return lane == K.intake and math.huge or room_of_payer(lane) -- in the intake, each job has a model of its own
end

local MOST_ROUNDS = 1000 -- far more than there can be: a script that does not end stops the whole fleet
local taken = {} -- lane -> band -> highest turn leased
local started = {} -- model -> calls

-- Write on the meter of its model that a job starts.
local function charge(id, ledger, meter, estimate)
  started[ledger.model] = (started[ledger.model] or 0) + 1
  charge_requests(now, meter, 1)
  if meter.tpm then
    local tokens = math.floor(estimate_of(meter, estimate) + 0.5)
    charge_tokens(now, meter, tokens)
    redis.call('HSET', K.ledger .. id, 'charged', exact(tokens))
  end
  if meter.strikes and HALF_OPEN[meter.reason] then put(meter, 'probe', now + PROBE) end
  local account = account_of(ledger.model)
  rooms[account] = room_of_payer(ledger.model) - 1
  if trying[account] then
    trying[account] = nil
    redis.call('HSET', K.account .. account, 'probe', exact(now + PROVEN))
    come_back(PROVEN)
  end
end

local function is_too_large(meter, estimate)
  if not meter.tpm then return false end
  local _, least = estimate_of(meter, estimate)
  return least > meter.tpm
end

local MOST_HELD_BACK = 1000 -- ms
local held_back = {} -- model -> jobs

-- An adopted job whose model has no room leaves the head of the intake lane to others, and comes again about when its
-- model has room for it: of many that came at once, all but a few would only be sent away again.
local function hold_back(id, ledger, wait)
  local ahead = held_back[ledger.model] or 0
  held_back[ledger.model] = ahead + 1
  delay(id, ledger, now + math.ceil(math.max(wait, math.min(MOST_HELD_BACK, wait * (1 + ahead / 2)))))
  return 'held back'
end

-- Returns whether the job was leased, or 'held back'.
local function take(id, lane, band)
  local ledger = read(id)
  if not ledger then hand_over_foreign(id, lane) return false end
  if FINAL[ledger.state] or ledger.lane ~= lane then throw_out(id, lane) return false end
  if ledger.state ~= 'queued' then redis.call('ZADD', K.lane .. lane, score_of(ledger), id) return false end
  if ledger.deadline and ledger.deadline <= now then expired(now, id, ledger, result_ttl) return false end
  if ledger.conversation and head_of(ledger.conversation, id) ~= id then admit(now, id, ledger, 0) return false end
  local meter = meter_of(ledger.model)
  local estimate = meter.tpm and estimate_in(id)
  if is_too_large(meter, estimate) then
    local why = 'its prompt is larger than the ' .. exact(meter.tpm) .. ' tokens a minute that its model is limited to'
    finish(now, id, ledger, 'failed', verdict(now, id, ledger, 'failed', 'too_large', why), failure_ttl)
    return false
  end
  if ledger.model ~= lane then
    local room, wait = room_of(now, meter)
    if room == 0 or room_of_payer(ledger.model) == 0 then return hold_back(id, ledger, wait or MOST_HELD_BACK) end
  end
  if (ledger.stalls or 0) >= POISON_STALLS - 1 then
    if not may_take_poison then delay(id, ledger, now + 1000) return false end
    may_take_poison = false
  end
  local payload = redis.call('GET', K.payload .. id) or ''
  if #jobs > 0 and bytes + #payload > most_bytes then has_more = true return false end
  lease(id, ledger, token, now, now + length, length)
  charge(id, ledger, meter, estimate)
  hand_over(id, ledger, payload)
  local of_bands = taken[lane] or {}
  of_bands[band] = math.max(of_bands[band] or 0, ledger.turn)
  taken[lane] = of_bands
  return true
end

local MOST_PASSED = 100 -- jobs that one claim ends instead, or holds back
local ended, held = 0, 0

-- Lease at most `most` jobs of one band of one lane; returns whether there may be more.
local function serve(lane, band, most)
  local of_account, meter = account_room_of(lane), meter_of(lane)
  if of_account == 0 then return false end
  local room, wait, is_rate = room_of(now, meter)
  most = math.max(1, math.min(most, room, of_account))
  local low, high = band == 0 and '-inf' or exact(band * BAND), '(' .. exact((band + 1) * BAND)
  local ids = redis.call('ZRANGEBYSCORE', K.lane .. lane, low, high, 'LIMIT', 0, most)
  for _, id in ipairs(ids) do
    if room == 0 then
      if wait then come_back(wait) end
      if is_rate and meter.learned then press(now, meter) end
      return false
    end
    if has_more or account_room_of(lane) == 0 then return false end
    local said = guarded(lane, id, take, lane, band)
    if said == 'held back' then
      held = held + 1
      if held >= MOST_PASSED then come_back(GATHER) return false end -- for other lanes there is time now
    elseif said then
      slots = slots - 1
      if room < math.huge or meter.tpm then room, wait, is_rate = room_of(now, meter) end -- no number of jobs tells what is left of tokens
    else
      ended = ended + 1
      if ended == MOST_PASSED then has_more = true end
    end
  end
  return #ids == most
end

-- Lanes take turns inside a band: each gets its share of the slots, what is left goes round again.
local function serve_band(band)
  local open, rounds = lanes, 0
  while slots > 0 and #open > 0 and not has_more and rounds < MOST_ROUNDS do
    local still = {}
    rounds = rounds + 1
    for i, lane in ipairs(open) do
      if slots > 0 and not has_more and serve(lane, band, math.max(1, math.floor(slots / (#open - i + 1)))) then still[#still + 1] = lane end
    end
    open = still
  end
end

local function advance_clocks()
  for lane, of_bands in pairs(taken) do
    for band, turn in pairs(of_bands) do
      local fair = K.fair .. lane .. ':' .. band
      if turn > tonumber(redis.call('ZSCORE', fair, '') or 1) then
        redis.call('ZADD', fair, exact(turn), '')
        redis.call('ZREMRANGEBYSCORE', fair, '-inf', '(' .. exact(turn))
      end
    end
    if #lanes > 1 then redis.call('ZADD', K.lanes, 'XX', exact(now), lane) end
  end
end

-- Other workers are woken for lanes that this one did not know, so that all come to wait for them, one after the other;
-- and for what these slots could not take.
local function pass_on()
  local known = { [K.intake] = true }
  for _, lane in ipairs(cjson.decode(ARGV[11])) do known[lane] = true end
  for _, lane in ipairs(lanes) do
    if not known[lane] then wake_new() break end
  end
  if slots > 0 and not has_more then return end
  for _, lane in ipairs(lanes) do
    if redis.call('ZCOUNT', K.lane .. lane, '-inf', '(' .. exact(HORIZON)) > 0 and account_room_of(lane) > 0
      and room_of(now, meter_of(lane)) > 0 then wake(lane) end
  end
end

local function look_ahead()
  for _, lane in ipairs(lanes) do
    local next_due = redis.call('ZRANGEBYSCORE', K.lane .. lane, exact(HORIZON), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if next_due[2] then come_back(math.max(1, tonumber(next_due[2]) - now)) end
  end
  local deadline = redis.call('ZRANGE', K.deadlines, 0, 0, 'WITHSCORES')
  -- Where nothing of these lanes is left waiting, a deadline is for the workers of other lanes.
  if deadline[2] and (due_in or has_more) then come_back(math.max(1, tonumber(deadline[2]) - now)) end
end

seen(now, worker)
sweep(now, result_ttl)
promote_due()
for band = 0, 2 do serve_band(band) end
for model, calls in pairs(started) do note_use(now, meter_of(model), calls, 0) end
write_meters()
tidy()
advance_clocks()
if slots == 0 then has_more = true end
pass_on()
look_ahead()
if #jobs > 0 then
  local ids = {}
  for i, job in ipairs(jobs) do ids[i] = job[1] end
  redis.call('HSET', record, 'seq', seq, 'ids', cjson.encode(ids))
  redis.call('PEXPIRE', record, 600000)
end
return { { exact(now), has_more and '1' or '0', due_in and exact(math.ceil(due_in)) or '-1', to_ask }, lanes, jobs, foreign }
