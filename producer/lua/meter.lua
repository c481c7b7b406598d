-- How much of a model may start now: its limits, the meter of what is used, its pauses, and those of the account that
-- pays. In front of claim, settle, limits and probed. Times are in ms; `requests` and `tokens` are the moments up to
-- which that limit is used (GCRA). A moment that lies further ahead than any rule puts one is of a clock that has been
-- set back since, and does not count.

local BURST = 200        -- ms of a limit that may start at once
local SLACK = 20         -- ms between two requests beside what their rate says, where none is kept
local GATHER = 50        -- ms of a limit that are worth a worker's while
local MOST_DEBT = 60000  -- ms of a limit; also the age up to which what was charged too much is given back
local CLIMB = 1.05 ^ (1 / 2000)      -- after a drop the rate grows by 5 % every 2 s
local CLIMB_TO_LIMIT = CLIMB ^ 4     -- faster where somebody has said how much is allowed
local LEAST_SHARE = 1 / 64
local FORGOTTEN = 8      -- times what was learned: nobody has said 429 for long
local UNPRESSED = 15000  -- ms for which a rate that was learned still grows when it holds nothing back
local OUTAGE = 10        -- calls in a row that the provider did not take
local LONGEST_PAUSE = 750000 -- what a provider may ask for, and a quarter more
local PROBE = 30000      -- after which another job finds out whether a pause may end
local UNLEARNED = 1000   -- tokens of an answer, before there was one
local IN_FLIGHT_POLL = 1000 -- whoever ends a call claims the next; this is the net below
local METER_TTL = 86400000

local METER = {
  'until', 'strikes', 'since', 'probe', 'failures', 'unreached', 'requests', 'tokens', 'factor', 'learned', 'least', 'dropped', 'pressed', 'grown', 'answered',
  'at', 'recent', 'starts', 'spend', 'samples', 'estimated', 'prompted', 'completed', 'reasoned', 'reason',
}
local LIMITS = { 'rpm', 'tpm', 'in_flight', 'paused' }
local HALF_OPEN = { unavailable = true } -- pauses that end with the answer to one job

local meters = {} -- of this call

-- A number that a rule can have put there; nil for what somebody else did.
local function sound(text, least)
  local number = tonumber(text or nil)
  if number and number == number and number >= least and number < 2 ^ 53 then return number end
end

-- Fields of a hash; none of what is no hash, which is thrown away: nobody could write there any more.
local function fields_of(key, names)
  local values = redis.pcall('HMGET', key, unpack(names))
  if not values.err then return values end
  redis.call('DEL', key)
  return {}
end

-- What Redis knows of a model: the fields of its meter and of its limits, as numbers, but for `reason`.
local function meter_of(model)
  local meter = meters[model]
  if meter then return meter end
  meter = { model = model, changed = {} }
  local values, limits = fields_of(K.meter .. model, METER), {}
  for i, name in ipairs(METER) do meter[name] = name == 'reason' and values[i] or sound(values[i], 0) end
  for i, name in ipairs(LIMITS) do limits[i] = model .. ':' .. name end
  values = fields_of(K.limits, limits)
  for i, name in ipairs(LIMITS) do meter[name] = sound(values[i], 1) end
  if meter.factor == 0 then meter.factor = nil end
  meters[model] = meter
  return meter
end

-- Change a field, or drop it (nil); written at the end of the call.
local function put(meter, name, value)
  meter[name], meter.changed[name] = value, true
end

local function write_meters()
  for model, meter in pairs(meters) do
    local set, gone = {}, {}
    for name in pairs(meter.changed) do
      local value = meter[name]
      if value == nil then gone[#gone + 1] = name
      else
        set[#set + 1] = name
        set[#set + 1] = name == 'reason' and value or exact(value)
      end
    end
    if #gone > 0 then redis.call('HDEL', K.meter .. model, unpack(gone)) end
    if #set > 0 then
      redis.call('HSET', K.meter .. model, unpack(set))
      redis.call('PEXPIRE', K.meter .. model, METER_TTL)
    end
  end
end

-- The ms for which a rate that was learned has grown; less than since it dropped if it held nothing back all the while.
local function grown_for(now, meter)
  local pressed = math.max(meter.pressed or 0, meter.dropped or now)
  return (meter.grown or 0) + math.max(0, math.min(UNPRESSED, now - pressed))
end

-- How many times higher a rate is than when it dropped. One that was learned grows while it is what holds jobs back:
-- a night without jobs says nothing of what the account allows.
local function climbed(now, meter)
  local since = now - (meter.dropped or now)
  if since < 0 then return math.huge end
  if meter.rpm or meter.tpm then return CLIMB_TO_LIMIT ^ since end
  return CLIMB ^ grown_for(now, meter)
end

-- The part of the limits that may be used: all, or less since the provider said 429.
local function share(now, meter)
  return meter.factor and math.min(1, meter.factor * climbed(now, meter)) or 1
end

-- Requests and tokens a minute that may start now; nil: any number. Without limits, what 429s have taught.
local function rates(now, meter)
  local part = share(now, meter)
  local rpm, tpm = meter.rpm and meter.rpm * part, meter.tpm and meter.tpm * part
  if not rpm and not tpm and meter.learned then
    local more = climbed(now, meter)
    if more < FORGOTTEN then rpm = meter.learned * more end
  end
  return rpm, tpm
end

-- Unused time that a request limit keeps: a provider that counts by the second has less patience with slow rates.
local function kept(rpm) return math.max(0, math.min(BURST, 800 - 60000 / rpm)) end

-- The moment up to which a limit is used, if `unused` ms of it may be kept.
local function used_until(now, moment, unused)
  if not moment or moment > now + MOST_DEBT + SLACK then return now - unused end
  return math.max(moment, now - unused)
end

-- Whether something happened after a moment; never, if that is still to come.
local function is_since(now, happened, moment)
  return not moment or happened >= moment or moment > now
end

-- The ms until a moment, or 0 if it has passed, or lies further ahead than it can.
local function until_then(now, moment, longest)
  local wait = (moment or 0) - now
  return wait > 0 and wait <= longest and wait or 0
end

-- How many calls of a model may start: a number, or 0 and the ms after which to look again (nil: when somebody says so);
-- and whether it is the rate of requests that holds them back.
local function room_of(now, meter)
  if meter.paused then return 0 end
  local wait = math.max(until_then(now, meter['until'], LONGEST_PAUSE), until_then(now, meter.probe, PROBE))
  if wait > 0 then return 0, wait end
  local room = math.huge
  if meter.strikes and HALF_OPEN[meter.reason] then room = 1 end
  if meter.in_flight then
    room = math.min(room, meter.in_flight - redis.call('ZCARD', K.running .. meter.model))
    if room <= 0 then return 0, IN_FLIGHT_POLL end
  end
  local rpm, tpm = rates(now, meter)
  local owed = tpm and used_until(now, meter.tokens, BURST) - now or 0
  if owed > 0 then return 0, owed + GATHER end
  if rpm then
    local used = used_until(now, meter.requests, kept(rpm))
    if used > now then return 0, used - now + GATHER * kept(rpm) / BURST, true end
    room = math.min(room, math.floor((now - used) * rpm / 60000) + 1)
  end
  return room
end

-- Charge what starts now, or give it back (negative amounts).
local function charge_requests(now, meter, requests)
  if not (meter.rpm or meter.learned) then return end
  local rpm = rates(now, meter)
  if not rpm then return end
  local interval = math.min(MOST_DEBT, 60000 / rpm) + (kept(rpm) == 0 and SLACK or 0)
  put(meter, 'requests', used_until(now, meter.requests, kept(rpm)) + requests * interval)
end

local function charge_tokens(now, meter, tokens)
  if not meter.tpm then return end
  local _, tpm = rates(now, meter)
  put(meter, 'tokens', math.min(used_until(now, meter.tokens, BURST) + tokens * 60000 / tpm, now + MOST_DEBT))
end

-- Sums that forget: about the last second and the last ten.
local function note_use(now, meter, calls, tokens)
  local age = math.max(0, now - (meter.at or now))
  local second, ten = math.exp(-age / 1000), math.exp(-age / 10000)
  put(meter, 'at', now)
  put(meter, 'recent', (meter.recent or 0) * second + calls)
  put(meter, 'starts', (meter.starts or 0) * ten + calls)
  put(meter, 'spend', (meter.spend or 0) * ten + tokens)
end

-- Tokens that a job will take, from what its producer could tell ('PROMPT' or 'PROMPT/MOST') and from what the model's
-- jobs have really used; and of these the least that its prompt will take.
local function estimate_of(meter, told)
  local prompt, most = string.match(told or '', '^(%d+)/?(%d*)$')
  prompt, most = tonumber(prompt) or 1, tonumber(most)
  local has_learned = meter.prompted and meter.estimated and meter.completed
  local ratio = has_learned and meter.prompted / math.max(1, meter.estimated) or 1
  local answer = has_learned and meter.completed or most or UNLEARNED
  return prompt * ratio + math.min(answer, most or answer) + (meter.reasoned or 0), prompt * math.min(1, ratio)
end

-- Learn from one answer; the first ones count for more. No `max_tokens` bounds what is thought before it.
local function learn(meter, told, prompt, completion, reasoning)
  local estimated = tonumber(string.match(told or '', '^%d+'))
  if not estimated then return end
  local samples = (meter.samples or 0) + 1
  local weight = math.max(1 / 64, 1 / samples)
  put(meter, 'samples', math.min(samples, 64))
  for name, value in pairs({ estimated = estimated, prompted = prompt, completed = completion, reasoned = reasoning }) do
    put(meter, name, (meter[name] or 0) * (1 - weight) + value * weight)
  end
end

-- Pause a model for the fleet, for `least` ms or for 1 s, 2 s, ... 60 s, and up to a quarter more. Calls claimed before
-- the last pause say nothing new. Returns whether this is a new pause.
local function pause(now, meter, claimed, least, reason, luck)
  local is_new = is_since(now, claimed, meter.since)
  if is_new then
    put(meter, 'strikes', (meter.strikes or 0) + 1)
    put(meter, 'since', now)
  end
  local wait = math.max(least, math.min(60000, 1000 * 2 ^ ((meter.strikes or 1) - 1)))
  if is_new then put(meter, 'reason', reason) end
  if is_new or least > 0 then
    wait = math.max(until_then(now, meter['until'], LONGEST_PAUSE), math.ceil(wait * (1 + luck / 4)))
    put(meter, 'until', now + wait)
  end
  put(meter, 'probe', nil)
  return is_new
end

-- The provider said 429: use less. The first refusal of a moment takes a third off the rate, which without a limit is
-- what was started in the last second; every further refusal then is of a call that should not have been counted.
local function drop(now, meter, claimed)
  local is_new = is_since(now, claimed, meter.dropped)
  if meter.rpm or meter.tpm then
    if is_new then put(meter, 'factor', math.max(LEAST_SHARE, share(now, meter) * 2 / 3)) end
  elseif is_new then
    put(meter, 'learned', math.max(1, (rates(now, meter) or 60 * (meter.recent or 0)) * 2 / 3))
    put(meter, 'least', math.max(1, meter.learned / 16))
  else put(meter, 'learned', math.max(meter.least or 1, (meter.learned or 1) - 40)) end
  if is_new then
    put(meter, 'dropped', now)
    put(meter, 'grown', nil)
  end
end

-- The rate that was learned is what holds jobs back now.
local function press(now, meter)
  put(meter, 'grown', grown_for(now, meter))
  put(meter, 'pressed', now)
end

local function is_paused(now, model)
  return until_then(now, meter_of(model)['until'], LONGEST_PAUSE) > 0
end

local function end_pause(meter)
  for _, name in ipairs({ 'until', 'reason', 'strikes', 'since', 'probe', 'failures', 'unreached' }) do
    if meter[name] then put(meter, name, nil) end
  end
end

local payers = {} -- by the routes of the worker: {pattern, account, calls to start at most or -1}; the first that matches
local payer_of = {} -- by model, as far as asked for

-- `rows`: JSON, or '' for one account that pays for all.
local function route(rows, account)
  if rows ~= '' then payers = cjson.decode(rows) end
  payers[#payers + 1] = { '*', account, -1 }
end

local function is_match(pattern, model)
  if string.sub(pattern, -1) ~= '*' then return pattern == model end
  return string.sub(model, 1, #pattern - 1) == string.sub(pattern, 1, -2)
end

-- Who pays for the calls of a model; and how many of this account may start by the worker's own bound.
local function account_of(model)
  local payer = payer_of[model]
  for i = 1, payer and 0 or #payers do
    if is_match(payers[i][1], model) then
      payer = payers[i]
      payer_of[model] = payer
      break
    end
  end
  return payer[2], payer[3]
end

local LOOKED_AT = 15000    -- ms that a worker has to find out whether an account works again
local PROVEN = 5000        -- ms after which a call that was not refused proves that it does: refusals come at once
local LONGEST_ASKED = 30000
local ACCOUNT_TTL = 120000 -- a pause is kept as long as somebody claims under it

-- The pause of an account, or nil. `state`: paused | open (one job finds out whether calls are taken again).
local function account_pause(account)
  local values = fields_of(K.account .. account, { 'until', 'state', 'since', 'strikes', 'probe' })
  if not values[1] then return nil end
  return { ['until'] = sound(values[1], 0) or 0, state = values[2], since = sound(values[3], 0) or 0,
    strikes = sound(values[4], 0) or 0, probe = sound(values[5], 0) }
end

local function keep_account(now, account, ends)
  redis.call('PEXPIRE', K.account .. account, ACCOUNT_TTL)
  redis.call('ZADD', K.accounts, exact(ends), account)
  redis.call('ZREMRANGEBYSCORE', K.accounts, '-inf', exact(now - ACCOUNT_TTL))
  redis.call('PEXPIRE', K.accounts, ACCOUNT_TTL)
end

-- Nobody claims for an account whose key is refused or whose credit is gone; longer each time: 1 s, 2 s, ... 30 s.
local function pause_account(now, account, reason, luck)
  local known = account_pause(account)
  local strikes = known and known.strikes + 1 or 1
  local ends = math.ceil(now + math.min(LONGEST_ASKED, 1000 * 2 ^ (strikes - 1)) * (1 + luck / 4))
  redis.call('HSET', K.account .. account, 'state', 'paused', 'since', exact(now), 'until', exact(ends), 'strikes', exact(strikes))
  if reason then redis.call('HSET', K.account .. account, 'reason', reason) end
  redis.call('HDEL', K.account .. account, 'probe')
  keep_account(now, account, ends)
end

local function wake_all()
  for _, lane in ipairs(redis.call('ZRANGE', K.lanes, 0, -1)) do wake(lane) end
end

local function end_account_pause(account)
  redis.call('DEL', K.account .. account)
  redis.call('ZREM', K.accounts, account)
  wake_all()
end
